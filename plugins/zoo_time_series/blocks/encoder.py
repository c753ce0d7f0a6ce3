"""A pre-norm encoder over patches: every patch sees every valid one; the feed-forward places are mixtures or dense.

Shapes: B windows, N patches, M covariate patches, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput, Routing
from zoo.nn import rotary
from zoo.nn.transformer import initialise
from zoo.spec import ZooError
from zoo_time_series.blocks.attention import Attention


@dataclass
class EncoderConfig:
    """``dense_size`` puts a dense GELU layer of so many inner units into every place of a mixture. ``layers`` says what
    differs from ``moe`` in each layer, an entry a layer: segments of several lengths in Seg-MoE."""

    hidden_size: int = 64
    num_layers: int = 3
    num_heads: int = 4
    dropout: float = 0.1
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dense_size: int | None = None
    moe: MoEConfig = field(default_factory=MoEConfig)
    layers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        zc.at_least(1, self, "hidden_size", "num_layers", "num_heads", "dense_size")
        zc.at_least(0, self, "dropout")


class Block(nn.Module):
    """Attention, with ``cross`` attention to a memory too, then the mixture: each ``x + f(norm x)``."""

    def __init__(self, config: EncoderConfig, moe: MoEConfig | None, cross: bool) -> None:
        super().__init__()
        c = config
        self.attention_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(c.hidden_size, c.num_heads)
        self.cross_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps) if cross else None
        self.cross = Attention(c.hidden_size, c.num_heads) if cross else None
        self.moe_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.moe = MoE(moe, c.hidden_size) if moe else None
        inner = c.dense_size or 0
        self.dense = (
            None if moe else nn.Sequential(nn.Linear(c.hidden_size, inner), nn.GELU(), nn.Linear(inner, c.hidden_size))
        )
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        turn: Callable[[Tensor], Tensor],
        ctx: RouteContext,
        state: Any,
        memory: Tensor | None,
    ) -> tuple[Tensor, RouterOutput | None]:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, turn=turn))
        if self.cross is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), None, memory))
        if self.moe is None:
            return x + self.dropout(self.dense(self.moe_norm(x))), None
        seen = self.moe_norm(x)
        if ctx.valid is not None:  # what looks at neighbours, a convolution, sees nothing where nothing is
            seen = seen * ctx.valid[..., None]
        y, out = self.moe(seen, ctx, state)
        return x + self.dropout(y), out


class Encoder(nn.Module):
    """``cross`` gives every block an attention to a memory, covariates for example."""

    def __init__(self, config: EncoderConfig, cross: bool = False) -> None:
        super().__init__()
        c = config
        if c.hidden_size % c.num_heads or c.hidden_size // c.num_heads % 2:
            raise ZooError(f"hidden_size={c.hidden_size} over num_heads={c.num_heads} must be a whole even number")
        if c.layers and len(c.layers) != c.num_layers:
            raise ZooError(f"layers describes {len(c.layers)} layers, but num_layers={c.num_layers}")
        self.config = c
        each = (
            [None] * c.num_layers if c.dense_size else [_layer(c.moe, over) for over in c.layers or [{}] * c.num_layers]
        )
        self.layers = nn.ModuleList(Block(c, moe, cross) for moe in each)
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.router_common = None if c.dense_size else self.layers[0].moe.router.common()
        self.balancers = None if c.dense_size else Balancers(c.moe.balance, c.num_layers, c.moe.num_experts)
        initialise(self, c.init_std)

    def forward(
        self, x_BND: Tensor, valid_BN: Tensor | None = None, memory_BMD: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """States after the final norm and the routing of every mixture.

        Args:
            valid_BN: False on patches without a valid point, which nobody sees but themselves.
        """
        position = torch.arange(x_BND.shape[1], device=x_BND.device)[None]
        mask = None
        if valid_BN is not None:
            itself_NN = torch.eye(x_BND.shape[1], dtype=torch.bool, device=x_BND.device)
            mask = (valid_BN[:, None] | itself_NN)[:, None]
        if self.balancers is None:
            ctx = RouteContext(valid=valid_BN)
        else:
            ctx = self.balancers.context(valid=valid_BN, common=self.router_common)
        routing, state, x = [], None, x_BND
        for index, block in enumerate(self.layers):
            turn = lambda q_BHNC: rotary(q_BHNC, position, self.config.rope_theta)  # noqa: E731
            x, out = block(x, mask, turn, ctx.at(index), state, memory_BMD)
            if out is not None:
                state = out.state
                routing.append(out)
        return self.norm(x), tuple(routing)


def _layer(moe: MoEConfig, over: Any) -> MoEConfig:
    """The mixture of one layer."""
    return zc.make(MoEConfig, **zc.merge(asdict(moe), over or {})) if over else moe
