"""Token rounding: an expert a program; the entry on the edge is found bit by bit, so nothing is sorted.

Shape suffixes: T tokens, E experts.
"""

import torch
import triton
import triton.language as tl

from . import common


@triton.jit(do_not_specialize=["T"])
def round_kernel(key_ptr, state_ptr, chosen_ptr, T, rows_per_tile, BLOCK: tl.constexpr):
    """chosen[e, t] for one expert e; keys are integers in the order of the scores."""
    expert = tl.program_id(0).to(tl.int64)
    key_ptr += expert * T
    state_ptr += expert * T
    chosen_ptr += expert * T
    item = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), dtype=tl.int32)
    opens = tl.zeros((BLOCK,), dtype=tl.int32)
    for begin in range(0, T, BLOCK):
        state = tl.load(state_ptr + begin + item, mask=begin + item < T, other=0)
        counts += (state == 2).to(tl.int32)
        opens += (state > 0).to(tl.int32)
    count = tl.sum(counts)
    rows = tl.minimum((2 * count + rows_per_tile) // (2 * rows_per_tile), tl.sum(opens) // rows_per_tile)
    rows = rows * rows_per_tile
    # The best of the others are taken, or the best of the chosen.
    sought = tl.where(rows > count, 1, 2)
    take = tl.where(rows > count, rows - count, rows)
    low = tl.full((), -2147483648, dtype=tl.int64)
    edge = low
    for bit in range(0, 32):
        raised = edge + (tl.full((), 1, dtype=tl.int64) << (31 - bit))
        reached = tl.zeros((BLOCK,), dtype=tl.int32)
        for begin in range(0, T, BLOCK):
            mask = begin + item < T
            state = tl.load(state_ptr + begin + item, mask=mask, other=0)
            key = tl.load(key_ptr + begin + item, mask=mask, other=0).to(tl.int64)
            reached += ((state == sought) & (key >= raised)).to(tl.int32)
        edge = tl.where(tl.sum(reached) >= take, raised, edge)
    above = tl.zeros((BLOCK,), dtype=tl.int32)
    for begin in range(0, T, BLOCK):
        mask = begin + item < T
        state = tl.load(state_ptr + begin + item, mask=mask, other=0)
        key = tl.load(key_ptr + begin + item, mask=mask, other=0).to(tl.int64)
        above += ((state == sought) & (key > edge)).to(tl.int32)
    room = take - tl.sum(above)
    for begin in range(0, T, BLOCK):
        mask = begin + item < T
        state = tl.load(state_ptr + begin + item, mask=mask, other=0)
        key = tl.load(key_ptr + begin + item, mask=mask, other=0).to(tl.int64)
        tied = ((state == sought) & (key == edge)).to(tl.int32)
        first = tl.cumsum(tied, axis=0) - tied  # of those on the edge, the first ones
        taken = ((state == sought) & (key > edge)) | ((tied > 0) & (first < room))
        taken = taken | ((sought == 1) & (state == 2))
        tl.store(chosen_ptr + begin + item, taken.to(tl.uint8), mask=mask)
        room -= tl.sum(tied)


def round_tokens(select_TE: torch.Tensor, state_TE: torch.Tensor, tile: int) -> torch.Tensor:
    """(T, E) bool; see `zoo_kernels.ops.round_tokens`. State: 0 closed, 1 open, 2 chosen."""
    num_tokens, num_experts = state_TE.shape
    bits_ET = (select_TE.T.contiguous() + 0.0).view(torch.int32)
    key_ET = torch.where(bits_ET < 0, bits_ET ^ 0x7FFFFFFF, bits_ET)
    chosen_ET = torch.empty_like(state_TE.T, memory_format=torch.contiguous_format)
    common.launch(
        round_kernel, (num_experts if num_tokens else 0,), key_ET, state_TE.T.contiguous(), chosen_ET, num_tokens, tile,
        BLOCK=1024,
    )  # fmt: skip
    return chosen_ET.T.contiguous().view(torch.bool)
