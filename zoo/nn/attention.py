"""Mixers: how a position hears of others. Grouped-query attention, latent attention, attention experts.

A mixer is ``mixer(x_BLD, span, ctx, state) -> (y, RouterOutput or None)``. What it keeps of the past goes into
``span.cache``, so another kind of mixer (linear attention, a state space) needs nothing of the stack.

Shapes: B batch, L new positions, Q positions asked for, S all positions, H heads, K slots, D model width, C head width,
R latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.config import at_least
from zoo.moe.experts.token import AttentionExperts
from zoo.moe.layer import MoE, MoEConfig
from zoo.moe.types import RouteContext, RouterOutput
from zoo.nn.build import Site
from zoo.nn.causal import causal_attention
from zoo.nn.span import Span, asked
from zoo.spec import ZooError
from zoo_kernels import ops

Mixed = tuple[Tensor, RouterOutput | None]


def attend(q_BHQC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, span: Span, window: int | None = None) -> Tensor:
    """(B, H, Q, C): scaled dot-product attention of the positions that ``span`` asks for. Heads of k and v may be
    fewer: each serves a run of neighbouring query heads."""
    mask, causal = span.mask(window)
    if causal:
        return causal_attention(q_BHQC, k_BHSC, v_BHSC)
    grouped = q_BHQC.shape[1] != k_BHSC.shape[1]
    return F.scaled_dot_product_attention(q_BHQC, k_BHSC, v_BHSC, mask, enable_gqa=grouped)


class Attention(nn.Module):
    """Multi-head attention, keys and values of ``num_kv_heads`` (grouped-query, arXiv:2305.13245), rotary positions.

    Config:
        head_dim: width of a head; None for ``hidden_size / num_heads``.
        rope_theta: base of the rotary frequencies; None for no positions at all.
        rope_fraction: the first part of each head that turns (GPT-NeoX, Ling-2.0: 0.5).
        qk_norm: a norm of queries and keys, of each ``head`` (Qwen3) or over all heads, ``full`` (OLMoE).
        window: how many positions one sees, itself the last (Mistral, arXiv:2310.06825).
    """

    @dataclass
    class Config:
        num_heads: int = 4
        num_kv_heads: int | None = None
        head_dim: int | None = None
        qkv_bias: bool = False
        out_bias: bool = False
        rope_theta: float | None = 10000.0
        rope_fraction: float = 1.0
        rope_interleaved: bool = False
        qk_norm: Literal["none", "head", "full"] = "none"
        window: int | None = None

        def __post_init__(self) -> None:
            at_least(1, self, "num_heads", "num_kv_heads", "head_dim", "window")
            if self.num_heads % (self.num_kv_heads or 1):
                raise ZooError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        c, width = config, site.hidden_size
        self.config, self.num_kv_heads = c, c.num_kv_heads or c.num_heads
        self.head_dim = head = c.head_dim or width_of_head(width, c.num_heads)
        self.rotated = even("rope_fraction", c.rope_fraction, head) if c.rope_theta is not None else 0
        self.q_proj = nn.Linear(width, c.num_heads * head, bias=c.qkv_bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * head, bias=c.qkv_bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * head, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_heads * head, width, bias=c.out_bias)
        full = c.qk_norm == "full"
        self.q_norm = site.norm(c.num_heads * head if full else head) if c.qk_norm != "none" else None
        self.k_norm = site.norm(self.num_kv_heads * head if full else head) if c.qk_norm != "none" else None

    def forward(self, x_BLD: Tensor, span: Span, ctx: RouteContext, state: Any = None) -> Mixed:
        q = self.turn(self.heads(self.q_proj(x_BLD[:, span.first :]), self.q_norm), span)
        k = self.turn(self.heads(self.k_proj(x_BLD), self.k_norm), span)
        v = self.heads(self.v_proj(x_BLD), None)
        if span.cache is not None:
            k, v = span.cache.extend(self, k, v)
        y = attend(q, k, v, span, self.config.window)
        return self.o_proj(y.transpose(1, 2).flatten(2)), None

    def heads(self, x_BLD: Tensor, norm: nn.Module | None) -> Tensor:
        """(B, H, L, C), normed over all heads or over each."""
        if norm is not None and self.config.qk_norm == "full":
            x_BLD = norm(x_BLD)
        x_BLHC = x_BLD.unflatten(-1, (-1, self.head_dim))
        if norm is not None and self.config.qk_norm == "head":
            x_BLHC = norm(x_BLHC)
        return x_BLHC.transpose(1, 2)

    def turn(self, x_BHLC: Tensor, span: Span) -> Tensor:
        """Rotary positions on the part of each head that has them."""
        c = self.config
        if not self.rotated or c.rope_theta is None:
            return x_BHLC
        if self.rotated == self.head_dim:
            return span.rotary(x_BHLC, c.rope_theta, c.rope_interleaved)
        turned = span.rotary(x_BHLC[..., : self.rotated], c.rope_theta, c.rope_interleaved)
        return torch.cat([turned, x_BHLC[..., self.rotated :]], -1)


class LatentAttention(nn.Module):
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads come
    from one latent of width ``kv_rank``, which is what the cache keeps, with one rotary key of width ``rope_dim``
    beside it. Queries come through a latent of ``q_rank`` too, unless it is None.

    ``scale_latents`` multiplies each normed latent by sqrt(D / rank) (LongCat-Flash, arXiv:2509.01322). ``norm_eps`` is
    that of the latents' norms; None for the stack's.
    """

    @dataclass
    class Config:
        num_heads: int = 4
        q_rank: int | None = None
        kv_rank: int = 32
        nope_dim: int = 16
        rope_dim: int = 8
        v_dim: int = 16
        rope_theta: float = 10000.0
        rope_interleaved: bool = True
        scale_latents: bool = False
        norm_eps: float | None = None

        def __post_init__(self) -> None:
            at_least(1, self, "num_heads", "q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        c, width = config, site.hidden_size
        even("rope_dim", 1.0, c.rope_dim)
        self.config = c
        self.q_scale, self.kv_scale = 1.0, 1.0
        if c.scale_latents:
            self.q_scale, self.kv_scale = (width / (c.q_rank or width)) ** 0.5, (width / c.kv_rank) ** 0.5
        q_size = c.num_heads * (c.nope_dim + c.rope_dim)
        if c.q_rank is None:
            self.q_proj = nn.Linear(width, q_size, bias=False)
        else:
            self.q_down = nn.Linear(width, c.q_rank, bias=False)
            self.q_norm = site.norm(c.q_rank, c.norm_eps)
            self.q_up = nn.Linear(c.q_rank, q_size, bias=False)
        self.kv_down = nn.Linear(width, c.kv_rank + c.rope_dim, bias=False)
        self.kv_norm = site.norm(c.kv_rank, c.norm_eps)
        self.kv_up = nn.Linear(c.kv_rank, c.num_heads * (c.nope_dim + c.v_dim), bias=False)
        self.o_proj = nn.Linear(c.num_heads * c.v_dim, width, bias=False)

    def forward(self, x_BLD: Tensor, span: Span, ctx: RouteContext, state: Any = None) -> Mixed:
        c, seen = self.config, x_BLD[:, span.first :]
        q = self.q_proj(seen) if c.q_rank is None else self.q_up(self.q_norm(self.q_down(seen)) * self.q_scale)
        q_nope, q_rope = self._heads(q).split([c.nope_dim, c.rope_dim], -1)
        latent_BLR, rope_BLC = self.kv_down(x_BLD).split([c.kv_rank, c.rope_dim], -1)
        latent_BLR = self.kv_norm(latent_BLR) * self.kv_scale
        rope_BLC = span.rotary(rope_BLC[:, None], c.rope_theta, c.rope_interleaved)[:, 0]
        if span.cache is not None:
            latent_BLR, rope_BLC = span.cache.extend(self, latent_BLR, rope_BLC)
        k_nope, v = self._heads(self.kv_up(latent_BLR)).split([c.nope_dim, c.v_dim], -1)
        q_rope = span.rotary(q_rope, c.rope_theta, c.rope_interleaved)
        k = torch.cat([k_nope, rope_BLC[:, None].expand(-1, c.num_heads, -1, -1)], -1)
        y = attend(torch.cat([q_nope, q_rope], -1), k, v, span)
        return self.o_proj(y.transpose(1, 2).flatten(2)), None

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)


class MoEAttention(nn.Module):
    """A mixture of attention experts (JetMoE, arXiv:2404.07413, section 2.3): each expert has its own ``W_q`` and
    ``W_o``, ``num_kv_heads`` heads wide; keys and values are one set, which the queries of all chosen experts see.

    Config:
        num_experts, router: those of the stack's ``moe`` unless they are set here.
        bias: a vector that is added to the sum of the experts.
    """

    @dataclass
    class Config:
        num_kv_heads: int = 2
        head_dim: int | None = None
        num_experts: int | None = None
        router: Any = zc.part("router")
        rope_theta: float = 10000.0
        bias: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "num_kv_heads", "head_dim", "num_experts")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.config, width = config, site.hidden_size
        self.head_dim = config.head_dim or width_of_head(width, config.num_kv_heads)
        even("head_dim", 1.0, self.head_dim)
        size = config.num_kv_heads * self.head_dim
        moe = zc.make(
            MoEConfig,
            num_experts=config.num_experts or site.moe.num_experts,
            router=config.router or site.moe.router,
            experts={"name": "attention_heads", "size": size},
        )
        self.moe = MoE(moe, width)
        self.kv_proj = nn.Linear(width, 2 * size, bias=False)
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, x_BLD: Tensor, span: Span, ctx: RouteContext, state: Any = None) -> Mixed:
        seen, ctx = asked(x_BLD, ctx, span)
        out = self.moe.route(seen, ctx.at(self.moe.layer), state)
        plan = ops.plan(out.index_TK, self.moe.num_experts, out.used_TK)
        experts: AttentionExperts = self.moe.bank  # type: ignore[assignment]
        slots = out.index_TK.shape[-1]
        q_TKC = experts.queries(seen.flatten(0, 1), plan, slots)
        heads = (self.config.num_kv_heads, self.head_dim)
        q_BQKHC = q_TKC.view(*seen.shape[:2], slots, *heads)
        # The queries of a key's head are neighbours: its heads times the slots.
        q = q_BQKHC.permute(0, 3, 2, 1, 4).flatten(1, 2)
        k, v = self.kv_proj(x_BLD).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        theta = self.config.rope_theta
        q, k = span.rotary(q, theta), span.rotary(k, theta)
        if span.cache is not None:
            k, v = span.cache.extend(self, k, v)
        y_BHKQC = attend(q, k, v, span).unflatten(1, (heads[0], slots))
        y_TKC = y_BHKQC.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)
        y = experts.outputs(y_TKC, out.weight_TK, plan).view_as(seen)
        return (y if self.bias is None else y + self.bias), out


def width_of_head(hidden_size: int, num_heads: int) -> int:
    """``hidden_size / num_heads``. Raises `ZooError` when that is no whole number."""
    if hidden_size % num_heads:
        raise ZooError(f"hidden_size={hidden_size} is not a multiple of num_heads={num_heads}; set head_dim")
    return hidden_size // num_heads


def even(name: str, fraction: float, head: int) -> int:
    """Features of a head that turn. Raises `ZooError` unless they are pairs."""
    turned = round(fraction * head)
    if not 0 < turned <= head or turned % 2:
        raise ZooError(f"{name} makes {turned} of a head's {head} features turn; rotary wants an even number of them")
    return turned
