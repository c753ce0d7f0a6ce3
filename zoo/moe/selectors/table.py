"""What selectors share: packing a (T, E) table of choices into slots, and ranks, without a host sync.

Shapes: T tokens, K slots, E experts, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.moe.types import RouteContext
from zoo.spec import ZooError

Choice = tuple[Tensor, Tensor]


def pack(chosen_TE: Tensor, select_TE: Tensor, slots: int) -> Choice:
    """The chosen experts of each token in its slots, best first; beyond ``slots`` the worst are left out."""
    order_TE = select_TE.masked_fill(~chosen_TE, -torch.inf)
    index_TK = order_TE.topk(slots, dim=-1).indices
    return index_TK, chosen_TE.gather(-1, index_TK)


def unpack(index_TK: Tensor, used_TK: Tensor, num_experts: int) -> Tensor:
    """(T, E) bool: which experts a choice uses."""
    table_TE = torch.zeros(len(index_TK), num_experts, dtype=torch.bool, device=index_TK.device)
    return table_TE.scatter_reduce(1, index_TK, used_TK, "amax")


def ranks(key_NE: Tensor) -> Tensor:
    """Place of every entry in the descending order of its column, 0 the largest; ties in the order of rows."""
    return key_NE.argsort(dim=0, descending=True, stable=True).argsort(0)


def ranks_within(group_NE: Tensor, key_NE: Tensor) -> Tensor:
    """Like `ranks`, but each entry among those of its own group in its column."""
    order_NE = key_NE.argsort(dim=0, descending=True, stable=True)
    grouped_NE, by_group_NE = group_NE.gather(0, order_NE).sort(dim=0, stable=True)
    order_NE = order_NE.gather(0, by_group_NE)
    place_N1 = torch.arange(len(key_NE), device=key_NE.device)[:, None]
    first_NE = torch.ones_like(grouped_NE, dtype=torch.bool)
    first_NE[1:] = grouped_NE[1:] != grouped_NE[:-1]
    start_NE = torch.where(first_NE, place_N1, 0).cummax(0).values if len(key_NE) else place_N1
    return torch.empty_like(order_NE).scatter(0, order_NE, place_N1 - start_NE)


def group_sums(group_N: Tensor, value_N: Tensor) -> Tensor:
    """(N,): the sum of the values of each item's group; groups are any integers."""
    sorted_N, order_N = group_N.sort(stable=True)
    new_N = torch.ones_like(sorted_N)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]
    group_N = torch.empty_like(order_N).scatter(0, order_N, new_N.cumsum(0) - 1)
    return torch.zeros_like(value_N).index_add(0, group_N, value_N)[group_N]


def slots_of(asked: int, num_experts: int) -> int:
    """Slots of a selector of a variable number of experts: ``asked``, 0 for all. Raises `ZooError` beyond E."""
    if not 0 <= asked <= num_experts:
        raise ZooError(f"slots={asked} must lie between 0 (all) and num_experts={num_experts}")
    return asked or num_experts


class MovingThreshold(nn.Module):
    """The selection score at the margin, averaged over training steps, for selectors that need the whole batch to
    choose in training and must not look at other tokens in a finished model.

    Moves once a step: activation checkpointing runs a forward pass twice, accumulation several times.
    """

    def __init__(self, size: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(size))
        self.register_buffer("seen_at", torch.tensor(-1))

    @torch.no_grad()
    def move(self, margin: Tensor, ctx: RouteContext) -> None:
        """Note the margin of a training batch; one that is not finite (nothing chosen) is passed over."""
        if ctx.step is None:
            return
        share = torch.where(self.seen_at < 0, 1.0, 1 - self.momentum)
        moved = torch.where(margin.isfinite(), self.value + share * (margin - self.value), self.value)
        self.value.copy_(torch.where(self.seen_at == ctx.step, self.value, moved))
        self.seen_at.fill_(ctx.step)
