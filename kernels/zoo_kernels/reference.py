"""Every op once, in plain differentiable PyTorch: this file is the specification of the other backends.

Legend: T tokens, K slots, E experts, D model width, F inner width, W = 2F (gated) or F, N pairs in sorted order.
`expert_ffn` is differentiated by autograd; `ffn_forward` and `ffn_backward` are the same maths with the minimal-memory
backward of SonicMoE (arXiv 2512.14080, section 3), which keeps x, the pre-activation and the plan.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.plan import Plan, Widths, used_mask
from zoo_kernels.quant import dequantise

GATED = ("swiglu", "geglu", "geglu_tanh", "reglu", "clamped_swiglu")
UNGATED = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
ACTIVATIONS = GATED + UNGATED
CLAMPED_ALPHA = 1.702  # GPT-OSS: gate * sigmoid(1.702 * gate) * (up + 1)
_BASE = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}


def unavailable() -> str:
    """Plain PyTorch runs everywhere."""
    return ""


def sort_pairs(expert_N: Tensor, used_N: Tensor | None, num_experts: int) -> tuple[Tensor, Tensor]:
    """Stable sort of the pairs by expert, unused last: (pair_N, offset_E1). Indices are checked on the CPU only."""
    if expert_N.device.type == "cpu" and expert_N.numel():
        low, high = (int(bound) for bound in torch.aminmax(expert_N))
        if low < 0 or high >= num_experts:
            raise ValueError(f"zoo_kernels: expert index {low if low < 0 else high} is not in 0..{num_experts - 1}")
    key_N = expert_N if used_N is None else torch.where(used_N, expert_N, num_experts)
    sorted_N, pair_N = torch.sort(key_N, stable=True)
    experts = torch.arange(num_experts + 1, device=key_N.device, dtype=sorted_N.dtype)
    return pair_N, torch.searchsorted(sorted_N, experts)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, choice and gate weights; see `zoo_kernels.ops.route`. Ties go to the lower expert index."""
    logits_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    scores_TE = score_fn(logits_TE, score)
    first_TE = scores_TE if order == "score_then_topk" else logits_TE
    index_TK = select(first_TE.detach(), k, select_bias_E, num_groups, groups_kept)
    if order == "score_then_topk":
        weight_TK = scores_TE.gather(1, index_TK)
    else:
        weight_TK = score_fn(logits_TE.gather(1, index_TK), score)
    if renorm:
        weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
    return index_TK, weight_TK * scale, scores_TE


def score_fn(logits: Tensor, score: str) -> Tensor:
    if score == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if score == "sigmoid" else logits


def select(select_TE: Tensor, k: int, bias_E: Tensor | None, num_groups: int | None, groups_kept: int | None) -> Tensor:
    """(T, K) indices of the largest entries, best first, after bias and the group limit of DeepSeek-V3."""
    if bias_E is not None:
        select_TE = select_TE + bias_E.detach()
    if num_groups is not None and groups_kept is not None:
        grouped = select_TE.unflatten(1, (num_groups, -1))
        group_TG = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(group_TG, dtype=torch.bool)
        kept_TG = kept_TG.scatter(1, _top(group_TG, groups_kept), True)
        select_TE = grouped.masked_fill(~kept_TG.unsqueeze(-1), -torch.inf).flatten(1)
    return _top(select_TE, k)


def _top(values: Tensor, k: int) -> Tensor:
    # a stable sort, because the order of torch.topk among equals is not specified
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :k]


def round_tokens(select_TE: Tensor, state_TE: Tensor, tile: int) -> Tensor:
    """(T, E) bool; see `zoo_kernels.ops.round_tokens`. State: 0 closed, 1 open, 2 chosen."""
    counts_E, open_E = (state_TE == 2).sum(0), (state_TE > 0).sum(0)
    rows_E = torch.minimum((2 * counts_E + tile) // (2 * tile), open_E // tile) * tile
    # two stable sorts: by score, then the chosen before the others before the closed
    by_score_TE = select_TE.argsort(dim=0, descending=True, stable=True)
    by_state_TE = state_TE.gather(0, by_score_TE).argsort(dim=0, descending=True, stable=True)
    return by_score_TE.gather(0, by_state_TE).argsort(0) < rows_E


def expand(x_TD: Tensor, plan: Plan) -> Tensor:
    """(N, D) rows of x in sorted order; rows of unused pairs are zero."""
    return x_TD.index_select(0, plan.token_N).masked_fill(~used_mask(plan).unsqueeze(1), 0)


def combine(rows_ND: Tensor, weight_N: Tensor, plan: Plan) -> Tensor:
    """(T, D) sum over each token's pairs of weight times row; rows sorted, weights in original pair order."""
    dtype = _sum_dtype(rows_ND)
    weight_N = weight_N.index_select(0, plan.pair_N).to(dtype)
    # masked before the product, so that what a bank leaves in unused rows reaches neither sum nor gradient
    rows_ND = rows_ND.masked_fill(~used_mask(plan).unsqueeze(1), 0)
    terms_ND = rows_ND.to(dtype) * weight_N.unsqueeze(1)
    y_TD = terms_ND.new_zeros(plan.num_tokens, rows_ND.shape[1]).index_add(0, plan.token_N, terms_ND)
    return y_TD.to(rows_ND.dtype)


def split_gate(hidden: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """(gate, up) of a gated pre-activation."""
    return (hidden[..., ::2], hidden[..., 1::2]) if interleaved else hidden.chunk(2, dim=-1)


def activate(hidden: Tensor, activation: str, limit: float | None = None, interleaved: bool = False) -> Tensor:
    """Inner activation (..., F) of the pre-activation (..., W). GELU is the exact one, relu2 is relu squared.

    `limit` clamps gate from above and up on both sides before the activation (GPT-OSS, arXiv 2508.10925).
    """
    if activation in UNGATED:
        return _base(hidden, activation)
    gate, up = split_gate(hidden, interleaved)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if activation == "clamped_swiglu":
        return gate * torch.sigmoid(CLAMPED_ALPHA * gate) * (up + 1)
    return _base(gate, _BASE[activation]) * up


def _base(z: Tensor, activation: str) -> Tensor:
    if activation == "relu2":
        return F.relu(z).square()
    return F.gelu(z, approximate="tanh") if activation == "gelu_tanh" else getattr(F, activation)(z)


def _base_derivative(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """(value, derivative) of an ungated activation."""
    if activation == "relu":
        return z.clamp(min=0), (z > 0).to(z.dtype)
    if activation == "relu2":
        return z.clamp(min=0).square(), 2 * z.clamp(min=0)
    if activation == "gelu_tanh":  # 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3)
        sig = torch.sigmoid(1.5957691216057308 * (z + 0.044715 * z**3))
        return z * sig, sig + z * sig * (1 - sig) * 1.5957691216057308 * (1 + 0.134145 * z * z)
    if activation == "gelu":
        cdf = 0.5 * (1 + torch.erf(z * 0.5**0.5))
        return z * cdf, cdf + z * torch.exp(-0.5 * z * z) * 0.3989422804014327
    alpha = CLAMPED_ALPHA if activation == "clamped_swiglu" else 1.0
    sig = torch.sigmoid(alpha * z)
    return z * sig, sig * (1 + alpha * z * (1 - sig))


def activate_backward(
    hidden: Tensor, grad: Tensor, activation: str, limit: float | None = None, interleaved: bool = False
) -> Tensor:
    """Gradient of `activate` with respect to the pre-activation."""
    if activation in UNGATED:
        return grad * _base_derivative(hidden, activation)[1]
    gate, up = split_gate(hidden, interleaved)
    gate_in = up_in = None
    if limit is not None:
        gate_in, up_in = gate <= limit, (up >= -limit) & (up <= limit)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    value, slope = _base_derivative(gate, _BASE.get(activation, activation))
    grad_gate, grad_up = grad * (up + 1 if activation == "clamped_swiglu" else up) * slope, grad * value
    if gate_in is not None:
        grad_gate, grad_up = grad_gate * gate_in, grad_up * up_in
    return torch.stack((grad_gate, grad_up), -1).flatten(-2) if interleaved else torch.cat((grad_gate, grad_up), -1)


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
    widths: Widths | None = None,
) -> Tensor:
    """y_t = sum over the pairs (t, e) of weight * (W_out[e] act(W_in[e] x_t + b_in[e]) + b_out[e]), by autograd."""
    offsets = plan.offset_E1.tolist()
    rows, y_ND = expand(x_TD, plan), []
    in_E, out_E, bias_E = each_expert(w_in, w_out, b_in, widths)
    for e, (start, stop) in enumerate(pairwise(offsets)):
        hidden = _linear(rows[start:stop], in_E[e], bias_E, e)
        act = activate(hidden, activation, limit, interleaved)
        y_ND.append(_linear(act, out_E[e], b_out, e))
    y_ND.append(rows[offsets[-1] :])
    return combine(torch.cat(y_ND), weight_N, plan)


def each_expert(
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, widths: Widths | None
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None]:
    """(w_in (W, D), w_out (D, F), b_in (W,)) of each expert, as views; `ops.expert_ffn` says how ragged ones lie."""
    if widths is None:
        return w_in, w_out, b_in
    units_E = widths.start_E1.diff().tolist()
    twice = w_in.shape[0] // max(w_out.shape[0], 1)
    wide_E = [twice * units for units in units_E]
    return w_in.split(wide_E), [part.mT for part in w_out.split(units_E)], None if b_in is None else b_in.split(wide_E)


def ffn_forward(
    x_TD: Tensor,
    weight_N: Tensor,
    plan: Plan,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    keep_hidden: bool,
    scales: tuple[Tensor, Tensor] | None = None,
    widths: Widths | None = None,
) -> tuple[Tensor, Tensor]:
    """(y_TD, hidden_NW); hidden is empty unless asked for. `scales` ((E, W), (E, D)) come with quantised weights.

    With ragged experts W is the widest one's, and a row uses as many of its columns as its expert needs.
    """
    y_TD = torch.zeros_like(x_TD, dtype=_sum_dtype(x_TD))
    hidden_NW = x_TD.new_empty(plan.token_N.shape[0] if keep_hidden else 0, hidden_width(w_in, w_out, widths))
    in_E, out_E, bias_E = each_expert(w_in, w_out, b_in, widths)
    weight_N = weight_N[plan.pair_N].to(y_TD.dtype)
    for e, (start, stop) in _segments(plan):
        token = plan.token_N[start:stop]
        matrix_in, matrix_out = in_E[e], out_E[e]
        if scales is not None:
            matrix_in, matrix_out = (
                dequantise(codes[e], scale[e]).to(x_TD.dtype)
                for codes, scale in zip((w_in, w_out), scales, strict=True)
            )
        hidden = _linear(x_TD[token], matrix_in, bias_E, e)
        if keep_hidden:
            hidden_NW[start:stop, : hidden.shape[1]] = hidden
        y_ND = _linear(activate(hidden, activation, limit, interleaved), matrix_out, b_out, e)
        y_TD.index_add_(0, token, y_ND.to(y_TD.dtype) * weight_N[start:stop, None])
    return y_TD.to(x_TD.dtype), hidden_NW


def ffn_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    plan: Plan,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    hidden_NW: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    widths: Widths | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of (x, weight, w_in, w_out, b_in, b_out); an empty `hidden_NW` is recomputed.

    With dA' = dy W_out, the router gradient is the inner product <dA', A> (+ <dy, b_out>), so neither A nor the
    expert outputs are ever kept.
    """
    dx_TD, dweight_N = torch.zeros_like(x_TD, dtype=_sum_dtype(x_TD)), torch.zeros_like(weight_N)
    dw_in, dw_out = torch.zeros_like(w_in), torch.zeros_like(w_out)
    db_in = None if b_in is None else torch.zeros_like(b_in)
    db_out = None if b_out is None else torch.zeros_like(b_out)
    in_E, out_E, bias_E = each_expert(w_in, w_out, b_in, widths)
    din_E, dout_E, dbias_E = each_expert(dw_in, dw_out, db_in, widths)
    sorted_weight_N = weight_N[plan.pair_N].to(x_TD.dtype)
    for e, (start, stop) in _segments(plan):
        token, scale = plan.token_N[start:stop], sorted_weight_N[start:stop, None]
        x, dy = x_TD[token], dy_TD[token]
        kept = hidden_NW[start:stop, : in_E[e].shape[0]] if hidden_NW.shape[0] else None
        hidden = _linear(x, in_E[e], bias_E, e) if kept is None else kept
        act = activate(hidden, activation, limit, interleaved)
        dact = dy @ out_E[e]
        dscale = (dact * act).sum(1)
        if b_out is not None and db_out is not None:
            dscale = dscale + dy @ b_out[e]
            db_out[e] = (dy * scale).sum(0)
        dweight_N[plan.pair_N[start:stop]] = dscale.to(dweight_N.dtype)
        dhidden = activate_backward(hidden, dact * scale, activation, limit, interleaved)
        if dbias_E is not None:
            dbias_E[e].copy_(dhidden.sum(0))
        torch.mm(dhidden.T, x, out=din_E[e])
        torch.mm(dy.T, act * scale, out=dout_E[e])
        dx_TD.index_add_(0, token, (dhidden @ in_E[e]).to(dx_TD.dtype))
    return dx_TD.to(x_TD.dtype), dweight_N, dw_in, dw_out, db_in, db_out


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Sums over experts of half-precision outputs are taken in fp32."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _segments(plan: Plan) -> list[tuple[int, tuple[int, int]]]:
    offsets = plan.offset_E1.tolist()
    return [(e, pair) for e, pair in enumerate(pairwise(offsets)) if pair[0] < pair[1]]


def hidden_width(w_in: Tensor, w_out: Tensor, widths: Widths | None) -> int:
    """W, of the widest expert if they differ."""
    return w_in.shape[1] if widths is None else w_in.shape[0] // max(w_out.shape[0], 1) * widths.widest


def _linear(x: Tensor, w: Tensor, bias: Sequence[Tensor] | None, e: int) -> Tensor:
    return F.linear(x, w, None if bias is None else bias[e])
