"""The pre-norm transformer stack with a mixture of experts in its feed-forward places.

Shapes: B batch, L positions, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import at_least
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput, Routing
from zoo.nn.attention import Attention, Cache, attention_mask
from zoo.spec import ZooError


@dataclass
class TransformerConfig:
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    qkv_bias: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    activation_checkpointing: bool = False
    moe: MoEConfig = field(default_factory=MoEConfig)

    def __post_init__(self) -> None:
        at_least(1, self, "hidden_size", "num_heads", "num_kv_heads")
        at_least(0, self, "num_layers")


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + MoE(norm x)``. The routing is returned, never kept."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        self.attention_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(c.hidden_size, c.num_heads, c.num_kv_heads or c.num_heads, c.qkv_bias, c.rope_theta)
        self.moe_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.moe = MoE(c.moe, c.hidden_size)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None,
        ctx: RouteContext,
        cache: Cache | None,
        router_state: Any = None,
        first: int = 0,
    ) -> tuple[Tensor, RouterOutput]:
        """States and routing of the positions from ``first`` on, which ``mask`` and ``ctx`` are about."""
        x = x[:, first:] + self.attention(self.attention_norm(x), position, mask, cache, ctx.layer, first)
        y, out = self.moe(self.moe_norm(x), ctx, router_state)
        return x + y, out


class Transformer(nn.Module):
    """A causal stack of blocks and a final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_heads:
            raise ZooError(f"hidden_size={config.hidden_size} is not a multiple of num_heads={config.num_heads}")
        if config.num_heads % (config.num_kv_heads or 1):
            raise ZooError(f"num_heads={config.num_heads} is not a multiple of num_kv_heads={config.num_kv_heads}")
        if config.hidden_size // config.num_heads % 2:
            raise ZooError(f"hidden_size={config.hidden_size} over num_heads={config.num_heads} must be even (rotary)")
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.router_common = self.layers[0].moe.router.common() if len(self.layers) else None
        self.balancers = Balancers(config.moe.balance, config.num_layers, config.moe.num_experts)
        initialise(self, config.init_std)

    def forward(
        self, x_BLD: Tensor, valid_BL: Tensor | None = None, cache: Cache | None = None, last_only: bool = False
    ) -> tuple[Tensor, Routing]:
        """States after the final norm, (B, L, D), and the routing of every layer.

        Args:
            valid_BL: False on padding. Positions count valid points only, so left padding changes nothing.
            cache: positions so far; ``x`` holds the new ones.
            last_only: only the last position is asked for, (B, 1, D): the last block computes no other.
        """
        if cache is not None and (valid_BL is not None or cache.valid is not None):
            new = x_BLD.new_ones(x_BLD.shape[:2], dtype=torch.bool) if valid_BL is None else valid_BL
            old = new.new_ones(len(new), cache.length) if cache.valid is None else cache.valid
            cache.valid = all_valid = torch.cat([old, new], dim=1)
        else:
            all_valid = valid_BL
        start, length = (cache.length if cache is not None else 0), x_BLD.shape[1]
        if all_valid is None:
            position = torch.arange(start, start + length, device=x_BLD.device)[None]
        else:
            position = (all_valid.cumsum(1) - 1).clamp(min=0)[:, start:]
        mask = attention_mask(all_valid, length, start + length, x_BLD.device)
        ctx, routing, x = self.balancers.context(valid=valid_BL, common=self.router_common), [], x_BLD
        state: Any = None
        for index, block in enumerate(self.layers):
            first = 0
            if (
                last_only and index == len(self.layers) - 1 and state is None
            ):  # a router's state is that of all positions
                first = length - 1
                mask = None if mask is None else mask[:, :, first:]
                ctx = replace(ctx, valid=None if valid_BL is None else valid_BL[:, first:])
            arguments = (x, position, mask, ctx.at(index), cache, state, first)
            if self.config.activation_checkpointing and self.training:
                x, out = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, out = block(*arguments)
            state = out.state
            routing.append(out)
        if cache is not None:
            cache.length += length
        return self.norm(x[:, -1:] if last_only else x), tuple(routing)


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases; a mixture layer initialises its own router and experts.
    Nothing happens on the meta device, where torch would import its compiler for it."""
    if next(module.parameters()).is_meta:
        return
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, MoE):
            child.reset_parameters(std)
