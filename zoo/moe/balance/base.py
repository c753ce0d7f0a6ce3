"""Balancers: what keeps the experts in use. A model has one set of them for all its MoE layers.

``loss`` is a function of the routing that a forward pass returned; the trainer adds it. ``observe`` is called once a
micro-batch and ``step`` once an optimiser step, outside of anything that activation checkpointing runs twice.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.types import RouteContext, RouterOutput, Routing
from zoo.spec import ZooError


class Balancer(nn.Module):
    """The do-nothing balancer that others override where they differ."""

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__()
        self.config = config

    def bias(self, layer: int, scores_TE: Tensor, valid_T: Tensor) -> Tensor | None:
        """Added to the selection scores of a layer, (E,) or (T, E): changes which experts, never how much.

        Must not change the balancer's state: under activation checkpointing it runs twice; `observe` runs once.
        """
        return None

    def loss(self, routing: Routing) -> Tensor | None:
        """A scalar with its coefficient applied."""
        return None

    def observe(self, routing: Routing) -> None:
        """Note a micro-batch."""

    def step(self) -> None:
        """After an optimiser step."""


class Balancers(nn.Module):
    """The balancers of a model, from ``MoEConfig.balance``. Raises `ZooError` when there is nothing to balance."""

    def __init__(self, chosen: Mapping[str, Any], num_layers: int, num_experts: int) -> None:
        super().__init__()
        settings = {name: node for name, node in chosen.items() if node is not None}
        if settings and not num_layers:
            raise ZooError(f"moe.balance sets {', '.join(settings)}, but the model has no MoE layer; remove it")
        self.each = nn.ModuleDict(
            {
                name: zc.build("balancer", {"name": name, **node}, num_layers, num_experts)
                for name, node in settings.items()
            }
        )
        self.now: int | None = None

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """Forward passes inside the block train at this optimiser step; outside of it every schedule is at its end."""
        before, self.now = self.now, step
        try:
            yield
        finally:
            self.now = before

    def context(self, **fields: Any) -> RouteContext:
        """The context of a forward pass of the model: it carries the step and these balancers."""
        return RouteContext(step=self.now, balancers=self, **fields)

    def bias(self, layer: int, scores_TE: Tensor, valid_T: Tensor) -> Tensor | None:
        each = (balancer.bias(layer, scores_TE, valid_T) for balancer in self.each.values())
        given = [bias for bias in each if bias is not None]
        return sum(given[1:], given[0]) if given else None

    def loss(self, routing: Routing, learning: bool = True) -> dict[str, Tensor]:
        """Losses by balancer name, and ``router``, what the routers' own parts want added. Raises `ZooError` when
        routing was run without gradients while the routers are ``learning``."""
        losses = {name: loss for name, balancer in self.each.items() if (loss := balancer.loss(routing)) is not None}
        if own := [out.loss for out in routing if out.loss is not None]:
            losses["router"] = torch.stack(own).sum()
        if learning and torch.is_grad_enabled() and any(not loss.requires_grad for loss in losses.values()):
            raise ZooError(
                "a balance loss has no gradient: routing ran without one, as it does under reentrant activation "
                "checkpointing; use checkpoint(..., use_reentrant=False)"
            )
        return losses

    def observe(self, routing: Routing) -> None:
        for balancer in self.each.values():
            balancer.observe(routing)

    def step(self) -> None:
        for balancer in self.each.values():
            balancer.step()


def progress(routing: Routing, steps: int) -> float:
    """How much of a schedule of so many steps is done, 0 to 1, as the routing's own step says."""
    step = routing[0].tags.step if routing and routing[0].tags is not None else None
    return 1.0 if step is None or step >= steps else step / steps


def distribution(out: RouterOutput) -> Tensor:
    """(T, E): the scores as a distribution over experts; softmax scores are one already, sigmoid scores are
    normalised, and where scores are plain logits it is their softmax. Zero where a token is not valid."""
    scores_TE = out.scores_TE if out.prob_TE is None else out.prob_TE
    share_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)
    return torch.where(out.valid_T[:, None], share_TE, 0.0)


def valid_mean(values_T: Tensor, valid_T: Tensor) -> Tensor:
    """Mean over the valid tokens, by masking: no shape depends on the data."""
    return torch.where(valid_T, values_T, 0.0).sum() / valid_T.sum().clamp(min=1)


def tag(routing: Routing, name: str, why: str) -> list[Tensor]:
    """What the routing of each layer knows of its tokens. Raises `ZooError` when the model does not tell."""
    values = [getattr(out.tags, name) if out.tags is not None else None for out in routing]
    if any(value is None for value in values):
        raise ZooError(f"{why} needs ctx.{name}, which this model does not give")
    return values
