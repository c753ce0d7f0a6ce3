"""The plan: (token, expert) pairs sorted by expert, with static shapes and no host sync.

Legend: T tokens, K slots, E experts, N pairs (T * K for token choice).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Pairs sorted by expert (stable), unused last; expert e owns sorted positions offset_E1[e] : offset_E1[e + 1]."""

    token_N: Tensor  # int64, token row of each pair, in sorted order
    pair_N: Tensor  # int64, sorted position -> original pair index (t * K + k for T x K routing)
    offset_E1: Tensor  # int64, (E + 1,); offset_E1[E] is the number of used pairs
    num_tokens: int
    num_experts: int
    slots: int = 0  # K if the pairs are T x K, 0 if that is not known


class Widths(NamedTuple):
    """Inner units of experts that differ in width: expert e has the units start_E1[e] : start_E1[e + 1] of all."""

    start_E1: Tensor  # int64, (E + 1,), on the device of the weights
    widest: int
    multiple: int = (
        1  # of which every width is a multiple: from 8 (two-byte types) on, Triton's loads are 128 bits wide
    )

    @classmethod
    def of(cls, widths: Sequence[int], device: torch.device | str | None = None) -> "Widths":
        """From a number an expert, 0 being an expert that says nothing but its bias. Raises ValueError below 0."""
        if min(widths, default=0) < 0:
            raise ValueError(f"zoo_kernels: widths {list(widths)} must not be negative")
        start_E1 = torch.tensor([0, *accumulate(widths)], dtype=torch.int64, device=device)
        return cls(start_E1, max(widths, default=0), math.gcd(*widths))


def used_mask(plan: Plan) -> Tensor:
    """(N,) bool: which sorted positions hold a real pair."""
    return torch.arange(plan.token_N.shape[0], device=plan.token_N.device) < plan.offset_E1[-1]


def inverse(pair_N: Tensor) -> Tensor:
    """(N,) int64: original pair index -> sorted position."""
    inverse_N = torch.empty_like(pair_N)
    inverse_N[pair_N] = torch.arange(pair_N.shape[0], device=pair_N.device)
    return inverse_N


def rows_per_expert(plan: Plan) -> Tensor:
    """(E,) int64: number of used pairs of each expert."""
    return plan.offset_E1.diff()
