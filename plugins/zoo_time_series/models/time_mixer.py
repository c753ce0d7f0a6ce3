"""TimeMixer (Wang et al., ICLR 2024, arXiv:2405.14616): no mixture of experts, the baseline of MLPs that one must beat.

The window is pooled to several scales; in every layer each scale is split into season and trend, seasons are mixed from
fine to coarse, trends from coarse to fine; each scale forecasts with a linear map in time, and the forecasts add up.
Time features of the points, which the paper's code also embeds, are left out, and so are the learned gains of its
normalisation.

Shapes: B windows, T points of a scale, D model width, H horizon.
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
from zoo_time_series.blocks.patching import fit_context
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

        def __post_init__(self) -> None:
            at_least(1, self, "context", "horizon", "hidden_size", "inner", "kernel")
            at_least(0, self, "num_layers", "scales", "dropout")
            at_least(2, self, "pool")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        lengths = [c.context // c.pool**m for m in range(c.scales + 1)]
        if lengths[-1] < 1:
            raise ZooError(f"context={c.context} cannot be pooled {c.scales} times by {c.pool}; lower model.scales")
        self.lengths = lengths
        self.embed = nn.Conv1d(1, c.hidden_size, 3, padding=1, padding_mode="circular", bias=False)
        self.dropout = nn.Dropout(c.dropout)
        self.mixing = nn.ModuleList(PastMixing(lengths, c.hidden_size, c.inner, c.kernel) for _ in range(c.num_layers))
        self.predict = nn.ModuleList(nn.Linear(length, c.horizon) for length in lengths)
        self.project = nn.Linear(c.hidden_size, 1)

    def forward(self, x_BL: Tensor) -> Tensor:
        """(B, H) from windows of ``context`` standardised points."""
        x_BT, scales = x_BL, []
        for m, length in enumerate(self.lengths):
            if m:
                x_BT = F.avg_pool1d(x_BT[:, None], self.config.pool)[:, 0]
            centred_BT = x_BT - x_BT.mean(1, keepdim=True)
            scaled_BT = centred_BT / (centred_BT.square().mean(1, keepdim=True) + 1e-5).sqrt()
            scales.append(self.dropout(self.embed(scaled_BT[:, None, :length]).mT))
        for mix in self.mixing:
            scales = mix(scales)
        ahead = [self.project(to(x_BTD.mT).mT)[..., 0] for to, x_BTD in zip(self.predict, scales, strict=True)]
        return torch.stack(ahead).sum(0)

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        return roll_out(self, fit_context(past_BL, self.config.context), self.config.context, horizon)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x_BL": torch.randn(batch_size, self.config.context)}
