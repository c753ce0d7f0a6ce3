"""Linear attention as a mixer: what it keeps of the past has one size, however long the past.

Shapes: B batch, L new positions, Q positions asked for, H heads, D model width, C head width, N positions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext, RouterOutput
from zoo.nn.build import Site
from zoo.nn.span import Span
from zoo.spec import ZooError


class LightningAttention(nn.Module):
    """``y_t = W_o (sigmoid(W_g x_t) * norm(sum_(s <= t) a^(p_t - p_s) (q_t . k_s) v_s))``, q, k, v after SiLU, a the
    decay of the head (Lightning attention of MiniMax-01, arXiv:2501.08313; TransNormerLLM, arXiv:2307.14995).

    Head h of H decays by ``exp(-2^(-8 (h + 1) / H) (1 - depth + 1e-5))``, slower in higher layers. Positions are
    computed in chunks, exact whatever their size: inside one by the triangle, across by the state ``sum k v^T``,
    (B, H, C, C), which is all that the cache keeps.
    """

    @dataclass
    class Config:
        num_heads: int = 4
        head_dim: int | None = None
        chunk: int = 64

        def __post_init__(self) -> None:
            at_least(1, self, "num_heads", "head_dim", "chunk")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.config, width, heads = config, site.hidden_size, config.num_heads
        if config.head_dim is None and width % heads:
            raise ZooError(f"hidden_size={width} is not a multiple of num_heads={heads}; set head_dim")
        size = heads * (config.head_dim or width // heads)
        self.qkv_proj = nn.Linear(width, 3 * size, bias=False)
        self.gate_proj = nn.Linear(width, size, bias=False)
        self.norm = nn.RMSNorm(size, eps=site.norm_eps)
        self.o_proj = nn.Linear(size, width, bias=False)
        rate_H = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads) * (1 - site.depth + 1e-5)
        self.register_buffer("rate_H", rate_H, persistent=False)

    def forward(
        self, x_BLD: Tensor, span: Span, ctx: RouteContext, state: Any = None
    ) -> tuple[Tensor, RouterOutput | None]:
        if not span.causal:
            raise ZooError("mixer lightning looks back only; choose another for a stack with causal=false")
        qkv = F.silu(self.qkv_proj(x_BLD)).unflatten(-1, (3, self.config.num_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        if span.valid_BS is not None:
            k = k * span.valid_BS[:, None, span.start :, None]
        position_BL = span.position_BL.expand(len(x_BLD), -1)
        document_BL = torch.zeros_like(position_BL) if span.document_BS is None else span.document_BS
        kept = None if span.cache is None else span.cache.kept.get(self)
        y, kept = self.scan(q.float(), k.float(), v.float(), position_BL, document_BL, kept)
        if span.cache is not None:
            span.cache.kept[self] = kept
        y = y[:, :, span.first :].transpose(1, 2).flatten(2).to(x_BLD.dtype)
        return self.o_proj(self.gate_proj(x_BLD[:, span.first :]).sigmoid() * self.norm(y)), None

    def scan(
        self,
        q_BHLC: Tensor,
        k_BHLC: Tensor,
        v_BHLC: Tensor,
        position_BL: Tensor,
        document_BL: Tensor,
        kept: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sums, (B, H, L, C), and what later positions need: the state, and the position and document it is at."""
        batch, heads, _, width = q_BHLC.shape
        if kept is None:
            state = q_BHLC.new_zeros(batch, heads, width, width)
            at_B, document_B = position_BL[:, :1].sum(1), document_BL[:, :1].sum(1)
        else:
            state, at_B, document_B = kept
        rate_H11, ys, size = self.rate_H[:, None, None], [], self.config.chunk
        chunks = [t.split(size, 2) for t in (q_BHLC, k_BHLC, v_BHLC)]
        places = [t.split(size, 1) for t in (position_BL, document_BL)]
        for q, k, v, p, d in zip(*chunks, *places, strict=True):
            if not p.shape[1]:
                return q_BHLC, (state, at_B, document_B)
            past_BNN = p[:, :, None] - p[:, None]
            order_N = torch.arange(p.shape[1], device=p.device)
            seen_BNN = (order_N[:, None] >= order_N) & (d[:, :, None] == d[:, None])
            decay = torch.where(seen_BNN[:, None], torch.exp(-rate_H11 * past_BNN.clamp(min=0)[:, None]), 0.0)
            of_state_BN = torch.where(d == document_B[:, None], 1.0, 0.0)
            since_B1N1 = (p - at_B[:, None]).clamp(min=0)[:, None, :, None]
            inside = (q @ k.mT * decay) @ v
            ys.append(inside + (q * torch.exp(-rate_H11 * since_B1N1) * of_state_BN[:, None, :, None]) @ state)
            # The last document's keys go on; a state of another document ends here.
            last_B, last_document_B = p[:, -1], d[:, -1]
            until_B1N1 = (last_B[:, None] - p).clamp(min=0)[:, None, :, None]
            ours_BN = (d == last_document_B[:, None]).to(k.dtype)
            keep_B = (last_document_B == document_B).to(k.dtype)
            gone_B111 = (last_B - at_B).clamp(min=0)[:, None, None, None]
            state = state * torch.exp(-rate_H11 * gone_B111) * keep_B[:, None, None, None]
            state = state + (k * torch.exp(-rate_H11 * until_B1N1) * ours_BN[:, None, :, None]).mT @ v
            at_B, document_B = last_B, last_document_B
        return torch.cat(ys, 2), (state, at_B, document_B)
