"""Heads: from features to actions. One MLP, or one for every phase, mixed by a router that hears of the phases.

A head is ``head(x_BQD, valid_BQ, label_BQ) -> (y_BQO, gate_BQP or None, routing)``, made as ``head(config, width,
outputs, phases)``. MoE-ACT's is ``mixture`` over action queries.

Shapes: B batch, Q queries, D width, O outputs, P experts (one a phase), F hidden width, N pairs, T = B Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, Routing
from zoo.moe.experts import Bank
from zoo.moe.experts.base import BankConfig
from zoo.moe.experts.grouped import grouped_linear
from zoo.spec import ZooError
from zoo_kernels.plan import Plan

Answer = tuple[Tensor, Tensor | None, Routing]


def split(groups: list[int], hidden: list[int], outputs: int) -> list[tuple[int, int]]:
    """(outputs, hidden width) of each group. Raises `ZooError` when they do not make the outputs up."""
    groups = groups or [outputs]
    if sum(groups) != outputs or len(hidden) != len(groups):
        raise ZooError(f"groups={groups} with hidden={hidden} must have a width each and add up to {outputs} outputs")
    return list(zip(groups, hidden, strict=True))


class ActionHead(Bank):
    """One action head an expert: for each of ``groups`` of the outputs its own MLP ``W_2 silu(W_1 x + b_1) + b_2``
    (MoE-ACT, arXiv:2601.21971: position 256 -> 3 and gripper 128 -> 1). Without groups all outputs are one; without
    ``outputs`` an expert says as much as it hears."""

    @dataclass
    class Config(BankConfig):
        outputs: int | None = None
        groups: list[int] = field(default_factory=list)
        hidden: list[int] = field(default_factory=lambda: [64])

        def __post_init__(self) -> None:
            zc.at_least(1, self, "outputs")
            if min([*self.groups, *self.hidden, 1]) < 1:
                raise ZooError(f"groups={self.groups} and hidden={self.hidden} must be at least 1")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        sizes = split(config.groups, config.hidden, config.outputs or hidden_size)
        self.inner = [inner for _, inner in sizes]
        self.first = nn.Parameter(torch.empty(num_experts, sum(self.inner), hidden_size))
        self.first_bias = nn.Parameter(torch.zeros(num_experts, sum(self.inner)))
        self.last = nn.ParameterList(torch.empty(num_experts, out, inner) for out, inner in sizes)
        self.last_bias = nn.Parameter(torch.zeros(num_experts, sum(out for out, _ in sizes)))
        self.stacked = ("first", "first_bias", *(f"last.{n}" for n in range(len(sizes))), "last_bias")

    def reset_parameters(self, std: float) -> None:
        """As linear layers begin: uniform in 1 / sqrt(inputs), whatever ``std``."""
        for weight, bias in ((self.first, self.first_bias), *((w, None) for w in self.last)):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)
        nn.init.zeros_(self.last_bias)

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        hidden_NF = self.tap("atomic", F.silu(grouped_linear(x, self.first, plan, self.first_bias)), plan)
        biases = self.last_bias.split([weight.shape[1] for weight in self.last], 1)
        parts = zip(hidden_NF.split(self.inner, -1), self.last, biases, strict=True)
        return torch.cat([grouped_linear(part, weight, plan, bias) for part, weight, bias in parts], -1)


class DenseHead(nn.Module):
    """One head for all phases: ``W_2 silu(W_1 x + b_1) + b_2`` for each group of outputs."""

    @dataclass
    class Config:
        groups: list[int] = field(default_factory=list)
        hidden: list[int] = field(default_factory=lambda: [64])

    def __init__(self, config: Config, width: int, outputs: int, phases: int) -> None:
        super().__init__()
        sizes = split(config.groups, config.hidden, outputs)
        self.each = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, out)) for out, inner in sizes
        )

    def forward(self, x_BQD: Tensor, valid_BQ: Tensor | None = None, label_BQ: Tensor | None = None) -> Answer:
        return torch.cat([mlp(x_BQD) for mlp in self.each], -1), None, ()


class MixtureHead(nn.Module):
    """A head for every phase and a router for every query: ``y = sum_p w_p head_p(x)``. With the balancer ``label_ce``
    the router learns the demonstrations' phases (MoE-ACT, arXiv:2601.21971).

    Config:
        num_experts: None for one a phase.
    """

    @dataclass
    class Config:
        num_experts: int | None = None
        groups: list[int] = field(default_factory=list)
        hidden: list[int] = field(default_factory=lambda: [64])
        router: Any = zc.part("router", "composed", selector={"name": "all"})
        balance: Any = zc.parts("balancer")

        def __post_init__(self) -> None:
            zc.at_least(1, self, "num_experts")

    def __init__(self, config: Config, width: int, outputs: int, phases: int) -> None:
        super().__init__()
        c, count = config, config.num_experts or phases
        self.supervised = c.balance.get("label_ce") is not None
        if self.supervised and count != phases:
            raise ZooError(f"num_experts={count}, but {phases} phases name them; leave it out, or label_ce")
        experts = {"name": "robotics/action_head", "outputs": outputs, "groups": c.groups, "hidden": c.hidden}
        self.moe = MoE(zc.make(MoEConfig, num_experts=count, router=c.router, experts=experts), width)
        self.balancers = Balancers(c.balance, 1, count)
        if not next(self.parameters()).is_meta:
            self.moe.reset_parameters(0.02)

    def forward(self, x_BQD: Tensor, valid_BQ: Tensor | None = None, label_BQ: Tensor | None = None) -> Answer:
        """Labels below 0 are unknown: they teach nothing, and a router told to follow labels refuses them."""
        if label_BQ is not None and self.moe.router.given == "label":
            told_BQ = label_BQ >= 0 if valid_BQ is None else (label_BQ >= 0) | ~valid_BQ
            if not bool(told_BQ.all()):
                raise ZooError("steps without a phase cannot be given to a phase's expert; label them all")
            label_BQ = label_BQ.clamp(min=0)
        ctx: RouteContext = self.balancers.context(valid=valid_BQ, label=label_BQ)
        y_BQO, out = self.moe(x_BQD, ctx)
        return y_BQO, out.scores_TE.view(*x_BQD.shape[:2], -1), (out,)


class LearnedTemperature(nn.Module):
    """``softmax(z / tau)`` with ``tau`` learned, beginning at ``start``: at 100 all experts are mixed nearly evenly
    (MoE-ACT, arXiv:2601.21971)."""

    @dataclass
    class Config:
        start: float = 100.0

        def __post_init__(self) -> None:
            if self.start <= 0:
                raise ZooError(f"start={self.start} of a temperature must be above 0")

    def __init__(self, config: Config, num_experts: int) -> None:
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.start)))

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return (logits_TE / self.log_tau.float().exp()).softmax(-1)
