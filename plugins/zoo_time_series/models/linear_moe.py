"""A mixture of linear experts, all of them in closed form: ``y = W_0 x + sum_g W_(g, e_g) x``.

``W_0`` is the ridge of `Ridge`, for every window. Each gate g adds one of its own experts e_g, chosen by what kind of
window it is: the hour or the weekday at which the forecast starts, how widely its values spread, or the prototype that
its shape is nearest to. An expert is a ridge on what is left over of the windows it is responsible for, pulled to zero,
so that with few windows the forecast stays that of the ridge. A gate's penalty is chosen on the validation windows, and
a gate that does not help there is left out.

Related: mixtures of linear experts trained by gradient (Ni et al., arXiv:2312.06786).

Shapes: B windows, L context, H horizon, E experts of a gate, T = L + H, C covariates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from zoo import config as zc
from zoo.moe import RouterOutput, Routing
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo_time_series.blocks.least_squares import outer, solve, squared_error
from zoo_time_series.models.baselines import Ridge

CALENDAR = {"hour": 0, "weekday": 1, "day_of_month": 2, "day_of_year": 3}  # channels of the calendar's covariates
SEEN = 20_000  # windows from which thresholds and prototypes are taken


class Output(NamedTuple):
    """The forecast of shifted windows, (B, H), and what each gate decided."""

    values_BH: Tensor
    routing: Routing


@dataclass
class GateConfig:
    """``by``: a part of the date at the first point to forecast; ``spread``, equally filled bins of the window's
    deviation; ``shape``, the nearest of ``experts`` prototypes (k-means) of the last ``span`` points over it."""

    by: Literal["hour", "weekday", "day_of_month", "day_of_year", "spread", "shape"] = "hour"
    experts: int = 8
    span: int = 168

    def __post_init__(self) -> None:
        zc.at_least(2, self, "experts", "span")


class Gate(nn.Module):
    """One expert of E for each window, and the experts."""

    def __init__(self, config: GateConfig, context: int, horizon: int) -> None:
        super().__init__()
        self.config = config
        if config.by == "shape" and config.span > context:
            raise ZooError(f"a gate by shape looks at span={config.span} points, but context={context}; lower span")
        self.weight = nn.Parameter(torch.zeros(config.experts, horizon, context), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(config.experts, horizon), requires_grad=False)
        if config.by == "spread":
            self.register_buffer("threshold", torch.zeros(config.experts - 1))
        if config.by == "shape":
            self.register_buffer("prototype", torch.zeros(config.experts, config.span))

    def inactive_parameters(self) -> int:
        """Parameters that a window does not pass."""
        return (self.weight.numel() + self.bias.numel()) * (self.config.experts - 1) // self.config.experts

    def route(self, x_BL: Tensor, date_BC: Tensor | None) -> RouterOutput:
        """The decision for shifted windows; ``date_BC`` are the covariates of the first point to forecast."""
        c = self.config
        if c.by in CALENDAR:
            assert date_BC is not None
            place_B = (date_BC[:, CALENDAR[c.by]] + 0.5) * c.experts
            logits_BE = -(place_B[:, None] - 0.5 - torch.arange(c.experts, device=x_BL.device)).abs()
        elif c.by == "spread":
            above_BE = deviation(x_BL).log() > F.pad(self.threshold, (1, 0), value=-math.inf)
            logits_BE = above_BE.cumsum(1) * above_BE.float()
        else:
            logits_BE = -torch.cdist(x_BL[:, -c.span :] / deviation(x_BL), self.prototype)
        index_B1 = logits_BE.argmax(1, keepdim=True)
        used_B1 = torch.ones_like(index_B1, dtype=torch.bool)
        scores_BE = torch.zeros_like(logits_BE).scatter_(1, index_B1, 1.0)
        return RouterOutput(logits_BE, scores_BE, scores_BE, index_B1, used_B1.to(x_BL), used_B1, used_B1[:, 0])

    def learn(self, x_BL: Tensor) -> None:
        """Thresholds or prototypes from shifted windows."""
        if self.config.by == "spread":
            level = torch.arange(1, self.config.experts, device=x_BL.device) / self.config.experts
            self.threshold.copy_(deviation(x_BL)[:, 0].log().quantile(level))
        elif self.config.by == "shape":
            self.prototype.copy_(kmeans(x_BL[:, -self.config.span :] / deviation(x_BL), self.config.experts))

    def forward(self, x_BL: Tensor, out: RouterOutput) -> Tensor:
        """(B, H): each window through its expert."""
        y_BH = x_BL.new_zeros(len(x_BL), self.bias.shape[1])
        if x_BL.is_meta:  # which rows go where is not known there
            return y_BH
        for e in range(self.config.experts):
            rows = (out.index_TK[:, 0] == e).nonzero()[:, 0]
            y_BH[rows] = F.linear(x_BL[rows], self.weight[e], self.bias[e])
        return y_BH


class LinearMoE(Ridge):
    """Args (config), beside those of `Ridge`:
    gates: in order, each for what those before it left over.
    expert_penalties: of all experts of a gate, in units of the mean variance of an input in the expert's own windows.
    """

    @dataclass
    class Config(Ridge.Config):
        gates: list[Any] = field(default_factory=list)
        expert_penalties: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
        covariates: int = 4

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        chosen = [zc.make(GateConfig, **gate) for gate in config.gates]
        if any(gate.by in CALENDAR for gate in chosen) and config.covariates < len(CALENDAR):
            raise ZooError(f"a gate by date needs the calendar, covariates=4 at least, not {config.covariates}")
        self.gates = nn.ModuleList(Gate(gate, config.context, config.horizon) for gate in chosen)

    def forward(self, x_BL: Tensor, covariates_BTC: Tensor | None = None) -> Output:  # type: ignore[override]
        """From shifted windows (B, L); covariates are those of all their points, then of those to forecast."""
        date_BC = None if covariates_BTC is None else covariates_BTC[:, x_BL.shape[1]]
        y_BH, routing = F.linear(x_BL, self.weight, self.bias), []
        for gate in self.gates:
            out = gate.route(x_BL, date_BC)
            y_BH = y_BH + gate(x_BL, out)
            routing.append(out)
        return Output(y_BH, tuple(routing))

    def forecast(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        covariates_BTC: Tensor | None = None,
    ) -> Tensor:
        """Points beyond the horizon are forecast from those within it."""
        c, given = self.config, past_BL.shape[1]
        past_BL, past_valid_BL = past_BL[:, -c.context :], past_valid_BL[:, -c.context :]
        shift_B1 = self._shift(past_BL, past_valid_BL)
        x_BT = F.pad((past_BL - shift_B1) * past_valid_BL, (c.context - past_BL.shape[1], 0))
        for done in range(0, horizon, c.horizon):
            date = None
            if covariates_BTC is not None:
                first = given + done  # the covariates from which the window's own would start
                date = F.pad(covariates_BTC, (0, 0, max(0, c.context - first), 0))[:, max(0, first - c.context) :]
            x_BT = torch.cat([x_BT, self(x_BT[:, -c.context :], date).values_BH], dim=1)
        return x_BT[:, c.context : c.context + horizon] + shift_B1

    @torch.no_grad()
    def fit(self, train: Dataset, val: Dataset, batch_size: int = 1024) -> dict[str, float]:
        """Solve for the shared map, then gate by gate for what is left over.

        Returns:
            ``penalty`` and ``val_mse`` of the shared map, and for each gate ``penalty_GATE`` (infinite when it does not
            help on the validation windows and is left out) and ``val_mse_GATE``.
        """
        found = super().fit(train, val, batch_size)
        gates, self.gates = list(self.gates), nn.ModuleList()
        length = self.config.context
        best, count = found["val_mse"], len(val) * self.config.horizon  # type: ignore[arg-type]
        some = Subset(train, spread(len(train), SEEN))  # type: ignore[arg-type]
        sample = torch.cat([x for x, _, _ in self.shifted(some, batch_size)])
        for number, gate in enumerate(gates):
            name = f"{number}_{gate.config.by}"
            gate.learn(sample)
            train_E, val_E = (self._left_over(gate, windows, batch_size) for windows in (train, val))
            solved = [list(solve(moments, length, self.config.expert_penalties)) for moments in train_E]
            found[f"penalty_{name}"] = math.inf
            for choice, penalty in enumerate(self.config.expert_penalties):
                maps = [each[choice][1:] for each in solved]
                error = sum(squared_error(moments, *one) for moments, one in zip(val_E, maps, strict=True)) / count
                if error < best:
                    best = error
                    found[f"penalty_{name}"] = penalty
                    gate.weight.copy_(torch.stack([weight.T for weight, _ in maps]))
                    gate.bias.copy_(torch.stack([bias for _, bias in maps]))
            found[f"val_mse_{name}"] = best
            self.gates.append(gate)
        return found

    def _left_over(self, gate: Gate, windows: Dataset, batch_size: int) -> list[Tensor]:
        """Moments of the windows of each expert, their targets less what the model forecasts so far."""
        size = self.config.context + 1 + self.config.horizon
        moments = [torch.zeros(size, size, dtype=torch.float64) for _ in range(gate.config.experts)]
        for x_BL, y_BH, batch in self.shifted(windows, batch_size):
            covariates_BTC = batch.get("covariates")
            rest_BH = y_BH - self(x_BL, covariates_BTC).values_BH
            out = gate.route(x_BL, None if covariates_BTC is None else covariates_BTC[:, x_BL.shape[1]])
            for e, moment_ZZ in enumerate(moments):
                rows = (out.index_TK[:, 0] == e).nonzero()[:, 0]
                if len(rows):
                    moment_ZZ += outer(x_BL[rows], rest_BH[rows])
        return moments

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        c = self.config
        inputs = {"x_BL": torch.randn(batch_size, c.context)}
        if c.covariates:
            inputs["covariates_BTC"] = torch.rand(batch_size, c.context + c.horizon, c.covariates) - 0.5
        return inputs


def deviation(x_BL: Tensor) -> Tensor:
    """(B, 1), that of constant windows 1."""
    std_B1 = x_BL.std(1, keepdim=True, correction=0)
    return torch.where(std_B1 < 1e-4, 1.0, std_B1)


def kmeans(x_TD: Tensor, count: int, rounds: int = 20) -> Tensor:
    """(count, D): Lloyd's algorithm from rows spread over ``x``, so that it needs no seed."""
    centre_ED = x_TD[torch.linspace(0, len(x_TD) - 1, count, device=x_TD.device).long()]
    for _ in range(rounds):
        nearest_T = torch.cdist(x_TD, centre_ED).argmin(1)
        member_ET = F.one_hot(nearest_T, count).to(x_TD).T
        size_E1 = member_ET.sum(1, keepdim=True)
        centre_ED = torch.where(size_E1 > 0, member_ET @ x_TD / size_E1.clamp(min=1), centre_ED)
    return centre_ED
