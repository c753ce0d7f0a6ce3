"""Selectors in which every token chooses for itself.

Shapes: T tokens, K slots, E experts, D model width, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.selectors.table import Choice, pack, slots_of
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


def _all_used(index_TK: Tensor) -> Choice:
    return index_TK, torch.ones_like(index_TK, dtype=torch.bool)


class TopK(nn.Module):
    """The k experts of the highest selection score, best first (Shazeer et al., arXiv:1701.06538).

    ``layers`` are other k for the first MoE layers, for the first ``steps`` optimiser steps when that is set. That is
    the progressive sparsification of Sigma-MoE-Tiny (arXiv:2512.16248): ``k=1, layers=[8, 8, 4, 4], steps=1000``.
    """

    @dataclass
    class Config:
        k: int = 2
        layers: list[int] = field(default_factory=list)
        steps: int | None = None

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        for k in (config.k, *config.layers):
            if not 1 <= k <= num_experts:
                raise ZooError(f"router k={k} must lie between 1 and num_experts={num_experts}")
        self.config = config
        self.slots = config.k

    def k(self, ctx: RouteContext) -> int:
        """How many here and now."""
        c = self.config
        if ctx.layer < len(c.layers) and (c.steps is None or ctx.progress(c.steps) < 1):
            return c.layers[ctx.layer]
        return c.k

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        return _all_used(select_TE.topk(self.k(ctx), dim=-1).indices)


class TopP(nn.Module):
    """The smallest number of best experts whose scores sum to at least ``p`` (Huang et al., arXiv:2403.07652); null
    experts are columns like the others (Uni-MoE-2.0, arXiv:2511.12609). At most ``slots`` (0: all), at least one."""

    @dataclass
    class Config:
        p: float = 0.4
        slots: int = 0

        def __post_init__(self) -> None:
            if not 0 <= self.p <= 1:
                raise ZooError(f"p={self.p} must lie between 0 and 1")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.p, self.slots = config.p, slots_of(config.slots, num_experts)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        index_TK = select_TE.topk(self.slots, dim=-1).indices
        score_TK = scores_TE.detach().gather(-1, index_TK)
        before_TK = score_TK.cumsum(-1) - score_TK
        first_K = torch.arange(self.slots, device=index_TK.device) == 0
        return index_TK, (before_TK < self.p) | first_K


class Threshold(nn.Module):
    """Every expert whose selection score is above ``threshold``; at most ``slots`` (0: all). With ``at_least_one`` the
    best one in any case."""

    @dataclass
    class Config:
        threshold: float = 0.0
        slots: int = 0
        at_least_one: bool = True

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config, self.slots = config, slots_of(config.slots, num_experts)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        index_TK, used_TK = pack(select_TE > self.config.threshold, select_TE, self.slots)
        if self.config.at_least_one:
            index_TK = torch.where(used_TK[:, :1], index_TK, select_TE.topk(self.slots, dim=-1).indices)
            used_TK = used_TK | (torch.arange(self.slots, device=index_TK.device) == 0)
        return index_TK, used_TK


class GroupTopK(nn.Module):
    """The best k / G experts inside each of G groups of neighbours, so that every device gets the same load (MoGE of
    Pangu Pro MoE, arXiv:2505.21411)."""

    @dataclass
    class Config:
        k: int = 8
        groups: int = 8

        def __post_init__(self) -> None:
            at_least(1, self, "k", "groups")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        c = self.config = config
        if num_experts % c.groups or c.k % c.groups or c.k > num_experts:
            raise ZooError(f"group_topk: groups={c.groups} must divide k={c.k} and num_experts={num_experts}, k <= E")
        self.slots = c.k

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        c, experts = self.config, select_TE.shape[-1]
        inside_TGK = select_TE.unflatten(-1, (c.groups, -1)).topk(c.k // c.groups, dim=-1).indices
        start_G1 = torch.arange(0, experts, experts // c.groups, device=select_TE.device)[:, None]
        return _all_used((inside_TGK + start_G1).flatten(1))


class All(nn.Module):
    """Every expert: soft mixtures (BAM, arXiv:2408.08274, mixes its attention experts so)."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.slots = num_experts

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        return _all_used(torch.arange(self.slots, device=select_TE.device).expand_as(select_TE).contiguous())
