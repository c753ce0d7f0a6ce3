"""Rotary positions.

Shapes: B batch, H heads, L positions, C head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary(x_BHLC: Tensor, position_BL: Tensor, theta: float, interleaved: bool = False) -> Tensor:
    """Rotary embedding (arXiv:2104.09864), computed in fp32. Pairs are (c, c + C/2), as in transformers' Llama, or
    neighbours (2c, 2c + 1) when ``interleaved``."""
    return turned(x_BHLC, *angles(position_BL, theta, x_BHLC.shape[-1]), interleaved)


def angles(position_BL: Tensor, theta: float, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, (B, 1, L, C/2) in fp32 for heads of that width."""
    half = width // 2
    frequency_C = theta ** (-torch.arange(half, device=position_BL.device, dtype=torch.float32) / half)
    angle_B1LC = (position_BL[..., None].float() * frequency_C)[:, None]
    return angle_B1LC.cos(), angle_B1LC.sin()


def turned(x_BHLC: Tensor, cos_B1LC: Tensor, sin_B1LC: Tensor, interleaved: bool = False) -> Tensor:
    """The pairs of ``x`` turned by `angles`. Without gradients the operations are those of transformers, bit for bit;
    with them, fewer."""
    cos, sin = cos_B1LC.to(x_BHLC.dtype), sin_B1LC.to(x_BHLC.dtype)
    if torch.is_grad_enabled() and x_BHLC.requires_grad:
        y: Tensor = _Turned.apply(x_BHLC, cos, sin, interleaved)
        return y
    a, b = _pairs(x_BHLC, interleaved)
    both = a * cos - b * sin, b * cos + a * sin
    return torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)


class _Turned(torch.autograd.Function):
    """``(a cos - b sin, b cos + a sin)`` of each pair, without the pieces that autograd would keep; the gradient is the
    same turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        y = x.clone()
        (a, b), (a_turned, b_turned) = _pairs(x, interleaved), _pairs(y, interleaved)
        a_turned.mul_(cos).addcmul_(b, sin, value=-1)
        b_turned.mul_(cos).addcmul_(a, sin)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turned.apply(grad, cos, -sin, ctx.interleaved), None, None, None


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
