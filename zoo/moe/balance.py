"""Balancers: what keeps the experts in use. A model has one set of them for all its MoE layers.

``loss`` is a function of the routing that a forward pass returned; the trainer adds it. ``observe`` is called once a
micro-batch and ``step`` once an optimiser step, outside of anything that activation checkpointing runs twice.

Shapes: T tokens, K slots, E experts, N MoE layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.types import RouteContext, Routing
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

    def loss(self, routing: Routing) -> dict[str, Tensor]:
        """Losses by balancer name, and ``router``, what the routers' own parts want added. Raises `ZooError` when
        routing was run without gradients while training."""
        losses = {name: loss for name, balancer in self.each.items() if (loss := balancer.loss(routing)) is not None}
        if own := [out.loss for out in routing if out.loss is not None]:
            losses["router"] = torch.stack(own).sum()
        if torch.is_grad_enabled() and any(not loss.requires_grad for loss in losses.values()):
            raise ZooError(
                "a balance loss has no gradient: routing ran without one. Freeze-free training with reentrant "
                "activation checkpointing does that; use checkpoint(..., use_reentrant=False)"
            )
        return losses

    def observe(self, routing: Routing) -> None:
        for balancer in self.each.values():
            balancer.observe(routing)

    def step(self) -> None:
        for balancer in self.each.values():
            balancer.step()


class Switch(Balancer):
    """``coef * E * sum_e f_e P_e``: f_e share of assignments, P_e mean gate probability (arXiv:2101.03961, eq. 4).

    ``scope`` says over what f and P are taken: each layer's micro-batch (the losses of the layers are added); each
    layer's global batch, f summed over processes and over the micro-batches of the step so far (arXiv:2501.11873,
    eq. 4); or all layers together as one long batch (Time-MoE, and transformers' Mixtral). ``norm=tokens`` counts
    assignments per token, so that the value at balance is k; ``norm=slots`` makes it 1.
    """

    @dataclass
    class Config:
        coef: float = 0.01
        scope: Literal["micro_batch", "global_batch", "all_layers"] = "micro_batch"
        norm: Literal["slots", "tokens"] = "slots"

    def __init__(self, config: Config, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        self.register_buffer("seen_NE1", torch.zeros(num_layers, num_experts + 1), persistent=False)

    def loss(self, routing: Routing) -> Tensor:
        seen_NE1 = _assignments(routing)
        tokens_N1 = seen_NE1[:, -1:].clamp(min=1)
        prob_NE = torch.stack([_valid_sum(_distribution(out.scores_TE), out.valid_T) for out in routing])
        if self.config.scope == "all_layers":
            share_NE = seen_NE1[:, :-1].sum(0, keepdim=True) / tokens_N1.sum()
            prob_NE = prob_NE.sum(0, keepdim=True) / tokens_N1.sum()
        else:
            if self.config.scope == "global_batch":
                seen_NE1 = seen_NE1 + self.seen_NE1
                if dist.is_available() and dist.is_initialized():
                    dist.all_reduce(seen_NE1)
            share_NE = seen_NE1[:, :-1] / seen_NE1[:, -1:].clamp(min=1)
            prob_NE = prob_NE / tokens_N1
        slots = routing[0].index_TK.shape[-1] if self.config.norm == "slots" else 1
        return self.config.coef * prob_NE.shape[-1] / slots * (share_NE * prob_NE).sum()

    def observe(self, routing: Routing) -> None:
        if self.config.scope == "global_batch":
            self.seen_NE1 += _assignments(routing)

    def step(self) -> None:
        self.seen_NE1.zero_()


class ZLoss(Balancer):
    """``coef * mean_t logsumexp_e(logits)^2``, added over layers (ST-MoE, arXiv:2202.08906, eq. 5)."""

    @dataclass
    class Config:
        coef: float = 0.001

    def loss(self, routing: Routing) -> Tensor:
        sums = [_valid_sum(out.logits_TE.logsumexp(-1).square(), out.valid_T) for out in routing]
        return self.config.coef * sum(s / out.valid_T.sum().clamp(min=1) for s, out in zip(sums, routing, strict=True))


def _assignments(routing: Routing) -> Tensor:
    """(N, E + 1): assignments per expert and, last, valid tokens, of each layer."""
    return torch.stack([torch.cat([out.counts_E(), out.valid_T.sum()[None]]) for out in routing]).float()


def _distribution(scores_TE: Tensor) -> Tensor:
    """Scores as a distribution over experts: softmax scores are one already, sigmoid scores are normalised."""
    return scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)


def _valid_sum(values_T: Tensor, valid_T: Tensor) -> Tensor:
    """Sum over the valid tokens, by masking: no shape depends on the data."""
    mask = valid_T.reshape(-1, *[1] * (values_T.dim() - 1))
    return torch.where(mask, values_T, 0.0).sum(0)
