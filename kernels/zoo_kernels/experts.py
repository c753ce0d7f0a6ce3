"""Expand, combine and the expert FFN: `zoo_kernels.ops` says what is public.

Legend: T tokens, K slots, E experts, D model width, F inner width, W = 2F (gated) or F, N pairs (T * K for tokens).
Every backend keeps x, the pre-activation (N, W) and the plan for the backward, nothing of size N x D.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo_kernels import reference
from zoo_kernels.backend import check, module_of, resolve
from zoo_kernels.plan import Plan, Widths


def expand(x_TD: Tensor, plan: Plan) -> Tensor:
    """(N, D) rows of x in the plan's order, zero for unused pairs: for experts with their own compute."""
    backend = _row_backend(x_TD)
    if backend == "reference":
        return reference.expand(x_TD, plan)
    return _expand(x_TD, plan.token_N, plan.pair_N, plan.offset_E1, plan.slots, backend)


def combine(rows_ND: Tensor, weight_N: Tensor, plan: Plan) -> Tensor:
    """(T, D) weighted sum of each token's rows; rows in the plan's order, weights in original pair order."""
    backend = _row_backend(rows_ND)
    if backend == "reference":
        return reference.combine(rows_ND, weight_N, plan)
    weight_N = weight_N if backend == "triton" else weight_N.float()
    return _combine(rows_ND, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, plan.num_tokens, plan.slots, backend)


def _row_backend(rows: Tensor) -> str:
    """The C path has rows of fp32 only."""
    backend = resolve(None, rows.device.type)
    return "reference" if backend == "cpu" and rows.dtype != torch.float32 else backend


@torch.library.custom_op("zoo::expand", mutates_args=())
def _expand(x_TD: Tensor, token_N: Tensor, pair_N: Tensor, offset_E1: Tensor, slots: int, backend: str) -> Tensor:
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], offset_E1.shape[0] - 1, slots)
    return module_of(backend).expand_rows(x_TD.contiguous(), plan)[0]


@_expand.register_fake
def _(x_TD, token_N, *_):
    return x_TD.new_empty(token_N.shape[0], x_TD.shape[1])


@torch.library.custom_op("zoo::combine", mutates_args=())
def _combine(
    rows_ND: Tensor,
    weight_N: Tensor | None,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
    num_tokens: int,
    slots: int,
    backend: str,
) -> Tensor:
    plan = Plan(token_N, pair_N, offset_E1, num_tokens, offset_E1.shape[0] - 1, slots)
    return module_of(backend).combine_rows(rows_ND.contiguous(), weight_N, plan)


@_combine.register_fake
def _(rows_ND, weight_N, token_N, pair_N, offset_E1, num_tokens, slots, backend):
    return rows_ND.new_empty(num_tokens, rows_ND.shape[1])


@torch.library.custom_op("zoo::combine_backward", mutates_args=())
def _combine_backward(
    dy_TD: Tensor, rows_ND: Tensor, weight_N: Tensor, token_N: Tensor, pair_N: Tensor, offset_E1: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    plan = Plan(token_N, pair_N, offset_E1, dy_TD.shape[0], offset_E1.shape[0] - 1)
    return module_of(backend).expand_rows(dy_TD.contiguous(), plan, rows_ND.contiguous(), weight_N.contiguous())


@_combine_backward.register_fake
def _(dy_TD, rows_ND, weight_N, *_):
    return torch.empty_like(rows_ND), torch.empty_like(weight_N)


def _save_expand(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.rest = inputs[0].shape[0], *inputs[4:]


def _save_combine(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.backend = inputs[-1]


_expand.register_autograd(
    lambda ctx, drows: (_combine(drows, None, *ctx.saved_tensors, *ctx.rest), *[None] * 5), setup_context=_save_expand
)
_combine.register_autograd(
    lambda ctx, dy: (*_combine_backward(dy, *ctx.saved_tensors, ctx.backend), *[None] * 6), setup_context=_save_combine
)


@torch.library.custom_op("zoo::expert_ffn", mutates_args=())
def _expert_ffn(
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
    slots: int,
    start_E1: Tensor | None,
    widest: int,
    multiple: int,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    keep_hidden: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], offset_E1.shape[0] - 1, slots)
    widths = None if start_E1 is None else Widths(start_E1, widest, multiple)
    return module_of(backend).ffn_forward(
        x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation, limit, interleaved, keep_hidden, None, widths
    )


@_expert_ffn.register_fake
def _(x_TD, weight_N, token_N, pair_N, offset_E1, slots, start_E1, widest, multiple, w_in, w_out, b_in, b_out, activation, limit, interleaved, keep_hidden, backend):  # fmt: skip # noqa: E501
    width = w_in.shape[1] if start_E1 is None else widest * (2 if activation in reference.GATED else 1)
    return torch.empty_like(x_TD), x_TD.new_empty(token_N.shape[0] if keep_hidden else 0, width)


@torch.library.custom_op("zoo::expert_ffn_backward", mutates_args=())
def _expert_ffn_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
    slots: int,
    start_E1: Tensor | None,
    widest: int,
    multiple: int,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    hidden_NW: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], offset_E1.shape[0] - 1, slots)
    widths = None if start_E1 is None else Widths(start_E1, widest, multiple)
    *grads, db_in, db_out = module_of(backend).ffn_backward(
        dy_TD, x_TD, weight_N, plan, w_in, w_out, b_in, b_out, hidden_NW, activation, limit, interleaved, widths
    )
    return (*grads, x_TD.new_empty(0) if db_in is None else db_in, x_TD.new_empty(0) if db_out is None else db_out)


@_expert_ffn_backward.register_fake
def _(dy_TD, x_TD, weight_N, token_N, pair_N, offset_E1, slots, start_E1, widest, multiple, w_in, w_out, b_in, b_out, hidden_NW, activation, limit, interleaved, backend):  # fmt: skip # noqa: E501
    like = torch.empty_like
    biases = (x_TD.new_empty(0) if bias is None else like(bias) for bias in (b_in, b_out))
    return (like(x_TD), like(weight_N), like(w_in), like(w_out), *biases)


def _setup_context(ctx, inputs, output) -> None:
    tensors, ctx.slots, (start, *ctx.sizes), weights = inputs[:5], inputs[5], inputs[6:9], inputs[9:13]
    ctx.activation, ctx.limit, ctx.interleaved, _, ctx.backend = inputs[13:]
    ctx.save_for_backward(*tensors, start, *weights, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy_TD, _):
    if dy_TD is None:
        return (None,) * 18
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks them a single time
    start, _, _, b_in, b_out, _ = saved[5:]
    *grads, db_in, db_out = _expert_ffn_backward(
        dy_TD.contiguous(), *saved[:5], ctx.slots, start, *ctx.sizes, *saved[6:], ctx.activation, ctx.limit,
        ctx.interleaved, ctx.backend,
    )  # fmt: skip
    dx, dweight, dw_in, dw_out = grads
    biases = (None if b_in is None else db_in, None if b_out is None else db_out)
    return dx, dweight, *[None] * 7, dw_in, dw_out, *biases, *[None] * 5


_expert_ffn.register_autograd(_backward, setup_context=_setup_context)


def expert_ffn(
    x_TD: Tensor,
    weight_N: Tensor,
    plan: Plan,
    w_in: Tensor,
    w_out: Tensor,
    *,
    activation: str = "swiglu",
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    limit: float | None = None,
    interleaved: bool = False,
    save: str = "hidden",
    widths: Widths | None = None,
    backend: str | None = None,
) -> Tensor:
    """(T, D): the weighted sum of each token's experts, differentiable in x, weight, weights and biases.

    w_in (E, 2F, D) for gated activations (first half gate, second half up, or `interleaved`), (E, F, D) otherwise;
    w_out (E, D, F); b_in (E, W), b_out (E, D); weight_N in original pair order (weight_TK.flatten()).
    activation: those of `reference.ACTIVATIONS`; clamped_swiglu is GPT-OSS's (alpha 1.702, limit 7 if not given).
    limit: clamps gate (above) and up (both sides). save: "hidden" keeps the pre-activation for the backward,
    "x_only" recomputes it from x. Inference keeps nothing. Raises ValueError for shapes and names that do not fit.

    Ragged experts (`widths`, S inner units in all): w_in (2S, D) or (S, D) is the experts' w_in one below the other,
    w_out (S, D) their transposed w_out, a row an inner unit, b_in (2S,) or (S,); b_out stays (E, D). The
    pre-activation that is kept has the width of the widest.
    """
    check("activation", activation, reference.ACTIVATIONS)
    check("save mode", save, ("hidden", "x_only"))
    if activation == "clamped_swiglu" and limit is None:
        limit = 7.0
    if activation in reference.UNGATED and (limit is not None or interleaved):
        raise ValueError(f"zoo_kernels: limit and interleaved need a gated activation, not '{activation}'")
    if x_TD.device.type != "meta" and torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, w_in, w_out = x_TD.to(dtype), w_in.to(dtype), w_out.to(dtype)
        b_in, b_out = (None if bias is None else bias.to(dtype) for bias in (b_in, b_out))
    _check_shapes(x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation in reference.GATED, widths)
    backend = resolve(backend, x_TD.device.type)
    inputs = (x_TD, weight_N, w_in, w_out, b_in, b_out)
    trains = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    return _expert_ffn(
        x_TD, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, plan.slots, *(widths or (None, 0, 1)),
        w_in, w_out, b_in, b_out, activation, limit, interleaved, trains and save == "hidden", backend,
    )[0]  # fmt: skip


@torch.library.custom_op("zoo::expert_ffn_quantised", mutates_args=())
def _expert_ffn_quantised(
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
    slots: int,
    w_in: Tensor,
    w_out: Tensor,
    scale_in: Tensor,
    scale_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    backend: str,
) -> Tensor:
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], w_in.shape[0], slots)
    arguments = (x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation, limit, interleaved, False)
    return module_of(backend).ffn_forward(*arguments, (scale_in, scale_out))[0]


@_expert_ffn_quantised.register_fake
def _(x_TD, *_):
    return torch.empty_like(x_TD)


def expert_ffn_quantised(
    x_TD: Tensor,
    weight_N: Tensor,
    plan: Plan,
    w_in: Tensor,
    w_out: Tensor,
    scale_in: Tensor,
    scale_out: Tensor,
    *,
    activation: str = "swiglu",
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    limit: float | None = None,
    interleaved: bool = False,
    backend: str | None = None,
) -> Tensor:
    """As `expert_ffn`, without gradients, with the codes and scales of `quant.quantise_int8` or `quantise_ternary`.

    scale_in (E, W), scale_out (E, D). Decoding reads the codes only once: the bytes are the limit.
    """
    check("activation", activation, reference.ACTIVATIONS)
    packed = 4 if w_in.dtype == torch.uint8 else 1
    if w_in.dtype not in (torch.int8, torch.uint8) or w_out.dtype != w_in.dtype:
        raise ValueError(
            f"zoo_kernels: quantised weights are int8, or uint8 if ternary; got {w_in.dtype}, {w_out.dtype}"
        )
    if (w_in.shape[2] * packed, w_out.shape[1]) != (x_TD.shape[1],) * 2 or scale_in.shape != w_in.shape[:2]:
        raise ValueError(f"zoo_kernels: shapes of x {tuple(x_TD.shape)} and codes {tuple(w_in.shape)} do not fit")
    backend = resolve(backend, x_TD.device.type)
    limit = 7.0 if activation == "clamped_swiglu" and limit is None else limit
    return _expert_ffn_quantised(
        x_TD, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, plan.slots, w_in, w_out, scale_in, scale_out,
        b_in, b_out, activation, limit, interleaved, backend,
    )  # fmt: skip


def _check_shapes(
    x_TD: Tensor,
    weight_N: Tensor,
    plan: Plan,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    gated: bool,
    widths: Widths | None,
) -> None:
    experts, model, twice = plan.num_experts, x_TD.shape[1], 2 if gated else 1
    inner = w_out.shape[-1] if widths is None else w_out.shape[0]
    own = (experts,) if widths is None else ()  # what is stacked if all experts are alike, else concatenated
    wanted = {
        "x": (x_TD, (plan.num_tokens, model)),
        "weight": (weight_N, (plan.token_N.shape[0],)),
        "w_in": (w_in, (*own, twice * inner, model)),
        "w_out": (w_out, (inner, model) if widths else (experts, model, inner)),
        "b_in": (b_in, (*own, twice * inner)),
        "b_out": (b_out, (experts, model)),
    }
    if widths is not None:
        wanted["widths.start_E1"] = (widths.start_E1, (experts + 1,))
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"zoo_kernels: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if name in ("w_in", "w_out", "b_in", "b_out") and tensor.dtype != x_TD.dtype:
            raise ValueError(f"zoo_kernels: {name} is {tensor.dtype} but x is {x_TD.dtype}; cast one of them")


@register_flop_formula(torch.ops.zoo.expert_ffn)
def _expert_ffn_flops(x_TD, weight_N, token_N, pair_N, offset_E1, slots, start, widest, multiple, w_in, w_out, *args, **kwargs) -> int:  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
    """For `torch.utils.flop_counter`: every pair is taken as used (a multiply-add is 2), of an expert of mean width.

    Arguments are shapes.
    """
    return 2 * token_N[0] * (math.prod(w_in) + math.prod(w_out)) // (offset_E1[0] - 1)
