"""The router: ``scorer -> logit hooks -> activation -> select hooks -> selector -> capacity -> weigher``, named parts.

A new published router is usually one new scorer, selector or weigher. Routing is done in fp32 whatever the precision
around it.

Shapes: T tokens, K slots, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.types import RouteContext, RouterOutput
from zoo.spec import ZooError


@dataclass
class RouterConfig:
    """The parts of a router. ``jitter`` multiplies its input by uniform noise in 1 +- jitter while training (Switch,
    arXiv:2101.03961)."""

    scorer: Any = zc.part("scorer", "linear")
    logit_hooks: Any = zc.parts("logit_hook")
    activation: Any = zc.part("activation", "softmax")
    hooks: Any = zc.parts("select_hook")
    selector: Any = zc.part("selector", "topk")
    capacity: Any = zc.part("capacity")
    weigher: Any = zc.part("weigher", "gather")
    jitter: float = 0.0

    def __post_init__(self) -> None:
        zc.at_least(0, self, "jitter")


class Router(nn.Module):
    """``composed``: any combination of registered parts.

    ``scorer`` gives logits, which logit hooks change for good; ``activation`` gives scores; the bias of balancers, then
    hooks, change which experts are chosen, never how much they count; ``selector`` chooses; ``capacity`` drops what
    does not fit; ``weigher`` weighs. Every part sees the context with token-wise fields flattened to T rows.
    """

    Config = RouterConfig

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config, self.num_experts = config, num_experts
        parts = self.parts()
        self.scorer = zc.build("scorer", parts.scorer, hidden_size, num_experts)
        self.logit_hooks = self._hooks("logit_hook", parts.logit_hooks, hidden_size)
        self.activation = zc.build("activation", parts.activation, num_experts)
        self.hooks = self._hooks("select_hook", parts.hooks, hidden_size)
        self.selector = zc.build("selector", parts.selector, hidden_size, num_experts)
        self.capacity = zc.build("capacity", parts.capacity, num_experts) if parts.capacity else None
        self.weigher = zc.build("weigher", parts.weigher, hidden_size, num_experts)
        self.jitter = parts.jitter
        self.given: int | str | tuple[int, ...] | None = None

    def _hooks(self, kind: str, nodes: Mapping[str, Any], hidden_size: int) -> nn.ModuleList:
        named = [{"name": name, **node} for name, node in nodes.items() if node is not None]
        return nn.ModuleList(zc.build(kind, node, hidden_size, self.num_experts) for node in named)

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
        for part in (self.scorer, *self.logit_hooks, *self.hooks, self.selector, self.weigher):
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset(std)

    def common(self) -> nn.Module | None:
        """A fresh module that the routers of all layers share, or None. A stack builds one, owns it, and passes it in
        `RouteContext.common`, so that no parameter is tied."""
        make = getattr(self.scorer, "common", None)
        module: nn.Module | None = make() if callable(make) else None
        return module

    def forward(self, x_TD: Tensor, valid_T: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        losses: list[Tensor] = []
        ctx = replace(ctx, valid=valid_T, losses=losses)
        with full_precision(x_TD.device):
            x_TD = x_TD.float()
            if self.jitter and self.training:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            logits_TE, state = self.scorer(x_TD, ctx, state)
            for hook in self.logit_hooks:
                logits_TE = hook(logits_TE, x_TD, ctx)
            if logits_TE.shape[-1] != self.num_experts:  # experts without a logit would never be chosen, unnoticed
                raise ZooError(f"{self._by()} gives {logits_TE.shape[-1]} logits for {self.num_experts} experts")
            scores_TE = self.activation(logits_TE, ctx)
            as_distribution = getattr(self.activation, "distribution", None)
            prob_TE = as_distribution(logits_TE) if callable(as_distribution) else None
            # A score that has become exactly 0 must not make an expert that is closed as good as one that is open.
            select_TE = scores_TE.detach().masked_fill(logits_TE.detach() == -torch.inf, -torch.inf)
            if ctx.balancers is not None:
                bias = ctx.balancers.bias(ctx.layer, select_TE, valid_T)
                select_TE = select_TE if bias is None else select_TE + bias
            for hook in self.hooks:
                select_TE = hook(select_TE, x_TD, ctx)
            index_TK, used_TK = self.selector(x_TD, select_TE, scores_TE, ctx)
            used_TK = used_TK & valid_T[:, None] & (select_TE.gather(-1, index_TK) > -torch.inf)
            if self.capacity is not None:
                used_TK = self.capacity(index_TK, used_TK, select_TE, ctx)
            weight_TK, shared_TS = self.weigher(x_TD, logits_TE, scores_TE, index_TK, used_TK, ctx)
            if self.given is not None:
                index_TK, used_TK = self._given(index_TK, valid_T, ctx)
                weight_TK = torch.ones_like(weight_TK)
                if shared_TS is not None and not isinstance(self.given, str):
                    shared_TS = torch.zeros_like(shared_TS)  # the layer is its given experts and nothing else
            weight_TK = weight_TK.masked_fill(~used_TK, 0.0)
            loss = torch.stack(losses).sum() if losses else None
        return RouterOutput(
            logits_TE,
            scores_TE,
            select_TE,
            index_TK,
            weight_TK,
            used_TK,
            valid_T,
            shared_TS,
            state,
            loss,
            prob_TE=prob_TE,
        )

    def _by(self) -> str:
        parts = (self.scorer, *self.logit_hooks)
        return " or ".join(f"{type(part).__module__}.{type(part).__name__}" for part in parts)

    def _given(self, index_TK: Tensor, valid_T: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor]:
        """The experts that were given, in the first slots: all routers choose them with weight 1 (see `give`)."""
        expert_T: Any = self.given
        if isinstance(self.given, str) and (expert_T := getattr(ctx, self.given)) is None:
            raise ZooError(f"experts are to be given by {self.given}, but this task tags no token with a {self.given}")
        index_TK, used_TK = torch.zeros_like(index_TK), torch.zeros_like(index_TK, dtype=torch.bool)
        experts = self.given if isinstance(self.given, tuple) else (expert_T,)
        for slot, expert in enumerate(experts):
            index_TK[:, slot], used_TK[:, slot] = expert, valid_T
        return index_TK, used_TK


def give(model: nn.Module, expert: int | str | Sequence[int] | None) -> None:
    """Let all routers of a model choose ``expert``, with weight 1: a number, or the name of the token-wise field of the
    `RouteContext` that holds numbers (``label``, ``domain``, ``modality``). None: let them choose themselves again.

    Several numbers are experts that a token passes all together: slices of one dense MLP, whose sum it is. Experts that
    are given by number are all that a token passes: shared ones that the router weighs get weight 0.

    Raises:
        ZooError: the model has no router, or a layer has no such expert or too few slots.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if expert is not None and not routers:
        raise ZooError("experts are to be given, but the model has no router; leave router.mode out")
    several = None if expert is None or isinstance(expert, int | str) else tuple(expert)
    for router in routers:
        most = expert if isinstance(expert, int) else max(several or (0,))
        if most >= router.num_experts:
            raise ZooError(f"expert {most} is to be given, but a layer has {router.num_experts}; count from 0")
        if several is not None and not 0 < len(several) <= router.slots:
            raise ZooError(f"{len(several)} experts are to be given, but a token has {router.slots} slots; give fewer")
        router.given = several if several is not None else expert  # type: ignore[assignment]


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
            activation={"name": c.score},  # balancers read it; the order of the scores is that of the logits
            selector={"name": "topk", "k": c.k},
            weigher={"name": f"chosen_{c.score}" if late else "gather", **weigher},
        )


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off; the meta device knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
