"""Windows as patches. B windows, L points, N patches, P points of a patch, C channels, D model width, T points
with those to forecast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fit_context(x: Tensor, context: int) -> Tensor:
    """The last ``context`` points of (B, L, ...); zeros (False) in front of a shorter window."""
    missing = context - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (missing, 0)) if missing > 0 else x[:, -context:]


def filled(past_BL: Tensor, valid_BL: Tensor, context: int) -> Tensor:
    """(B, context): the mean of a window's valid points where there is none, and in front of a shorter window."""
    past_BL, valid_BL = past_BL[:, -context:], valid_BL[:, -context:]
    mean_B1 = (past_BL * valid_BL).sum(1, keepdim=True) / valid_BL.sum(1, keepdim=True).clamp(min=1)
    x_BL = torch.where(valid_BL, past_BL, mean_B1)
    return torch.cat([mean_B1.expand(-1, context - x_BL.shape[1]), x_BL], dim=1)


def fit_known(covariates_BTC: Tensor, given: int, context: int) -> Tensor:
    """Covariates of ``given`` past points and of later ones as those of the last ``context`` and of the later ones;
    zeros in front of a shorter window."""
    return F.pad(covariates_BTC, (0, 0, context - given, 0))


def cut(x_BL: Tensor, length: int, stride: int) -> Tensor:
    """(B, N, P): patches counted from the end of the window, so that the last one ends with it; points in front that
    fill no whole patch are left out."""
    spare = (x_BL.shape[1] - length) % stride
    return x_BL[:, spare:].unfold(1, length, stride)


def patch_count(points: int, length: int, stride: int) -> int:
    """How many patches `cut` makes."""
    return (points - length) // stride + 1


class PatchEmbedding(nn.Module):
    """``W vec(patch) + b``: (B, N, P) or (B, N, P, C) to (B, N, D)."""

    def __init__(self, length: int, hidden_size: int, channels: int = 1) -> None:
        super().__init__()
        self.project = nn.Linear(length * channels, hidden_size)

    def forward(self, patch: Tensor) -> Tensor:
        embedded: Tensor = self.project(patch.flatten(2))
        return embedded
