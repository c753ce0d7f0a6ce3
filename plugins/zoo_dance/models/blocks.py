"""Layers over several streams that run side by side: positions go time by time, in each time stream by stream.

Shapes: B sequences, T times, S streams, L = T S positions, H heads, C head width, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.nn.attention import Mixed, width_of_head
from zoo.nn.build import Site
from zoo.nn.span import Span
from zoo.nn.wiring import Carry, Wiring
from zoo.spec import ZooError


class WindowAttention(nn.Module):
    """Causal attention inside a window of times, the same for every pair of streams: a position sees all streams of
    its own time and of the ``window`` - 1 before (MEGADance's tiled mask). The cache keeps a window and no more.

    Config:
        dropout: of weights and of the result, in training.
    """

    @dataclass
    class Config:
        num_heads: int = 8
        window: int = 22
        streams: int = 3
        dropout: float = 0.0

        def __post_init__(self) -> None:
            at_least(1, self, "num_heads", "window", "streams")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.config, width = config, site.hidden_size
        self.head = width_of_head(width, config.num_heads)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor, span: Span, ctx: RouteContext, state: Any = None) -> Mixed:
        if span.first or span.valid_BS is not None or not span.causal:
            raise ZooError("mixer dance/window_attention takes whole, causal sequences without padding")
        c, streams = self.config, self.config.streams
        q, k, v = (proj(x_BLD).unflatten(-1, (-1, self.head)).transpose(1, 2) for proj in self._projections())
        if span.cache is not None:
            old = span.cache.kept.get(self)
            if old is not None:
                k, v = torch.cat([old[0], k], -2), torch.cat([old[1], v], -2)
            most = c.window * streams
            span.cache.kept[self] = (k[..., -most:, :], v[..., -most:, :])
        total, new = k.shape[-2] // streams, x_BLD.shape[1] // streams
        time = torch.arange(total, device=x_BLD.device)
        past = time[total - new :, None] - time
        seen = ((past >= 0) & (past < c.window)).repeat_interleave(streams, 0).repeat_interleave(streams, 1)
        drop = c.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=drop).transpose(1, 2).flatten(2)
        return F.dropout(self.o_proj(y), c.dropout, self.training), None

    def _projections(self) -> tuple[nn.Module, ...]:
        return self.q_proj, self.k_proj, self.v_proj


class StreamBlock(Wiring):
    """``[x = n(x + mamba(x))];  x + mixer(n(x));  x + feed_forward(n(x))``, with norms and Mambas of each stream's own
    (the blocks of MEGADance). Without ``mamba`` the first is left out.

    Config:
        dropout: of the feed-forward's result, in training.
    """

    tail = False

    @dataclass
    class Config:
        streams: int = 3
        mamba: Any = zc.part("state space", "dance/mamba")
        dropout: float = 0.0

        def __post_init__(self) -> None:
            at_least(1, self, "streams")

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        streams, width = config.streams, site.hidden_size
        made = range(streams) if config.mamba else ()
        self.mambas = nn.ModuleList(zc.build("state space", config.mamba, width) for _ in made)
        self.mamba_norms = nn.ModuleList(site.norm() for _ in made)
        self.mixer_norms = nn.ModuleList(site.norm() for _ in range(streams))
        self.feed_forward_norms = nn.ModuleList(site.norm() for _ in range(streams))

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        if self.mambas:
            x = self._mamba(x, span)
        y, out = self.mixer(self._each(self.mixer_norms, x), span, ctx, carry.state)
        carry, x = carry.after(out), x + y
        y, out = self.feed_forward(self._each(self.feed_forward_norms, x), ctx, carry.state)
        return x + F.dropout(y, self.config.dropout, self.training), carry.after(out)

    def _each(self, norms: nn.ModuleList, x_BLD: Tensor) -> Tensor:
        streams = x_BLD.unflatten(1, (-1, len(norms))).unbind(2)
        return torch.stack([norm(x) for norm, x in zip(norms, streams, strict=True)], 2).flatten(1, 2)

    def _mamba(self, x_BLD: Tensor, span: Span) -> Tensor:
        parts, states = [], []
        kept = None if span.cache is None else span.cache.kept.get(self)
        for n, x in enumerate(x_BLD.unflatten(1, (-1, len(self.mambas))).unbind(2)):
            state = None if kept is None else (kept[2 * n], kept[2 * n + 1])
            y, new = self.mambas[n](x, state)
            states += new
            parts.append(self.mamba_norms[n](x + y))
        if span.cache is not None:
            span.cache.kept[self] = tuple(states)
        return torch.stack(parts, 2).flatten(1, 2)
