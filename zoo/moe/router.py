"""The router: ``scorer -> activation -> select hooks -> selector -> capacity -> weigher``, each a named part.

A new published router is usually one new scorer, selector or weigher. Routing is done in fp32 whatever the precision
around it.

Shapes: T tokens, K slots, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.types import RouteContext, RouterOutput


@dataclass
class RouterConfig:
    """The parts of a router."""

    scorer: Any = zc.part("scorer", "linear")
    activation: Any = zc.part("activation", "softmax")
    hooks: Any = zc.parts("select_hook")
    selector: Any = zc.part("selector", "topk")
    capacity: Any = zc.part("capacity")
    weigher: Any = zc.part("weigher", "gather")


class Router(nn.Module):
    """``composed``: any combination of registered parts.

    ``scorer`` gives logits, ``activation`` scores; hooks (and the bias of balancers) change which experts are chosen,
    never how much they count; ``selector`` chooses; ``capacity`` drops what does not fit; ``weigher`` weighs.
    """

    Config = RouterConfig

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config, self.num_experts = config, num_experts
        parts = self.parts()
        self.scorer = zc.build("scorer", parts.scorer, hidden_size, num_experts)
        self.activation = zc.build("activation", parts.activation, num_experts)
        self.hooks = nn.ModuleList(
            zc.build("select_hook", {"name": name, **node}, hidden_size, num_experts)
            for name, node in parts.hooks.items()
            if node is not None
        )
        self.selector = zc.build("selector", parts.selector, hidden_size, num_experts)
        self.capacity = zc.build("capacity", parts.capacity, num_experts) if parts.capacity else None
        self.weigher = zc.build("weigher", parts.weigher, hidden_size, num_experts)

    def parts(self) -> RouterConfig:
        """The parts that the config stands for; a router with flags of its own says them here."""
        config: RouterConfig = self.config
        return config

    @property
    def slots(self) -> int:
        """Slots per token, the K of `RouterOutput`."""
        slots: int = self.selector.slots
        return slots

    @property
    def mean_slots(self) -> float:
        """Slots that are used on average, where that is known; else all."""
        return float(getattr(self.selector, "mean_slots", self.slots))

    def reset_parameters(self, std: float) -> None:
        """Normal initialisation of every weight that does not initialise itself."""
        for part in (self.scorer, self.weigher, self.selector):
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset(std)

    def forward(self, x_TD: Tensor, valid_T: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        with full_precision(x_TD.device):
            x_TD = x_TD.float()
            logits_TE, state = self.scorer(x_TD, ctx, state)
            scores_TE = self.activation(logits_TE, ctx)
            select_TE = scores_TE
            for hook in self.hooks:
                select_TE = hook(select_TE, x_TD, ctx)
            if ctx.balancers is not None:
                bias = ctx.balancers.bias(ctx.layer, scores_TE.detach(), valid_T)
                select_TE = select_TE if bias is None else select_TE + bias
            index_TK, used_TK = self.selector(select_TE, scores_TE, valid_T, ctx)
            used_TK = used_TK & valid_T[:, None]
            if self.capacity is not None:
                used_TK = self.capacity(index_TK, used_TK, select_TE, ctx)
            weight_TK, shared_weight = self.weigher(x_TD, logits_TE, scores_TE, index_TK, used_TK, ctx)
            weight_TK = weight_TK.masked_fill(~used_TK, 0.0)
        return RouterOutput(
            logits_TE, scores_TE, select_TE, index_TK, weight_TK, used_TK, valid_T, shared_weight, state
        )


class TopK(Router):
    """Linear scores, top-k of them, and the gate conventions of the literature as flags.

    ======================================  ==========================================================
    softmax, score_then_topk, renorm=False  Switch, Time-MoE, DiT-MoE, OLMoE, DeepSeekMoE
    softmax, score_then_topk, renorm=True   Mixtral, Qwen3-MoE
    softmax, topk_then_score                JetMoE, GPT-OSS: softmax over the chosen logits only
    sigmoid, renorm=True, scale=2.5         DeepSeek-V3 (its selection bias is a balancer)
    ======================================  ==========================================================
    """

    @dataclass
    class Config:
        k: int = 2
        score: Literal["softmax", "sigmoid"] = "softmax"
        order: Literal["score_then_topk", "topk_then_score"] = "score_then_topk"
        renorm: bool = False
        scale: float = 1.0

    def parts(self) -> RouterConfig:
        c = self.config
        late = c.order == "topk_then_score"
        weigher: Mapping[str, Any] = {"renorm": c.renorm, "scale": c.scale}
        return zc.make(
            RouterConfig,
            activation={"name": "identity" if late else c.score},
            selector={"name": "topk", "k": c.k},
            weigher={"name": f"chosen_{c.score}" if late else "gather", **weigher},
        )


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off; the meta device knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
