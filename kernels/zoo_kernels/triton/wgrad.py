"""Weight and bias gradients: the contraction runs over the rows of one expert, so its length is ragged.

An expert's rows are cut into chunks. A lone chunk writes its expert's gradient, zeros when it has no rows; the chunks
of a hot expert write fp32 partial sums to numbered slots, which one more kernel adds in order: no atomics.
Shape suffixes: N pairs, E experts, P and Q the widths of the two operands, C chunks.
"""

import torch
import triton
import triton.language as tl

from ..plan import Plan, Widths
from . import common, tiles
from .common import units_of
from .plan import chunks

MIN_CHUNK = 512  # rows; shorter chunks would not hide the loads of the pipeline
PROGRAMS = 256  # one hot expert should still fill the device


@triton.jit(do_not_specialize=["chunk_rows"])
def wgrad_kernel(
    p_ptr, q_ptr, token_ptr, offset_ptr, chunk_expert_ptr, chunk_row_ptr, chunk_slot_ptr, partial_ptr, dw_ptr,
    start_ptr, P, Q, num_p, num_q, chunk_rows, stride_p, stride_q, stride_de, stride_dp, stride_dq,
    GATHER_P: tl.constexpr, GATHER_Q: tl.constexpr, MULTIPLE: tl.constexpr, TWICE: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dw[e, p, q] = sum over the rows i of a chunk of p[i or token[i], p] * q[i or token[i], q].

    Of ragged experts, dw is concatenated along p, TWICE as long as there are inner units.
    """
    pid = tl.program_id(0)
    chunk = pid // (num_p * num_q)
    expert = tl.load(chunk_expert_ptr + chunk)
    if expert < 0:
        return
    first = tl.load(chunk_row_ptr + chunk)
    last = tl.minimum(tl.load(offset_ptr + expert + 1).to(tl.int32), first + chunk_rows)
    col_p = pid // num_q % num_p * BM + tl.arange(0, BM)
    col_q = pid % num_q * BN + tl.arange(0, BN)
    if MULTIPLE:
        _, units = units_of(start_ptr, expert, 0, MULTIPLE)
        if pid // num_q % num_p * BM >= units * TWICE:
            return
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for begin in range(first, last, BK):
        row = begin + tl.arange(0, BK)
        in_rows = row < last
        row = row.to(tl.int64)
        row_p = tl.load(token_ptr + row, mask=in_rows, other=0) if GATHER_P else row
        row_q = tl.load(token_ptr + row, mask=in_rows, other=0) if GATHER_Q else row
        # Both are masked: rows past the last used one hold anything, and 0 * NaN is NaN.
        mask_p = in_rows[:, None] & (col_p < P)[None, :]
        mask_q = in_rows[:, None] & (col_q < Q)[None, :]
        p = tl.load(p_ptr + row_p[:, None] * stride_p + col_p[None, :], mask=mask_p, other=0.0)
        q = tl.load(q_ptr + row_q[:, None] * stride_q + col_q[None, :], mask=mask_q, other=0.0)
        if UPCAST:
            p, q = p.to(tl.float32), q.to(tl.float32)
        acc = tl.dot(tl.trans(p), q, acc, input_precision=PRECISION)
    wide_p = P
    place = expert.to(tl.int64) * stride_de
    if MULTIPLE:  # only now: in the loop, one more register would spill on sm_80, and columns do not mix
        unit, units = units_of(start_ptr, expert, 0, MULTIPLE)
        wide_p, place = units * TWICE, unit * TWICE * stride_dp
    mask = (col_p < wide_p)[:, None] & (col_q < Q)[None, :]
    slot = tl.load(chunk_slot_ptr + chunk)
    if slot < 0:
        inner = col_p[:, None] * stride_dp + col_q[None, :] * stride_dq
        tl.store(dw_ptr + place + inner, acc.to(dw_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + slot.to(tl.int64) * P * Q + col_p[:, None] * Q + col_q[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["chunk_rows"])
def reduce_kernel(
    partial_ptr, dw_ptr, start_ptr, offset_ptr, num_experts, P, Q, chunk_rows, stride_de, stride_dp, stride_dq,
    MULTIPLE: tl.constexpr, TWICE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum of the partial sums of expert e, in order; experts with one chunk are done already."""
    expert = tl.program_id(0)
    ids = tl.arange(0, BINS)
    start = tl.load(offset_ptr + ids, mask=ids < num_experts, other=0)
    end = tl.load(offset_ptr + ids + 1, mask=ids < num_experts, other=0)
    parts = tl.cdiv((end - start).to(tl.int32), chunk_rows)
    own = tl.sum(tl.where(ids == expert, parts, 0))
    if own <= 1:
        return
    slot = tl.sum(tl.where((ids < expert) & (parts > 1), parts, 0)).to(tl.int64)
    item = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = P * Q
    mask = item < size
    place = expert.to(tl.int64) * stride_de
    if MULTIPLE:
        unit, units = units_of(start_ptr, expert, 0, MULTIPLE)
        place = unit * TWICE * stride_dp
        mask = mask & (item // Q < units * TWICE)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(0, own):
        acc += tl.load(partial_ptr + (slot + part) * size + item, mask=mask, other=0.0)
    dw_ptrs = dw_ptr + place + item // Q * stride_dp + item % Q * stride_dq
    tl.store(dw_ptrs, acc.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_kernel(
    rows_ptr, token_ptr, pair_ptr, weight_ptr, db_ptr, start_ptr, offset_ptr, C, stride,
    GATHER: tl.constexpr, MULTIPLE: tl.constexpr, TWICE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """db[e] = sum of the rows of expert e; GATHER reads weight[pair[i]] * rows[token[i]] instead of rows[i]."""
    expert = tl.program_id(0).to(tl.int64)
    place = expert * C
    if MULTIPLE:
        unit, units = units_of(start_ptr, expert, 0, MULTIPLE)
        C, place = units * TWICE, unit * TWICE
    col = tl.program_id(1) * BC + tl.arange(0, BC)
    end = tl.load(offset_ptr + expert + 1)
    acc = tl.zeros((BC,), dtype=tl.float32)
    for begin in range(tl.load(offset_ptr + expert), end, BR):
        row = begin + tl.arange(0, BR)
        in_rows = row < end
        source = tl.load(token_ptr + row, mask=in_rows, other=0) if GATHER else row
        mask = in_rows[:, None] & (col < C)[None, :]
        rows = tl.load(rows_ptr + source[:, None] * stride + col[None, :], mask=mask, other=0.0).to(tl.float32)
        if GATHER:
            pair = tl.load(pair_ptr + row, mask=in_rows, other=0)
            rows *= tl.load(weight_ptr + pair, mask=in_rows, other=0.0).to(tl.float32)[:, None]
        acc += tl.sum(rows, axis=0)
    tl.store(db_ptr + place + col, acc.to(db_ptr.dtype.element_ty), mask=col < C)


def wgrad(
    p: torch.Tensor,
    q: torch.Tensor,
    plan: Plan,
    like: torch.Tensor,
    *,
    gather_p: bool = False,
    gather_q: bool = False,
    widths: Widths | None = None,
    twice: int = 1,
) -> torch.Tensor:
    """(E, P, Q), typed and strided as `like`: p^T q over the rows of each expert; a gathered operand has T rows.

    Of ragged experts (P, Q), concatenated along P, which is `twice` their inner units.
    """
    num_pairs, num_experts = plan.token_N.shape[0], plan.num_experts
    width_p, width_q = p.shape[1], q.shape[1]
    dw = torch.empty_like(like)
    strides = dw.stride() if widths is None else (0, *dw.stride())
    start, multiple = common.ragged(widths, plan.offset_E1)
    tile = tiles.choose("wgrad", p.device, p.dtype, num_pairs // max(num_experts, 1))
    num_p, num_q = triton.cdiv(width_p, tile.m), triton.cdiv(width_q, tile.n)
    splits = min(16, max(1, PROGRAMS // (num_p * num_q)))
    rows = max(MIN_CHUNK, triton.cdiv(triton.cdiv(num_pairs, splits), tile.k) * tile.k)
    listed = chunks(plan.offset_E1, num_pairs, rows)
    # At most 2 N / rows chunks belong to experts with more than one.
    num_slots = min(2 * (num_pairs // rows), listed.expert_M.numel())
    partial = p.new_empty(num_slots, width_p, width_q, dtype=torch.float32)
    common.launch(
        wgrad_kernel, (listed.expert_M.numel() * num_p * num_q,), p, q, plan.token_N, plan.offset_E1,
        listed.expert_M, listed.row_M, listed.slot_M, partial, dw, start,
        width_p, width_q, num_p, num_q, rows, p.stride(0), q.stride(0), *strides,
        GATHER_P=gather_p, GATHER_Q=gather_q, MULTIPLE=multiple, TWICE=twice,
        UPCAST=common.upcast(p.dtype), PRECISION=common.precision(p.dtype),
        BM=tile.m, BN=tile.n, BK=tile.k, tile=tile,
    )  # fmt: skip
    if num_slots:
        common.launch(
            reduce_kernel, (num_experts, triton.cdiv(width_p * width_q, 1024)), partial, dw, start, plan.offset_E1,
            num_experts, width_p, width_q, rows, *strides, MULTIPLE=multiple, TWICE=twice,
            BINS=triton.next_power_of_2(num_experts), BLOCK=1024,
        )  # fmt: skip
    return dw


def bias_grad(
    rows: torch.Tensor,
    plan: Plan,
    like: torch.Tensor,
    weight_N: torch.Tensor | None = None,
    *,
    widths: Widths | None = None,
    twice: int = 1,
) -> torch.Tensor:
    """(E, C), or concatenated, as `like`: the sum of each expert's rows; with weights, of weight * rows[token]."""
    width = rows.shape[1]
    db = torch.empty_like(like, memory_format=torch.contiguous_format)
    start, multiple = common.ragged(widths, plan.offset_E1)
    common.launch(
        bias_kernel, (plan.num_experts, triton.cdiv(width, 128)), rows, plan.token_N, plan.pair_N,
        rows if weight_N is None else weight_N, db, start, plan.offset_E1, width, rows.stride(0),
        GATHER=weight_N is not None, MULTIPLE=multiple, TWICE=twice, BR=32, BC=128,
    )  # fmt: skip
    return db
