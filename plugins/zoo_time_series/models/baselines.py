"""Forecasters that need no gradient: the last value, the last season, and a linear map in closed form.

Shapes: B windows, L context, H horizon, P forecast points asked for, T past and future points,
C covariates, Z = L + 1 + H a window with its constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zoo.spec import ZooError
from zoo.train.task import Batch
from zoo_time_series.blocks.least_squares import complete_future, outer, solve, squared_error
from zoo_time_series.blocks.patching import fit_known
from zoo_time_series.models.base import Forecaster


def last_value(past_BL: Tensor, past_valid_BL: Tensor) -> Tensor:
    """(B, 1): the last valid point of each window, 0 where there is none."""
    position_L = torch.arange(1, past_BL.shape[1] + 1, device=past_BL.device)
    last_B1 = (past_valid_BL * position_L).amax(dim=1, keepdim=True)
    return past_BL.gather(1, (last_B1 - 1).clamp(min=0)) * (last_B1 > 0)


def roll_out(
    step: Callable[..., Tensor], past_BL: Tensor, context: int, horizon: int, covariates_BTC: Tensor | None = None
) -> Tensor:
    """(B, horizon) from a ``step`` that maps (B, context) to (B, H): its forecasts are fed back when H is too short.

    With covariates, those of the past and the future points, the step is also given those of its window and later."""
    given = past_BL.shape[1]
    past_BL, done = F.pad(past_BL, (max(0, context - given), 0)), 0
    while done < horizon:
        known = () if covariates_BTC is None else (fit_known(covariates_BTC, given + done, context),)
        next_BH = step(past_BL[:, -context:], *known)
        past_BL, done = torch.cat([past_BL, next_BH], dim=1), done + next_BH.shape[1]
    start = past_BL.shape[1] - done
    return past_BL[:, start : start + horizon]


def seasonal_spread(past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor) -> Tensor:
    """(B, H): ``sigma sqrt(k + 1)`` for a point k seasons after the first, sigma the root mean square of the window's
    own seasonal differences (Hyndman & Athanasopoulos, Forecasting: Principles and Practice, table 5.2)."""
    length = past_BL.shape[1]
    source_BL = torch.arange(length, device=past_BL.device) - season_B[:, None]
    before_BL = source_BL.clamp(min=0)
    pair_BL = (source_BL >= 0) & past_valid_BL & past_valid_BL.gather(1, before_BL)
    difference_BL = (past_BL - past_BL.gather(1, before_BL)) * pair_BL
    sigma_B1 = (difference_BL.square().sum(1, keepdim=True) / pair_BL.sum(1, keepdim=True).clamp(min=1)).sqrt()
    seasons_BH = torch.arange(horizon, device=past_BL.device) // season_B[:, None] + 1
    return sigma_B1 * seasons_BH.sqrt()


class Naive(Forecaster):
    """Repeats the last valid value."""

    @dataclass
    class Config:
        pass

    def forward(self, x_BL: Tensor) -> Tensor:
        return x_BL[:, -1:]

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        return last_value(past_BL, past_valid_BL).expand(-1, horizon)

    def spread(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None) -> Tensor:
        one_B = torch.ones(len(past_BL), dtype=torch.int64, device=past_BL.device)
        return seasonal_spread(past_BL, past_valid_BL, horizon, one_B)


class SeasonalNaive(Forecaster):
    """Repeats the last season; the last valid value where the point a season ago is missing or before the window.

    ``season``, in points, stands for every window; by default each window brings its own.
    """

    @dataclass
    class Config:
        season: int | None = None

    def forward(self, x_BL: Tensor) -> Tensor:
        return x_BL[:, -(self.config.season or 1) :]

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        season_B = self._season(past_BL, season_B)
        ahead_P = torch.arange(horizon, device=past_BL.device)
        source_BP = past_BL.shape[1] - season_B[:, None] + ahead_P % season_B[:, None]
        known_BP = (source_BP >= 0) & past_valid_BL.gather(1, source_BP.clamp(min=0))
        seasonal_BP = past_BL.gather(1, source_BP.clamp(min=0))
        return torch.where(known_BP, seasonal_BP, last_value(past_BL, past_valid_BL))

    def spread(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None) -> Tensor:
        return seasonal_spread(past_BL, past_valid_BL, horizon, self._season(past_BL, season_B))

    def _season(self, past_BL: Tensor, season_B: Tensor | None) -> Tensor:
        if season_B is None or self.config.season is not None:
            return torch.full((len(past_BL),), self.config.season or 1, device=past_BL.device)
        return season_B


class Ridge(Forecaster):
    """One linear map with bias from the context to the horizon, shared by all series, solved in closed form.

    ``shift`` is what is taken off past and future, and put back on the forecast: the mean of the window's valid points,
    its last one, or nothing. `fit` sees the training windows once and keeps their second moments, in float64, so its
    memory does not depend on how many they are. From those follow the maps for every penalty (in units of the mean
    variance of an input; the bias is free), and from the validation windows' moments their exact errors there, without
    another look at the data. Hoerl & Kennard 1970; linear forecasters: Toner & Darlow 2024, arXiv:2403.14587.
    """

    @dataclass
    class Config:
        context: int = 512
        horizon: int = 96
        shift: Literal["none", "last", "mean"] = "mean"
        penalties: list[float] = field(default_factory=lambda: [10.0**p for p in range(-6, 3)])

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.zeros(config.horizon, config.context), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(config.horizon), requires_grad=False)

    def forward(self, x_BL: Tensor) -> Tensor:
        """(B, H) from shifted windows (B, L)."""
        return F.linear(x_BL, self.weight, self.bias)

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        past_BL, past_valid_BL = past_BL[:, -self.config.context :], past_valid_BL[:, -self.config.context :]
        shift_B1 = self._shift(past_BL, past_valid_BL)
        shifted_BL = (past_BL - shift_B1) * past_valid_BL
        return roll_out(self, shifted_BL, self.config.context, horizon) + shift_B1

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x_BL": torch.randn(batch_size, self.config.context)}

    def _shift(self, past_BL: Tensor, past_valid_BL: Tensor) -> Tensor:
        if self.config.shift == "last":
            return last_value(past_BL, past_valid_BL)
        if self.config.shift == "mean":
            return past_BL.sum(1, keepdim=True) / past_valid_BL.sum(1, keepdim=True).clamp(min=1)
        return past_BL.new_zeros(len(past_BL), 1)

    @torch.no_grad()
    def fit(self, train: Dataset, val: Dataset, batch_size: int = 1024) -> dict[str, float]:
        """Solve on the training windows, choose the penalty on the validation windows.

        Returns:
            ``penalty`` and ``val_mse`` (standardised) of the best.

        Raises:
            ZooError: windows of another context or horizon than the config's.
        """
        length = self.config.context
        train_ZZ, val_ZZ = self._moments(train, batch_size), self._moments(val, batch_size)
        best = {"penalty": math.nan, "val_mse": math.inf}
        for penalty, map_LH, bias_H in solve(train_ZZ, length, self.config.penalties):
            error = squared_error(val_ZZ, map_LH, bias_H) / float(val_ZZ[length, length] * len(bias_H))
            if error < best["val_mse"]:
                best = {"penalty": penalty, "val_mse": error}
                self.weight.copy_(map_LH.T)
                self.bias.copy_(bias_H)
        return best

    def _moments(self, windows: Dataset, batch_size: int) -> Tensor:
        """Sum over windows of the outer products of [x, 1, y]."""
        return sum((outer(x, y) for x, y, _ in self.shifted(windows, batch_size)), torch.zeros((), dtype=torch.float64))

    def shifted(self, windows: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Past and future of all windows without their shift, in batches, and the batches themselves.

        A missing target takes the valid value before it. Raises `ZooError` for windows of another length.
        """
        length, horizon = self.config.context, self.config.horizon
        for batch in batches(windows, batch_size):
            past_BL, valid_BL = batch["past"], batch["past_valid"]
            if past_BL.shape[1] != length or batch["future"].shape[1] != horizon:
                found = f"context={past_BL.shape[1]} and horizon={batch['future'].shape[1]}"
                name = (self.zoo_name or "ridge").rpartition("/")[2]
                raise ZooError(f"{name} has context={length} and horizon={horizon}, the data {found}; make them equal")
            shift_B1 = self._shift(past_BL, valid_BL)
            future_BH = complete_future(batch, last_value(past_BL, valid_BL))
            yield (past_BL - shift_B1) * valid_BL, future_BH - shift_B1, batch


def batches(windows: Dataset, batch_size: int) -> Iterator[Batch]:
    """All windows in order; where the data set stacks them itself, without taking them apart first."""
    stack = getattr(windows, "batch", None)
    if not callable(stack):
        yield from DataLoader(windows, batch_size=batch_size)
        return
    for index in torch.arange(len(windows)).split(batch_size):  # type: ignore[arg-type]
        yield stack(index)
