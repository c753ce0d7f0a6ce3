"""TimeMixer (Wang et al., ICLR 2024, arXiv:2405.14616): no mixture of experts, the baseline of MLPs that one must beat.

The window is pooled to several scales; in every layer each scale is split into season and trend, seasons are mixed from
fine to coarse, trends from coarse to fine; each scale forecasts with a linear map in time, and the forecasts add up.
Every scale is normalised by its own window, and the forecast goes back to the level of the finest: the loss is of
values as they are (``task.window_norm: false``). The paper's code learns gains a variate, ours one for all.

Shapes: B windows, T points of a scale, D model width, H horizon, C covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.spec import ZooError
from zoo_time_series.blocks.patching import filled, fit_known
from zoo_time_series.blocks.revin import RevIN
from zoo_time_series.models.base import Forecaster
from zoo_time_series.models.baselines import roll_out


def moving_average(x_BTD: Tensor, kernel: int) -> Tensor:
    """Mean over ``kernel`` points around each, the ends repeated."""
    reach = kernel // 2
    padded_BDT = F.pad(x_BTD.mT, (reach, kernel - 1 - reach), mode="replicate")
    return F.avg_pool1d(padded_BDT, kernel, stride=1).mT


def mixer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.GELU(), nn.Linear(after, after))


class PastMixing(nn.Module):
    """Past-decomposable-mixing, eq. 2-5: ``x_m + MLP(season_m + trend_m)`` for every scale m."""

    def __init__(self, lengths: Sequence[int], width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.down = nn.ModuleList(mixer(fine, coarse) for fine, coarse in pairwise(lengths))
        self.up = nn.ModuleList(mixer(coarse, fine) for fine, coarse in pairwise(lengths))
        self.out = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        trend = [moving_average(x_BTD, self.kernel) for x_BTD in scales]
        season = [x - t for x, t in zip(scales, trend, strict=True)]
        for m, mix in enumerate(self.down):  # fine to coarse
            season[m + 1] = season[m + 1] + mix(season[m].mT).mT
        for m in reversed(range(len(self.up))):  # coarse to fine
            trend[m] = trend[m] + self.up[m](trend[m + 1].mT).mT
        return [x + self.out(s + t) for x, s, t in zip(scales, season, trend, strict=True)]


class TimeMixer(Forecaster):
    """Args (config):
    scales: poolings by ``pool`` beside the window itself.
    inner: hidden units of the layers' MLP.
    covariates: channels that are known of every point (the calendar's 4), embedded beside the values of the past.
    """

    @dataclass
    class Config:
        context: int = 96
        horizon: int = 96
        hidden_size: int = 16
        inner: int = 32
        num_layers: int = 2
        scales: int = 3
        pool: int = 2
        kernel: int = 25
        dropout: float = 0.1
        covariates: int = 0

        def __post_init__(self) -> None:
            at_least(1, self, "context", "horizon", "hidden_size", "inner", "kernel")
            at_least(0, self, "num_layers", "scales", "dropout", "covariates")
            at_least(2, self, "pool")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        lengths = [c.context // c.pool**m for m in range(c.scales + 1)]
        if lengths[-1] < 1:
            raise ZooError(f"context={c.context} cannot be pooled {c.scales} times by {c.pool}; lower model.scales")
        self.lengths = lengths
        self.norms = nn.ModuleList(RevIN() for _ in lengths)
        self.embed = nn.Conv1d(1, c.hidden_size, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.embed.weight, nonlinearity="leaky_relu")
        self.embed_covariates = nn.Linear(c.covariates, c.hidden_size, bias=False) if c.covariates else None
        self.dropout = nn.Dropout(c.dropout)
        self.mixing = nn.ModuleList(PastMixing(lengths, c.hidden_size, c.inner, c.kernel) for _ in range(c.num_layers))
        self.predict = nn.ModuleList(nn.Linear(length, c.horizon) for length in lengths)
        self.project = nn.Linear(c.hidden_size, 1)

    def forward(self, x_BL: Tensor, covariates_BTC: Tensor | None = None) -> Tensor:
        """(B, H) from windows of ``context`` points; covariates of these, those of later points are not looked at."""
        found = 0 if covariates_BTC is None else covariates_BTC.shape[-1]
        if found != self.config.covariates:
            raise ZooError(
                f"the model takes covariates={self.config.covariates} channels, the data give {found}; set "
                "model.covariates, or data.calendar=true"
            )
        x_BT, scales, level = x_BL, [], []
        for m, (length, norm) in enumerate(zip(self.lengths, self.norms, strict=True)):
            if m:
                x_BT = F.avg_pool1d(x_BT[:, None], self.config.pool)[:, 0]
            normed_BT, scale = norm(x_BT)
            level.append(scale)
            embedded_BTD = self.embed(normed_BT[:, None]).mT
            if self.embed_covariates is not None and covariates_BTC is not None:
                own_BTC = covariates_BTC[:, : x_BL.shape[1] : self.config.pool**m][:, :length]
                embedded_BTD = embedded_BTD + self.embed_covariates(own_BTC)
            scales.append(self.dropout(embedded_BTD))
        for mix in self.mixing:
            scales = mix(scales)
        ahead = [self.project(to(x_BTD.mT).mT)[..., 0] for to, x_BTD in zip(self.predict, scales, strict=True)]
        forecast_BH: Tensor = self.norms[0].back(torch.stack(ahead).sum(0), level[0])
        return forecast_BH

    def forecast(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        covariates_BTC: Tensor | None = None,
    ) -> Tensor:
        length = self.config.context
        if covariates_BTC is not None:
            covariates_BTC = fit_known(covariates_BTC, past_BL.shape[1], length)
        return roll_out(self, filled(past_BL, past_valid_BL, length), length, horizon, covariates_BTC)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        c = self.config
        inputs = {"x_BL": torch.randn(batch_size, c.context)}
        if c.covariates:
            inputs["covariates_BTC"] = torch.rand(batch_size, c.context + c.horizon, c.covariates) - 0.5
        return inputs
