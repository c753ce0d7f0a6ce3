"""Scorers: from token states to logits over experts. ``forward(x_TD, ctx, state) -> (logits_TE, state)``, in fp32.

Shapes: T tokens, E experts, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.types import RouteContext


class Linear(nn.Module):
    """``W x``: the router of nearly every published system."""

    @dataclass
    class Config:
        bias: bool = False

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if config.bias else None

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x_TD, self.weight.float(), bias), state
