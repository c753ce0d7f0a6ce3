"""DLinear (Zeng et al., AAAI 2023, arXiv:2205.13504): a trend and a remainder, a linear map each.

Shapes: B windows, L context, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import ZooError
from zoo_time_series.models.base import Forecaster
from zoo_time_series.models.baselines import roll_out


class DLinear(Forecaster):
    """The trend is a moving average over ``kernel`` points, the ends of the window repeated; both maps are shared by
    all series (the paper's default). Wants globally standardised values, no normalisation of each window."""

    @dataclass
    class Config:
        context: int = 336
        horizon: int = 96
        kernel: int = 25

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.kernel < 1 or config.kernel % 2 == 0:
            raise ZooError(f"dlinear kernel={config.kernel} must be a positive odd number of points")
        self.trend = nn.Linear(config.context, config.horizon)
        self.remainder = nn.Linear(config.context, config.horizon)

    def forward(self, x_BL: Tensor) -> Tensor:
        """(B, L) to (B, H)."""
        reach = self.config.kernel // 2
        padded_BL = F.pad(x_BL[:, None], (reach, reach), mode="replicate")
        trend_BL = F.avg_pool1d(padded_BL, self.config.kernel, stride=1)[:, 0]
        return self.trend(trend_BL) + self.remainder(x_BL - trend_BL)

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        return roll_out(self, past_BL, self.config.context, horizon)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x_BL": torch.randn(batch_size, self.config.context)}
