"""The tree gate of COMET with its permutation-based local search (Ibrahim et al., arXiv:2306.02824).

Shapes: T tokens, R trees, N inner nodes of a tree (E - 1), E experts (its leaves), D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError

NEVER = -1e30
"""Logit of a leaf that no tree can reach: finite, for logsumexp has no gradient at -inf."""


class Comet(nn.Module):
    """``z_e = log sum_r exp(a_re + log p_re)``: tree r leads to leaf e with probability ``p_re``, the product of its
    branches ``S(w . x + b)`` or ``1 - S(...)``, S the smooth step; ``a_re = v_re . x`` (COMET, arXiv:2306.02824).

    Followed by softmax that is its gate: a softmax over all leaves of all trees together, summed over trees. As the
    branches saturate at most ``trees`` experts keep a score above 0, which the selector ``threshold`` picks;
    ``entropy`` times the mean entropy of the leaf probabilities is added to the loss and hurries it.
    """

    @dataclass
    class Config:
        trees: int = 2
        gamma: float = 1.0
        entropy: float = 0.0

        def __post_init__(self) -> None:
            at_least(1, self, "trees")
            at_least(0, self, "entropy")
            if self.gamma <= 0:
                raise ZooError(f"gamma={self.gamma} must be above 0")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        c = self.config = config
        left_NE, right_NE = branches(num_experts)
        self.register_buffer("left_NE", left_NE, persistent=False)
        self.register_buffer("right_NE", right_NE, persistent=False)
        self.node = nn.Parameter(torch.empty(c.trees, num_experts - 1, hidden_size))
        self.node_bias = nn.Parameter(torch.zeros(c.trees, num_experts - 1))
        self.leaf = nn.Parameter(torch.empty(c.trees, num_experts, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.uniform_(self.node, -self.config.gamma / 100, self.config.gamma / 100)
        nn.init.normal_(self.leaf, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        c = self.config
        inner_TRN = torch.einsum("td,rnd->trn", x_TD, self.node.float()) + self.node_bias.float()
        go_TRN = smooth_step(inner_TRN, c.gamma)
        tiny = torch.finfo(go_TRN.dtype).tiny
        left_TRN, right_TRN = go_TRN.clamp(min=tiny).log(), (1 - go_TRN).clamp(min=tiny).log()
        log_TRE = left_TRN @ self.left_NE.float() + right_TRN @ self.right_NE.float()
        closed_TRE = (go_TRN <= 0).float() @ self.left_NE.float() + (go_TRN >= 1).float() @ self.right_NE.float() > 0
        if c.entropy and self.training:
            entropy_T = -torch.where(closed_TRE, 0.0, log_TRE.exp() * log_TRE).sum(-1).mean(-1)
            valid_T = torch.ones_like(entropy_T, dtype=torch.bool) if ctx.valid is None else ctx.valid
            mean = torch.where(valid_T, entropy_T, 0.0).sum() / valid_T.sum().clamp(min=1)
            ctx.add_loss(c.entropy * mean)
        leaf_TRE = torch.einsum("td,red->tre", x_TD, self.leaf.float())
        return (leaf_TRE + log_TRE).masked_fill(closed_TRE, NEVER).logsumexp(1), state


class LocalSearch(nn.Module):
    """``log(exp(z) Pi)``: the gate's experts permuted. For ``steps`` steps ``Pi`` is learned by Gumbel-Sinkhorn, whose
    temperature goes from ``tau`` to ``tau_end``; then, and in evaluation, it is the permutation nearest to it. For any
    gate (COMET, arXiv:2306.02824)."""

    @dataclass
    class Config:
        steps: int = 1000
        tau: float = 1.0
        tau_end: float = 0.05
        iterations: int = 20

        def __post_init__(self) -> None:
            at_least(1, self, "steps", "iterations")
            if min(self.tau, self.tau_end) <= 0:
                raise ZooError(f"tau={self.tau} and tau_end={self.tau_end} must be above 0")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.order = nn.Parameter(torch.zeros(num_experts, num_experts))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.order, std=std)

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        c, order_EE = self.config, self.order.float()
        done = ctx.progress(c.steps)
        if done == 1 or not self.training:
            # `order` stays in the graph, with a gradient of zero: every parameter has one, as DDP wants.
            return values_TE[:, assignment(order_EE, c.iterations, c.tau_end)] + 0 * order_EE.sum()
        noise_EE = -torch.empty_like(order_EE).exponential_().clamp(min=1e-30).log()
        tau = c.tau * (c.tau_end / c.tau) ** done
        log_EE = sinkhorn((order_EE + noise_EE) / tau, c.iterations)
        return (values_TE[:, :, None] + log_EE).logsumexp(1)


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """0 below ``-gamma / 2``, 1 above ``gamma / 2``, between them ``-2 t^3 / gamma^3 + 3 t / (2 gamma) + 1 / 2``."""
    t = t.clamp(-gamma / 2, gamma / 2)
    return (-2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5).clamp(0, 1)


def branches(leaves: int) -> tuple[Tensor, Tensor]:
    """(N, E) each: 1 where the way to a leaf goes left, or right, at an inner node of a balanced tree. Any E."""
    left_NE, right_NE = torch.zeros(max(leaves - 1, 0), leaves), torch.zeros(max(leaves - 1, 0), leaves)
    ranges, node = [(0, leaves)], 0
    while ranges:
        start, end = ranges.pop(0)
        if end - start < 2:
            continue
        middle = start + 2 ** math.ceil(math.log2(end - start)) // 2
        left_NE[node, start:middle], right_NE[node, middle:end] = 1, 1
        ranges += [(start, middle), (middle, end)]
        node += 1
    return left_NE, right_NE


def sinkhorn(log_EE: Tensor, iterations: int) -> Tensor:
    """The logarithm of a doubly stochastic matrix, by normalising rows and columns in turn."""
    for _ in range(iterations):
        log_EE = log_EE - log_EE.logsumexp(0, keepdim=True)
        log_EE = log_EE - log_EE.logsumexp(1, keepdim=True)
    return log_EE


@torch.no_grad()
def assignment(order_EE: Tensor, iterations: int, tau: float) -> Tensor:
    """(E,): the row that goes to each column, from the Sinkhorn matrix, its largest free entry first. No host sync."""
    free_EE = sinkhorn(order_EE / tau, iterations)
    range_E = torch.arange(len(free_EE), device=free_EE.device)
    row_E = torch.zeros_like(range_E)
    for _ in range(len(free_EE)):
        best = free_EE.argmax()
        row, column_E = best // len(free_EE), range_E == best % len(free_EE)
        row_E = torch.where(column_E, row, row_E)
        free_EE = free_EE.masked_fill((range_E == row)[:, None] | column_E, -torch.inf)
    return row_E
