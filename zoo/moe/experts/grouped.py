"""A linear map of each expert's own rows, for experts that are no plain MLP (those run through `ops.expert_ffn`).

Shapes: N rows in a plan's order, E experts, D and F widths in and out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo_kernels.plan import Plan


@torch.library.custom_op("zoo_moe::grouped_linear", mutates_args=())
def _grouped_linear(rows_ND: Tensor, weight_EFD: Tensor, offset_E1: Tensor) -> Tensor:
    out_NF = rows_ND.new_zeros(rows_ND.shape[0], weight_EFD.shape[1])
    for expert, (start, stop) in enumerate(pairwise(offset_E1.tolist())):
        if start < stop:
            torch.mm(rows_ND[start:stop], weight_EFD[expert].T, out=out_NF[start:stop])
    return out_NF


@torch.library.custom_op("zoo_moe::grouped_outer", mutates_args=())
def _grouped_outer(left_NF: Tensor, right_ND: Tensor, offset_E1: Tensor) -> Tensor:
    out_EFD = left_NF.new_zeros(offset_E1.shape[0] - 1, left_NF.shape[1], right_ND.shape[1])
    for expert, (start, stop) in enumerate(pairwise(offset_E1.tolist())):
        if start < stop:
            torch.mm(left_NF[start:stop].T, right_ND[start:stop], out=out_EFD[expert])
    return out_EFD


@_grouped_linear.register_fake
def _(rows_ND: Tensor, weight_EFD: Tensor, offset_E1: Tensor) -> Tensor:
    return rows_ND.new_empty(rows_ND.shape[0], weight_EFD.shape[1])


@_grouped_outer.register_fake
def _(left_NF: Tensor, right_ND: Tensor, offset_E1: Tensor) -> Tensor:
    return left_NF.new_empty(offset_E1.shape[0] - 1, left_NF.shape[1], right_ND.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, Tensor, None]:
    rows_ND, weight_EFD, offset_E1 = ctx.saved_tensors
    grad_NF = grad_NF.contiguous()
    return _grouped_linear(grad_NF, weight_EFD.mT, offset_E1), _grouped_outer(grad_NF, rows_ND, offset_E1), None


_grouped_linear.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.zoo_moe.grouped_linear)
def _flops(rows_ND: Any, weight_EFD: Any, *args: Any, **kwargs: Any) -> int:
    """Every row is taken as used; a multiply-add is 2. Arguments are shapes."""
    flops: int = 2 * rows_ND[0] * weight_EFD[1] * weight_EFD[2]
    return flops


def grouped_linear(rows_ND: Tensor, weight_EFD: Tensor, plan: Plan, bias_EF: Tensor | None = None) -> Tensor:
    """(N, F): ``W_e row [+ b_e]`` for the rows of expert e; what unused rows hold means nothing."""
    dtype = rows_ND.dtype
    if rows_ND.device.type != "meta" and torch.is_autocast_enabled(rows_ND.device.type):
        dtype = torch.get_autocast_dtype(rows_ND.device.type)
    out_NF: Tensor = _grouped_linear(rows_ND.to(dtype).contiguous(), weight_EFD.to(dtype), plan.offset_E1)
    return out_NF if bias_EF is None else out_NF + bias_EF.to(dtype)[expert_of(plan)]


def expert_of(plan: Plan) -> Tensor:
    """(N,): the expert of every row of the plan; of unused rows any."""
    position_N = torch.arange(plan.token_N.shape[0], device=plan.token_N.device)
    return torch.searchsorted(plan.offset_E1[1:].contiguous(), position_N, right=True).clamp(max=plan.num_experts - 1)
