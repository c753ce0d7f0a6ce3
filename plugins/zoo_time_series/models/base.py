"""What every forecaster offers. All values are standardised floats.

Shapes: B windows, L past points, H horizon, S sample paths, Q quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.hub import Model
from zoo.moe import Routing
from zoo_time_series.blocks.probabilistic import quantiles_of


class Prediction(NamedTuple):
    """Predictions of one head beside their targets, of any equal shape; ``valid`` marks the targets that count.

    ``predicted`` are points; quantiles at the model's ``levels``, in the last dimension; or a distribution, whose
    ``log_prob`` of the targets is finite where they are not valid too.
    """

    predicted: Tensor | Distribution
    target: Tensor
    valid: Tensor


class Forecaster(Model):
    """A model of univariate windows; the variates of a multivariate series are windows of their own.

    A model with ``covariates`` gets known ones as ``covariates_BTC`` (T past and future points, C channels) in each of
    the methods below; the others are never given any.
    """

    @property
    def covariates(self) -> int:
        """Channels of covariates that the model takes."""
        return int(getattr(self.config, "covariates", 0))

    def training_predictions(
        self, past_BL: Tensor, past_valid_BL: Tensor, future_BH: Tensor, future_valid_BH: Tensor, **covariates: Tensor
    ) -> tuple[list[Prediction], Routing]:
        """Predictions to learn from, one a head. By default the forecast itself."""
        predicted = self.forecast(past_BL, past_valid_BL, future_BH.shape[1], **covariates)
        return [Prediction(predicted, future_BH, future_valid_BH)], ()

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        """The next ``horizon`` points, (B, horizon). Invalid past points hold 0."""
        raise TypeError(f"{type(self).__name__} does not forecast")

    @property
    def levels(self) -> list[float]:
        """The quantiles that each prediction to learn from has in its last dimension; empty for points."""
        return []

    def quantiles(
        self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, levels: list[float], **covariates: Tensor
    ) -> Tensor | None:
        """The next points at these levels, (B, Q, H), never crossing; None for a model of points. By default those of
        256 sample paths."""
        paths_BSH = self.sample_paths(past_BL, past_valid_BL, horizon, 256, **covariates)
        return None if paths_BSH is None else quantiles_of(paths_BSH, levels)

    def sample_paths(
        self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, count: int, seed: int = 0, **covariates: Tensor
    ) -> Tensor | None:
        """``count`` futures drawn from what the model thinks of the next points together, (B, count, H); None for a
        model of points or of quantiles, which knows no dependence between them. One seed gives the same paths again."""
        return None

    def spread(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None) -> Tensor | None:
        """(B, H): standard deviation of a point forecast's error that the window itself tells, as for the naive
        methods; None where nothing follows from it."""
        return None

    def dummy_inputs(self, batch_size: int = 2, length: int = 64) -> dict[str, Tensor]:
        return {"x_BL": torch.randn(batch_size, length)}
