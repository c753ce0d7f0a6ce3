"""Metrics that torchmetrics lacks. Each takes the points that count, already selected from their mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class _MeanOfPoints(Metric):
    """Mean over all points of all updates; NaN before the first one."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, errors: Tensor) -> None:
        self.total += errors.sum()
        self.count += errors.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class MASE(_MeanOfPoints):
    """Mean absolute scaled error (Hyndman & Koehler 2006): ``|y - f|`` over the seasonal naive's error in sample."""

    def update(self, preds: Tensor, target: Tensor, scale: Tensor) -> None:
        """Points of any equal shape; ``scale`` (positive, in the points' units) broadcasts against them."""
        self._add((preds - target).abs() / scale)


class SMAPE(_MeanOfPoints):
    """Symmetric mean absolute percentage error as M4 defines it: ``200 |y - f| / (|y| + |f|)``, 0 where both are 0.

    In percent, from 0 to 200; depends on the origin, so give it values in their original units.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Points of any equal shape."""
        size = preds.abs() + target.abs()
        self._add(200 * (preds - target).abs() / torch.where(size == 0, 1, size))


class CRPS(Metric):
    """Continuous ranked probability score as forecasting benchmarks have it, the mean weighted quantile loss:
    ``mean_q sum_i 2 max(q (y_i - f_iq), (q - 1) (y_i - f_iq)) / sum_i |y_i|`` (GluonTS, GIFT-Eval).

    In units of the mean size of the targets, so give it values in their original units. Of a point mass it is
    ``sum |y - f| / sum |y|``.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    loss: Tensor
    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "size"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, levels: Tensor) -> None:
        """``preds (N, Q)`` at the levels ``(Q,)``, ``target (N,)``."""
        over = target[:, None] - preds
        self.loss += 2 * torch.maximum(levels * over, (levels - 1) * over).sum().double() / len(levels)
        self.size += target.abs().sum().double()

    def compute(self) -> Tensor:
        return (self.loss / self.size).float()


class Coverage(_MeanOfPoints):
    """Share of targets inside an interval; the better, the nearer to what the interval promises."""

    higher_is_better = None

    def update(self, low: Tensor, high: Tensor, target: Tensor) -> None:
        """Points of any equal shape."""
        self._add(((low <= target) & (target <= high)).float())
