"""Grouped GEMM over the rows of a plan, one expert a tile: the down projection, the input gradient, and H recomputed.

Shape suffixes: T tokens, N pairs, E experts, C columns out, R the contracted width.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..plan import Plan, Widths
from . import common, tiles
from .common import units_of
from .plan import row_tiles
from .quant import load_weight, weight_kind


@triton.jit(do_not_specialize=["num_m"])
def gemm_kernel(
    a_ptr, token_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, start_ptr, offset_ptr, tile_expert_ptr, tile_row_ptr,
    R, C, num_m, num_n, stride_an, stride_we, stride_wc, stride_wr, stride_yn,
    GATHER: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHT: tl.constexpr, EVEN: tl.constexpr,
    MULTIPLE: tl.constexpr, TWICE: tl.constexpr, RAGGED_COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y[i, c] = sum_r a[token[i] or i, r] * w[e(i), c, r] (+ bias[e(i), c]) for the rows i of one tile.

    Of ragged experts, w is concatenated along c (RAGGED_COLUMNS) or r, TWICE as long as an expert has inner units.
    """
    pid = tl.program_id(0)
    pid_m, pid_n = tl.swizzle2d(pid // num_n, pid % num_n, num_m, num_n, GROUP)
    expert = tl.load(tile_expert_ptr + pid_m)
    if expert < 0:
        return
    end = tl.load(offset_ptr + expert + 1)
    first = tl.load(tile_row_ptr + pid_m).to(tl.int64)
    local = tl.arange(0, BM)
    in_rows = local < end - first
    # Rows past the end read the first row instead of a mask: they are never stored.
    source = tl.load(token_ptr + first + local, mask=in_rows, other=0) if GATHER else tl.where(in_rows, local, 0)
    if MULTIPLE == 0:
        w_ptr += expert.to(tl.int64) * stride_we
        bias_ptr += expert * C
    else:
        unit, units = units_of(start_ptr, expert, 0, MULTIPLE)
        if RAGGED_COLUMNS:
            C = units * TWICE
            w_ptr += unit * TWICE * stride_wc
            bias_ptr += unit * TWICE
            if pid_n * BN >= C:
                return
        else:
            R = units * TWICE
            w_ptr += unit * TWICE * stride_wr
            bias_ptr += expert * C
    col = pid_n * BN + tl.arange(0, BN)
    in_cols = col < C
    k = tl.arange(0, BK)
    if not GATHER:
        a_ptr += first * stride_an
    a_ptrs = a_ptr + source[:, None] * stride_an + k[None, :]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for r in range(0, R, BK):
        a = tl.load(a_ptrs + r) if EVEN else tl.load(a_ptrs + r, mask=(r + k < R)[None, :], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
        w = load_weight(w_ptr, col, r, R, in_cols, stride_wc, stride_wr, a.dtype, WEIGHT, EVEN, BK)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    if WEIGHT != "float":
        acc *= tl.load(scale_ptr + expert * C + col, mask=in_cols, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, mask=in_cols, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + first * stride_yn + local[:, None] * stride_yn + col[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=in_rows[:, None] & in_cols[None, :])


@triton.jit(do_not_specialize=["num_m"])
def gemm_tma_kernel(
    a_desc, w_desc, bias_ptr, y_ptr, offset_ptr, tile_expert_ptr, tile_row_ptr, R, C, num_m, num_n, stride_yn,
    TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`gemm_kernel` for contiguous rows, through tensor descriptors: (N, R), and (E * C, R) or TRANSPOSED (E * R, C).

    A tile may read rows of the next expert, which are not stored. R must be a multiple of BK.
    """
    pid = tl.program_id(0)
    pid_m, pid_n = tl.swizzle2d(pid // num_n, pid % num_n, num_m, num_n, GROUP)
    expert = tl.load(tile_expert_ptr + pid_m)
    if expert < 0:
        return
    first = tl.load(tile_row_ptr + pid_m)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for r in range(0, R, BK):
        a = a_desc.load([first, r])
        if TRANSPOSED:
            w = w_desc.load([expert * R + r, pid_n * BN])
        else:
            w = tl.trans(w_desc.load([expert * C + pid_n * BN, r]))
        if UPCAST:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    local = tl.arange(0, BM)
    col = pid_n * BN + tl.arange(0, BN)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + expert * C + col, mask=col < C, other=0.0).to(tl.float32)[None, :]
    mask = (local < tl.load(offset_ptr + expert + 1) - first)[:, None] & (col < C)[None, :]
    y_ptrs = y_ptr + first.to(tl.int64) * stride_yn + local[:, None] * stride_yn + col[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


def _descriptors(
    rows: torch.Tensor, weight: torch.Tensor, tile: tiles.Tile
) -> tuple[TensorDescriptor, TensorDescriptor, bool] | None:
    """(rows, weight, transposed) as TMA needs them: two-byte types, dense, widths and base of 16 bytes; else None."""
    _, columns, contracted = weight.shape
    transposed = weight.stride(1) == 1 and weight.stride(2) == columns
    flat = weight.transpose(1, 2) if transposed else weight
    dense = flat.is_contiguous() and rows.is_contiguous() and rows.dtype.itemsize == 2 and weight.dtype == rows.dtype
    aligned = (
        rows.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0 and columns % 8 == 0 and contracted % tile.k == 0
    )
    if not (dense and aligned and rows.numel()):
        return None
    block = [tile.k, tile.n] if transposed else [tile.n, tile.k]
    return (
        TensorDescriptor.from_tensor(rows, [tile.m, tile.k]),
        TensorDescriptor.from_tensor(flat.reshape(-1, flat.shape[2]), block),
        transposed,
    )


def grouped_gemm(
    rows: torch.Tensor,
    plan: Plan,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    gather: bool = False,
    widths: Widths | None = None,
    twice: int = 1,
) -> torch.Tensor:
    """(N, C) = rows (N, R), or (T, R) through the plan, times weight (E, C, R), any strides; unused rows: anything.

    Weights of ragged experts (C, R) are concatenated along the columns of H (`gather`) or along R, and so many of the
    columns of `rows` are read; `twice` is 2 if that holds gate and up. C is then the widest.
    """
    num_pairs, contracted = plan.token_N.shape[0], rows.shape[1]
    columns = weight.shape[-2]
    if widths is not None:
        weight = weight.unsqueeze(0)
        columns = twice * widths.widest if gather else columns
    start, multiple = common.ragged(widths, plan.offset_E1)
    y_NC = rows.new_empty(num_pairs, columns)
    tile = tiles.choose("gemm", rows.device, rows.dtype, num_pairs // plan.num_experts)
    listed = row_tiles(plan.offset_E1, num_pairs, tile.m)
    num_m, num_n = listed.expert_M.numel(), triton.cdiv(columns, tile.n)
    shared = {
        "HAS_BIAS": bias is not None, "UPCAST": common.upcast(rows.dtype), "PRECISION": common.precision(rows.dtype),
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": tile.group, "tile": tile,
    }  # fmt: skip
    described = (
        None
        if gather or widths is not None or tiles.arch(rows.device) not in tiles.TMA
        else _descriptors(rows, weight, tile)
    )
    if described is not None:
        common.launch(
            gemm_tma_kernel, (num_m * num_n,), *described[:2], rows if bias is None else bias, y_NC,
            plan.offset_E1, listed.expert_M, listed.row_M, contracted, columns, num_m, num_n, y_NC.stride(0),
            TRANSPOSED=described[2], **shared,
        )  # fmt: skip
        return y_NC
    common.launch(
        gemm_kernel, (num_m * num_n,), rows, plan.token_N, weight, weight if scale is None else scale,
        rows if bias is None else bias, y_NC, start, plan.offset_E1, listed.expert_M, listed.row_M,
        contracted, columns, num_m, num_n, rows.stride(0), *weight.stride(), y_NC.stride(0),
        GATHER=gather, WEIGHT=weight_kind(weight), EVEN=contracted % tile.k == 0 and (widths is None or gather),
        MULTIPLE=multiple, TWICE=twice, RAGGED_COLUMNS=gather, **shared,
    )  # fmt: skip
    return y_NC
