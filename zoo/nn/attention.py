"""Causal multi-head attention with rotary positions and a key/value cache.

Shapes: B batch, L new positions, S all positions (cached and new), H heads, D model width, C head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    """Keys and values of the positions so far, a pair a layer. One cache serves one forward-only decoding."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.valid: Tensor | None = None
        self.length = 0

    def extend(self, layer: int, k_BHLC: Tensor, v_BHLC: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of a layer and return all of them."""
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_BHLC, v_BHLC = torch.cat([k_old, k_BHLC], dim=2), torch.cat([v_old, v_BHLC], dim=2)
        self.layers[layer] = (k_BHLC, v_BHLC)
        return k_BHLC, v_BHLC


def rotary(x_BHLC: Tensor, position_BL: Tensor, theta: float) -> Tensor:
    """Rotary embedding, half-split convention (arXiv:2104.09864, as in transformers' Llama). Computed in fp32."""
    half = x_BHLC.shape[-1] // 2
    frequency_C = theta ** (-torch.arange(half, device=x_BHLC.device, dtype=torch.float32) / half)
    angle_BLC = position_BL[..., None].float() * frequency_C
    cos, sin = angle_BLC.cos()[:, None].to(x_BHLC.dtype), angle_BLC.sin()[:, None].to(x_BHLC.dtype)
    first, second = x_BHLC[..., :half], x_BHLC[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention_mask(valid_BS: Tensor | None, length: int, total: int, device: torch.device) -> Tensor | None:
    """Boolean mask (B or 1, 1, L, S), causal and without padded keys; None where no mask but causality is needed.

    A padded query sees itself, so that its softmax has something to sum over; nobody reads the result.
    """
    if valid_BS is None and length in (1, total):
        return None
    query_L = torch.arange(total - length, total, device=device)
    key_S = torch.arange(total, device=device)
    causal_LS = key_S <= query_L[:, None]
    if valid_BS is None:
        return causal_LS[None, None]
    itself_LS = key_S == query_L[:, None]
    return ((causal_LS & valid_BS[:, None]) | itself_LS)[:, None]


class Attention(nn.Module):
    """Grouped-query attention. Projections may have biases (``qkv_bias``), the output never has one."""

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, qkv_bias: bool, rope_theta: float) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.rope_theta = num_heads, num_kv_heads, rope_theta
        head = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, num_heads * head, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head, hidden_size, bias=False)

    def forward(
        self,
        x_BLD: Tensor,
        position_BL: Tensor,
        mask: Tensor | None,
        cache: Cache | None = None,
        layer: int = 0,
        first: int = 0,
    ) -> Tensor:
        """States after attention, for the positions from ``first`` on; keys and values are those of all."""
        q, k, v = (
            proj(states).unflatten(-1, (heads, -1)).transpose(1, 2)
            for proj, states, heads in (
                (self.q_proj, x_BLD[:, first:], self.num_heads),
                (self.k_proj, x_BLD, self.num_kv_heads),
                (self.v_proj, x_BLD, self.num_kv_heads),
            )
        )
        q, k = rotary(q, position_BL[:, first:], self.rope_theta), rotary(k, position_BL, self.rope_theta)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        grouped = self.num_heads != self.num_kv_heads
        causal = mask is None and q.shape[2] > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out
