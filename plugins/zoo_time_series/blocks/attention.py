"""Attention over patches, to themselves or to a memory, with any mask.

Shapes: B windows, N queries, M keys, H heads, C head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention without biases. ``qk_norm`` normalises queries and keys per head (RMSNorm)."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: float | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )
        head = hidden_size // num_heads
        self.q_norm = nn.RMSNorm(head, eps=qk_norm) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head, eps=qk_norm) if qk_norm else nn.Identity()

    def forward(
        self,
        x_BND: Tensor,
        mask: Tensor | None,
        memory_BMD: Tensor | None = None,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """States (B, N, D) that attended to ``memory``, by default to themselves.

        Args:
            mask: boolean (True: seen) or additive, broadcast to (B, H, N, M).
            turn: rotary embedding of queries and keys, (B, H, N, C) to itself.
        """
        return self.attend(*self.project(x_BND, memory_BMD, turn), mask)

    def project(
        self, x_BND: Tensor, memory_BMD: Tensor | None = None, turn: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, N, C), keys and values (B, H, M, C)."""
        memory_BMD = x_BND if memory_BMD is None else memory_BMD
        q, k, v = (
            proj(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj, states in ((self.q_proj, x_BND), (self.k_proj, memory_BMD), (self.v_proj, memory_BMD))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if turn is None else (turn(q), turn(k), v)

    def attend(self, q_BHNC: Tensor, k_BHMC: Tensor, v_BHMC: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D): values weighed by queries and keys."""
        y_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHMC, v_BHMC, attn_mask=mask)
        y: Tensor = self.o_proj(y_BHNC.transpose(1, 2).flatten(2))
        return y
