"""Selectors in which something known decides: a label, a modality, the token's id, the user.

Shapes: T tokens, K slots, E experts, D model width, M values of a field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.moe.hooks import expert_table
from zoo.moe.selectors.table import Choice
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


class Label(nn.Module):
    """The experts ``groups[v]``, v the token's label, modality or domain; without groups expert v itself
    (Mono-InternVL, arXiv:2410.08202: modality; MEGADance: genre). A token whose v is beyond the table gets none."""

    by_tag = True
    """What a token holds, and what is around it, changes nothing."""

    @dataclass
    class Config:
        by: Literal["label", "modality", "domain"] = "label"
        groups: list[list[int]] = field(default_factory=list)

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        groups = config.groups or [[expert] for expert in range(num_experts)]
        expert_table(groups, num_experts)
        self.by, self.slots = config.by, max(1, *map(len, groups))
        filled = [[*experts, *[-1] * (self.slots - len(experts))] for experts in (*groups, [])]
        self.register_buffer("expert_MK", torch.tensor(filled), persistent=False)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        value_T = getattr(ctx, self.by)
        if value_T is None:
            raise ZooError(f"the router chooses by ctx.{self.by}, which this model does not give; use another selector")
        none = len(self.expert_MK) - 1
        index_TK = self.expert_MK[torch.where((value_T >= 0) & (value_T < none), value_T, none).long()]
        return index_TK.clamp(min=0), index_TK >= 0


class Modality(Label):
    """The experts ``groups[modality]``: `Label` by modality (Mono-InternVL, arXiv:2410.08202)."""

    @dataclass
    class Config(Label.Config):
        by: Literal["label", "modality", "domain"] = "modality"


class Hash(nn.Module):
    """k experts from the token's id alone, other ones in each layer: the baseline of hash layers (arXiv:2106.04426)."""

    @dataclass
    class Config:
        k: int = 1

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 1 <= config.k <= num_experts:
            raise ZooError(f"router k={config.k} must lie between 1 and num_experts={num_experts}")
        self.slots = config.k

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        if ctx.token_ids is None:
            raise ZooError(
                "the hash selector needs ctx.token_ids, which this model does not give; use another selector"
            )
        mixed_T = (ctx.token_ids.long() + 1) * 2654435761 + ctx.layer * 40503
        first_T = (mixed_T ^ (mixed_T >> 15)) % select_TE.shape[-1]
        index_TK = (first_T[:, None] + torch.arange(self.slots, device=first_T.device)) % select_TE.shape[-1]
        return index_TK, torch.ones_like(index_TK, dtype=torch.bool)


class Forced(nn.Module):
    """The same experts for every token: ablations and tests."""

    @dataclass
    class Config:
        experts: list[int] = field(default_factory=lambda: [0])

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        expert_table([config.experts], num_experts)
        if not config.experts or len(set(config.experts)) < len(config.experts):
            raise ZooError(f"forced experts={config.experts} must be one or more different ones")
        self.slots = len(config.experts)
        self.register_buffer("expert_K", torch.tensor(config.experts), persistent=False)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        index_TK = self.expert_K.expand(len(select_TE), -1).contiguous()
        return index_TK, torch.ones_like(index_TK, dtype=torch.bool)
