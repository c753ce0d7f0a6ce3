"""Layers that a vector steers: adaLN-Zero (DiT, arXiv:2212.09748, section 3.2), and the head of the same kind.

Shapes: B batch, L positions, D model width, P values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe import RouteContext
from zoo.nn.build import Site
from zoo.nn.span import Span, asked
from zoo.nn.wiring import Carry, Wiring
from zoo.spec import ZooError


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor, eps: float) -> Tensor:
    """``norm(x) (1 + scale) + shift``; the norm is a LayerNorm without weights of its own."""
    normed_BLD = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps)
    return torch.addcmul(shift_BD[:, None], normed_BLD, 1 + scale_BD[:, None])


class AdaLNZero(Wiring):
    """``x + g1 mixer(n(x) (1 + s1) + b1)``, then ``x + g2 feed_forward(n(x) (1 + s2) + b2)``, where shifts, scales and
    gates are ``W silu(cond)``, ``cond`` being the context's, one vector a sequence. W is zero at first, so that the
    layer begins as the identity."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.eps = site.norm_eps
        self.modulation = nn.Linear(site.hidden_size, 6 * site.hidden_size)

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        if ctx.cond is None:
            raise ZooError("wiring diffusion/adaln_zero wants a vector that steers it; give the stack cond=...")
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(ctx.cond)).chunk(6, -1)
        y, out = self.mixer(modulate(x, shift1, scale1, self.eps), span, ctx, carry.state)
        carry, (x, ctx) = carry.after(out), asked(x, ctx, span)
        x = torch.addcmul(x, gate1[:, None], y)
        y, out = self.feed_forward(modulate(x, shift2, scale2, self.eps), ctx, carry.state)
        return torch.addcmul(x, gate2[:, None], y), carry.after(out)


class PatchHead(nn.Module):
    """``linear(n(x) (1 + s) + b)``: the values of each patch, zero at first."""

    def __init__(self, width: int, values: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, values)

    def forward(self, x_BLD: Tensor, cond_BD: Tensor) -> Tensor:
        """(B, L, P)."""
        shift, scale = self.modulation(F.silu(cond_BD)).chunk(2, -1)
        y: Tensor = self.linear(modulate(x_BLD, shift, scale, self.eps))
        return y
