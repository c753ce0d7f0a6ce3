"""Every Triton kernel against the float64 reference, outputs and all gradients; run by test_triton_interpreter.py.

Uninitialised memory is NaN here, so a row that is read although nobody wrote it shows.
Shape suffixes: T tokens, K slots, E experts, D model, F inner, N pairs.
"""

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import triton

from zoo_kernels import ops, quant, reference
from zoo_kernels import triton as zoo_triton
from zoo_kernels.plan import Plan
from zoo_kernels.triton import common, gemm, plan, tiles, wgrad

assert tiles.INTERPRET, "run me through test_triton_interpreter.py"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def error(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error in the 2-norm; NaN counts as infinite."""
    assert value.shape == wanted.shape
    if not value.isfinite().all():
        return float("inf")
    value, wanted = value.detach().double(), wanted.detach().double()
    return float((value - wanted).norm() / wanted.norm().clamp(min=1e-30))


def make_plan(index_TK: torch.Tensor, num_experts: int, used_TK: torch.Tensor | None = None) -> Plan:
    used_N = None if used_TK is None else used_TK.flatten()
    pair_N, offset_E1 = reference.sort_pairs(index_TK.flatten(), used_N, num_experts)
    return Plan(pair_N // max(index_TK.shape[1], 1), pair_N, offset_E1, index_TK.shape[0], num_experts)


def choices(kind: str, num_tokens: int, k: int, num_experts: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(index_TK, used_TK) of a routing with the named peculiarity."""
    index_TK = torch.randint(0, num_experts, (num_tokens, k))  # duplicates in a row included
    if kind == "one expert takes all":
        index_TK.fill_(1)
    if kind == "empty experts":
        index_TK = index_TK.clamp(1, num_experts - 2)
    used_TK = torch.rand(num_tokens, k) < 0.6 if kind == "unused slots" else None
    return index_TK, torch.zeros(num_tokens, k, dtype=torch.bool) if kind == "all unused" else used_TK


# Plan


@pytest.mark.parametrize("num_pairs, num_experts", [(0, 4), (1, 1), (300, 7), (517, 33)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_sort_is_the_stable_one(num_pairs: int, num_experts: int, masked: bool) -> None:
    expert_N = torch.randint(0, num_experts, (num_pairs,))
    used_N = torch.rand(num_pairs) < 0.7 if masked else None
    pair_N, offset_E1 = plan.sort_pairs(expert_N, used_N, num_experts)
    wanted_pair_N, wanted_offset_E1 = reference.sort_pairs(expert_N, used_N, num_experts)
    assert torch.equal(pair_N, wanted_pair_N) and torch.equal(offset_E1, wanted_offset_E1)


def test_an_expert_out_of_range_counts_as_unused() -> None:
    pair_N, offset_E1 = plan.sort_pairs(torch.tensor([1, -1, 0, 2, 1 << 20, 1]), None, 2)
    assert pair_N.tolist() == [2, 0, 5, 1, 3, 4] and offset_E1.tolist() == [0, 1, 3]


@pytest.mark.parametrize("counts", [(5, 0, 33, 16, 0), (0, 0, 0), (200,), (16, 1, 15, 32)])
def test_tiles_cover_every_row_once_and_hold_one_expert(counts: tuple[int, ...]) -> None:
    offset_E1 = torch.tensor((0, *counts)).cumsum(0)
    listed = plan.row_tiles(offset_E1, sum(counts) + 3, 16)
    wanted = [(e, int(offset_E1[e]) + row) for e, count in enumerate(counts) for row in range(0, count, 16)]
    found = list(zip(listed.expert_M.tolist(), listed.row_M.tolist(), strict=True))
    assert found[: len(wanted)] == wanted and all(e == -1 for e, _ in found[len(wanted) :])

    listed = plan.chunks(offset_E1, sum(counts) + 3, 16)
    rows = [(e, row) for e, count in enumerate(counts) for row in range(0, max(count, 1), 16)]
    wanted = [(e, int(offset_E1[e]) + row) for e, row in rows]
    found = list(zip(listed.expert_M.tolist(), listed.row_M.tolist(), strict=True))
    assert found[: len(wanted)] == wanted and all(e == -1 for e, _ in found[len(wanted) :])
    slots = [slot for slot in listed.slot_M.tolist() if slot >= 0]
    assert slots == list(range(sum(-(-count // 16) for count in counts if count > 16)))


# Router


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"renorm": True, "scale": 2.5},
        {"order": "topk_then_score"},
        {"order": "topk_then_score", "score": "sigmoid", "renorm": True},
        {"score": "sigmoid", "renorm": True, "select_bias_E": True, "num_groups": 4, "groups_kept": 2},
        {"score": "none", "select_bias_E": True, "num_groups": 12, "groups_kept": 5},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_router(options: dict[str, object], dtype: torch.dtype) -> None:
    options = {**options, **({"select_bias_E": torch.randn(12)} if options.get("select_bias_E") else {})}
    logits_TE = torch.randn(180, 12).to(dtype).requires_grad_()
    wanted_logits_TE = logits_TE.detach().double().requires_grad_()
    index_TK, *found = ops.route(logits_TE, 3, backend="triton", **options)
    wanted_index_TK, *wanted = reference.route(wanted_logits_TE, 3, **options)
    assert torch.equal(index_TK, wanted_index_TK)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 2e-6
    grads = [torch.randn_like(tensor) for tensor in found]
    (dlogits_TE,) = torch.autograd.grad(found, logits_TE, grads)
    (wanted_TE,) = torch.autograd.grad(wanted, wanted_logits_TE, [grad.double() for grad in grads])
    assert dlogits_TE.dtype == dtype and error(dlogits_TE, wanted_TE) < TOLERANCE[dtype]


def test_router_ties_infinities_and_no_tokens() -> None:
    route = functools.partial(ops.route, backend="triton")
    assert route(torch.zeros(2, 5), 5)[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    logits_TE = torch.tensor([[float("-inf"), float("-inf"), 1.0, float("-inf")]])
    assert route(logits_TE, 3)[0].tolist() == reference.route(logits_TE, 3)[0].tolist() == [[2, 0, 1]]
    assert route(torch.full((1, 5), float("nan")), 2)[0].max() < 5
    assert [tuple(out.shape) for out in route(torch.zeros(0, 5), 2)] == [(0, 2), (0, 2), (0, 5)]


def test_the_fakes_of_the_router_agree() -> None:
    inputs = torch.randn(4, 6), None, 2, "softmax", "score_then_topk", True, 1.0, 0, 0, "triton"
    torch.library.opcheck(torch.ops.zoo.route.default, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "num_tokens, num_experts, k, tile", [(1, 1, 1, 1), (40, 5, 2, 3), (1500, 2, 1, 128), (0, 3, 2, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_token_rounding(num_tokens: int, num_experts: int, k: int, tile: int, dtype: torch.dtype) -> None:
    select_TE = (2 * torch.randn(num_tokens, num_experts)).to(dtype)
    if dtype == torch.float16:  # ties, zeros of both signs, closed ones
        select_TE = select_TE.round().masked_fill(select_TE < -3, -torch.inf)
    index_TK, valid_T = reference.select(select_TE, k, None, None, None), torch.rand(num_tokens) < 0.8
    found = ops.round_tokens(select_TE, index_TK, tile, valid_T, backend="triton")
    assert torch.equal(found, ops.round_tokens(select_TE, index_TK, tile, valid_T, backend="reference"))


# Expand and combine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("slots", [0, 3])
def test_expand_and_combine(slots: int, dtype: torch.dtype) -> None:
    """Of T x K pairs, and of any list of pairs."""
    num_tokens, num_experts, num_pairs, model = 10, 3, 30, 21
    expert_N, used_N = torch.randint(0, num_experts, (num_pairs,)), torch.rand(num_pairs) < 0.8
    routed = ops.plan(expert_N.view(10, 3), num_experts, used_N.view(10, 3))
    if not slots:
        routed = ops.plan_pairs(torch.randint(0, num_tokens - 1, (num_pairs,)), expert_N, num_tokens, 3, used_N)
    assert routed.slots == slots
    inputs = [torch.randn(shape).to(dtype) for shape in ((num_tokens, model), (num_pairs, model), (num_pairs,))]
    results = []
    for backend in ("triton", "reference"):
        wide = dtype if backend == "triton" else torch.float64
        x_TD, rows_ND, weight_N = (tensor.to(wide).requires_grad_() for tensor in inputs)
        with ops.use_backend(backend):
            outs = ops.expand(x_TD, routed), ops.combine(rows_ND, weight_N, routed)
        loss = sum((out * out.detach().cos()).sum() for out in outs)
        results.append([*outs, *torch.autograd.grad(loss, (x_TD, rows_ND, weight_N))])
    assert max(error(a, b) for a, b in zip(*results, strict=True)) < TOLERANCE[dtype]


# Experts


class Case(NamedTuple):
    activation: str = "swiglu"
    routing: str = "any"
    tokens: int = 29
    bias: bool = False
    interleaved: bool = False
    limit: float | None = None
    keep: bool = True
    transposed: bool = False
    dtype: torch.dtype = torch.float32
    model: int = 35
    inner: int = 21
    widths: tuple[int, ...] = ()


CASES = (
    Case(),
    Case(model=64, inner=32, dtype=torch.float16),
    Case(dtype=torch.bfloat16),
    Case("clamped_swiglu", "unused slots", bias=True, interleaved=True, limit=1.0, keep=False),
    # The limit is out of reach: half precision rounds H across it, and the gradient jumps there.
    Case("clamped_swiglu", bias=True, interleaved=True, limit=7.0, transposed=True, dtype=torch.float16),
    Case("geglu", "empty experts", bias=True),
    Case("reglu", "one expert takes all", limit=0.5),
    Case("reglu", interleaved=True, keep=False),
    Case("gelu", "one expert takes all", bias=True, dtype=torch.float16),
    Case("relu", "unused slots", keep=False),
    Case("silu", tokens=1, bias=True),
    Case("geglu_tanh", dtype=torch.float16),
    Case("relu2", bias=True),
    Case("gelu_tanh", keep=False),
    Case("relu2", dtype=torch.float16),
    Case(tokens=0, bias=True),
    Case(routing="all unused", bias=True, tokens=5),
    Case("clamped_swiglu", bias=True, interleaved=True, limit=1.0, widths=(5, 40, 0, 33)),
    Case("relu2", "empty experts", widths=(7, 1, 48, 2), keep=False, bias=True),
    Case("geglu", "one expert takes all", widths=(8, 64, 16, 40), dtype=torch.float16, model=64),
)


def inputs_of(case: Case, num_experts: int, k: int) -> list[torch.Tensor | None]:
    width = case.inner * (2 if case.activation in reference.GATED else 1)
    x_TD = torch.randn(case.tokens, case.model)
    w_in = torch.randn(num_experts, width, case.model) / case.model**0.5
    w_out = torch.randn(num_experts, case.model, case.inner) / case.inner**0.5
    if case.transposed:
        w_in, w_out = (weight.transpose(1, 2).contiguous().transpose(1, 2) for weight in (w_in, w_out))
    biases = (torch.randn(num_experts, width), torch.randn(num_experts, case.model)) if case.bias else (None, None)
    if case.widths:  # experts one below the other
        units, twice = sum(case.widths), width // case.inner
        w_in, w_out = torch.randn(twice * units, case.model) / case.model**0.5, torch.randn(units, case.model) / 4
        biases = biases if biases[0] is None else (torch.randn(twice * units), biases[1])
    typed = [None if tensor is None else tensor.to(case.dtype) for tensor in (x_TD, w_in, w_out, *biases)]
    return [typed[0], torch.rand(case.tokens * k), *typed[1:]]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.activation}-{case.routing}-{case.dtype}".replace(" ", "_")
)
def test_experts_and_every_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgrad, "MIN_CHUNK", 16)  # so that the busiest experts are split
    num_experts, k = 4, 2
    index_TK, used_TK = choices(case.routing, case.tokens, k, num_experts)
    routed = make_plan(index_TK, num_experts, used_TK)
    x_TD, weight_N, w_in, w_out, b_in, b_out = inputs_of(case, num_experts, k)
    dy_TD, widths = torch.randn(x_TD.shape).to(case.dtype), ops.Widths.of(case.widths) if case.widths else None
    y_TD, hidden_NW = zoo_triton.ffn_forward(
        x_TD, weight_N, routed, w_in, w_out, b_in, b_out, case.activation, case.limit, case.interleaved, case.keep,
        None, widths,
    )  # fmt: skip
    assert hidden_NW.shape[0] == (weight_N.shape[0] if case.keep else 0)
    grads = zoo_triton.ffn_backward(
        dy_TD, x_TD, weight_N, routed, w_in, w_out, b_in, b_out, hidden_NW, case.activation, case.limit,
        case.interleaved, widths,
    )  # fmt: skip
    wide = [None if t is None else t.double().requires_grad_() for t in (x_TD, weight_N, w_in, w_out, b_in, b_out)]
    wanted_TD = reference.expert_ffn(
        *wide[:2], routed, *wide[2:4], activation=case.activation, b_in=wide[4], b_out=wide[5], limit=case.limit,
        interleaved=case.interleaved, widths=widths,
    )  # fmt: skip
    found = [y_TD, *(grad for grad in grads if grad is not None)]
    leaves = [tensor for tensor in wide if tensor is not None]
    wanted = [wanted_TD, *torch.autograd.grad(wanted_TD, leaves, dy_TD.double(), materialize_grads=True)]
    assert [tensor.stride() for tensor in grads[2:4]] == [w_in.stride(), w_out.stride()]
    errors = [error(a, b) for a, b in zip(found, wanted, strict=True)]
    assert max(errors) < TOLERANCE[case.dtype], errors


def test_the_descriptor_gemm_is_used_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    describe = gemm._descriptors
    monkeypatch.setattr(gemm, "_descriptors", lambda *args: used.append(describe(*args)) or used[-1])
    monkeypatch.setattr(tiles, "TMA", {"interpret"})
    test_experts_and_every_gradient(Case(model=64, inner=32, bias=True, dtype=torch.float16), monkeypatch)
    assert [found[2] for found in used] == [False, True]  # down, then the input gradient through the same weights


def test_two_runs_are_bitwise_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgrad, "MIN_CHUNK", 16)
    routed = make_plan(choices("any", 30, 2, 3)[0], 3)
    x_TD, weight_N, *weights = inputs_of(Case(tokens=30, bias=True), 3, 2)

    def run() -> list[torch.Tensor]:
        y_TD, hidden = zoo_triton.ffn_forward(x_TD, weight_N, routed, *weights, "swiglu", None, False, True)
        grads = zoo_triton.ffn_backward(x_TD, x_TD, weight_N, routed, *weights, hidden, "swiglu", None, False)
        return [y_TD, *grads]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_the_public_ops_on_the_triton_backend() -> None:
    num_tokens, num_experts, model, inner = 12, 3, 24, 8
    leaves = [torch.randn(shape) for shape in ((num_tokens, num_experts), (num_tokens, model))]
    leaves += [torch.randn(num_experts, 2 * inner, model), torch.randn(num_experts, model, inner)]
    results = []
    for backend in ("triton", "reference"):
        logits_TE, x_TD, w_in, w_out = (leaf.clone().requires_grad_() for leaf in leaves)
        with ops.use_backend(backend):
            index_TK, weight_TK, _ = ops.route(logits_TE, 2, renorm=True)
            routed = ops.plan(index_TK, num_experts, torch.arange(24).view(12, 2) % 5 > 0)
            y_TD = ops.expert_ffn(x_TD, weight_TK.flatten(), routed, w_in, w_out, save="x_only")
        results.append([y_TD, *torch.autograd.grad(y_TD.square().sum(), (logits_TE, x_TD, w_in, w_out))])
    assert max(error(a, b) for a, b in zip(*results, strict=True)) < 1e-5


def test_tuning_keeps_the_fastest_tile_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    device, key = torch.device("cpu"), ("up", "interpret", torch.float32)
    small, large, huge = (tiles.Tile(16, n, 32, 4, 1) for n in (16, 32, 64))
    milliseconds = {small: 3.0, large: 2.0}

    def do_bench(call) -> float:
        call()
        tile = tiles.choose("up", device, torch.float32, 100)
        if tile == huge:
            raise triton.runtime.errors.OutOfResources(99, 1, "shared memory")
        return milliseconds[tile]

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(tiles, "TUNED", {})
    case = Case(tokens=3)
    inputs, routed = inputs_of(case, 4, 2), make_plan(choices("any", 3, 2, 4)[0], 4)

    def call() -> None:
        zoo_triton.ffn_forward(*inputs[:2], routed, *inputs[2:], "swiglu", None, False, False)

    tune = functools.partial(tiles.tune, "up", device, torch.float32)
    assert tune([small, huge, large], call) == {small: 3.0, huge: float("inf"), large: 2.0}
    assert {key: large} == tiles.TUNED
    with pytest.raises(ValueError, match="none of 1 tiles of up"):
        tune([huge], call)
    with pytest.raises(KeyError):
        tune([tiles.Tile(16, 64, 64, 4, 1)], call)
    assert {key: large} == tiles.TUNED


@pytest.mark.parametrize("allowed", ["ieee", "tf32"])
def test_tf32_only_where_the_user_allowed_it(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=allowed))
    assert common.precision(torch.float32) == allowed and common.precision(torch.bfloat16) == "ieee"


def test_float64_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match="backend='reference'"):
        ops.route(torch.zeros(2, 4, dtype=torch.float64), 1, backend="triton")


# Quantised experts


@pytest.mark.parametrize("quantise", [quant.quantise_int8, quant.quantise_ternary])
def test_quantised_experts_equal_their_dequantised_weights(quantise) -> None:
    case = Case(model=72, inner=40, tokens=20)
    routed = make_plan(choices("any", 20, 2, 3)[0], 3)
    x_TD, weight_N, w_in, w_out, *_ = inputs_of(case, 3, 2)
    (q_in, s_in), (q_out, s_out) = quantise(w_in), quantise(w_out)
    y_TD = ops.expert_ffn_quantised(x_TD, weight_N, routed, q_in, q_out, s_in, s_out, backend="triton")
    wide = [quant.dequantise(codes, scale).double() for codes, scale in ((q_in, s_in), (q_out, s_out))]
    assert error(y_TD, reference.expert_ffn(x_TD.double(), weight_N.double(), routed, *wide)) < 2e-6
    assert error(wide[0], w_in) < (0.01 if quantise is quant.quantise_int8 else 0.6)
