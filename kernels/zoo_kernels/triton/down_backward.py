"""The fused backward of the down projection (SonicMoE, arXiv 2512.14080, section 3): nothing of slots x model width.

One pass over a tile reads dy through the gather and H, and writes dH, the weighted activation w * A (for dW_out), and
the router gradient as the inner product ds = <dA', A> (+ <dy, b_out>), where dA' = dy W_out and A is recomputed from H.
Shape suffixes: N pairs, E experts, D model, F inner.
"""

import triton
import triton.language as tl

from .common import activate, activate_backward, load_pair, store_pair, units_of
from .quant import load_weight


@triton.jit
def finish(
    dact, weight, h_ptr, dh_ptr, a_ptr, start, local, in_rows, F, units, limit,
    ACT: tl.constexpr, HAS_UP: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_LIMIT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Writes w * A and dH of BN columns of a tile and returns their part of <dA', A>; the pointers are at its rows."""
    width = 2 * F if HAS_UP else F
    gate, up = load_pair(h_ptr + local * width, start, in_rows, units, HAS_UP, INTERLEAVED, BN)
    act = activate(gate, up, limit, ACT, HAS_UP, HAS_LIMIT)
    col = start + tl.arange(0, BN)
    mask = in_rows[:, None] & (col < units)[None, :]
    tl.store(a_ptr + local[:, None] * F + col[None, :], (act * weight[:, None]).to(a_ptr.dtype.element_ty), mask=mask)
    dgate, dup = activate_backward(gate, up, dact * weight[:, None], limit, ACT, HAS_UP, HAS_LIMIT)
    store_pair(dh_ptr + local * width, dgate, dup, start, in_rows, units, HAS_UP, INTERLEAVED, BN)
    return tl.sum(dact * act, axis=1)


@triton.jit(do_not_specialize=["num_m", "N"])
def down_backward_kernel(
    dy_ptr, token_ptr, pair_ptr, weight_ptr, w_ptr, bias_ptr, h_ptr, dh_ptr, a_ptr, ds_ptr,
    start_ptr, offset_ptr, tile_expert_ptr, tile_row_ptr,
    N, D, F, num_m, num_n, limit, stride_dyt, stride_we, stride_wd, stride_wf,
    ACT: tl.constexpr, HAS_UP: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_LIMIT: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, MULTIPLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """ds[pid_n, pair] holds the part of the inner product over this tile's BN inner columns."""
    pid = tl.program_id(0)
    pid_m, pid_n = tl.swizzle2d(pid // num_n, pid % num_n, num_m, num_n, GROUP)
    expert = tl.load(tile_expert_ptr + pid_m)
    if expert < 0:
        return
    end = tl.load(offset_ptr + expert + 1)
    first = tl.load(tile_row_ptr + pid_m).to(tl.int64)
    local = tl.arange(0, BM)
    in_rows = local < end - first
    token = tl.load(token_ptr + first + local, mask=in_rows, other=0)
    unit, units = units_of(start_ptr, expert, F, MULTIPLE)
    if pid_n * BN >= tl.maximum(units, 1):
        return
    col = pid_n * BN + tl.arange(0, BN)
    in_cols = col < units
    k = tl.arange(0, BK)
    dy_ptrs = dy_ptr + token[:, None] * stride_dyt + k[None, :]
    w_ptr += expert.to(tl.int64) * stride_we if MULTIPLE == 0 else unit * stride_wf
    dact = tl.zeros((BM, BN), dtype=tl.float32)
    for d in range(0, D, BK):
        dy = tl.load(dy_ptrs + d) if EVEN else tl.load(dy_ptrs + d, mask=(d + k < D)[None, :], other=0.0)
        if UPCAST:
            dy = dy.to(tl.float32)
        w = load_weight(w_ptr, col, d, D, in_cols, stride_wf, stride_wd, dy.dtype, "float", EVEN, BK)
        dact = tl.dot(dy, w, dact, input_precision=PRECISION)
    pair = tl.load(pair_ptr + first + local, mask=in_rows, other=0)
    weight = tl.load(weight_ptr + pair, mask=in_rows, other=0.0).to(tl.float32)
    # Half a tile at a time: H, A, dH and dA' of a whole one do not fit into the registers.
    left, right = tl.split(tl.permute(tl.reshape(dact, (BM, 2, BN // 2)), (0, 2, 1)))
    start = pid_n * BN
    width = 2 * F if HAS_UP else F
    h_ptr += first * width
    dh_ptr += first * width
    a_ptr += first * F
    ds = finish(
        left, weight, h_ptr, dh_ptr, a_ptr, start, local, in_rows, F, units, limit,
        ACT, HAS_UP, INTERLEAVED, HAS_LIMIT, BN // 2,
    )  # fmt: skip
    ds += finish(
        right, weight, h_ptr, dh_ptr, a_ptr, start + BN // 2, local, in_rows, F, units, limit,
        ACT, HAS_UP, INTERLEAVED, HAS_LIMIT, BN // 2,
    )  # fmt: skip
    if HAS_BIAS:  # noqa: SIM102 - one is known when compiling, the other when running
        if pid_n == 0:
            for d in range(0, D, BK):
                mask = d + k < D
                dy = tl.load(dy_ptrs + d, mask=mask[None, :], other=0.0).to(tl.float32)
                bias = tl.load(bias_ptr + expert.to(tl.int64) * D + d + k, mask=mask, other=0.0).to(tl.float32)
                ds += tl.sum(dy * bias[None, :], axis=1)
    tl.store(ds_ptr + pid_n.to(tl.int64) * N + pair, ds, mask=in_rows)
