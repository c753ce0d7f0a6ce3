"""A mixture of linear experts in closed form: ``y = sum_v w_v(x) (W_v x + b_v)``, each expert with a view of its own.

A view is how far back an expert looks and what it takes off the window before and adds back after: its mean, its last
value, or nothing. Each expert is a ridge regression over all training windows in two steps: a map that all phases of
a season share, and a penalised deviation of every output from it. The router puts a window into a cell (by the date of
the forecast, by how widely the window spreads, or by the prototype its shape is nearest to) and mixes the experts with
the weights of that cell, which are positive and sum to 1.

Everything follows from second moments, so the windows are seen twice and no gradient is needed. Penalties and weights
are chosen as a forecaster is used: maps of the past forecast what comes after, on the validation windows and on
stretches of the later half of the training time. On each of these parts the error is taken over that of one plain
ridge (mean shift, whole context, penalty by validation), and what is chosen has the least worst ratio: where the level
drifts, an expert that gains on some parts and loses more on others gets no weight. Views without a shift know the level
of the whole training time, which flatters them on its stretches.

Related: linear experts trained by gradient (MoLE, Ni et al., arXiv:2312.06786); stacking (Wolpert 1992);
worst-group optimisation (Sagawa et al. 2020, arXiv:1911.08731).

Shapes: B windows, L context, H horizon, V experts, E cells, P parts, G groups of windows, C candidates,
T = L + H, S points of a span, Z = L + 1 + H a window [x, 1, y], Y = S + 1 + H what is left of it in a view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from zoo import config as zc
from zoo.moe import RouterOutput, Routing
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Batch
from zoo_time_series.blocks.least_squares import complete_future, outer, shared, solve, squared_error
from zoo_time_series.blocks.patching import filled, fit_known
from zoo_time_series.models.base import Forecaster
from zoo_time_series.models.baselines import batches, last_value, roll_out

CALENDAR = {"hour": 0, "weekday": 1, "day_of_month": 2, "day_of_year": 3}  # channels of the calendar's covariates
SEEN = 20_000  # windows from which thresholds and prototypes are taken
ROUNDS = 60  # of the search for the weights that are the least bad where they are worst


class Output(NamedTuple):
    """The forecast of windows, (B, H), and the router's decision."""

    values_BH: Tensor
    routing: Routing


@dataclass
class Cells:
    """``by``: a part of the date at the first point to forecast; ``spread``, equally filled bins of the window's
    deviation; ``shape``, the nearest of ``cells`` prototypes (k-means) of the last ``span`` points over it; ``none``,
    one cell for all."""

    by: Literal["none", "hour", "weekday", "day_of_month", "day_of_year", "spread", "shape"] = "spread"
    cells: int = 4
    span: int = 168

    def __post_init__(self) -> None:
        zc.at_least(1, self, "cells", "span")
        self.cells = 1 if self.by == "none" else self.cells


class CellRouter(nn.Module):
    """The weights of all V experts from the cell that a window falls into."""

    def __init__(self, config: Cells, experts: int) -> None:
        super().__init__()
        self.config, c = config, config
        self.mix_EV = nn.Parameter(torch.full((c.cells, experts), 1 / experts), requires_grad=False)
        if c.by == "spread":
            self.register_buffer("threshold", torch.zeros(c.cells - 1))
        if c.by == "shape":
            self.register_buffer("prototype", torch.zeros(c.cells, c.span))

    def cell(self, x_BL: Tensor, date_BC: Tensor | None) -> Tensor:
        """(B,): the cell of each window; ``date_BC`` are the covariates of the first point to forecast."""
        c = self.config
        if c.by in CALENDAR:
            assert date_BC is not None
            return ((date_BC[:, CALENDAR[c.by]] + 0.5) * c.cells).long().clamp(0, c.cells - 1)
        if c.by == "spread":
            return (deviation(x_BL).log() > self.threshold).sum(1)
        if c.by == "shape":
            return torch.cdist(centred(x_BL)[:, -c.span :] / deviation(x_BL), self.prototype).argmin(1)
        return torch.zeros(len(x_BL), dtype=torch.long, device=x_BL.device)

    def learn(self, x_BL: Tensor) -> None:
        """Thresholds or prototypes from windows."""
        if self.config.by == "spread":
            level = torch.arange(1, self.config.cells, device=x_BL.device) / self.config.cells
            self.threshold.copy_(deviation(x_BL)[:, 0].log().quantile(level))
        elif self.config.by == "shape":
            self.prototype.copy_(kmeans(centred(x_BL)[:, -self.config.span :] / deviation(x_BL), self.config.cells))

    def forward(self, x_BL: Tensor, date_BC: Tensor | None) -> RouterOutput:
        weight_BV = self.mix_EV[self.cell(x_BL, date_BC)]
        index_BV = torch.arange(weight_BV.shape[1], device=x_BL.device).expand_as(weight_BV)
        used_BV = weight_BV > 0
        valid_B = torch.ones_like(used_BV[:, 0])
        return RouterOutput(weight_BV.log(), weight_BV, weight_BV, index_BV, weight_BV, used_BV, valid_B)


class LinearMoE(Forecaster):
    """Args (config):
    views: ``{span, shift}`` of each expert; shift is ``mean``, ``last`` or ``none``. The longest span is the context.
        Left out: 168, 336 and 512 points less their last value, those that the context has.
    season: points whose phases share an expert's prior; a span shorter than that has the prior 0.
    season_penalties, penalties: of the prior and of the way from it, to choose from, in units of the mean variance of
        an input.
    folds: stretches of the later half of the training time that are forecast; 0 leaves all to the validation windows.
    pull: of the weights to equal ones, in units of an expert's mean error.
    """

    @dataclass
    class Config:
        context: int = 512
        horizon: int = 96
        views: list[Any] = field(default_factory=list)
        router: Cells = field(default_factory=Cells)
        season: int = 24
        season_penalties: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3, 1.0])
        penalties: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
        folds: int = 3
        pull: float = 1e-3
        covariates: int = 0

        def __post_init__(self) -> None:
            zc.at_least(1, self, "context", "horizon", "season")
            zc.at_least(0, self, "folds", "pull", "covariates")
            if not self.views:
                spans = sorted({min(span, self.context) for span in (168, 336, 512)})
                self.views = [{"span": span, "shift": "last"} for span in spans]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.views = [_view(each, c.context) for each in c.views]
        if not c.penalties or not c.season_penalties:
            raise ZooError("a mixture of linear experts needs penalties of both kinds; give at least one of each")
        if c.router.by in CALENDAR and c.covariates < len(CALENDAR):
            raise ZooError(f"a router by date needs the calendar, covariates=4 at least, not {c.covariates}")
        if c.router.by == "shape" and c.router.span > c.context:
            raise ZooError(
                f"a router by shape looks at span={c.router.span} points, but context={c.context}; lower span"
            )
        self.router = CellRouter(c.router, len(self.views))
        self.weight_VHL = nn.Parameter(torch.zeros(len(self.views), c.horizon, c.context), requires_grad=False)
        self.bias_VH = nn.Parameter(torch.zeros(len(self.views), c.horizon), requires_grad=False)

    def forward(self, x_BL: Tensor, covariates_BTC: Tensor | None = None) -> Output:
        """From windows (B, L) without gaps; covariates are those of all their points, then of those to forecast."""
        out = self.router(x_BL, None if covariates_BTC is None else covariates_BTC[:, x_BL.shape[1]])
        each_BVH = F.linear(x_BL, self.weight_VHL.flatten(0, 1)).unflatten(1, self.bias_VH.shape) + self.bias_VH
        return Output((out.weight_TK[..., None] * each_BVH).sum(1), (out,))

    def forecast(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        covariates_BTC: Tensor | None = None,
    ) -> Tensor:
        """Points beyond the horizon are forecast from those within it."""
        c = self.config
        if covariates_BTC is not None:
            covariates_BTC = fit_known(covariates_BTC, past_BL.shape[1], c.context)
        x_BL = filled(past_BL, past_valid_BL, c.context)
        return roll_out(lambda *window: self(*window).values_BH, x_BL, c.context, horizon, covariates_BTC)

    @torch.no_grad()
    def fit(self, train: Dataset, val: Dataset, batch_size: int = 1024) -> dict[str, Any]:
        """Solve for experts and weights.

        Returns:
            ``penalties``, [of the prior or None, of the way from it] of the experts; ``errors``, (P, 3) mean squared
            errors on the validation windows and each stretch: of the plain ridge, of equal weights, and of the weights
            learned from the other parts.

        Raises:
            ZooError: windows of another context or horizon than the config's.
        """
        c = self.config
        some = Subset(train, spread(len(train), SEEN))  # type: ignore[arg-type]
        self.router.learn(torch.cat([x for x, _, _ in self._windows(some, batch_size)]))
        known_EGZZ = self._moments(train, c.folds, batch_size)
        every_GZZ, folds = known_EGZZ.sum(0), range(1, c.folds + 1)
        own = [every_GZZ.sum(0)] + [every_GZZ[: 2 * f - 1].sum(0) for f in folds]
        other = [self._moments(val, 0, batch_size)[:, 0]] + [known_EGZZ[:, 2 * f : 2 * f + 2].sum(1) for f in folds]
        other_PEZZ = torch.stack(other)
        ridge_PC = self._errors(_view({"span": c.context, "shift": "mean"}, c.context), own, other_PEZZ, prior=False)
        ridge_P = ridge_PC[:, ridge_PC[0].argmin()]
        residuals, chosen = [], []  # per expert (P, Z, H)
        for v, view in enumerate(self.views):
            ratio_PC = self._errors(view, own, other_PEZZ) / ridge_P[:, None]
            best = int(ratio_PC.amax(0).argmin())
            own_PZZ = [view.change(c.context, c.horizon) @ m @ view.change(c.context, c.horizon).T for m in own]
            maps = [next(islice(self._maps(view, m), best, None)) for m in own_PZZ]
            folded = [view.fold(map_SH, bias_H, c.context) for _, map_SH, bias_H in maps]
            of_prior, of_rest = divmod(best, len(c.penalties))
            chosen.append([c.season_penalties[of_prior] if view.span >= c.season else None, c.penalties[of_rest]])
            self.weight_VHL[v].copy_(folded[0][0])
            self.bias_VH[v].copy_(folded[0][1])
            residuals.append([_residual(*one) for one in folded])
        gram_PEVV = torch.stack(
            [torch.stack([_gram([r[p] for r in residuals], m) for m in part]) for p, part in enumerate(other_PEZZ)]
        )
        ratio_PEVV = gram_PEVV / ridge_P[:, None, None, None]
        learned_P = torch.cat([self._left_out(ratio_PEVV, p) for p in range(len(own))])
        self.router.mix_EV.copy_(least_worst(ratio_PEVV, c.pull))
        count_P = other_PEZZ[:, :, c.context, c.context].sum(1) * c.horizon
        table_P3 = torch.stack([ridge_P, gram_PEVV.sum(1).mean((1, 2)), learned_P * ridge_P], 1) / count_P[:, None]
        return {"penalties": chosen, "errors": table_P3.tolist()}

    def _left_out(self, ratio_PEVV: Tensor, part: int) -> Tensor:
        """(1,): the ratio on a part with weights learned from the others; where there is no other, from itself."""
        others = [p for p in range(len(ratio_PEVV)) if p != part] or [part]
        return ratios(least_worst(ratio_PEVV[others], self.config.pull), ratio_PEVV[part : part + 1])

    def _maps(self, view: View, moments_ZZ: Tensor, prior: bool = True) -> Iterator[tuple[float, Tensor, Tensor]]:
        """All candidates of an expert from the moments of what it sees: for each prior, each penalty."""
        c = self.config
        priors: Sequence[Tensor | float] = [0.0]
        if prior and view.span >= c.season:
            priors = list(shared(moments_ZZ, view.span, c.season, c.season_penalties))
        yield from solve(moments_ZZ, view.span, c.penalties, priors)

    def _errors(self, view: View, own: list[Tensor], other_PEZZ: Tensor, prior: bool = True) -> Tensor:
        """(P, candidates): sums of squared errors on each part of maps that have not seen it."""
        change_YZ = view.change(self.config.context, self.config.horizon)
        rows = []
        for known_ZZ, part_EZZ in zip(own, other_PEZZ, strict=True):
            there_YY = change_YZ @ part_EZZ.sum(0) @ change_YZ.T
            maps = self._maps(view, change_YZ @ known_ZZ @ change_YZ.T, prior)
            rows.append(torch.tensor([squared_error(there_YY, *one[1:]) for one in maps]))
        return torch.stack(rows)

    def _windows(self, windows: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Past and future without gaps, in batches, and the batches themselves."""
        c = self.config
        for batch in batches(windows, batch_size):
            past_BL, valid_BL = batch["past"], batch["past_valid"]
            if past_BL.shape[1] != c.context or batch["future"].shape[1] != c.horizon:
                found = f"context={past_BL.shape[1]} and horizon={batch['future'].shape[1]}"
                raise ZooError(
                    f"linear_moe has context={c.context} and horizon={c.horizon}, the data {found}; make them equal"
                )
            future_BH = complete_future(batch, last_value(past_BL, valid_BL))
            yield filled(past_BL, valid_BL, c.context), future_BH, batch

    def _moments(self, windows: Dataset, folds: int, batch_size: int) -> Tensor:
        """(E, 2 folds + 1, Z, Z): of the windows of each cell and group of `stretches`."""
        size = self.config.context + 1 + self.config.horizon
        moments = torch.zeros(self.config.router.cells, 2 * folds + 1, size, size, dtype=torch.float64)
        series_T = torch.cat([batch["series"] for batch in batches(windows, batch_size)])
        group_T, done = stretches(series_T, folds, self.config.horizon), 0
        for x_BL, y_BH, batch in self._windows(windows, batch_size):
            dates, group_B = batch.get("covariates"), group_T[done : done + len(x_BL)]
            done += len(x_BL)
            cell_B = self.router.cell(x_BL, None if dates is None else dates[:, x_BL.shape[1]])
            for e, g in torch.stack([cell_B, group_B], 1).unique(dim=0).tolist():
                rows = (cell_B == e) & (group_B == g)
                moments[e, g] += outer(x_BL[rows], y_BH[rows])
        return moments

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        c = self.config
        inputs = {"x_BL": torch.randn(batch_size, c.context)}
        if c.covariates:
            inputs["covariates_BTC"] = torch.rand(batch_size, c.context + c.horizon, c.covariates) - 0.5
        return inputs


class View(NamedTuple):
    """What an expert sees of a window: the last ``span`` points less ``shift``, a weighted sum (L,) of the window."""

    span: int
    shift_L: Tensor

    def change(self, context: int, horizon: int) -> Tensor:
        """(Y, Z): [x, 1, y] to [x', 1, y'], both without the shift."""
        change_ZZ = torch.eye(context + 1 + horizon, dtype=torch.float64)
        change_ZZ[:context, :context] -= self.shift_L
        change_ZZ[context + 1 :, :context] -= self.shift_L
        return change_ZZ[context - self.span :]

    def fold(self, map_SH: Tensor, bias_H: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """The map of a view as one of the whole window, (H, L), and its bias: shift off, map, shift back on."""
        wide_HL = F.pad(map_SH.T, (context - self.span, 0))
        return wide_HL + torch.outer(1 - wide_HL.sum(1), self.shift_L), bias_H


def _view(node: Any, context: int) -> View:
    if not isinstance(node, dict) or set(node) != {"span", "shift"}:
        raise ZooError(f"a view is {{span: POINTS, shift: mean|last|none}}, not {node!r}")
    span, shift = node["span"], node["shift"]
    if not isinstance(span, int) or not 1 <= span <= context:
        raise ZooError(f"a view's span={span} must be 1 to context={context} points; raise it, or set model.views")
    shift_L = torch.zeros(context, dtype=torch.float64)
    if shift == "mean":
        shift_L[-span:] = 1 / span
    elif shift == "last":
        shift_L[-1] = 1
    elif shift != "none":
        raise ZooError(f"a view's shift={shift!r} must be mean, last or none")
    return View(span, shift_L)


def _residual(weight_HL: Tensor, bias_H: Tensor) -> Tensor:
    """(Z, H): ``y - W x - b`` as a map of [x, 1, y]."""
    return torch.cat([-weight_HL.T, -bias_H[None], torch.eye(len(bias_H), dtype=weight_HL.dtype)])


def _gram(residual_VZH: list[Tensor], moments_ZZ: Tensor) -> Tensor:
    """(V, V): sums over windows of the products of two experts' errors."""
    flat_VX = torch.stack([r.flatten() for r in residual_VZH])
    return torch.stack([(moments_ZZ @ r).flatten() for r in residual_VZH]) @ flat_VX.T


def ratios(mix_EV: Tensor, ratio_PEVV: Tensor) -> Tensor:
    """(P,): the squared error of a mixture on each part, in units of those that the parts' products of errors have."""
    return torch.einsum("ev,pevu,eu->p", mix_EV, ratio_PEVV, mix_EV)


def least_worst(ratio_PEVV: Tensor, pull: float) -> Tensor:
    """(E, V): the weights whose error on the part where it is largest is the least: parts are weighed by how bad they
    are (multiplicative weights), the experts by least squares on the parts so weighed, and the best round is kept."""
    part_P = ratio_PEVV.new_full((len(ratio_PEVV),), 1 / len(ratio_PEVV))
    best, found_EV = math.inf, None
    for i in range(ROUNDS):
        mix_EV = torch.stack([simplex(m, pull) for m in torch.einsum("p,pevu->evu", part_P, ratio_PEVV)])
        error_P = ratios(mix_EV, ratio_PEVV)
        worst = float(error_P.max())
        if found_EV is None or worst < best:
            best, found_EV = worst, mix_EV
        part_P = part_P * torch.exp(8 / math.sqrt(i + 1) * (error_P - worst))
        part_P = part_P / part_P.sum()
    assert found_EV is not None
    return found_EV


def simplex(gram_VV: Tensor, pull: float) -> Tensor:
    """(V,): positive weights of sum 1 with the least ``w G w + pull * mean(diag G) * V |w - 1/V|^2``, found by leaving
    out what would be negative, the most negative first."""
    size = len(gram_VV)
    equal = gram_VV.new_full((size,), 1 / size)
    if math.isinf(pull) or not gram_VV.diagonal().mean() > 0:
        return equal
    strength = (pull + 1e-9) * gram_VV.diagonal().mean() * size
    left = list(range(size))
    while True:
        own = gram_VV[left][:, left] + strength * torch.eye(len(left), dtype=gram_VV.dtype)
        # w = a + b * multiplier, from the gradient; the multiplier makes the sum 1
        both = torch.linalg.solve(own, torch.stack([strength * equal[left], torch.ones_like(equal[left])], 1))
        w = both[:, 0] + both[:, 1] * (1 - both[:, 0].sum()) / both[:, 1].sum()
        if bool((w >= 0).all()):
            return torch.zeros_like(equal).index_copy_(0, torch.tensor(left), w)
        left.pop(int(w.argmin()))


def stretches(series_T: Tensor, folds: int, horizon: int) -> Tensor:
    """(T,): groups of windows of a series, which follow each other. Group 0 is the first half of its time; group 2 f is
    stretch f of the later half, in ``folds`` equal ones; group 2 f - 1, in front of it, are windows whose future
    reaches into it, at most half a stretch. So the groups below 2 f - 1 are what is known when stretch f begins."""
    found_T = torch.zeros_like(series_T)
    for series in series_T.unique():
        where = (series_T == series).nonzero()[:, 0]
        half = len(where) // 2
        for fold in range(folds):
            start = half + (len(where) - half) * fold // folds
            gap = min(horizon - 1, half // folds // 2)
            found_T[where[start - gap : start]] = 2 * fold + 1
            found_T[where[start:]] = 2 * fold + 2
    return found_T


def centred(x_BL: Tensor) -> Tensor:
    return x_BL - x_BL.mean(1, keepdim=True)


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
