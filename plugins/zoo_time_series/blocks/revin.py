"""Reversible instance normalisation (Kim et al. 2022, ICLR): a window leaves its own level and spread at the door and
takes them back on the way out. B windows, T points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Scale(NamedTuple):
    """Mean and standard deviation of each window, (B, 1)."""

    mean_B1: Tensor
    std_B1: Tensor


class RevIN(nn.Module):
    """Args:
    affine: a learned gain and shift, the same for all series: windows do not say which series they are from.
    """

    def __init__(self, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(1)) if affine else None
        self.shift = nn.Parameter(torch.zeros(1)) if affine else None

    def forward(self, x_BT: Tensor) -> tuple[Tensor, Scale]:
        """The normalised windows, and what `back` needs. No gradient passes through mean and deviation."""
        mean_B1 = x_BT.mean(1, keepdim=True).detach()
        std_B1 = (x_BT.var(1, keepdim=True, correction=0) + self.eps).sqrt().detach()
        normed_BT = (x_BT - mean_B1) / std_B1
        if self.gain is not None and self.shift is not None:
            normed_BT = normed_BT * self.gain + self.shift
        return normed_BT, Scale(mean_B1, std_B1)

    def back(self, y_BH: Tensor, scale: Scale) -> Tensor:
        """A forecast in the units of the windows."""
        if self.gain is not None and self.shift is not None:
            y_BH = (y_BH - self.shift) / (self.gain + self.eps**2)
        return y_BH * scale.std_B1 + scale.mean_B1
