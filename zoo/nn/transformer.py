"""The transformer stack: layers of named parts, a mixer and a feed-forward each, a wiring around them.

Shapes: B batch, L positions, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, Routing
from zoo.moe.experts.base import Bank
from zoo.nn.build import Site
from zoo.nn.feed_forward import Mixture
from zoo.nn.span import Cache, span_of
from zoo.nn.wiring import Carry, MixtureOfBlocks, MixtureOfDepths
from zoo.registry import suggest
from zoo.spec import ZooError

LAYER_PARTS = ("wiring", "mixer", "feed_forward")


@dataclass
class TransformerConfig:
    """A stack of ``num_layers`` layers.

    ``first`` and ``pattern`` say how some layers differ: each item is ``{count: 1, wiring:, mixer:, feed_forward:}``
    with what is other than the stack's own. ``first`` is for the lowest layers, ``pattern`` is repeated above them::

        first: [{count: 3, feed_forward: {name: dense, intermediate_size: 18432}}]     # DeepSeek-V3
        pattern: [{feed_forward: {name: dense, intermediate_size: 8192}}, {}]          # GShard: every other layer

    ``pool`` neighbouring MoE layers share one bank of ``moe.num_experts`` experts (ReXMoE, S008). ``final_norm_eps`` is
    that of the norm above all layers, where it is another (JetMoE); without ``final_norm`` there is none, for a head
    that norms what it reads (DiT).
    """

    hidden_size: int = 128
    num_layers: int = 4
    wiring: Any = zc.part("wiring", "sequential")
    mixer: Any = zc.part("mixer", "attention")
    feed_forward: Any = zc.part("feed_forward", "moe")
    moe: MoEConfig = field(default_factory=MoEConfig)
    first: list[Any] = field(default_factory=list)
    pattern: list[Any] = field(default_factory=list)
    pool: int = 1
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    final_norm_eps: float | None = None
    final_norm: bool = True
    init_std: float = 0.02
    causal: bool = True
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        zc.at_least(1, self, "hidden_size", "pool")
        zc.at_least(0, self, "num_layers", "init_std", "norm_eps")

    def layer_parts(self, index: int) -> dict[str, Any]:
        """The part nodes of a layer. Raises `ZooError` for an item of ``first`` or ``pattern`` that is malformed."""
        first, pattern = _unrolled("first", self.first), _unrolled("pattern", self.pattern)
        own: Mapping[str, Any] = {}
        if index < len(first):
            own = first[index]
        elif pattern:
            own = pattern[(index - len(first)) % len(pattern)]
        return {name: zc.merge(getattr(self, name), own.get(name, {})) for name in LAYER_PARTS}


class Transformer(nn.Module):
    """The layers and a final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(self._build(config))
        last_post = config.wiring["name"] == "sequential" and config.wiring["norm"] == "post"
        site = Site(config.hidden_size, norm_name=config.norm, norm_eps=config.norm_eps)
        bare = last_post or not config.final_norm
        self.norm: nn.Module = nn.Identity() if bare else site.norm(eps=config.final_norm_eps)
        mixtures = [module for module in self.layers.modules() if isinstance(module, MoE)]
        for place, moe in enumerate(mixtures):
            moe.layer = place
        widths = {moe.num_experts for moe in mixtures}
        if len(widths) > 1 and any(node is not None for node in config.moe.balance.values()):
            raise ZooError(
                f"the MoE layers have {sorted(widths)} experts, but one set of balancers serves all; make them equal"
            )
        self.router_common = mixtures[0].router.common() if mixtures else None
        self.balancers = Balancers(config.moe.balance, len(mixtures), mixtures[0].num_experts if mixtures else 0)
        initialise(self, config.init_std)

    @staticmethod
    def _build(config: TransformerConfig) -> Iterator[nn.Module]:
        lent: Bank | None = None
        served = 0
        for index in range(config.num_layers):
            nodes = config.layer_parts(index)
            parts, depth = (nodes["mixer"], nodes["feed_forward"]), index / max(1, config.num_layers - 1)
            site = Site(config.hidden_size, config.moe, *parts, lent, depth, config.norm, config.norm_eps)
            layer = zc.build("wiring", nodes["wiring"], site)
            mixture = next((m for m in layer.modules() if isinstance(m, Mixture)), None)
            if mixture is not None and config.pool > 1:
                served += 1
                lent = mixture.bank if served % config.pool else None
            yield layer

    def forward(
        self,
        x_BLD: Tensor,
        valid_BL: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        document_BL: Tensor | None = None,
        **known: Tensor | None,
    ) -> tuple[Tensor, Routing]:
        """States after the final norm, (B, L, D), and the routing of every MoE layer.

        Args:
            valid_BL: False on padding. Positions count valid points only, so left padding changes nothing.
            cache: positions so far; ``x`` holds the new ones.
            last_only: only the last position is asked for, (B, 1, D): the last layer computes no other where it can.
            document_BL: which document of a packed row a position belongs to: it sees no other.
            known: fields of `RouteContext` that routers and balancers may look at.
        """
        span = span_of(x_BLD, valid_BL, document_BL, cache, self.config.causal)
        ctx = self.balancers.context(valid=valid_BL, common=self.router_common, **known)
        x, carry = x_BLD, Carry()
        for index, layer in enumerate(self.layers):
            # A router's state is that of all positions, so a router that carries one wants them all.
            if last_only and index == len(self.layers) - 1 and carry.state is None and layer.tail:
                span = span.tail(span.length - 1)
            if self.config.activation_checkpointing and self.training:
                x, carry = checkpoint(layer, x, span, ctx, carry, use_reentrant=False)
            else:
                x, carry = layer(x, span, ctx, carry)
        if cache is not None:
            cache.length += span.length
        return self.norm(x[:, -1:] if last_only else x), _with_losses(carry)


def _with_losses(carry: Carry) -> Routing:
    """The routing, losses of routers that are no MoE layer's added to its first."""
    if not carry.losses:
        return carry.routing
    if not carry.routing:
        raise ZooError("a router between layers has a loss, but no MoE layer carries it; add one to the stack")
    head, *others = carry.routing
    losses = [*carry.losses, *([] if head.loss is None else [head.loss])]
    return (head._replace(loss=torch.stack(losses).sum()), *others)


def _unrolled(name: str, items: list[Any]) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = []
    for place, item in enumerate(items):
        where = f"{name}[{place}]"
        if not isinstance(item, Mapping):
            raise ZooError(f"{where} is a section, such as {{count: 1, feed_forward: {{name: dense}}}}, not {item!r}")
        for key in item:
            if key not in (*LAYER_PARTS, "count"):
                raise ZooError(f"unknown config key '{where}.{key}'; {suggest(str(key), (*LAYER_PARTS, 'count'))}")
        count = item.get("count", 1)
        if not isinstance(count, int) or count < 0:
            raise ZooError(f"{where}.count={count!r} must be a whole number of layers")
        layers += [item] * count
    return layers


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases; a part with ``reset_parameters(std)`` initialises its own.
    Nothing happens on the meta device, where torch would import its compiler for it."""
    if next(module.parameters()).is_meta:
        return
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, MoE | MixtureOfDepths | MixtureOfBlocks):
            child.reset_parameters(std)
