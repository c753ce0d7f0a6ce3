"""Up projection: gather + grouped GEMM (gate and up together) + activation, one expert a tile.

Shape suffixes: N pairs, E experts, D model, F inner.
"""

import triton
import triton.language as tl

from .common import activate, load_pair, store_pair, units_of
from .quant import load_weight


@triton.jit(do_not_specialize=["num_m"])
def up_kernel(
    x_ptr, token_ptr, w_ptr, scale_ptr, bias_ptr, h_ptr, a_ptr, start_ptr, offset_ptr, tile_expert_ptr, tile_row_ptr,
    D, F, num_m, num_n, limit, stride_xt, stride_we, stride_ww, stride_wd,
    ACT: tl.constexpr, HAS_UP: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_LIMIT: tl.constexpr,
    HAS_BIAS: tl.constexpr, SAVE: tl.constexpr, WEIGHT: tl.constexpr, EVEN: tl.constexpr, MULTIPLE: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """a[i] = act(w[e(i)] @ x[token[i]] + bias[e(i)]) for the rows i of one tile; SAVE keeps the pre-activation in h.

    F is the width of the rows of a (twice that in h); of ragged experts (`units_of`) those of the widest.
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
    # Rows past the end read token 0 instead of a mask: they are never stored.
    token = tl.load(token_ptr + first + local, mask=in_rows, other=0)
    twice: tl.constexpr = 2 if HAS_UP else 1
    unit, units = units_of(start_ptr, expert, F, MULTIPLE)
    if pid_n * BN >= units:
        return
    col = pid_n * BN + tl.arange(0, BN)
    in_cols = col < units
    gate_row = 2 * col if INTERLEAVED else col
    up_row = 2 * col + 1 if INTERLEAVED else units + col
    k = tl.arange(0, BK)
    x_ptrs = x_ptr + token[:, None] * stride_xt + k[None, :]
    w_ptr += expert.to(tl.int64) * stride_we if MULTIPLE == 0 else unit * twice * stride_ww
    gate = tl.zeros((BM, BN), dtype=tl.float32)
    up = tl.zeros((BM, BN), dtype=tl.float32)
    for d in range(0, D, BK):
        x = tl.load(x_ptrs + d) if EVEN else tl.load(x_ptrs + d, mask=(d + k < D)[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
        w = load_weight(w_ptr, gate_row, d, D, in_cols, stride_ww, stride_wd, x.dtype, WEIGHT, EVEN, BK)
        gate = tl.dot(x, w, gate, input_precision=PRECISION)
        if HAS_UP:
            w = load_weight(w_ptr, up_row, d, D, in_cols, stride_ww, stride_wd, x.dtype, WEIGHT, EVEN, BK)
            up = tl.dot(x, w, up, input_precision=PRECISION)
    width = twice * F
    channel = twice * unit + tl.zeros((1,), dtype=tl.int64)
    one = tl.full((1,), True, dtype=tl.int1)
    if WEIGHT != "float":
        gate_scale, up_scale = load_pair(scale_ptr + channel, pid_n * BN, one, units, HAS_UP, INTERLEAVED, BN)
        gate *= gate_scale
        up *= up_scale
    if HAS_BIAS:
        gate_bias, up_bias = load_pair(bias_ptr + channel, pid_n * BN, one, units, HAS_UP, INTERLEAVED, BN)
        gate += gate_bias
        up += up_bias
    if SAVE:
        store_pair(h_ptr + first * width + local * width, gate, up, pid_n * BN, in_rows, units, HAS_UP, INTERLEAVED, BN)
    out = activate(gate, up, limit, ACT, HAS_UP, HAS_LIMIT)
    a_ptrs = a_ptr + first * F + local[:, None] * F + col[None, :]
    tl.store(a_ptrs, out.to(a_ptr.dtype.element_ty), mask=in_rows[:, None] & in_cols[None, :])
