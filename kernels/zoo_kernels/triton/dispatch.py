"""Gather and combine: rows of tokens in plan order, and each token's weighted sum of its rows, in fp32, no atomics.

A token's pairs are found by one stable sort of the tokens of the plan, so expert choice needs no other kernel.
Shape suffixes: T tokens, N pairs, D model.
"""

import torch
import triton
import triton.language as tl

from ..plan import Plan, used_mask
from . import common


@triton.jit
def combine_kernel(
    rows_ptr, weight_ptr, pair_ptr, order_ptr, start_ptr, y_ptr, D, stride_rows,
    HAS_WEIGHT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over j in start[t] : start[t + 1] of weight[pair[i]] * rows[i], i = order[j]."""
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BD + tl.arange(0, BD)
    in_cols = col < D
    end = tl.load(start_ptr + token + 1)
    acc = tl.zeros((BR, BD), dtype=tl.float32)
    for begin in range(tl.load(start_ptr + token), end, BR):
        item = begin + tl.arange(0, BR)
        row = tl.load(order_ptr + item, mask=item < end, other=0)
        mask = (item < end)[:, None] & in_cols[None, :]
        rows = tl.load(rows_ptr + row[:, None] * stride_rows + col[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            pair = tl.load(pair_ptr + row, mask=item < end, other=0)
            rows *= tl.load(weight_ptr + pair, mask=item < end, other=0.0).to(tl.float32)[:, None]
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
    """(order_N, start_T1): token t owns the positions order_N[start_T1[t] : start_T1[t + 1]], in expert order."""
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
        rows_ND if weight_N is None else weight_N, plan.pair_N, order_N, start_T1, y_TD, width, rows_ND.stride(0),
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


@torch.library.custom_op("zoo::triton_expand", mutates_args=())
def _expand(x_TD: torch.Tensor, token_N: torch.Tensor, pair_N: torch.Tensor, offset_E1: torch.Tensor) -> torch.Tensor:
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], offset_E1.numel() - 1)
    return expand_rows(x_TD.contiguous(), plan)[0]


@_expand.register_fake
def _(x_TD, token_N, pair_N, offset_E1):
    return x_TD.new_empty(token_N.shape[0], x_TD.shape[1])


@torch.library.custom_op("zoo::triton_combine", mutates_args=())
def _combine(
    rows_ND: torch.Tensor, weight_N: torch.Tensor | None, token_N: torch.Tensor, pair_N: torch.Tensor,
    offset_E1: torch.Tensor, num_tokens: int,
) -> torch.Tensor:  # fmt: skip
    plan = Plan(token_N, pair_N, offset_E1, num_tokens, offset_E1.numel() - 1)
    return combine_rows(rows_ND.contiguous(), weight_N, plan)


@_combine.register_fake
def _(rows_ND, weight_N, token_N, pair_N, offset_E1, num_tokens):
    return rows_ND.new_empty(num_tokens, rows_ND.shape[1])


@torch.library.custom_op("zoo::triton_combine_backward", mutates_args=())
def _combine_backward(
    dy_TD: torch.Tensor, rows_ND: torch.Tensor, weight_N: torch.Tensor, token_N: torch.Tensor, pair_N: torch.Tensor,
    offset_E1: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    plan = Plan(token_N, pair_N, offset_E1, dy_TD.shape[0], offset_E1.numel() - 1)
    return expand_rows(dy_TD.contiguous(), plan, rows_ND.contiguous(), weight_N)


@_combine_backward.register_fake
def _(dy_TD, rows_ND, weight_N, token_N, pair_N, offset_E1):
    return torch.empty_like(rows_ND), torch.empty_like(weight_N)


def _save_expand(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.num_tokens = inputs[0].shape[0]


def _save_combine(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])


_expand.register_autograd(
    lambda ctx, drows: (_combine(drows, None, *ctx.saved_tensors, ctx.num_tokens), None, None, None),
    setup_context=_save_expand,
)
_combine.register_autograd(
    lambda ctx, dy: (*_combine_backward(dy, *ctx.saved_tensors), None, None, None, None), setup_context=_save_combine
)


def expand(x_TD: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(N, D) rows of x in plan order, zero for unused pairs; differentiable in x."""
    return _expand(x_TD, plan.token_N, plan.pair_N, plan.offset_E1)


def combine(rows_ND: torch.Tensor, weight_N: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(T, D) weighted sum of each token's rows; rows in plan order, weights in original pair order; differentiable."""
    return _combine(rows_ND, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, plan.num_tokens)
