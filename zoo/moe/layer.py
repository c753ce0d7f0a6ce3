"""The MoE layer: ``route`` decides, ``apply`` computes, and whatever a system has of its own lives between the two.

Shapes: B batch, L length, T = B * L tokens, D model width, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.types import RouteContext, RouterOutput
from zoo_kernels import ops


@dataclass
class MoEConfig:
    """A mixture layer as named parts. ``balance`` belongs to the model: one set of balancers for all layers."""

    num_experts: int = 8
    router: Any = zc.part("router", "topk")
    experts: Any = zc.part("experts", "swiglu")
    shared: Any = zc.part("shared")
    balance: Any = zc.parts("balancer")

    def __post_init__(self) -> None:
        zc.at_least(1, self, "num_experts")


class MoE(nn.Module):
    """``y = sum_k weight_k * expert_k(x) [+ shared(x)]``."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.num_experts = config.num_experts
        self.router = zc.build("router", config.router, hidden_size, config.num_experts)
        self.experts = zc.build("experts", config.experts, hidden_size, config.num_experts)
        self.shared = zc.build("shared", config.shared, hidden_size) if config.shared else None

    def reset_parameters(self, std: float) -> None:
        """Normal initialisation of the router and of every expert; linear layers are the stack's to initialise."""
        self.router.reset_parameters(std)
        self.experts.reset_parameters(std)

    def route(self, x: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        """Decide for every token of ``x`` (B, L, D)."""
        x_TD = x.reshape(-1, x.shape[-1])
        if ctx.valid is None:
            valid_T = torch.ones(x_TD.shape[0], dtype=torch.bool, device=x.device)
        else:
            valid_T = ctx.valid.reshape(-1)
        out: RouterOutput = self.router(x_TD, valid_T, ctx, state)
        return out

    def apply_experts(self, x: Tensor, out: RouterOutput) -> Tensor:
        """What the chosen experts make of ``x`` (B, L, D), the shared one included."""
        x_TD = x.reshape(-1, x.shape[-1])
        plan = ops.plan(out.index_TK, self.num_experts, out.used_TK)
        y: Tensor = self.experts(x_TD, out.weight_TK, plan).view_as(x)
        return y if self.shared is None else y + self.shared(x)

    def forward(self, x: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, RouterOutput]:
        out = self.route(x, ctx, state)
        return self.apply_experts(x, out), out

    def inactive_parameters(self) -> int:
        """Parameters that a token does not pass: the experts beyond its K slots."""
        bank = sum(p.numel() for p in self.experts.parameters())
        return bank * (self.num_experts - self.router.slots) // self.num_experts
