"""Plan kernels: histogram -> scan -> scatter, then the list of row tiles. No atomics whose order matters, no host sync.

A block of BLOCK pairs counts its experts, a scan over (expert, block) gives every block its first position of every
expert, and a pair's rank inside its block is the number of earlier pairs of the block with the same expert: the sort is
stable and bitwise deterministic. Unused slots count as one more expert, so they end up last.
Shape suffixes: E experts, N pairs, B blocks, M row tiles or chunks.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import common

BLOCK = 128


@triton.jit
def load_expert(index_ptr, used_ptr, pair, num_pairs, num_experts, HAS_USED: tl.constexpr):
    """The bucket of each pair: its expert, `num_experts` for an unused slot, `num_experts + 1` beyond the end."""
    expert = tl.load(index_ptr + pair, mask=pair < num_pairs, other=0).to(tl.int32)
    expert = tl.where((expert >= 0) & (expert < num_experts), expert, num_experts)
    if HAS_USED:
        used = tl.load(used_ptr + pair, mask=pair < num_pairs, other=0)
        expert = tl.where(used != 0, expert, num_experts)
    return tl.where(pair < num_pairs, expert, num_experts + 1)


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def histogram_kernel(
    index_ptr, used_ptr, count_ptr, num_pairs, num_experts, num_blocks,
    HAS_USED: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """count[e, b]: pairs of block b that chose expert e (row E: unused)."""
    block = tl.program_id(0)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    expert = load_expert(index_ptr, used_ptr, pair, num_pairs, num_experts, HAS_USED)
    bins = tl.arange(0, BINS)
    tl.store(count_ptr + bins * num_blocks + block, tl.histogram(expert, BINS), mask=bins <= num_experts)


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def scatter_kernel(
    index_ptr, used_ptr, last_ptr, count_ptr, pair_ptr, num_pairs, num_experts, num_blocks,
    HAS_USED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes each pair at (first position of its expert in its block) + (its rank among equals in the block)."""
    block = tl.program_id(0)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    expert = load_expert(index_ptr, used_ptr, pair, num_pairs, num_experts, HAS_USED)
    rank = tl.zeros((BLOCK,), dtype=tl.int32)
    for begin in range(block * BLOCK, (block + 1) * BLOCK, 16):
        other = begin + tl.arange(0, 16)
        equal = load_expert(index_ptr, used_ptr, other, num_pairs, num_experts, HAS_USED)[None, :] == expert[:, None]
        rank += tl.sum((equal & (other[None, :] < pair[:, None])).to(tl.int32), axis=1)
    bucket = expert * num_blocks + block
    mask = pair < num_pairs
    first = tl.load(last_ptr + bucket, mask=mask, other=0) - tl.load(count_ptr + bucket, mask=mask, other=0)
    tl.store(pair_ptr + first + rank, pair.to(tl.int64), mask=mask)


@triton.jit(do_not_specialize=["max_tiles", "rows_per_tile"])
def tile_kernel(
    offset_ptr, expert_ptr, row_ptr, slot_ptr, num_experts, max_tiles, rows_per_tile,
    AT_LEAST: tl.constexpr, HAS_SLOT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program e lists the tiles of expert e; program E marks the rest of the list with expert -1.

    AT_LEAST = 1 gives an empty expert one tile without rows. HAS_SLOT numbers the tiles of experts with several.
    """
    expert = tl.program_id(0)
    ids = tl.arange(0, BINS)
    start = tl.load(offset_ptr + ids, mask=ids < num_experts, other=0)
    end = tl.load(offset_ptr + ids + 1, mask=ids < num_experts, other=0)
    tiles = tl.cdiv((end - start).to(tl.int32), rows_per_tile)
    tiles = tl.where(ids < num_experts, tl.maximum(tiles, AT_LEAST), 0)
    first = tl.sum(tl.where(ids < expert, tiles, 0))
    own = tl.sum(tl.where(ids == expert, tiles, 0))
    row = tl.sum(tl.where(ids == expert, start, 0)).to(tl.int32)
    if HAS_SLOT:
        first_slot = tl.sum(tl.where((ids < expert) & (tiles > 1), tiles, 0))
    is_tail = expert == num_experts
    last = tl.where(is_tail, max_tiles, first + own)
    for begin in range(first, last, BLOCK):
        tile = begin + tl.arange(0, BLOCK)
        mask = tile < last
        tl.store(expert_ptr + tile, tl.where(is_tail, -1, expert), mask=mask)
        tl.store(row_ptr + tile, tl.where(is_tail, 0, row + (tile - first) * rows_per_tile), mask=mask)
        if HAS_SLOT:
            slot = tl.where(own > 1, first_slot + tile - first, -1)
            tl.store(slot_ptr + tile, tl.where(is_tail, -1, slot), mask=mask)


class Tiles(NamedTuple):
    """One expert a tile: tile i starts at `row_M[i]`, cut at the end of its expert `expert_M[i]`; -1 is no tile."""

    expert_M: torch.Tensor
    row_M: torch.Tensor
    slot_M: torch.Tensor | None = None


def sort_pairs(
    expert_N: torch.Tensor, used_N: torch.Tensor | None, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stable counting sort: (pair_N, offset_E1) of the pairs by expert, int64, unused pairs last.

    An expert outside [0, E) counts as unused: refusing it would wait for the device, and it must not write elsewhere.
    """
    num_pairs = expert_N.numel()
    num_blocks = triton.cdiv(num_pairs, BLOCK)
    expert_N = expert_N.contiguous()
    used = expert_N if used_N is None else used_N.contiguous().view(torch.uint8)
    count_EB = expert_N.new_empty(num_experts + 1, num_blocks, dtype=torch.int32)
    has_used = used_N is not None
    common.launch(
        histogram_kernel, (num_blocks,), expert_N, used, count_EB, num_pairs, num_experts, num_blocks,
        HAS_USED=has_used, BLOCK=BLOCK, BINS=triton.next_power_of_2(num_experts + 2),
    )  # fmt: skip
    last_EB = count_EB.view(-1).cumsum(0, dtype=torch.int32)
    offset_E1 = expert_N.new_zeros(num_experts + 1, dtype=torch.int64)
    if num_blocks:
        offset_E1[1:] = last_EB.view(num_experts + 1, num_blocks)[:num_experts, -1]
    pair_N = expert_N.new_empty(num_pairs, dtype=torch.int64)
    common.launch(
        scatter_kernel, (num_blocks,), expert_N, used, last_EB, count_EB, pair_N, num_pairs, num_experts, num_blocks,
        HAS_USED=has_used, BLOCK=BLOCK,
    )  # fmt: skip
    return pair_N, offset_E1


def row_tiles(offset_E1: torch.Tensor, num_pairs: int, rows: int) -> Tiles:
    """The tiles of `rows` rows, one expert each, padded with -1 to the most that `num_pairs` pairs can need."""
    num_experts = offset_E1.numel() - 1
    max_tiles = num_pairs // rows + min(num_experts, num_pairs)
    return _list_tiles(offset_E1, num_experts, max_tiles, rows, at_least=0, has_slot=False)


def chunks(offset_E1: torch.Tensor, num_pairs: int, rows: int) -> Tiles:
    """As `row_tiles`, but an empty expert has an empty chunk; `slot_M` numbers the chunks of experts with several."""
    num_experts = offset_E1.numel() - 1
    return _list_tiles(offset_E1, num_experts, num_pairs // rows + num_experts, rows, at_least=1, has_slot=True)


def _list_tiles(
    offset_E1: torch.Tensor, num_experts: int, max_tiles: int, rows: int, at_least: int, has_slot: bool
) -> Tiles:
    expert_M, row_M = (offset_E1.new_empty(max_tiles, dtype=torch.int32) for _ in range(2))
    slot_M = torch.empty_like(row_M) if has_slot else None
    if max_tiles:
        common.launch(
            tile_kernel, (num_experts + 1,), offset_E1, expert_M, row_M, row_M if slot_M is None else slot_M,
            num_experts, max_tiles, rows, AT_LEAST=at_least, HAS_SLOT=has_slot,
            BINS=triton.next_power_of_2(num_experts + 1), BLOCK=128,
        )  # fmt: skip
    return Tiles(expert_M, row_M, slot_M)
