"""What a picture is to show, as one vector. A condition part has ``forward(given) -> (B, D)``, ``nothing(given)``, the
input that stands for no wish at all, and ``examples(batch)``.

Shapes: B pictures, D model width, W places for the pieces of a caption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least


class Label(nn.Module):
    """One of ``num_classes``; one row more stands for none of them (classifier-free guidance, arXiv:2207.12598)."""

    @dataclass
    class Config:
        num_classes: int = 10

        def __post_init__(self) -> None:
            at_least(1, self, "num_classes")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.num_classes + 1, width)
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label_B: Tensor) -> Tensor:
        vector: Tensor = self.table(label_B)
        return vector

    def nothing(self, label_B: Tensor) -> Tensor:
        return torch.full_like(label_B, self.config.num_classes)

    def examples(self, batch: int) -> Tensor:
        return torch.randint(self.config.num_classes, (batch,))


class Text(nn.Module):
    """A caption: ``MLP(norm(sum of its pieces' vectors))``. Pieces are whole words and parts of words, hashed to
    1 ... ``buckets`` - 1 (fastText, arXiv:1607.04606), so that any text can be given; 0 is padding, and a caption
    without a piece stands for no wish.

    Config:
        norm: every caption is equally loud, from the first step on; else the mean of its pieces' vectors steers.
    """

    @dataclass
    class Config:
        buckets: int = 2048
        length: int = 64
        norm: bool = True

        def __post_init__(self) -> None:
            at_least(2, self, "buckets")
            at_least(1, self, "length")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.buckets, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, pieces_BW: Tensor) -> Tensor:
        there_BW1 = (pieces_BW > 0).float()[..., None]
        empty_B1 = (there_BW1.sum(1) == 0).float()
        # The padding's own row is the vector of a caption without pieces.
        total_BD = (self.table(pieces_BW) * there_BW1).sum(1) + empty_B1 * self.table.weight[0]
        if self.config.norm:
            seen_BD = F.layer_norm(total_BD, total_BD.shape[-1:])
        else:
            seen_BD = total_BD / (there_BW1.sum(1) + empty_B1)
        vector: Tensor = self.mlp(seen_BD)
        return vector

    def nothing(self, pieces_BW: Tensor) -> Tensor:
        return torch.zeros_like(pieces_BW)

    def examples(self, batch: int) -> Tensor:
        return torch.randint(self.config.buckets, (batch, self.config.length))
