"""Linear maps in closed form from second moments: every penalty from one decomposition, exact errors without the data.

Shapes: B windows, L inputs, H outputs, Z = L + 1 + H a window [x, 1, y].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoo.train.task import Batch


def outer(x_BL: Tensor, y_BH: Tensor) -> Tensor:
    """(Z, Z): the sum over windows of the outer products of [x, 1, y], in float64."""
    window_BZ = torch.cat([x_BL, torch.ones_like(x_BL[:, :1]), y_BH], dim=1).double()
    return window_BZ.T @ window_BZ


def solve(moments_ZZ: Tensor, length: int, penalties: Sequence[float]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(penalty, W (L, H), b (H,)) of ridge regressions ``y = x W + b``, for every penalty from one eigendecomposition
    of the centred moments. A penalty is in units of the mean variance of an input; the bias is free."""
    count = moments_ZZ[length, length].clamp(min=1)
    mean_Z = moments_ZZ[length] / count
    centred_ZZ = moments_ZZ - count * torch.outer(mean_Z, mean_Z)
    value_L, vector_LL = torch.linalg.eigh(centred_ZZ[:length, :length])
    value_L = value_L.clamp(min=0)
    scale = value_L.mean().clamp(min=torch.finfo(value_L.dtype).tiny)
    target_LH = vector_LL.T @ centred_ZZ[:length, length + 1 :]
    for penalty in penalties:
        map_LH = vector_LL @ (target_LH / (value_L + penalty * scale)[:, None])
        yield penalty, map_LH, mean_Z[length + 1 :] - mean_Z[:length] @ map_LH


def squared_error(moments_ZZ: Tensor, map_LH: Tensor, bias_H: Tensor) -> float:
    """Sum of ``(y - x W - b)^2`` over all windows behind the moments: the residual is linear in the window."""
    residual_ZH = torch.cat([-map_LH, -bias_H[None], torch.eye(len(bias_H), dtype=map_LH.dtype)])
    return float((residual_ZH * (moments_ZZ @ residual_ZH)).sum())


def complete_future(batch: Batch, last_B1: Tensor) -> Tensor:
    """(B, H): the targets, a missing one the valid value before it, and that of the past where there is none."""
    future_BH, valid_BH = batch["future"], batch["future_valid"]
    if valid_BH.all():
        return future_BH
    known = torch.cat([last_B1, future_BH], dim=1)
    before_BH = (valid_BH * torch.arange(1, future_BH.shape[1] + 1)).cummax(dim=1).values
    return known.gather(1, before_BH)
