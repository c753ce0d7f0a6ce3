"""A mixture of linear experts in closed form: ``y = sum_v w_v(x) (W_v x + b_v)``, each expert with a view of its own.

A view is how far back an expert looks and what it takes off the window before and adds back after: its mean, its last
value, or nothing. Each is a ridge regression over all training windows. The router puts a window into a cell (by the
date of the forecast, by how widely the window spreads, or by the prototype its shape is nearest to) and mixes the
experts with the weights of that cell, which are positive and sum to 1.

Everything follows from second moments, so the windows are seen twice and no gradient is needed: penalties are those of
the least error on the validation windows and on blocks of the training time that the map has not seen; the weights are
least squares on exactly these errors, pulled to equal weights by as much as serves the part that was held out.

Related: linear experts trained by gradient (MoLE, Ni et al., arXiv:2312.06786); stacking (Wolpert 1992).

Shapes: B windows, L context, H horizon, V experts, E cells, P parts, T = L + H, Z = L + 1 + H a window [x, 1, y].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from zoo.train.task import Batch
from zoo_time_series.blocks.least_squares import complete_future, outer, solve, squared_error
from zoo_time_series.models.base import Forecaster
from zoo_time_series.models.baselines import batches, last_value

CALENDAR = {"hour": 0, "weekday": 1, "day_of_month": 2, "day_of_year": 3}  # channels of the calendar's covariates
SEEN = 20_000  # windows from which thresholds and prototypes are taken
PULLS = (0.0, 1e-3, 1e-2, 0.1, 1.0, math.inf)  # of the weights to equal ones, in units of an expert's mean error


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
    penalties: to choose from, in units of the mean variance of an input.
    folds: blocks of the training time beside the validation windows; 0 leaves all to them.
    """

    @dataclass
    class Config:
        context: int = 512
        horizon: int = 96
        views: list[Any] = field(
            default_factory=lambda: [
                {"span": span, "shift": shift} for span in (96, 336, 512) for shift in ("mean", "last", "none")
            ]
        )
        router: Cells = field(default_factory=Cells)
        penalties: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
        folds: int = 4
        covariates: int = 0

        def __post_init__(self) -> None:
            zc.at_least(1, self, "context", "horizon")
            zc.at_least(0, self, "folds", "covariates")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.views = [_view(each, c.context) for each in c.views]
        if not self.views or not c.penalties:
            raise ZooError("a mixture of linear experts needs views and penalties; give at least one of each")
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
        c, given = self.config, past_BL.shape[1]
        x_BT = filled(past_BL[:, -c.context :], past_valid_BL[:, -c.context :], c.context)
        for done in range(0, horizon, c.horizon):
            date = None
            if covariates_BTC is not None:
                first = given + done  # the first point to forecast
                date = F.pad(covariates_BTC, (0, 0, max(0, c.context - first), 0))[:, max(0, first - c.context) :]
            x_BT = torch.cat([x_BT, self(x_BT[:, -c.context :], date).values_BH], dim=1)
        return x_BT[:, c.context : c.context + horizon]

    @torch.no_grad()
    def fit(self, train: Dataset, val: Dataset, batch_size: int = 1024) -> dict[str, Any]:
        """Solve for experts and weights.

        Returns:
            ``penalties`` of the experts; ``pull`` of the weights; ``errors``, (P, 3) mean squared errors on validation
            windows and blocks: of the best single expert, of equal weights, of the weights learned from other parts.

        Raises:
            ZooError: windows of another context or horizon than the config's.
        """
        c = self.config
        some = Subset(train, spread(len(train), SEEN))  # type: ignore[arg-type]
        self.router.learn(torch.cat([x for x, _, _ in self._windows(some, batch_size)]))
        known_EFZZ = self._moments(train, c.folds, batch_size)  # what lies in no block comes last
        test_EZZ = self._moments(val, 0, batch_size)[:, 0]
        every_FZZ = known_EFZZ.sum(0)
        own = [every_FZZ.sum(0)] + [every_FZZ[:-1].sum(0) - every_FZZ[f] for f in range(c.folds)]
        other_PEZZ = [test_EZZ] + [known_EFZZ[:, f] for f in range(c.folds)]
        residuals, chosen = [], []  # per expert (P, Z, H)
        for v, view in enumerate(self.views):
            change_YZ = view.change(c.context, c.horizon)
            maps = [list(solve(change_YZ @ m @ change_YZ.T, view.span, c.penalties)) for m in own]
            errors = torch.tensor(
                [
                    [squared_error(change_YZ @ part.sum(0) @ change_YZ.T, *one[1:]) for one in solved]
                    for solved, part in zip(maps, other_PEZZ, strict=True)
                ]
            )
            best = int((errors / errors.min(1, keepdim=True).values).mean(0).argmin())
            chosen.append(c.penalties[best])
            folded = [view.fold(*solved[best][1:], c.context) for solved in maps]
            self.weight_VHL[v].copy_(folded[0][0])
            self.bias_VH[v].copy_(folded[0][1])
            residuals.append([_residual(*one) for one in folded])
        gram_PEVV = torch.stack(
            [torch.stack([_gram([r[p] for r in residuals], m) for m in part]) for p, part in enumerate(other_PEZZ)]
        )
        count_P = torch.stack([part[:, c.context, c.context].sum() * c.horizon for part in other_PEZZ])
        pull, learned_P, self.router.mix_EV.data = _weights(gram_PEVV, count_P)
        gram_PVV = gram_PEVV.sum(1) / count_P[:, None, None]
        single = int((gram_PVV.diagonal(dim1=1, dim2=2) / gram_PVV.mean((1, 2))[:, None]).mean(0).argmin())
        table = torch.stack([gram_PVV[:, single, single], gram_PVV.mean((1, 2)), learned_P], 1)
        return {"penalties": chosen, "pull": pull, "errors": table.tolist()}

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
        """(E, folds + 1, Z, Z): of the windows of each cell and block of time, those in no block last."""
        size = self.config.context + 1 + self.config.horizon
        moments = torch.zeros(self.config.router.cells, folds + 1, size, size, dtype=torch.float64)
        series_T = torch.cat([batch["series"] for batch in batches(windows, batch_size)])
        block_T, done = blocks(series_T, folds, size // 2), 0
        for x_BL, y_BH, batch in self._windows(windows, batch_size):
            dates, block_B = batch.get("covariates"), block_T[done : done + len(x_BL)]
            done += len(x_BL)
            cell_B = self.router.cell(x_BL, None if dates is None else dates[:, x_BL.shape[1]])
            for e, b in torch.stack([cell_B, block_B], 1).unique(dim=0).tolist():
                rows = (cell_B == e) & (block_B == b)
                moments[e, b] += outer(x_BL[rows], y_BH[rows])
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
        raise ZooError(f"a view's span={span} must be 1 to context={context} points")
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


def _weights(gram_PEVV: Tensor, count_P: Tensor) -> tuple[float, Tensor, Tensor]:
    """The best pull, the (P,) errors of weights learned from the other parts, and the (E, V) weights of all parts."""
    level_P = gram_PEVV.sum(1).mean((1, 2))
    part_PEVV = gram_PEVV / level_P[:, None, None, None]  # every part counts the same, whatever its errors
    results = []
    for pull in PULLS:
        errors = []
        for p in range(len(part_PEVV)):
            rest_EVV = part_PEVV.sum(0) - part_PEVV[p] if len(part_PEVV) > 1 else part_PEVV[p]
            mix_EV = torch.stack([simplex(m, pull) for m in rest_EVV])
            errors.append(torch.einsum("ev,evu,eu->", mix_EV, part_PEVV[p], mix_EV))
        results.append(torch.stack(errors))
    table = torch.stack(results)
    best = int(table.mean(1).argmin())
    mix_EV = torch.stack([simplex(m, PULLS[best]) for m in part_PEVV.sum(0)])
    return PULLS[best], table[best] * level_P / count_P, mix_EV.float()


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


def filled(past_BL: Tensor, valid_BL: Tensor, context: int) -> Tensor:
    """(B, context): the mean of a window's valid points where there is none, and in front of a shorter window."""
    mean_B1 = (past_BL * valid_BL).sum(1, keepdim=True) / valid_BL.sum(1, keepdim=True).clamp(min=1)
    x_BL = torch.where(valid_BL, past_BL, mean_B1)
    return torch.cat([mean_B1.expand(-1, context - x_BL.shape[1]), x_BL], dim=1)


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
