"""The public ops: pick a backend, register autograd and fakes. Nothing else is imported from outside.

Legend: T tokens, K slots, E experts, D model width, F inner width, W = 2F (gated) or F, N pairs (T * K for tokens).
Every backend keeps x, the pre-activation (N, W) and the plan for the backward, nothing of size N x D.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo_kernels import cpu, reference
from zoo_kernels.plan import Plan
from zoo_kernels.quant import dequantise, quantise_int8, quantise_ternary

__all__ = [
    "Plan",
    "backends",
    "combine",
    "dequantise",
    "expand",
    "expert_ffn",
    "expert_ffn_quantised",
    "plan",
    "plan_pairs",
    "quantise_int8",
    "quantise_ternary",
    "route",
    "use_backend",
]

BACKENDS = ("reference", "cpu", "triton")
SCORES, ORDERS = ("softmax", "sigmoid", "none"), ("score_then_topk", "topk_then_score")
_forced: str | None = None


# Backends ---------------------------------------------------------------------------------------------------------


@functools.cache
def _module(name: str) -> tuple[ModuleType | None, str]:
    """(backend module, "") or (None, why it cannot be used here)."""
    try:
        module = importlib.import_module(f"zoo_kernels.{name}")
    except ImportError as error:
        return None, f"import failed: {error}"
    why: str = module.unavailable()
    return (None, why) if why else (module, "")


def backends() -> dict[str, dict[str, object]]:
    """For each backend: `available`, and `why_not` when it is not; building the CPU path if that was not done yet."""
    return {name: {"available": _module(name)[0] is not None, "why_not": _module(name)[1]} for name in BACKENDS}


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run the ops inside the block on one backend (None: automatic). Process-wide, like a global default."""
    global _forced
    _check("backend", name, (*BACKENDS, None))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _resolve(asked: str | None, device: str) -> str:
    asked = asked or os.environ.get("ZOO_KERNELS_BACKEND") or None
    _check("backend", asked, (*BACKENDS, None))
    wanted = asked or {"cuda": "triton", "cpu": "cpu"}.get(device, "reference")
    module, why = _module(wanted)
    if module is None and asked:
        raise RuntimeError(f"zoo_kernels: backend '{wanted}' is not available: {why}")
    if module is None:
        _warn_once(f"zoo_kernels: backend '{wanted}' is not available ({why}); using plain PyTorch, which is slower")
        return "reference"
    return wanted


# What torch.compiler.assume_constant_result sets; calling it would import dynamo, 1.5 s for everybody.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check(what: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"zoo_kernels: unknown {what} {value!r}; known: {', '.join(map(str, known))}")


# Plan -------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("zoo::sort_pairs", mutates_args=())
def _sort_pairs(expert_N: Tensor, used_N: Tensor | None, num_experts: int, backend: str) -> tuple[Tensor, Tensor]:
    return _module(backend)[0].sort_pairs(expert_N, used_N, num_experts)


@_sort_pairs.register_fake
def _(expert_N: Tensor, used_N: Tensor | None, num_experts: int, backend: str) -> tuple[Tensor, Tensor]:
    new = functools.partial(expert_N.new_empty, dtype=torch.int64)
    return new(expert_N.shape), new((num_experts + 1,))


def plan(index_TK: Tensor, num_experts: int, used_TK: Tensor | None = None) -> Plan:
    """Plan of a token-choice routing; `used_TK` False marks a slot that contributes nothing; its index is valid."""
    num_tokens, k = index_TK.shape
    used_N = None if used_TK is None else used_TK.reshape(-1)
    pair_N, offset_E1 = _sort(index_TK.reshape(-1), used_N, num_experts)
    return Plan(pair_N // k, pair_N, offset_E1, num_tokens, num_experts)


def plan_pairs(
    token_N: Tensor, expert_N: Tensor, num_tokens: int, num_experts: int, used_N: Tensor | None = None
) -> Plan:
    """Plan of any list of (token, expert) pairs: expert choice, capacity, variable experts per token."""
    pair_N, offset_E1 = _sort(expert_N, used_N, num_experts)
    return Plan(token_N.long()[pair_N], pair_N, offset_E1, num_tokens, num_experts)


def _sort(expert_N: Tensor, used_N: Tensor | None, num_experts: int) -> tuple[Tensor, Tensor]:
    backend = _resolve(_forced, expert_N.device.type)
    return _sort_pairs(expert_N.long(), used_N, num_experts, backend)


# Routing ----------------------------------------------------------------------------------------------------------


def route(
    logits_TE: Tensor,
    k: int,
    *,
    score: str = "softmax",
    order: str = "score_then_topk",
    renorm: bool = False,
    scale: float = 1.0,
    select_bias_E: Tensor | None = None,
    num_groups: int | None = None,
    groups_kept: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(index_TK int64, weight_TK, scores_TE), in fp32 (float64 stays), differentiable in the logits.

    score: softmax | sigmoid | none, of all logits, or of the chosen ones with order="topk_then_score".
    renorm divides by the sum over the chosen; `scale` multiplies after that. `select_bias_E` is added to what the
    selection sees (which), never to the weights (how much). num_groups, groups_kept: DeepSeek-V3's limit, a group's
    score being the sum of its two best experts; experts of other groups cannot be chosen. Ties: lower index.
    Raises ValueError for unknown names and impossible counts.
    """
    num_experts = logits_TE.shape[-1]
    _check("score", score, SCORES)
    _check("order", order, ORDERS)
    if (num_groups is None) != (groups_kept is None):
        raise ValueError("zoo_kernels: num_groups and groups_kept go together")
    choosable = num_experts
    if num_groups is not None and groups_kept is not None:
        if num_experts % num_groups or not 0 < groups_kept <= num_groups:
            raise ValueError(
                f"zoo_kernels: {num_experts} experts in {num_groups} groups, {groups_kept} kept: impossible"
            )
        choosable = num_experts // num_groups * groups_kept
    if not 0 < k <= choosable:
        raise ValueError(f"zoo_kernels: k={k}, but {choosable} experts can be chosen")
    backend = _resolve(backend or _forced, logits_TE.device.type)
    options = {
        "score": score,
        "order": order,
        "renorm": renorm,
        "scale": scale,
        "select_bias_E": select_bias_E,
        "num_groups": num_groups,
        "groups_kept": groups_kept,
    }
    if backend == "triton":
        from zoo_kernels import triton

        return triton.route(logits_TE, k, **options)
    return (cpu if backend == "cpu" else reference).route(logits_TE, k, **options)


# Expand and combine -----------------------------------------------------------------------------------------------


def expand(x_TD: Tensor, plan: Plan) -> Tensor:
    """(N, D) rows of x in the plan's order, zero for unused pairs: for experts with their own compute."""
    if _resolve(_forced, x_TD.device.type) == "triton":
        from zoo_kernels import triton

        return triton.expand(x_TD, plan)
    return reference.expand(x_TD, plan)


def combine(rows_ND: Tensor, weight_N: Tensor, plan: Plan) -> Tensor:
    """(T, D) weighted sum of each token's rows; rows in the plan's order, weights in original pair order."""
    if _resolve(_forced, rows_ND.device.type) == "triton":
        from zoo_kernels import triton

        return triton.combine(rows_ND, weight_N, plan)
    return reference.combine(rows_ND, weight_N, plan)


# Experts ----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("zoo::expert_ffn", mutates_args=())
def _expert_ffn(
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
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
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], w_in.shape[0])
    return _module(backend)[0].ffn_forward(
        x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation, limit, interleaved, keep_hidden
    )


@_expert_ffn.register_fake
def _(x_TD, weight_N, token_N, pair_N, offset_E1, w_in, w_out, b_in, b_out, activation, limit, interleaved, keep_hidden, backend):  # fmt: skip # noqa: E501
    return torch.empty_like(x_TD), x_TD.new_empty(token_N.shape[0] if keep_hidden else 0, w_in.shape[1])


@torch.library.custom_op("zoo::expert_ffn_backward", mutates_args=())
def _expert_ffn_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
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
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], w_in.shape[0])
    *grads, db_in, db_out = _module(backend)[0].ffn_backward(
        dy_TD, x_TD, weight_N, plan, w_in, w_out, b_in, b_out, hidden_NW, activation, limit, interleaved
    )
    return (*grads, x_TD.new_empty(0) if db_in is None else db_in, x_TD.new_empty(0) if db_out is None else db_out)


@_expert_ffn_backward.register_fake
def _(dy_TD, x_TD, weight_N, token_N, pair_N, offset_E1, w_in, w_out, b_in, b_out, hidden_NW, activation, limit, interleaved, backend):  # fmt: skip # noqa: E501
    like = torch.empty_like
    biases = (x_TD.new_empty(0) if bias is None else like(bias) for bias in (b_in, b_out))
    return (like(x_TD), like(weight_N), like(w_in), like(w_out), *biases)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.activation, ctx.limit, ctx.interleaved, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy_TD, _):
    if dy_TD is None:
        return (None,) * 14
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks them a single time
    b_in, b_out = saved[7:9]
    *grads, db_in, db_out = _expert_ffn_backward(
        dy_TD.contiguous(), *saved, ctx.activation, ctx.limit, ctx.interleaved, ctx.backend
    )
    dx, dweight, dw_in, dw_out = grads
    biases = (None if b_in is None else db_in, None if b_out is None else db_out)
    return dx, dweight, None, None, None, dw_in, dw_out, *biases, None, None, None, None, None


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
    backend: str | None = None,
) -> Tensor:
    """(T, D): the weighted sum of each token's experts, differentiable in x, weight, weights and biases.

    w_in (E, 2F, D) for gated activations (first half gate, second half up, or `interleaved`), (E, F, D) otherwise;
    w_out (E, D, F); b_in (E, W), b_out (E, D); weight_N in original pair order (weight_TK.flatten()).
    activation: swiglu | geglu | reglu | gelu | relu | silu | clamped_swiglu (GPT-OSS: alpha 1.702, limit 7).
    limit: clamps gate (above) and up (both sides). save: "hidden" keeps the pre-activation for the backward,
    "x_only" recomputes it from x. Inference keeps nothing. Raises ValueError for shapes and names that do not fit.
    """
    _check("activation", activation, reference.ACTIVATIONS)
    _check("save mode", save, ("hidden", "x_only"))
    if activation == "clamped_swiglu" and limit is None:
        limit = 7.0
    if activation in reference.UNGATED and (limit is not None or interleaved):
        raise ValueError(f"zoo_kernels: limit and interleaved need a gated activation, not '{activation}'")
    if x_TD.device.type != "meta" and torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, w_in, w_out = x_TD.to(dtype), w_in.to(dtype), w_out.to(dtype)
        b_in, b_out = (None if bias is None else bias.to(dtype) for bias in (b_in, b_out))
    _check_shapes(x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation in reference.GATED)
    backend = _resolve(backend or _forced, x_TD.device.type)
    inputs = (x_TD, weight_N, w_in, w_out, b_in, b_out)
    trains = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    return _expert_ffn(
        x_TD, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, w_in, w_out, b_in, b_out,
        activation, limit, interleaved, trains and save == "hidden", backend,
    )[0]  # fmt: skip


@torch.library.custom_op("zoo::expert_ffn_quantised", mutates_args=())
def _expert_ffn_quantised(
    x_TD: Tensor,
    weight_N: Tensor,
    token_N: Tensor,
    pair_N: Tensor,
    offset_E1: Tensor,
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
    plan = Plan(token_N, pair_N, offset_E1, x_TD.shape[0], w_in.shape[0])
    arguments = (x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation, limit, interleaved, False)
    return _module(backend)[0].ffn_forward(*arguments, (scale_in, scale_out))[0]


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
    _check("activation", activation, reference.ACTIVATIONS)
    packed = 4 if w_in.dtype == torch.uint8 else 1
    if w_in.dtype not in (torch.int8, torch.uint8) or w_out.dtype != w_in.dtype:
        raise ValueError(
            f"zoo_kernels: quantised weights are int8, or uint8 if ternary; got {w_in.dtype}, {w_out.dtype}"
        )
    if (w_in.shape[2] * packed, w_out.shape[1]) != (x_TD.shape[1],) * 2 or scale_in.shape != w_in.shape[:2]:
        raise ValueError(f"zoo_kernels: shapes of x {tuple(x_TD.shape)} and codes {tuple(w_in.shape)} do not fit")
    backend = _resolve(backend or _forced, x_TD.device.type)
    limit = 7.0 if activation == "clamped_swiglu" and limit is None else limit
    return _expert_ffn_quantised(
        x_TD, weight_N, plan.token_N, plan.pair_N, plan.offset_E1, w_in, w_out, scale_in, scale_out, b_in, b_out,
        activation, limit, interleaved, backend,
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
) -> None:
    num_experts, model, inner = w_out.shape
    width = inner * (2 if gated else 1)
    wanted = {
        "x": (x_TD, (plan.num_tokens, model)),
        "weight": (weight_N, (plan.token_N.shape[0],)),
        "w_in": (w_in, (plan.num_experts, width, model)),
        "w_out": (w_out, (plan.num_experts, model, inner)),
        "b_in": (b_in, (num_experts, width)),
        "b_out": (b_out, (num_experts, model)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"zoo_kernels: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if name != "weight" and tensor.dtype != x_TD.dtype:
            raise ValueError(f"zoo_kernels: {name} is {tensor.dtype} but x is {x_TD.dtype}; cast one of them")


@register_flop_formula(torch.ops.zoo.expert_ffn)
def _expert_ffn_flops(x_TD, weight_N, token_N, pair_N, offset_E1, w_in, w_out, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """For `torch.utils.flop_counter`: every pair is taken as used (a multiply-add is 2). Arguments are shapes."""
    return 2 * token_N[0] * (w_in[1] * w_in[2] + w_out[1] * w_out[2])
