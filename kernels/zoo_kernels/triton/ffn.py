"""The expert FFN on the host: what is launched, in which order, on which tiles; no host sync, so CUDA graphs work.

Same signatures and meaning as `zoo_kernels.reference`: `ffn_forward` and `ffn_backward`.
Shape suffixes: T tokens, N pairs, E experts, D model, F inner, W = 2F (gated) or F.
"""

import torch
import triton

from ..plan import Plan, Widths
from ..reference import GATED, hidden_width
from . import common, tiles
from .dispatch import combine_rows
from .down_backward import down_backward_kernel
from .gemm import grouped_gemm
from .plan import row_tiles
from .quant import weight_kind
from .up import up_kernel
from .wgrad import bias_grad, wgrad


def _strides(weight: torch.Tensor) -> tuple[int, ...]:
    """Of (E, C, R); the experts of a concatenated (C, R) are found by their first unit."""
    return (0,) * (3 - weight.ndim) + weight.stride()


def ffn_forward(
    x_TD: torch.Tensor,
    weight_N: torch.Tensor,
    plan: Plan,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    b_in: torch.Tensor | None,
    b_out: torch.Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    keep_hidden: bool,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    widths: Widths | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y_TD, hidden_NW); hidden is empty unless asked for. `scales` ((E, W), (E, D)) come with quantised weights."""
    common.check_dtype(x_TD.dtype)
    x_TD = x_TD.contiguous()
    num_pairs, model = plan.token_N.shape[0], x_TD.shape[1]
    width = hidden_width(w_in, w_out, widths)
    has_up = activation in GATED
    inner = width // 2 if has_up else width
    hidden_NW = x_TD.new_empty(num_pairs if keep_hidden else 0, width)
    act_NF = x_TD.new_empty(num_pairs, inner)
    tile = tiles.choose("up", x_TD.device, x_TD.dtype, num_pairs // plan.num_experts)
    listed = row_tiles(plan.offset_E1, num_pairs, tile.m)
    num_m, num_n = listed.expert_M.numel(), triton.cdiv(inner, tile.n)
    start, multiple = common.ragged(widths, plan.offset_E1)
    common.launch(
        up_kernel, (num_m * num_n,), x_TD, plan.token_N, w_in, w_in if scales is None else scales[0],
        x_TD if b_in is None else b_in, hidden_NW, act_NF, start, plan.offset_E1, listed.expert_M, listed.row_M,
        model, inner, num_m, num_n, float(limit or 0.0), x_TD.stride(0), *_strides(w_in),
        ACT=activation, HAS_UP=has_up, INTERLEAVED=interleaved, HAS_LIMIT=limit is not None,
        HAS_BIAS=b_in is not None, SAVE=keep_hidden, WEIGHT=weight_kind(w_in), EVEN=model % tile.k == 0,
        MULTIPLE=multiple, UPCAST=common.upcast(x_TD.dtype), PRECISION=common.precision(x_TD.dtype),
        BM=tile.m, BN=tile.n, BK=tile.k, GROUP=tile.group, tile=tile,
    )  # fmt: skip
    down = w_out if widths is None else w_out.mT
    y_ND = grouped_gemm(act_NF, plan, down, b_out, scale=None if scales is None else scales[1], widths=widths)
    return combine_rows(y_ND, weight_N, plan), hidden_NW


def ffn_backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_N: torch.Tensor,
    plan: Plan,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    b_in: torch.Tensor | None,
    b_out: torch.Tensor | None,
    hidden_NW: torch.Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    widths: Widths | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of (x, weight, w_in, w_out, b_in, b_out); an empty `hidden_NW` is recomputed."""
    common.check_dtype(x_TD.dtype)
    x_TD, dy_TD = x_TD.contiguous(), dy_TD.contiguous()
    num_pairs, model = plan.token_N.shape[0], x_TD.shape[1]
    twice = 2 if activation in GATED else 1
    inner = hidden_width(w_in, w_out, widths) // twice
    ragged = {"widths": widths, "twice": twice}
    down = w_out if widths is None else w_out.mT
    if not hidden_NW.shape[0]:
        hidden_NW = grouped_gemm(x_TD, plan, w_in, b_in, gather=True, **ragged)
    act_NF, dhidden_NW = x_TD.new_empty(num_pairs, inner), torch.empty_like(hidden_NW)
    tile = tiles.choose("down_backward", x_TD.device, x_TD.dtype, num_pairs // plan.num_experts)
    listed = row_tiles(plan.offset_E1, num_pairs, tile.m)
    num_m, num_n = listed.expert_M.numel(), triton.cdiv(inner, tile.n)
    start, multiple = common.ragged(widths, plan.offset_E1)
    dweight_SN = weight_N.new_zeros(num_n, num_pairs, dtype=torch.float32)
    common.launch(
        down_backward_kernel, (num_m * num_n,), dy_TD, plan.token_N, plan.pair_N, weight_N, w_out,
        x_TD if b_out is None else b_out, hidden_NW, dhidden_NW, act_NF, dweight_SN,
        start, plan.offset_E1, listed.expert_M, listed.row_M,
        num_pairs, model, inner, num_m, num_n, float(limit or 0.0), dy_TD.stride(0), *_strides(down),
        ACT=activation, HAS_UP=activation in GATED, INTERLEAVED=interleaved, HAS_LIMIT=limit is not None,
        HAS_BIAS=b_out is not None, EVEN=model % tile.k == 0, MULTIPLE=multiple,
        UPCAST=common.upcast(x_TD.dtype), PRECISION=common.precision(x_TD.dtype),
        BM=tile.m, BN=tile.n, BK=tile.k, GROUP=tile.group, tile=tile,
    )  # fmt: skip
    dx_TD = combine_rows(grouped_gemm(dhidden_NW, plan, w_in.mT, **ragged), None, plan)
    dw_in = wgrad(dhidden_NW, x_TD, plan, w_in, gather_q=True, **ragged)
    if widths is None:
        dw_out = wgrad(dy_TD, act_NF, plan, w_out, gather_p=True)
    else:
        dw_out = wgrad(act_NF, dy_TD, plan, w_out, gather_q=True, widths=widths)
    db_in = None if b_in is None else bias_grad(dhidden_NW, plan, b_in, **ragged)
    db_out = None if b_out is None else bias_grad(dy_TD, plan, b_out, weight_N)
    return dx_TD, dweight_SN.sum(0).to(weight_N.dtype), dw_in, dw_out, db_in, db_out
