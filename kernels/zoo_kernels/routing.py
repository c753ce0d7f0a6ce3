"""Plans, routing and token rounding: `zoo_kernels.ops` says what is public.

Legend: T tokens, K slots, E experts, N pairs (T * K for tokens).
"""

import functools

import torch
from torch import Tensor

from zoo_kernels import reference
from zoo_kernels.backend import check, module_of, resolve
from zoo_kernels.plan import Plan

SCORES, ORDERS = ("softmax", "sigmoid", "none"), ("score_then_topk", "topk_then_score")


@torch.library.custom_op("zoo::sort_pairs", mutates_args=())
def _sort_pairs(expert_N: Tensor, used_N: Tensor | None, num_experts: int, backend: str) -> tuple[Tensor, Tensor]:
    return module_of(backend).sort_pairs(expert_N, used_N, num_experts)


@_sort_pairs.register_fake
def _(expert_N: Tensor, used_N: Tensor | None, num_experts: int, backend: str) -> tuple[Tensor, Tensor]:
    new = functools.partial(expert_N.new_empty, dtype=torch.int64)
    return new(expert_N.shape), new((num_experts + 1,))


def plan(index_TK: Tensor, num_experts: int, used_TK: Tensor | None = None) -> Plan:
    """Plan of a token-choice routing; `used_TK` False marks a slot that contributes nothing; its index is valid."""
    num_tokens, k = index_TK.shape
    used_N = None if used_TK is None else used_TK.reshape(-1)
    pair_N, offset_E1 = _sort(index_TK.reshape(-1), used_N, num_experts)
    return Plan(pair_N // k, pair_N, offset_E1, num_tokens, num_experts, k)


def plan_pairs(
    token_N: Tensor, expert_N: Tensor, num_tokens: int, num_experts: int, used_N: Tensor | None = None
) -> Plan:
    """Plan of any list of (token, expert) pairs: expert choice, capacity, variable experts per token."""
    pair_N, offset_E1 = _sort(expert_N, used_N, num_experts)
    return Plan(token_N.long()[pair_N], pair_N, offset_E1, num_tokens, num_experts)


def _sort(expert_N: Tensor, used_N: Tensor | None, num_experts: int) -> tuple[Tensor, Tensor]:
    backend = resolve(None, expert_N.device.type)
    return _sort_pairs(expert_N.long(), used_N, num_experts, backend)


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
    check("score", score, SCORES)
    check("order", order, ORDERS)
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
    backend = resolve(backend, logits_TE.device.type)
    if backend == "reference" or (backend == "cpu" and logits_TE.dtype == torch.float64):
        return reference.route(
            logits_TE, k, score=score, order=order, renorm=renorm, scale=scale, select_bias_E=select_bias_E,
            num_groups=num_groups, groups_kept=groups_kept,
        )  # fmt: skip
    return _route(logits_TE, select_bias_E, k, score, order, renorm, scale, num_groups or 0, groups_kept or 0, backend)


@torch.library.custom_op("zoo::route", mutates_args=())
def _route(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    k: int,
    score: str,
    order: str,
    renorm: bool,
    scale: float,
    num_groups: int,
    groups_kept: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return module_of(backend).route_forward(logits_TE, bias_E, k, score, order, renorm, scale, num_groups, groups_kept)


@_route.register_fake
def _(logits_TE, bias_E, k, score, order, renorm, scale, num_groups, groups_kept, backend):
    shape, new = (logits_TE.shape[0], k), logits_TE.new_empty
    return new(shape, dtype=torch.int64), new(shape, dtype=torch.float32), new(logits_TE.shape, dtype=torch.float32)


@torch.library.custom_op("zoo::route_backward", mutates_args=())
def _route_backward(
    dweight_TK: Tensor | None,
    dscores_TE: Tensor | None,
    logits_TE: Tensor,
    index_TK: Tensor,
    scores_TE: Tensor,
    score: str,
    order: str,
    renorm: bool,
    scale: float,
    backend: str,
) -> Tensor:
    return module_of(backend).route_backward(
        dweight_TK, dscores_TE, logits_TE, index_TK, scores_TE, score, order, renorm, scale
    )


@_route_backward.register_fake
def _(dweight_TK, dscores_TE, logits_TE, *_):
    return logits_TE.new_empty(logits_TE.shape)


def _save_route(ctx, inputs, output) -> None:
    logits_TE, _, _, *ctx.options, _, _, ctx.backend = inputs
    index_TK, _, scores_TE = output
    ctx.mark_non_differentiable(index_TK)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits_TE, index_TK, scores_TE)


def _differentiate_route(ctx, _, dweight_TK, dscores_TE):
    dlogits_TE = None
    if dweight_TK is not None or dscores_TE is not None:
        dlogits_TE = _route_backward(dweight_TK, dscores_TE, *ctx.saved_tensors, *ctx.options, ctx.backend)
    return dlogits_TE, *[None] * 9


_route.register_autograd(_differentiate_route, setup_context=_save_route)


@torch.library.custom_op("zoo::round_tokens", mutates_args=())
def _round_tokens(select_TE: Tensor, state_TE: Tensor, tile: int, backend: str) -> Tensor:
    return module_of(backend).round_tokens(select_TE, state_TE, tile)


@_round_tokens.register_fake
def _(select_TE, state_TE, tile, backend):
    return state_TE.new_empty(state_TE.shape, dtype=torch.bool)


def round_tokens(
    select_TE: Tensor, index_TK: Tensor, tile: int, valid_T: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """(T, E) bool: the choice `index_TK`, changed so that every expert's count is a multiple of `tile`.

    The multiple is the nearest (SonicMoE, arXiv 2512.14080; half a tile goes up) that its open tokens allow.
    An expert that has too many drops those with the lowest `select_TE`; one with too few takes the best of the others.
    Tokens of padding (`valid_T` False) and entries of -inf are closed. Ties: lower token. Without gradient; in fp32.
    """
    if tile < 1:
        raise ValueError(f"zoo_kernels: tile={tile} must be at least 1")
    select_TE = select_TE.detach().float()
    open_TE = select_TE > -torch.inf
    if valid_T is not None:
        open_TE = open_TE & valid_T[:, None]
    state_TE = open_TE.to(torch.uint8)  # 0 closed, 1 open, 2 chosen
    state_TE = state_TE.scatter_add(1, index_TK, state_TE.gather(1, index_TK)).clamp(max=2)
    return _round_tokens(select_TE, state_TE, tile, resolve(backend, select_TE.device.type))
