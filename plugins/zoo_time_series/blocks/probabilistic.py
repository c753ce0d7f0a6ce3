"""Forecasts that say how sure they are: the loss of quantiles, and quantiles of sample paths.

A probabilistic model gives quantiles (`Forecaster.quantiles`), sample paths (`Forecaster.sample_paths`), or both; what
it learns from is a tensor of quantiles or a distribution (`Prediction`).

Shapes: B windows, S sample paths, Q quantiles, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pinball(predicted: Tensor, target: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantile loss ``2 max(q (y - f), (q - 1) (y - f))``, the levels in the last dimension (Koenker & Bassett 1978).

    Twice the usual one: its mean over levels then tends to the CRPS, and at level 0.5 it is the absolute error.
    """
    level_Q = torch.as_tensor(levels, dtype=predicted.dtype, device=predicted.device)
    over = target - predicted
    return 2 * torch.maximum(level_Q * over, (level_Q - 1) * over)


def quantiles_of(paths_BSH: Tensor, levels: Sequence[float]) -> Tensor:
    """(B, Q, H): the quantiles of sample paths, point by point, linear between the samples."""
    level_Q = torch.as_tensor(levels, dtype=paths_BSH.dtype, device=paths_BSH.device)
    return paths_BSH.quantile(level_Q, dim=1).transpose(0, 1)
