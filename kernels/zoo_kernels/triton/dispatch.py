"""Gather and combine: rows of tokens in plan order, and each token's weighted sum of its rows, in fp32, no atomics.

A token's pairs are found by inverting the plan if it is T x K, else (expert choice) by one stable sort of its tokens.
Shape suffixes: T tokens, N pairs, D model.
"""

import torch
import triton
import triton.language as tl

from ..plan import Plan, inverse, used_mask
from . import common


@triton.jit
def combine_kernel(
    rows_ptr, weight_ptr, pair_ptr, order_ptr, start_ptr, used_ptr, y_ptr, D, stride_rows,
    HAS_WEIGHT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over j in start[t] : start[t + 1] of weight[pair[i]] * rows[i], i = order[j], if i is used."""
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BD + tl.arange(0, BD)
    in_cols = col < D
    end = tl.load(start_ptr + token + 1)
    num_used = tl.load(used_ptr)
    acc = tl.zeros((BR, BD), dtype=tl.float32)
    for begin in range(tl.load(start_ptr + token), end, BR):
        item = begin + tl.arange(0, BR)
        row = tl.load(order_ptr + item, mask=item < end, other=0)
        used = (item < end) & (row < num_used)
        mask = used[:, None] & in_cols[None, :]
        rows = tl.load(rows_ptr + row[:, None] * stride_rows + col[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            pair = tl.load(pair_ptr + row, mask=used, other=0)
            rows *= tl.load(weight_ptr + pair, mask=used, other=0.0).to(tl.float32)[:, None]
        acc += rows
    tl.store(y_ptr + token * D + col, tl.sum(acc, axis=0).to(y_ptr.dtype.element_ty), mask=in_cols)


@triton.jit(do_not_specialize=["N"])
def expand_kernel(
    x_ptr, token_ptr, pair_ptr, weight_ptr, rows_ptr, out_ptr, dweight_ptr, used_ptr, N, D, stride_x, stride_rows,
    HAS_WEIGHT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out[i] = x[token[i]], zero if unused; with weights times weight[pair[i]], and dweight = <x[token], rows>."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    in_rows = row < N
    used = row < tl.load(used_ptr)
    token = tl.load(token_ptr + row, mask=in_rows, other=0)
    if HAS_WEIGHT:
        pair = tl.load(pair_ptr + row, mask=in_rows, other=0)
        weight = tl.load(weight_ptr + pair, mask=used, other=0.0).to(tl.float32)
        dot = tl.zeros((BR,), dtype=tl.float32)
    for d in range(0, D, BD):
        col = d + tl.arange(0, BD)
        mask = used[:, None] & (col < D)[None, :]
        x = tl.load(x_ptr + token[:, None] * stride_x + col[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            rows = tl.load(rows_ptr + row[:, None] * stride_rows + col[None, :], mask=mask, other=0.0).to(tl.float32)
            dot += tl.sum(x * rows, axis=1)
            x *= weight[:, None]
        out = out_ptr + row[:, None] * D + col[None, :]
        tl.store(out, x.to(out_ptr.dtype.element_ty), mask=in_rows[:, None] & (col < D)[None, :])
    if HAS_WEIGHT:
        tl.store(dweight_ptr + pair, dot.to(dweight_ptr.dtype.element_ty), mask=in_rows)


def by_token(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """(order_N, start_T1): token t owns the positions order_N[start_T1[t] : start_T1[t + 1]].

    In the order of its slots, unused ones included, if the plan is T x K; else in expert order, by a sort.
    """
    if plan.slots:
        start_T1 = torch.arange(plan.num_tokens + 1, device=plan.pair_N.device, dtype=torch.int32) * plan.slots
        return inverse(plan.pair_N).to(torch.int32), start_T1
    token_N = torch.where(used_mask(plan), plan.token_N, plan.num_tokens).to(torch.int32)
    sorted_N, order_N = token_N.sort(stable=True)
    tokens = torch.arange(plan.num_tokens + 1, device=token_N.device, dtype=torch.int32)
    return order_N, torch.searchsorted(sorted_N, tokens)


def combine_rows(rows_ND: torch.Tensor, weight_N: torch.Tensor | None, plan: Plan) -> torch.Tensor:
    """(T, D) = sum over each token's pairs of weight times row, in fp32; no weights means ones."""
    num_pairs, width = rows_ND.shape
    y_TD = rows_ND.new_empty(plan.num_tokens, width)
    columns = min(1024, triton.next_power_of_2(max(width, 1)))
    order_N, start_T1 = by_token(plan)
    common.launch(
        combine_kernel, (plan.num_tokens, triton.cdiv(width, columns)), rows_ND,
        rows_ND if weight_N is None else weight_N, plan.pair_N, order_N, start_T1, plan.offset_E1[-1:], y_TD,
        width, rows_ND.stride(0),
        HAS_WEIGHT=weight_N is not None, BD=columns,
        BR=min(8, triton.next_power_of_2(triton.cdiv(num_pairs, max(plan.num_tokens, 1)) or 1)),
    )  # fmt: skip
    return y_TD


def expand_rows(
    x_TD: torch.Tensor, plan: Plan, rows_ND: torch.Tensor | None = None, weight_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) x[token], zero for unused pairs; with weights (pair order) times them, and <x[token], rows> (N,)."""
    num_pairs, width = plan.token_N.shape[0], x_TD.shape[1]
    out_ND = x_TD.new_empty(num_pairs, width)
    dweight_N = x_TD.new_empty(0) if weight_N is None else torch.empty_like(weight_N)
    columns = min(1024, triton.next_power_of_2(max(width, 1)))
    rows = max(1, 1024 // columns)
    common.launch(
        expand_kernel, (triton.cdiv(num_pairs, rows),), x_TD, plan.token_N, plan.pair_N,
        x_TD if weight_N is None else weight_N, x_TD if rows_ND is None else rows_ND, out_ND, dweight_N,
        plan.offset_E1[-1:], num_pairs, width, x_TD.stride(0), width,
        HAS_WEIGHT=weight_N is not None, BR=rows, BD=columns,
    )  # fmt: skip
    return out_ND, dweight_N
