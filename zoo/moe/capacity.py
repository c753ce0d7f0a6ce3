"""Capacity: which assignments fit. ``forward(index_TK, used_TK, select_TE, ctx) -> used_TK``; dropless is to have none.

Padding takes no capacity. What is dropped keeps weight 0; a weigher that renormalises does so over what stays.

Shapes: T tokens, K slots, E experts, N = T * K assignments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


def places(index_TK: Tensor, used_TK: Tensor, key_TK: Tensor | None = None) -> Tensor:
    """(T, K): place of each used assignment among those of its expert, 0 the first: by the key, the largest first, or
    first choices before second ones and then by position."""
    expert_N = torch.where(used_TK, index_TK, -1).T.flatten()
    if key_TK is None:
        order_N = torch.arange(len(expert_N), device=expert_N.device)
    else:
        order_N = key_TK.T.flatten().argsort(dim=0, descending=True, stable=True)
    sorted_N, by_expert_N = expert_N[order_N].sort(stable=True)
    order_N = order_N[by_expert_N]
    position_N = torch.arange(len(expert_N), device=expert_N.device)
    place_N = torch.empty_like(order_N).scatter(0, order_N, position_N - torch.searchsorted(sorted_N, sorted_N))
    return place_N.view(index_TK.shape[1], -1).T


class Capacity(nn.Module):
    """At most ``C = max(minimum, ceil(factor * k T / E))`` assignments an expert (GShard, arXiv:2006.16668; Switch,
    arXiv:2101.03961). ``drop=position`` drops the last ones, second choices before first; ``drop=score`` the worst."""

    @dataclass
    class Config:
        train: float = 1.25
        eval: float = 2.0
        minimum: int = 4
        drop: Literal["position", "score"] = "position"

        def __post_init__(self) -> None:
            at_least(0, self, "train", "eval", "minimum")

    def __init__(self, config: Any, num_experts: int) -> None:
        super().__init__()
        self.config, self.num_experts = config, num_experts

    def room(self, index_TK: Tensor, valid_T: Tensor) -> Tensor:
        """(T, K): how many assignments the expert of each may have."""
        c = self.config
        mean = valid_T.sum() * index_TK.shape[-1] / self.num_experts
        room = torch.ceil((c.train if self.training else c.eval) * mean)
        return room.clamp(min=c.minimum).expand(index_TK.shape)

    def forward(self, index_TK: Tensor, used_TK: Tensor, select_TE: Tensor, ctx: RouteContext) -> Tensor:
        key_TK = select_TE.detach().gather(-1, index_TK) if self.config.drop == "score" else None
        valid_T = used_TK.any(-1) if ctx.valid is None else ctx.valid
        return used_TK & (places(index_TK, used_TK, key_TK) < self.room(index_TK, valid_T))


class HeterogeneousCapacity(Capacity):
    """``factor * tau k T / (tau N_true + N_zero)`` for a true expert and ``factor * k T / (tau N_true + N_zero)`` for
    each of the last ``num_zero``, which cost nothing (MoE++, arXiv:2410.07348, eq. 8, where T must stand for the k T
    assignments: room for T of them would drop half of a top-2). A smaller ``tau`` sends them more."""

    @dataclass
    class Config(Capacity.Config):
        train: float = 1.1
        eval: float = 1.1
        minimum: int = 0
        tau: float = 0.75
        num_zero: int = 4

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(1, self, "num_zero")
            if self.tau <= 0:
                raise ZooError(f"tau={self.tau} must be above 0")

    def __init__(self, config: Any, num_experts: int) -> None:
        super().__init__(config, num_experts)
        if config.num_zero >= num_experts:
            raise ZooError(f"num_zero={config.num_zero} must be below num_experts={num_experts}")

    def room(self, index_TK: Tensor, valid_T: Tensor) -> Tensor:
        c, true = self.config, self.num_experts - self.config.num_zero
        share_TK = torch.where(index_TK < true, c.tau, 1.0) / (c.tau * true + c.num_zero)
        room_TK = (c.train if self.training else c.eval) * share_TK * (valid_T.sum() * index_TK.shape[-1])
        return torch.ceil(room_TK).clamp(min=c.minimum)
