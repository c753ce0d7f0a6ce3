"""Router: scores, (biased, group-limited) top-k and gate weights in one kernel, and their backward in another.

Equations: `zoo_kernels.reference.route`. Routing is fp32 inside; ties go to the lower expert index.
Shape suffixes: T tokens, K slots, E experts.
"""

import torch
import triton
import triton.language as tl

from . import common


@triton.jit
def score_rows(x, mask, SCORE: tl.constexpr):
    """softmax | sigmoid | none of each row of x over the columns of `mask`; zero elsewhere."""
    if SCORE == "softmax":
        x = tl.exp(x - tl.max(tl.where(mask, x, float("-inf")), axis=1)[:, None])
        x = tl.where(mask, x, 0.0)
        x = x / tl.sum(x, axis=1)[:, None]
    elif SCORE == "sigmoid":
        x = tl.sigmoid(x)
    return tl.where(mask, x, 0.0)


@triton.jit
def score_rows_backward(out, grad, SCORE: tl.constexpr):
    """Gradient of `score_rows` from its output, which is zero outside the mask."""
    if SCORE == "softmax":
        grad = out * (grad - tl.sum(out * grad, axis=1)[:, None])
    elif SCORE == "sigmoid":
        grad = grad * out * (1.0 - out)
    return grad


@triton.jit
def keep_groups(select, expert, size, GROUPS: tl.constexpr, KEPT: tl.constexpr, BG: tl.constexpr):
    """Which experts lie in the KEPT groups with the largest sum of their two best entries (DeepSeek-V3)."""
    groups = tl.arange(0, BG)
    best = tl.full((select.shape[0], BG), float("-inf"), dtype=tl.float32)
    for g in tl.static_range(GROUPS):
        inside = tl.where((expert // size == g)[None, :], select, float("-inf"))
        first = tl.max(inside, axis=1)
        at = tl.argmax(inside, axis=1, tie_break_left=True)
        second = tl.max(tl.where(expert[None, :] == at[:, None], float("-inf"), inside), axis=1)
        best = tl.where(groups[None, :] == g, (first + tl.where(size > 1, second, 0.0))[:, None], best)
    kept = select != select
    for _ in tl.static_range(KEPT):
        at = tl.argmax(best, axis=1, tie_break_left=True)
        best = tl.where(groups[None, :] == at[:, None], float("-inf"), best)
        kept = kept | ((expert // size)[None, :] == at[:, None])
    return kept


@triton.jit(do_not_specialize=["T"])
def route_kernel(
    logits_ptr, bias_ptr, index_ptr, weight_ptr, scores_ptr, T, E, scale,
    SCORE: tl.constexpr, AFTER: tl.constexpr, RENORM: tl.constexpr, HAS_BIAS: tl.constexpr,
    GROUPS: tl.constexpr, KEPT: tl.constexpr, K: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """AFTER scores the chosen logits only ("topk_then_score")."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    expert = tl.arange(0, BE)
    slot = tl.arange(0, BK)
    mask = (token < T)[:, None] & (expert < E)[None, :]
    at = token[:, None] * E + expert[None, :]
    logits = tl.load(logits_ptr + at, mask=mask, other=0.0).to(tl.float32)
    scores = score_rows(logits, (expert < E)[None, :], SCORE)
    tl.store(scores_ptr + at, scores, mask=mask)
    source = logits if AFTER else scores
    select = source
    if HAS_BIAS:
        select += tl.load(bias_ptr + expert, mask=expert < E, other=0.0).to(tl.float32)[None, :]
    # Excluded experts stay above -inf, which marks those already taken: none is chosen twice.
    select = tl.where((expert < E)[None, :], tl.maximum(select, -1e38), float("-inf"))
    if GROUPS > 0:
        kept = keep_groups(select, expert, E // GROUPS, GROUPS, KEPT, BG)
        select = tl.where(kept | (expert >= E)[None, :], select, -1e38)
    index = tl.zeros((BT, BK), dtype=tl.int32)
    weight = tl.zeros((BT, BK), dtype=tl.float32)
    for k in tl.static_range(K):
        best = tl.minimum(tl.argmax(select, axis=1, tie_break_left=True), E - 1)  # NaN must not lead outside
        chosen = expert[None, :] == best[:, None]
        select = tl.where(chosen, float("-inf"), select)
        index = tl.where((slot == k)[None, :], best[:, None], index)
        weight = tl.where((slot == k)[None, :], tl.sum(tl.where(chosen, source, 0.0), axis=1)[:, None], weight)
    if AFTER:
        weight = score_rows(weight, (slot < K)[None, :], SCORE)
    if RENORM:
        weight = weight / (tl.sum(weight, axis=1)[:, None] + 1e-20)
    at = token[:, None] * K + slot[None, :]
    mask = (token < T)[:, None] & (slot < K)[None, :]
    tl.store(index_ptr + at, index.to(tl.int64), mask=mask)
    tl.store(weight_ptr + at, weight * scale, mask=mask)


@triton.jit(do_not_specialize=["T"])
def route_backward_kernel(
    dweight_ptr, dscores_ptr, logits_ptr, index_ptr, scores_ptr, dlogits_ptr, T, E, scale,
    SCORE: tl.constexpr, AFTER: tl.constexpr, RENORM: tl.constexpr, K: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    expert = tl.arange(0, BE)
    slot = tl.arange(0, BK)
    mask = (token < T)[:, None] & (expert < E)[None, :]
    at = token[:, None] * E + expert[None, :]
    in_slots = (token < T)[:, None] & (slot < K)[None, :]
    at_slot = token[:, None] * K + slot[None, :]
    index = tl.load(index_ptr + at_slot, mask=in_slots, other=0).to(tl.int32)
    grad = tl.load(dweight_ptr + at_slot, mask=in_slots, other=0.0).to(tl.float32) * scale
    source_ptr = logits_ptr if AFTER else scores_ptr
    weight = tl.load(source_ptr + token[:, None] * E + index, mask=in_slots, other=0.0).to(tl.float32)
    if AFTER:
        weight = score_rows(weight, (slot < K)[None, :], SCORE)
    if RENORM:
        total = tl.sum(weight, axis=1)[:, None] + 1e-20
        grad = grad / total - tl.sum(grad * weight, axis=1)[:, None] / (total * total)
        grad = tl.where(in_slots, grad, 0.0)
    if AFTER:
        grad = score_rows_backward(weight, grad, SCORE)
    scattered = tl.zeros((BT, BE), dtype=tl.float32)
    for k in tl.static_range(K):
        one = (slot == k)[None, :]
        best = tl.sum(tl.where(one, index, 0), axis=1)[:, None]
        scattered += tl.where(expert[None, :] == best, tl.sum(tl.where(one, grad, 0.0), axis=1)[:, None], 0.0)
    dscores = tl.load(dscores_ptr + at, mask=mask, other=0.0).to(tl.float32)
    scores = tl.load(scores_ptr + at, mask=mask, other=0.0)
    if AFTER:
        dlogits = scattered + score_rows_backward(scores, dscores, SCORE)
    else:
        dlogits = score_rows_backward(scores, dscores + scattered, SCORE)
    tl.store(dlogits_ptr + at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=mask)


def _blocks(num_tokens: int, num_experts: int, k: int) -> tuple[tuple[int], dict[str, int]]:
    """(grid, block sizes): about 2048 scores a program."""
    columns = triton.next_power_of_2(num_experts)
    rows = max(1, 2048 // columns)
    return (triton.cdiv(num_tokens, rows),), {
        "K": k, "BT": rows, "BE": columns, "BK": triton.next_power_of_2(k),
    }  # fmt: skip


def route_forward(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, k: int, score: str, order: str, renorm: bool, scale: float,
    num_groups: int, groups_kept: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(index_TK int64, weight_TK fp32, scores_TE fp32); see `zoo_kernels.ops.route`. No groups: 0, 0."""
    common.check_dtype(logits_TE.dtype)
    num_tokens, num_experts = logits_TE.shape
    logits_TE = logits_TE.contiguous()
    index_TK = logits_TE.new_empty(num_tokens, k, dtype=torch.int64)
    weight_TK = logits_TE.new_empty(num_tokens, k, dtype=torch.float32)
    scores_TE = torch.empty_like(logits_TE, dtype=torch.float32)
    grid, blocks = _blocks(num_tokens, num_experts, k)
    common.launch(
        route_kernel, grid, logits_TE, logits_TE if bias_E is None else bias_E.contiguous(), index_TK, weight_TK,
        scores_TE, num_tokens, num_experts, scale, SCORE=score, AFTER=order == "topk_then_score", RENORM=renorm,
        HAS_BIAS=bias_E is not None, GROUPS=num_groups, KEPT=groups_kept,
        BG=triton.next_power_of_2(max(num_groups, 1)), **blocks,
    )  # fmt: skip
    return index_TK, weight_TK, scores_TE


def route_backward(
    dweight_TK: torch.Tensor | None, dscores_TE: torch.Tensor | None, logits_TE: torch.Tensor, index_TK: torch.Tensor,
    scores_TE: torch.Tensor, score: str, order: str, renorm: bool, scale: float,
) -> torch.Tensor:  # fmt: skip
    """dlogits_TE in the type of the logits; a gradient that is None is zero."""
    dweight_TK = torch.zeros_like(index_TK, dtype=torch.float32) if dweight_TK is None else dweight_TK
    dscores_TE = torch.zeros_like(scores_TE) if dscores_TE is None else dscores_TE
    num_tokens, num_experts = logits_TE.shape
    dlogits_TE = logits_TE.new_empty(logits_TE.shape)
    grid, blocks = _blocks(num_tokens, num_experts, index_TK.shape[1])
    common.launch(
        route_backward_kernel, grid, dweight_TK.contiguous(), dscores_TE.contiguous(), logits_TE.contiguous(), index_TK,
        scores_TE, dlogits_TE, num_tokens, num_experts, scale,
        SCORE=score, AFTER=order == "topk_then_score", RENORM=renorm, **blocks,
    )  # fmt: skip
    return dlogits_TE
