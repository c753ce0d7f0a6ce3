"""The fast CPU path: fp32, bf16 and fp16 in C (csrc/), other dtypes through the reference's maths.

Legend: T tokens, K slots, E experts, D model width, F inner width, W = 2F (gated) or F, N pairs in sorted order.
"""

import ctypes
import functools
import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from zoo_kernels import reference
from zoo_kernels.build import BuildError, library
from zoo_kernels.plan import Plan, Widths

_KINDS = {"silu": 0, "swiglu": 0, "gelu": 1, "geglu": 1, "relu": 2, "reglu": 2, "clamped_swiglu": 3}
_KINDS |= {"gelu_tanh": 4, "geglu_tanh": 4, "relu2": 5}
# types of csrc/element.h, and DLPack's (code, bits) of those that we allocate
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.uint8: 4}
_DLPACK = {torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.float16: (2, 16)}
_AMX_ROWS = 32  # an expert: with more, bf16 is left to torch where it has AMX; a guess, never measured
_forked = False


_SIZES = ("tokens", "experts", "model", "inner", "width", "threads", "groups", "kind", "mode", "type", "weight_type")
_SIZES += ("in_turned", "out_turned")
_INPUTS = ("x", "weight", "token", "pair", "offset", "start", "w_in", "w_out", "b_in", "b_out", "scale_in", "scale_out")
_OUTPUTS = ("hidden", "y", "dy", "dx", "dweight", "dw_in", "dw_out", "db_in", "db_out")


class _Ffn(ctypes.Structure):
    """Mirrors `ffn` of csrc/ffn.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("limit", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _INPUTS + _OUTPUTS),
    )


class _Routing(ctypes.Structure):
    """Mirrors `routing` of csrc/route.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "experts", "slots", "threads")),
        *((name, ctypes.c_int64) for name in ("score", "after", "renorm", "groups", "kept")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "index", "weight", "scores")),
        *((name, ctypes.c_void_p) for name in ("dweight", "dscores", "dlogits")),
    )


class _Rows(ctypes.Structure):
    """Mirrors `row_call` of csrc/rows.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "pairs", "used", "model", "threads")),
        *((name, ctypes.c_void_p) for name in ("token", "pair", "x", "rows", "weight", "out", "dweight")),
    )


def _call(function: str, call: ctypes.Structure, tensors: dict[str, Tensor | None]) -> None:
    """Runs `function` of the library on a structure whose pointers are those of the tensors; NULL if None or empty."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel():
            setattr(call, name, tensor.data_ptr())
    if getattr(library(), function)(ctypes.byref(call)):
        raise MemoryError("zoo_kernels: out of memory")


def unavailable() -> str:
    """Why this backend cannot be used here; empty if it can. Builds the library the first time."""
    try:
        lib = library()
    except BuildError as error:
        return str(error)
    lib.zoo_tensor.restype = ctypes.c_void_p
    lib.zoo_sort_pairs.restype = ctypes.c_int64
    os.register_at_fork(after_in_child=_after_fork)
    return ""


def _after_fork() -> None:
    # OpenMP's threads do not survive a fork, and waiting for them would hang: a child computes on one thread
    global _forked
    _forked = True
    library().zoo_pool_after_fork()


def _threads() -> int:
    return 1 if _forked else torch.get_num_threads()


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised tensor on reused huge pages: touching fresh ones costs more than what is written into them."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    managed = library().zoo_tensor(len(shape), (ctypes.c_int64 * len(shape))(*shape), *_DLPACK[dtype])
    if not managed:
        raise MemoryError(f"zoo_kernels: cannot allocate {shape} of {dtype}")
    return torch.utils.dlpack.from_dlpack(_capsule(managed, b"dltensor", None))


def sort_pairs(expert_N: Tensor, used_N: Tensor | None, num_experts: int) -> tuple[Tensor, Tensor]:
    """(pair_N, offset_E1); see `reference.sort_pairs`."""
    expert_N, used_N = expert_N.contiguous(), None if used_N is None else used_N.bool().contiguous()
    pair_N, offset_E1 = torch.empty_like(expert_N), torch.empty(num_experts + 1, dtype=torch.int64)
    pointers = (tensor if tensor is None else tensor.data_ptr() for tensor in (expert_N, used_N, pair_N, offset_E1))
    sizes = ctypes.c_int64(expert_N.numel()), ctypes.c_int64(num_experts)
    if status := library().zoo_sort_pairs(*sizes, *map(ctypes.c_void_p, pointers)):
        if status == 1:
            raise MemoryError("zoo_kernels: out of memory")
        raise ValueError(f"zoo_kernels: expert index {int(expert_N[status - 2])} is not in 0..{num_experts - 1}")
    return pair_N, offset_E1


def route_forward(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    k: int,
    score: str,
    order: str,
    renorm: bool,
    scale: float,
    num_groups: int,
    groups_kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(index_TK int64, weight_TK fp32, scores_TE fp32); see `zoo_kernels.ops.route`. No groups: 0, 0."""
    tokens, experts = logits_TE.shape
    scores_TE, weight_TK = torch.empty(tokens, experts), torch.empty(tokens, k)
    index_TK = torch.empty(tokens, k, dtype=torch.int64)
    tensors = {"logits": logits_TE.float().contiguous(), "index": index_TK, "weight": weight_TK, "scores": scores_TE}
    tensors["bias"] = None if bias_E is None else bias_E.float().contiguous()
    call = _routing(logits_TE, k, score, order, renorm, scale)
    call.groups, call.kept = num_groups, groups_kept
    _call("zoo_route", call, tensors)
    return index_TK, weight_TK, scores_TE


def route_backward(
    dweight_TK: Tensor | None,
    dscores_TE: Tensor | None,
    logits_TE: Tensor,
    index_TK: Tensor,
    scores_TE: Tensor,
    score: str,
    order: str,
    renorm: bool,
    scale: float,
) -> Tensor:
    """dlogits_TE in the type of the logits; a gradient that is None is zero."""
    dlogits_TE = torch.empty(logits_TE.shape)
    tensors = {"logits": logits_TE.float(), "dweight": dweight_TK, "dscores": dscores_TE}
    tensors = {name: tensor if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}
    tensors |= {"index": index_TK, "scores": scores_TE, "dlogits": dlogits_TE}
    _call("zoo_route", _routing(logits_TE, index_TK.shape[1], score, order, renorm, scale), tensors)
    return dlogits_TE.to(logits_TE.dtype)


def _routing(logits_TE: Tensor, k: int, score: str, order: str, renorm: bool, scale: float) -> _Routing:
    tokens, experts = logits_TE.shape
    return _Routing(
        tokens=tokens, experts=experts, slots=k, threads=_threads(), score=("softmax", "sigmoid", "none").index(score),
        after=order == "topk_then_score", renorm=renorm, scale=scale,
    )  # fmt: skip


def round_tokens(select_TE: Tensor, state_TE: Tensor, tile: int) -> Tensor:
    """(T, E) bool; see `zoo_kernels.ops.round_tokens`. State: 0 closed, 1 open, 2 chosen."""
    chosen_TE = torch.empty(state_TE.shape, dtype=torch.bool)
    tensors = (select_TE.contiguous(), state_TE.contiguous(), chosen_TE)
    sizes = (*state_TE.shape, tile, _threads())
    if library().zoo_round_tokens(*map(ctypes.c_int64, sizes), *(ctypes.c_void_p(t.data_ptr()) for t in tensors)):
        raise MemoryError("zoo_kernels: out of memory")
    return chosen_TE


def expand_rows(
    x_TD: Tensor, plan: Plan, rows_ND: Tensor | None = None, weight_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(N, D) x[token], zero for unused pairs; with weights (pair order) times them, and <x[token], rows> (N,)."""
    out_ND = empty(plan.token_N.shape[0], x_TD.shape[1])
    dweight_N = torch.empty(0 if weight_N is None else weight_N.shape[0])
    _rows("zoo_expand", plan, {"x": x_TD, "rows": rows_ND, "weight": weight_N, "out": out_ND, "dweight": dweight_N})
    return out_ND, dweight_N


def combine_rows(rows_ND: Tensor, weight_N: Tensor | None, plan: Plan) -> Tensor:
    """(T, D) = sum over each token's pairs of weight times row; no weights means ones."""
    out_TD = empty(plan.num_tokens, rows_ND.shape[1])
    weight_N = None if weight_N is None else weight_N.contiguous()
    _rows("zoo_combine", plan, {"rows": rows_ND, "weight": weight_N, "out": out_TD})
    return out_TD


def _rows(function: str, plan: Plan, tensors: dict[str, Tensor | None]) -> None:
    call = _Rows(
        tokens=plan.num_tokens, pairs=plan.token_N.shape[0], used=int(plan.offset_E1[-1]),
        model=tensors["out"].shape[1], threads=_threads(),
    )  # fmt: skip
    _call(function, call, tensors | {"token": plan.token_N, "pair": plan.pair_N})


@functools.cache
def _has_amx() -> bool:
    """Whether torch multiplies bf16 in tiles (AMX), several times faster than by the vectors that we use."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def _is_fast(x_TD: Tensor, plan: Plan) -> bool:
    """Whether the C path has this type and is the faster one; a compiler may lack fp16."""
    if x_TD.dtype == torch.float16 and not library().zoo_has_fp16():
        return False
    if x_TD.dtype == torch.bfloat16 and _has_amx() and plan.token_N.shape[0] > _AMX_ROWS * plan.num_experts:
        return False
    return x_TD.dtype in _DLPACK and x_TD.numel() > 0


def _prepare(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """x and weights as they are, the rest as fp32; contiguous, but for weights that lie as (E, in, out)."""
    prepared = {}
    for name, tensor in inputs.items():
        if tensor is not None and name not in ("x", "w_in", "w_out"):
            tensor = tensor.float()
        prepared[name] = tensor if tensor is None or _turned(tensor) else tensor.contiguous()
    return prepared


def _turned(weight: Tensor) -> bool:
    """Whether an (E, out, in) matrix lies in memory as (E, in, out)."""
    return weight.ndim == 3 and weight.mT.is_contiguous() and not weight.is_contiguous()


def _empty_as(weight: Tensor) -> Tensor:
    """Like `empty`, laid out as the weight."""
    shape, dtype = weight.shape, weight.dtype
    return empty(*weight.mT.shape, dtype=dtype).mT if _turned(weight) else empty(*shape, dtype=dtype)


def _run(
    tensors: dict[str, Tensor | None],
    plan: Plan,
    activation: str,
    limit: float | None,
    interleaved: bool,
    widths: Widths | None,
) -> None:
    w_in, w_out = tensors["w_in"], tensors["w_out"]
    width, gated, threads = reference.hidden_width(w_in, w_out, widths), activation in reference.GATED, _threads()
    inner = width // 2 if gated else width
    if widths is not None:
        _check_widths(widths, plan, w_out.shape[0])
        tensors |= {"start": widths.start_E1}
    # at least two groups, so that one thread and two give the same bits
    call = _Ffn(
        tokens=plan.num_tokens, experts=plan.num_experts, model=w_out.shape[1], inner=inner, width=width,
        threads=threads, groups=min(max(2, threads), 64), kind=_KINDS[activation],
        mode=0 if not gated else 2 if interleaved else 1, type=_TYPES[tensors["x"].dtype],
        weight_type=_TYPES[w_in.dtype], in_turned=_turned(w_in), out_turned=widths is not None or _turned(w_out),
        limit=float("inf") if limit is None else limit,
        token=plan.token_N.data_ptr(), pair=plan.pair_N.data_ptr(), offset=plan.offset_E1.data_ptr(),
    )  # fmt: skip
    _call("zoo_ffn", call, tensors)


def _check_widths(widths: Widths, plan: Plan, units: int) -> None:
    start = widths.start_E1.tolist()
    inner = [stop - begin for begin, stop in pairwise(start)]
    fits = len(inner) == plan.num_experts and (start[0], start[-1]) == (0, units)
    fits = fits and not any(size % max(widths.multiple, 1) for size in inner)
    if not fits or min(inner, default=0) < 0 or max(inner, default=0) > widths.widest:
        raise ValueError(
            f"zoo_kernels: widths {inner}, at most {widths.widest} and multiples of {widths.multiple}, do not fit "
            f"{plan.num_experts} experts of {units} inner units; make them by Widths.of"
        )


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
    """(y_TD, hidden_NW); hidden is empty unless asked for. `scales` ((E, W), (E, D)) come with quantised weights."""
    inputs = {"x": x_TD, "weight": weight_N, "w_in": w_in, "w_out": w_out, "b_in": b_in, "b_out": b_out}
    if not _is_fast(x_TD, plan):
        return reference.ffn_forward(
            x_TD, weight_N, plan, w_in, w_out, b_in, b_out, activation, limit, interleaved, keep_hidden, scales, widths
        )
    inputs |= dict(zip(("scale_in", "scale_out"), scales or (None, None), strict=True))
    inputs = _prepare(inputs)
    if scales is not None:
        inputs |= {"w_in": w_in.contiguous(), "w_out": w_out.contiguous()}
    rows, dtype = plan.token_N.shape[0] if keep_hidden else 0, x_TD.dtype
    hidden_NW = empty(rows, reference.hidden_width(w_in, w_out, widths), dtype=dtype)
    y_TD = empty(*x_TD.shape, dtype=dtype)
    _run({**inputs, "hidden": hidden_NW, "y": y_TD}, plan, activation, limit, interleaved, widths)
    return y_TD, hidden_NW


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
    """Gradients of (x, weight, w_in, w_out, b_in, b_out); an empty `hidden_NW` is recomputed."""
    if not _is_fast(x_TD, plan):
        return reference.ffn_backward(
            dy_TD, x_TD, weight_N, plan, w_in, w_out, b_in, b_out, hidden_NW, activation, limit, interleaved, widths
        )
    inputs = {"x": x_TD, "weight": weight_N, "w_in": w_in, "w_out": w_out, "b_in": b_in, "b_out": b_out}
    inputs = _prepare(inputs)
    inputs |= {"dy": dy_TD.contiguous(), "hidden": hidden_NW}
    dx_TD = empty(*x_TD.shape, dtype=x_TD.dtype)
    dw_in, dw_out = _empty_as(inputs["w_in"]), _empty_as(inputs["w_out"])
    dweight_N = torch.zeros(weight_N.shape)
    db_in, db_out = (None if bias is None else empty(*bias.shape) for bias in (b_in, b_out))
    outputs = {"dx": dx_TD, "dweight": dweight_N, "dw_in": dw_in, "dw_out": dw_out, "db_in": db_in, "db_out": db_out}
    _run(inputs | outputs, plan, activation, limit, interleaved, widths)
    db_in, db_out = (None if db is None else db.to(x_TD.dtype) for db in (db_in, db_out))
    return dx_TD, dweight_N.to(weight_N.dtype), dw_in, dw_out, db_in, db_out
