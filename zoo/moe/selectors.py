"""Selectors: which experts. ``forward(select_TE, scores_TE, valid_T, ctx) -> (index_TK, used_TK)``; K is ``slots``.

A selector of a variable number of experts takes as many slots as it may ever use and marks the others unused.

Shapes: T tokens, K slots, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.moe.types import RouteContext
from zoo.spec import ZooError


class TopK(nn.Module):
    """The k experts of the highest selection score, best first."""

    @dataclass
    class Config:
        k: int = 2

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 1 <= config.k <= num_experts:
            raise ZooError(f"router k={config.k} must lie between 1 and num_experts={num_experts}")
        self.slots = config.k

    def forward(
        self, select_TE: Tensor, scores_TE: Tensor, valid_T: Tensor, ctx: RouteContext
    ) -> tuple[Tensor, Tensor]:
        index_TK = select_TE.detach().topk(self.slots, dim=-1).indices
        return index_TK, torch.ones_like(index_TK, dtype=torch.bool)
