"""Selectors in which tokens compete: the choice for one depends on the others of its sequence or batch.

They are not causal. What a finished model does instead is said by each.

Shapes: T tokens, K slots, E experts, D model width, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.selectors.table import Choice, MovingThreshold, group_sums, pack, ranks, ranks_within, slots_of
from zoo.moe.types import RouteContext
from zoo.spec import ZooError
from zoo_kernels import ops


class ExpertChoice(nn.Module):
    """Each expert takes its ``C = ceil(k T / E)`` best tokens, of the batch or of each sequence (arXiv:2202.09368).

    ``k`` is the mean number of experts per token. A finished model chooses by ``inference``: ``batch`` as in training;
    ``threshold``, scores above the moving mean of each expert's margin in training; or ``causal``, an auxiliary router
    on the token alone, trained here with binary cross-entropy to say who was taken (MoMa, arXiv:2407.21770), whose
    loss, ``coef`` times, the trainer adds.
    """

    @dataclass
    class Config:
        k: float = 2.0
        scope: Literal["batch", "sequence"] = "batch"
        inference: Literal["batch", "threshold", "causal"] = "batch"
        slots: int = 0
        hidden: int = 64
        coef: float = 0.01
        momentum: float = 0.99

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 0 < config.k <= num_experts:
            raise ZooError(f"expert_choice k={config.k} must lie above 0 and be at most num_experts={num_experts}")
        self.config, self.mean_slots = config, config.k
        self.slots = slots_of(config.slots, num_experts)
        self.margin = MovingThreshold(num_experts, config.momentum) if config.inference == "threshold" else None
        self.causal = None
        if config.inference == "causal":
            self.causal = nn.ParameterList(
                [torch.empty(config.hidden, hidden_size), torch.empty(num_experts, config.hidden)]
            )

    def reset_parameters(self, std: float) -> None:
        for weight in self.causal or ():
            nn.init.normal_(weight, std=std)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        if not self.training and self.margin is not None:
            return pack(select_TE > self.margin.value, select_TE, self.slots)
        if not self.training and self.causal is not None:
            return pack(self.membership(x_TD) > 0, select_TE, self.slots)
        valid_T = _valid(select_TE, ctx)
        chosen_TE = self.take(select_TE.masked_fill(~valid_T[:, None], -torch.inf), valid_T, ctx)
        if self.training and self.margin is not None and len(select_TE):
            self.margin.move(select_TE.masked_fill(~chosen_TE, torch.inf).amin(0), ctx)
        if self.training and self.causal is not None:
            error_TE = F.binary_cross_entropy_with_logits(
                self.membership(x_TD.detach()), chosen_TE.float(), reduction="none"
            )
            mean = torch.where(valid_T, error_TE.mean(-1), 0.0).sum() / valid_T.sum().clamp(min=1)
            ctx.add_loss(self.config.coef * mean)
        return pack(chosen_TE, select_TE, self.slots)

    def take(self, select_TE: Tensor, valid_T: Tensor, ctx: RouteContext) -> Tensor:
        """(T, E) bool: each expert's best tokens."""
        c, experts = self.config, select_TE.shape[-1]
        if c.scope == "batch":
            rank_TE, length_T = ranks(select_TE), valid_T.sum()[None]
        elif ctx.seq_id is None:
            raise ZooError("expert_choice scope=sequence needs ctx.seq_id or a batch of sequences; use scope=batch")
        else:
            rank_TE = ranks_within(ctx.seq_id[:, None].expand_as(select_TE), select_TE)
            length_T = group_sums(ctx.seq_id, valid_T.long())
        return (rank_TE < torch.ceil(length_T * c.k / experts)[:, None]) & (select_TE > -torch.inf)

    def membership(self, x_TD: Tensor) -> Tensor:
        """(T, E) logits of the auxiliary causal router."""
        down_HD, up_EH = self.causal  # type: ignore[misc]
        return F.linear(F.linear(x_TD, down_HD.float()).relu(), up_EH.float())


class Race(nn.Module):
    """The ``k T`` highest entries of the whole token x expert table (Race-DiT, arXiv:2503.16057), so that a token gets
    what it needs. A finished model takes scores above the moving mean of the margin in training (``threshold``), or
    races as in training (``batch``)."""

    @dataclass
    class Config:
        k: float = 2.0
        inference: Literal["batch", "threshold"] = "threshold"
        slots: int = 0
        momentum: float = 0.99

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 0 < config.k <= num_experts:
            raise ZooError(f"race k={config.k} must lie above 0 and be at most num_experts={num_experts}")
        self.config, self.mean_slots = config, config.k
        self.slots = slots_of(config.slots, num_experts)
        self.margin = MovingThreshold(1, config.momentum) if config.inference == "threshold" else None

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        if not self.training and self.margin is not None:
            return pack(select_TE > self.margin.value, select_TE, self.slots)
        valid_T = _valid(select_TE, ctx)
        entry_N1 = select_TE.masked_fill(~valid_T[:, None], -torch.inf).reshape(-1, 1)
        won_N1 = (ranks(entry_N1) < torch.floor(valid_T.sum() * self.config.k)) & (entry_N1 > -torch.inf)
        won_TE = won_N1.view_as(select_TE)
        if self.training and self.margin is not None and len(select_TE):
            self.margin.move(select_TE.masked_fill(~won_TE, torch.inf).amin()[None], ctx)
        return pack(won_TE, select_TE, self.slots)


class TokenRounding(nn.Module):
    """Top-k, then each expert's count goes to the nearest multiple of ``tile``: it drops its worst tokens, or takes the
    best of the others (SonicMoE, arXiv:2512.14080). A finished model does plain top-k."""

    @dataclass
    class Config:
        k: int = 2
        tile: int = 128
        slots: int = 0

        def __post_init__(self) -> None:
            at_least(1, self, "tile")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 1 <= config.k <= num_experts:
            raise ZooError(f"router k={config.k} must lie between 1 and num_experts={num_experts}")
        self.config, self.mean_slots = config, float(config.k)
        self.slots = slots_of(config.slots, num_experts)

    def forward(self, x_TD: Tensor, select_TE: Tensor, scores_TE: Tensor, ctx: RouteContext) -> Choice:
        c = self.config
        index_TK = select_TE.topk(c.k, dim=-1).indices
        if not self.training:
            return index_TK, torch.ones_like(index_TK, dtype=torch.bool)
        chosen_TE = ops.round_tokens(select_TE, index_TK, c.tile, ctx.valid)
        return pack(chosen_TE, select_TE, self.slots)


def _valid(select_TE: Tensor, ctx: RouteContext) -> Tensor:
    ones_T = torch.ones(len(select_TE), dtype=torch.bool, device=select_TE.device)
    return ones_T if ctx.valid is None else ctx.valid
