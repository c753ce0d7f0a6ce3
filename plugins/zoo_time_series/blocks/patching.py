"""Windows as patches. B windows, L points, N patches, P points of a patch, C channels, D model width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def fit_context(x: Tensor, context: int) -> Tensor:
    """The last ``context`` points of (B, L, ...); zeros (False) in front of a shorter window."""
    missing = context - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (missing, 0)) if missing > 0 else x[:, -context:]


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
