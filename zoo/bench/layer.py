"""One layer of SwiGLU experts: ours against Hugging Face's, a dense layer of equal FLOPs and the speed of torch.mm.

Legend: T tokens, D model width, F inner width, E experts, K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.bench.memory import minimum_bytes, saved_bytes
from zoo.bench.timing import Times, contention, interleave
from zoo.integrations.transformers import register
from zoo.spec import ZooError
from zoo_kernels import ops


class Shape(NamedTuple):
    tokens: int
    model: int
    inner: int
    experts: int
    slots: int


SHAPES = {
    "a": Shape(2048, 512, 1024, 8, 2),
    "b": Shape(4096, 512, 256, 64, 6),
    "c": Shape(16, 512, 256, 64, 8),
    "d": Shape(512, 256, 128, 256, 8),
}
PEER = "HF grouped_mm"
GEMM = 1024  # the limit is the rate of a square product of this size
DECODING = 8  # rows an expert; with more, reading the weights is not what takes the time
BATCHED_LIMIT, EAGER_LIMIT = 2.0, 4.0  # GB


def parse_shape(text: str) -> tuple[str, Shape]:
    """(name, shape) of ``a`` to ``d`` or ``T,D,F,E,K``. Raises `ZooError` for anything else."""
    if text in SHAPES:
        return text, SHAPES[text]
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ZooError(f"--shape {text} is neither one of {', '.join(SHAPES)} nor T,D,F,E,K (five positive integers)")
    shape = Shape(*map(int, parts))
    if shape.slots > shape.experts:
        raise ZooError(f"--shape {text}: {shape.slots} slots need at least as many experts, not {shape.experts}")
    return text, shape


def parse_dtype(text: str) -> torch.dtype:
    """Raises `ZooError` for a type that is not measured."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text not in known:
        raise ZooError(f"--dtype {text} is not one of {', '.join(known)}")
    return known[text]


class Contender(NamedTuple):
    """Without leaves it has no backward."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()


def contenders(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Contender]:
    """All contenders on the same tensors; the routing is the same for all and not timed."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    register()
    t, d, f, e, k = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    config: Any = SimpleNamespace(num_experts=e, hidden_size=d, moe_intermediate_size=f, hidden_act="silu")
    module: Any = Qwen3MoeExperts(config).to(dtype)
    module.gate_up_proj.data = normal(e, 2 * f, d, scale=d**-0.5)
    module.down_proj.data = normal(e, d, f, scale=f**-0.5)
    x, index, weight = normal(t, d).requires_grad_(), *_routing(normal(t, e), k)
    wide_in, wide_out = nn.Parameter(normal(2 * f * k, d)), nn.Parameter(normal(d, f * k))

    def hugging_face(implementation: str) -> Tensor:
        config._experts_implementation = implementation
        return module(x, index, weight)

    def zoo(save: str) -> Tensor:
        plan = ops.plan(index, e)
        return ops.expert_ffn(x, weight.flatten(), plan, module.gate_up_proj, module.down_proj, save=save)

    def dense() -> Tensor:
        gate, up = F.linear(x, wide_in).chunk(2, -1)
        return F.linear(F.silu(gate) * up, wide_out)

    def quantised(quantise: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Contender:
        (q_in, s_in), (q_out, s_out) = quantise(module.gate_up_proj.data), quantise(module.down_proj.data)

        def forward() -> Tensor:
            return ops.expert_ffn_quantised(x, weight.flatten(), ops.plan(index, e), q_in, q_out, s_in, s_out)

        return Contender(forward)

    leaves = (x, weight, module.gate_up_proj, module.down_proj)
    decoding = {}
    if t * k <= DECODING * e:
        decoding["zoo int8"] = quantised(ops.quantise_int8)
        if d % 4 == 0 and f % 4 == 0:
            decoding["zoo ternary"] = quantised(ops.quantise_ternary)
    return decoding | {
        "zoo": Contender(lambda: zoo("hidden"), leaves),
        "zoo x_only": Contender(lambda: zoo("x_only"), leaves),
        "zoo in HF": Contender(lambda: hugging_face("zoo"), leaves),
        PEER: Contender(lambda: hugging_face("grouped_mm"), leaves),
        "HF eager": Contender(lambda: hugging_face("eager"), leaves),
        "HF batched_mm": Contender(lambda: hugging_face("batched_mm"), leaves),
        "dense": Contender(dense, (x, wide_in, wide_out)),
    }


def _routing(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index_TK, weight_TK, _ = ops.route(logits_TE, k, renorm=True)
    return index_TK, weight_TK.detach().to(logits_TE.dtype).requires_grad_()


def too_slow(name: str, shape: Shape, backward: bool) -> str:
    """Why a contender is left out of a pass; empty if it runs."""
    t, d, f, e, k = shape
    weights = 12 * d * f / 1e9  # GB of one expert
    if name == "HF batched_mm" and (gathered := t * k * weights) > BATCHED_LIMIT / (4 if backward else 1):
        return f"it gathers {gathered:.1f} GB of weights"
    if name == "HF eager" and backward and (written := e * e * weights) > EAGER_LIMIT:
        return f"its backward writes {written:.1f} GB of zero gradients: seconds to minutes a call"
    return ""


def bench_layer(
    name: str, shape: Shape, backward: bool, repeats: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Times, ratios to `PEER`, shares of the GEMM limit and saved bytes of each contender, as one JSON document."""
    table = contenders(shape, dtype)
    ones, square = torch.ones(shape.tokens, shape.model, dtype=dtype), torch.randn(GEMM, GEMM).to(dtype)
    passes: Sequence[str] = ("forward", "forward+backward") if backward else ("forward",)
    runs: dict[str, Callable[[], object]] = {"mm": lambda: torch.mm(square, square)}
    skipped = []
    for kind in passes:
        for contender, (forward, leaves) in table.items():
            if kind != "forward" and not leaves:
                continue
            if why := too_slow(contender, shape, kind != "forward"):
                skipped.append({"contender": contender, "pass": kind, "why": why})
            elif kind == "forward":
                if contender != "zoo x_only":  # without a backward it is the same as zoo
                    runs[f"{kind} {contender}"] = torch.no_grad()(forward)
            else:
                runs[f"{kind} {contender}"] = lambda f=forward, v=leaves: torch.autograd.grad(f(), v, ones)
    with contention() as seen:
        times = interleave(runs, repeats)
    rate = times.pop("mm").summary()
    document = {
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": shape._asdict(),
        "contention": seen,
        "skipped": skipped,
        "results": [],
    }
    for kind in passes:
        flops = 6 * shape.tokens * shape.slots * shape.model * shape.inner * (1 if kind == "forward" else 3)
        limit = {clock: rate[clock]["median"] * flops / (2 * GEMM**3) for clock in rate}
        rows = {c: times[f"{kind} {c}"] for c in table if f"{kind} {c}" in times}
        document["results"] += [_row(kind, contender, rows, limit) for contender in rows]
        document["results"].append({"pass": kind, "contender": "GEMM limit", "limit_ms": limit})
    if backward:
        document["minimum_bytes"] = minimum_bytes(*shape, dtype.itemsize)
        document["saved_bytes"] = {
            contender: saved_bytes(forward, [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)])
            for contender, (forward, leaves) in table.items()
            if leaves and not too_slow(contender, shape, True)
        }
    return document


def _row(kind: str, contender: str, rows: dict[str, Times], limit: dict[str, float]) -> dict[str, Any]:
    summary, peer = rows[contender].summary(), rows[PEER].summary()
    clocks = ("wall_ms", "cpu_ms")
    return {
        "pass": kind,
        "contender": contender,
        **summary,
        "speedup": {clock: peer[clock]["median"] / max(summary[clock]["median"], 1e-9) for clock in clocks},
        "limit_share": {clock: limit[clock] / max(summary[clock]["median"], 1e-9) for clock in clocks},
    }
