"""The MoE layer: ``route`` decides, ``apply`` computes, and whatever a system has of its own lives between the two.

Shapes: B batch, L length, T decisions (B * L, or fewer when a unit has several tokens), W tokens of a unit, D model
width, K slots, S shared experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.experts.base import Bank
from zoo.moe.types import RouteContext, RouterOutput, Tags
from zoo.spec import ZooError
from zoo_kernels import ops


@dataclass
class MoEConfig:
    """A mixture layer as named parts. ``balance`` belongs to the model: one set of balancers for all layers."""

    num_experts: int = 8
    unit: Any = zc.part("unit", "token")
    router: Any = zc.part("router", "topk")
    experts: Any = zc.part("experts", "swiglu")
    shared: Any = zc.part("shared")
    balance: Any = zc.parts("balancer")

    def __post_init__(self) -> None:
        zc.at_least(1, self, "num_experts")


class MoE(nn.Module):
    """``y = sum_k weight_k * expert_k(x) [+ shared(x)]``.

    ``lent`` are the experts of another layer, which owns them: a pool of several layers, or of several passes through
    one. ``layer`` is the place among the MoE layers of a stack, which sets it.
    """

    def __init__(self, config: MoEConfig, hidden_size: int, lent: Bank | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, 0
        self.num_experts = config.num_experts
        self.unit = zc.build("unit", config.unit, hidden_size)
        self.router = zc.build("router", config.router, self.unit.width, config.num_experts)
        # A lent bank hides in a tuple: it is no submodule of this layer, so its weights are saved and counted once.
        self.lent = None if lent is None else (lent,)
        self.experts = zc.build("experts", config.experts, hidden_size, config.num_experts) if lent is None else None
        self.shared = zc.build("shared", config.shared, hidden_size) if config.shared else None

    @property
    def bank(self) -> Bank:
        """The experts, its own or lent ones."""
        bank: Bank = self.experts if self.lent is None else self.lent[0]  # type: ignore[assignment]
        return bank

    def reset_parameters(self, std: float) -> None:
        """Normal initialisation of the router and of every expert of its own; linear layers are the stack's to
        initialise."""
        self.router.reset_parameters(std)
        if self.experts is not None:
            self.experts.reset_parameters(std)

    def route(self, x: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        """Decide for every unit of ``x`` (B, L, D): every token, unless the config says otherwise."""
        seen_TD, valid_T, ctx = self.unit.see(x, ctx)
        out: RouterOutput = self.router(seen_TD, valid_T, replace(ctx, experts=self.bank), state)
        return out._replace(tags=Tags(*(getattr(ctx, name) for name in Tags._fields)))

    def apply_experts(self, x: Tensor, out: RouterOutput, valid: Tensor | None = None) -> Tensor:
        """What the chosen experts make of ``x`` (B, L, D), the shared ones included.

        Args:
            valid: False on padding, (B, L), which experts that mix the tokens of a unit must not see.
        """
        if self.bank.whole_units:
            plan = ops.plan(out.index_TK, self.num_experts, out.used_TK)
            inside_TW1 = self.unit.split(x.new_ones(*x.shape[:-1], 1), valid)
            y_TWD = self.bank(self.unit.split(x, valid), out.weight_TK, plan, inside_TW1[..., 0] > 0)
            y: Tensor = self.unit.join(y_TWD, x)
        else:
            index_TK, weight_TK, used_TK = (
                self.unit.spread(value, x) for value in (out.index_TK, out.weight_TK, out.used_TK)
            )
            plan = ops.plan(index_TK, self.num_experts, used_TK)
            y_TO = self.bank(x.reshape(-1, x.shape[-1]), weight_TK, plan)
            y = y_TO.view(*x.shape[:-1], y_TO.shape[-1])  # heads say something narrower than they hear
        if self.shared is None and out.shared_weight is not None:
            raise ZooError("the router weighs shared experts, but the layer has none; set moe.shared.name=swiglu")
        if self.shared is None:
            return y
        if valid is not None and self.shared.mixes_tokens:
            x = x * valid[..., None]
        if out.shared_weight is None:
            return self.shared(x, y)
        shared_TS = self.unit.spread(out.shared_weight, x).to(x.dtype)
        return self.shared(x, y, shared_TS.view(*x.shape[:-1], shared_TS.shape[-1]))

    def forward(self, x: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, RouterOutput]:
        out = self.route(x, ctx, state)
        return self.apply_experts(x, out, ctx.valid), out

    def inactive_parameters(self) -> int:
        """Parameters that a token does not pass: the experts beyond those that it uses on average. Below zero for a
        layer with lent experts, whose parameters are counted where they belong."""
        owned = sum(p.numel() for p in self.bank.parameters()) if self.lent is None else self.bank.active_parameters(0)
        return round(owned - self.bank.active_parameters(self.router.mean_slots))
