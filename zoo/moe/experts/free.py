"""Experts that cost nothing or next to nothing; they stand beside true ones in a `Mixed` bank.

Shapes: T tokens, N pairs, E experts, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.moe.experts.base import Bank
from zoo.moe.experts.grouped import expert_of, grouped_linear
from zoo_kernels import ops
from zoo_kernels.plan import Plan


class Null(Bank):
    """``0``: a token that chooses it computes less (AdaMoE, arXiv:2406.13233; the zero expert of MoE++,
    arXiv:2410.07348)."""

    def fused(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


class Copy(Bank):
    """``x`` (MoE++, arXiv:2410.07348; LongCat-Flash, arXiv:2509.01322)."""

    def fused(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        return x * ops.combine(x.new_ones(len(weight_N), 1), weight_N, plan)

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        return x


class Constant(Bank):
    """``a_1 x + a_2 v_e``, ``(a_1, a_2) = softmax(W_e x)``, ``v_e`` learned (MoE++, arXiv:2410.07348)."""

    stacked = ("weight", "constant")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, 2, hidden_size))
        self.constant = nn.Parameter(torch.empty(num_experts, hidden_size))

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        share_N2 = grouped_linear(x, self.weight, plan).softmax(-1)
        return share_N2[:, :1] * x + share_N2[:, 1:] * self.constant[expert_of(plan)].to(x.dtype)
