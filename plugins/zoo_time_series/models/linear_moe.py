"""A mixture of linear experts, all of them in closed form: ``y = W_0 x + sum_g W_(g, e_g) x``.

``W_0`` is a ridge for every window. Each gate g adds one of its own experts e_g, chosen by what kind of window it is:
the hour or the weekday at which the forecast starts, how widely its values spread, or the prototype that its shape is
nearest to. An expert is a ridge on what the shared map leaves over of the windows it is responsible for, pulled to
zero, so that with few windows the forecast stays that of the shared map. All of it follows from second moments, and so
do the errors on blocks of the training time and on the validation windows, by which penalties are chosen and gates left
out. The validation windows alone mislead: on ETTh1 they like experts by weekday that make blocks and test part worse.

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
    gates: all of them for what the shared map leaves over.
    expert_penalties: of all experts of a gate, in units of the mean variance of an input in the expert's own windows.
    folds: blocks of the training time that help the validation windows to choose the penalties; 0 leaves it to them.
    """

    @dataclass
    class Config(Ridge.Config):
        gates: list[Any] = field(default_factory=list)
        expert_penalties: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0, 30.0, 100.0, 300.0])
        penalties: list[float] = field(default_factory=lambda: [1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
        folds: int = 4
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
        """Solve for the shared map and for every gate's experts; windows are seen twice.

        Penalties are those of the least error in the mean of several parts, each relative to the best, or to no gate:
        the validation windows, forecast by maps from all training windows, and each of ``folds`` blocks of the training
        time, forecast by maps from the others. Windows that reach over an edge of a block are left out of that.

        Returns:
            ``penalty`` of the shared map and ``val_mse`` of the whole, for each gate ``penalty_GATE`` (infinite when it
            does not help and is left out) and ``gain_GATE``, the relative change of the error in the mean of the parts.
        """
        c, length = self.config, self.config.context
        some = Subset(train, spread(len(train), SEEN))  # type: ignore[arg-type]
        sample = torch.cat([x for x, _, _ in self.shifted(some, batch_size)])
        for gate in self.gates:
            gate.learn(sample)
        known = self._moments(train, c.folds, batch_size)  # per gate (E, folds + 1, Z, Z), what is in no block last
        test = [each[:, 0] for each in self._moments(val, 0, batch_size)]
        every = known[0].sum(0)
        parts = [(every.sum(0), test[0].sum(0))] + [(every[:-1].sum(0) - every[f], every[f]) for f in range(c.folds)]
        errors = torch.tensor(
            [[squared_error(other, *one[1:]) for one in solve(own, length, c.penalties)] for own, other in parts]
        )
        best = int((errors / errors.min(1, keepdim=True).values).mean(0).argmin())
        found = {"penalty": c.penalties[best]}
        shared = [next(solve(own, length, [c.penalties[best]]))[1:] for own, _ in parts]
        self.weight.copy_(shared[0][0].T)
        self.bias.copy_(shared[0][1])
        for number, gate in enumerate(self.gates):
            name, count = f"{number}_{gate.config.by}", gate.config.experts
            own, other = known[number], test[number]
            ratios = []
            for part, (map_LH, bias_H) in enumerate(shared):
                seen = own.sum(1) if part == 0 else own[:, :-1].sum(1) - own[:, part - 1]
                unseen = other if part == 0 else own[:, part - 1]
                solved = [list(solve(left_over(m, map_LH, bias_H), length, c.expert_penalties)) for m in seen]
                missed = [left_over(m, map_LH, bias_H) for m in unseen]
                ratios.append(
                    [
                        sum(squared_error(missed[e], *solved[e][choice][1:]) for e in range(count))
                        / float(errors[part, best])
                        for choice in range(len(c.expert_penalties))
                    ]
                )
                if part == 0:
                    maps = solved
            mean = torch.tensor(ratios).mean(0)
            choice = int(mean.argmin())
            helps = bool(mean[choice] < 1)
            found[f"penalty_{name}"] = c.expert_penalties[choice] if helps else math.inf
            found[f"gain_{name}"] = float(mean[choice]) - 1 if helps else 0.0
            gate.weight.copy_(torch.stack([one[choice][1].T for one in maps]) * helps)
            gate.bias.copy_(torch.stack([one[choice][2] for one in maps]) * helps)
        error, size = 0.0, 0
        for x_BL, y_BH, batch in self.shifted(val, batch_size):
            error += float((self(x_BL, batch.get("covariates")).values_BH - y_BH).square().sum())
            size += y_BH.numel()
        return {**found, "val_mse": error / size}

    def _moments(self, windows: Dataset, folds: int, batch_size: int) -> list[Tensor]:
        """For each gate (E, folds + 1, Z, Z): of the windows of each expert and block, those in no block last. Without
        gates one of a single expert."""
        size = self.config.context + 1 + self.config.horizon
        experts = [gate.config.experts for gate in self.gates] or [1]
        moments = [torch.zeros(count, folds + 1, size, size, dtype=torch.float64) for count in experts]
        block_T, done = (
            blocks(torch.cat([b["series"] for _, _, b in self.shifted(windows, batch_size)]), folds, size // 2),
            0,
        )
        for x_BL, y_BH, batch in self.shifted(windows, batch_size):
            dates, block_B = batch.get("covariates"), block_T[done : done + len(x_BL)]
            done += len(x_BL)
            for number, moment in enumerate(moments):
                expert_B = torch.zeros_like(block_B)
                if len(self.gates):
                    date_BC = None if dates is None else dates[:, x_BL.shape[1]]
                    expert_B = self.gates[number].route(x_BL, date_BC).index_TK[:, 0]
                for e, b in torch.stack([expert_B, block_B], 1).unique(dim=0).tolist():
                    rows = (expert_B == e) & (block_B == b)
                    moment[e, b] += outer(x_BL[rows], y_BH[rows])
        return moments

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        c = self.config
        inputs = {"x_BL": torch.randn(batch_size, c.context)}
        if c.covariates:
            inputs["covariates_BTC"] = torch.rand(batch_size, c.context + c.horizon, c.covariates) - 0.5
        return inputs


def blocks(series_T: Tensor, folds: int, margin: int) -> Tensor:
    """(T,): which of ``folds`` equal stretches of its series' time each window lies in; ``folds`` for those that are
    nearer than ``margin`` windows to another stretch. The windows of a series follow each other."""
    found_T = torch.full_like(series_T, folds)
    for series in series_T.unique():
        where = (series_T == series).nonzero()[:, 0]
        place = torch.arange(len(where))
        gap = min(margin, len(where) // max(1, 4 * folds))
        for fold in range(folds):
            start, stop = (len(where) * f // folds for f in (fold, fold + 1))
            start, stop = start + gap * (fold > 0), stop - gap * (fold < folds - 1)
            found_T[where[(place >= start) & (place < stop)]] = fold
    return found_T


def left_over(moments_ZZ: Tensor, map_LH: Tensor, bias_H: Tensor) -> Tensor:
    """The moments of [x, 1, y - x W - b] from those of [x, 1, y]."""
    length = len(map_LH)
    change_ZZ = torch.eye(len(moments_ZZ), dtype=moments_ZZ.dtype)
    change_ZZ[:length, length + 1 :] = -map_LH
    change_ZZ[length, length + 1 :] = -bias_H
    return change_ZZ.T @ moments_ZZ @ change_ZZ


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
