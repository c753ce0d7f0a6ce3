"""Quantiles around the forecasts of a model of points, from its errors on the validation windows.

Split conformal prediction, one step ahead at a time (Lei et al. 2018, arXiv:1604.04173), in units of each window's own
scale. Windows overlap and series drift, so what it promises it keeps only as far as the future is like the validation
part: `zoo eval` says how often the truth lies inside.

Shapes: W windows, B windows of a batch, H steps ahead, Q levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99)


def learn(error_WH: Tensor, valid_WH: Tensor) -> dict[str, Any]:
    """Plain data to save: for each step ahead the quantiles of the valid errors at `LEVELS`, 0 where there is none."""
    error = np.where(valid_WH.numpy(), error_WH.numpy(), np.nan)
    seen = ~np.isnan(error).all(axis=0)
    values = np.zeros((error.shape[1], len(LEVELS)))
    values[seen] = np.nanquantile(error[:, seen], LEVELS, axis=0).T
    return {
        "levels": list(LEVELS),
        "windows": len(error),
        "steps": [[round(v, 5) for v in row] for row in values.tolist()],
    }


def apply(saved: Mapping[str, Any], levels: Sequence[float], horizon: int, like: Tensor) -> Tensor:
    """(Q, H): what to add to a forecast at these levels; linear between the saved ones and constant beyond them. Steps
    beyond the last one that was validated take its quantiles."""
    known = np.asarray(saved["steps"])
    step_H = np.minimum(np.arange(horizon), len(known) - 1)
    rows = np.stack([np.interp(levels, saved["levels"], row) for row in known], axis=1)
    return torch.as_tensor(rows[:, step_H], dtype=like.dtype, device=like.device)
