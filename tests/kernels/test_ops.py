"""Outputs and all gradients of every CPU-side backend against the float64 reference; save modes.

Legend: T tokens, K slots, E experts, D model, F inner, W = 2F (gated) or F.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zoo_kernels import cpu, ops, reference
from zoo_kernels.plan import Plan

TOLERANCE = 2e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(bool(cpu.unavailable()), reason="no C compiler"))]


@dataclass
class Layer:
    leaves: dict[str, Tensor]  # x, weight, w_in, w_out and biases
    plan: Plan
    options: dict

    def run(self, backend: str | None, dtype: torch.dtype = torch.float32, **more) -> dict[str, Tensor]:
        """Output and gradients by name; backend None: the differentiable reference."""
        leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in self.leaves.items()}
        function = reference.expert_ffn if backend is None else ops.expert_ffn
        if backend is not None:
            more["backend"] = backend
        biases = {name: leaves.get(name) for name in ("b_in", "b_out")}
        matrices = (leaves["x"], leaves["weight"], self.plan, leaves["w_in"], leaves["w_out"])
        y = function(*matrices, **biases, **self.options, **more)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        grads = torch.autograd.grad(y, list(leaves.values()), upstream)
        assert all(tensor.dtype == dtype for tensor in (y, *grads))
        return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}

    def rounded(self, dtype: torch.dtype) -> Layer:
        """The layer whose leaves are exact in this type."""
        return Layer({name: leaf.to(dtype).float() for name, leaf in self.leaves.items()}, self.plan, self.options)


def make_layer(
    tokens: int,
    model: int,
    inner: int,
    experts: int,
    index_TK: Tensor,
    used_TK: Tensor | None = None,
    biases: bool = False,
    seed: int = 0,
    **options,
) -> Layer:
    torch.manual_seed(seed)
    width = inner * (1 if options.get("activation", "swiglu") in reference.UNGATED else 2)
    leaves = {
        "x": torch.randn(tokens, model),
        "weight": torch.rand(index_TK.numel()) + 0.1,
        "w_in": torch.randn(experts, width, model) / model**0.5,
        "w_out": torch.randn(experts, model, inner) / inner**0.5,
    }
    if biases:
        leaves |= {"b_in": torch.randn(experts, width), "b_out": torch.randn(experts, model)}
    return Layer(leaves, ops.plan(index_TK, experts, used_TK), options)


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in want.items():
        error = (got[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-30)
        assert torch.isfinite(got[name]).all() and error <= tolerance, f"{name}: relative error {error:.2e}"


def tolerance_of(dtype: torch.dtype) -> float:
    """Two units of the last place where pre-activation, activation and their gradients are rounded once each."""
    return TOLERANCE if dtype == torch.float32 else 2 * torch.finfo(dtype).eps


def random_index(tokens: int, experts: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(k).indices


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("save", ["hidden", "x_only"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    ("activation", "options"),
    [(name, {}) for name in reference.ACTIVATIONS]
    + [(name, {"interleaved": True, "limit": 0.7}) for name in reference.GATED],
)
def test_every_activation(
    backend: str, dtype: torch.dtype, save: str, biases: bool, activation: str, options: dict
) -> None:
    layer = make_layer(67, 37, 29, 7, random_index(67, 7, 3), biases=biases, activation=activation, **options)
    layer = layer.rounded(dtype)
    got, want = layer.run(backend, dtype, save=save), layer.run(None, torch.float64)
    if (
        options and dtype != torch.float32
    ):  # a gate that rounding takes to the other side of the limit has another slope
        steep = {name: want.pop(name) for name in ("x", "w_in", "b_in") if name in want}
        assert_close(got, steep, 0.1 if dtype == torch.bfloat16 else 0.04)
    assert_close(got, want, tolerance_of(dtype))


def routings() -> dict[str, tuple[tuple[int, int, int, int], Tensor, Tensor | None]]:
    """name -> ((T, D, F, E), index_TK, used_TK)."""
    some = torch.rand(40, 3, generator=torch.Generator().manual_seed(5)) > 0.4
    return {
        "empty experts": ((50, 33, 17, 9), random_index(50, 9, 2) // 3 * 3, None),
        "one takes all": ((700, 20, 24, 5), torch.full((700, 1), 3), None),
        "one takes most": ((900, 48, 40, 6), torch.where(random_index(900, 6, 2) < 5, 1, 4), None),
        "one token": ((1, 65, 31, 4), torch.tensor([[2, 0, 3]]), None),
        "duplicate experts in a row": ((21, 16, 16, 4), torch.randint(0, 2, (21, 4)), None),
        "more slots than experts": ((9, 18, 10, 2), torch.randint(0, 2, (9, 5)), None),
        "unused slots": ((40, 24, 20, 6), random_index(40, 6, 3), some),
        "one row an expert": ((8, 130, 70, 40), torch.arange(40).view(8, 5), None),
        "few rows an expert": ((30, 64, 48, 16), random_index(30, 16, 4), None),
        "sizes past the blocks": ((1100, 530, 40, 2), random_index(1100, 2, 1), None),
        "deeper than the blocks": ((130, 2101, 121, 1), torch.zeros(130, 1, dtype=torch.long), None),
        "one expert": ((5, 7, 3, 1), torch.zeros(5, 1, dtype=torch.long), None),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(routings()))
def test_every_routing(backend: str, dtype: torch.dtype, name: str) -> None:
    (tokens, model, inner, experts), index_TK, used_TK = routings()[name]
    layer = make_layer(tokens, model, inner, experts, index_TK, used_TK, biases=True).rounded(dtype)
    want = layer.run(None, torch.float64)
    for save in ("hidden", "x_only"):
        assert_close(layer.run(backend, dtype, save=save), want, tolerance_of(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_do(backend: str, dtype: torch.dtype) -> None:
    no_tokens = make_layer(0, 8, 4, 3, torch.zeros(0, 2, dtype=torch.long), biases=True)
    index_TK = random_index(6, 3, 2)
    all_unused = make_layer(6, 8, 4, 3, index_TK, torch.zeros(6, 2, dtype=torch.bool), biases=True)
    for layer in (no_tokens, all_unused):
        for name, tensor in layer.run(backend, dtype).items():
            wanted = layer.leaves["x" if name == "y" else name].shape
            assert tensor.shape == wanted and not tensor.any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_slots_are_as_if_absent(backend: str) -> None:
    index_TK, used_TK = random_index(30, 5, 3), torch.rand(30, 3) > 0.5
    layer = make_layer(30, 12, 8, 5, index_TK, used_TK)
    token_N, slot_N = used_TK.nonzero(as_tuple=True)
    pairs = ops.plan_pairs(token_N, index_TK[token_N, slot_N], 30, 5)
    kept = Layer(layer.leaves | {"weight": layer.leaves["weight"].view(30, 3)[token_N, slot_N]}, pairs, {})
    got, want = layer.run(backend), kept.run(backend)
    for name in ("y", "x", "w_in", "w_out"):
        torch.testing.assert_close(got[name], want[name])
    assert not got["weight"].view(30, 3)[~used_TK].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64(backend: str) -> None:
    layer = make_layer(40, 24, 20, 5, random_index(40, 5, 2), biases=True)
    assert_close(layer.run(backend, torch.float64), layer.run(None, torch.float64), 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_gates_with_bf16_experts(backend: str) -> None:
    layer = make_layer(20, 16, 8, 4, random_index(20, 4, 2))
    half = {name: leaf.bfloat16().requires_grad_() for name, leaf in layer.leaves.items() if name != "weight"}
    weight = layer.leaves["weight"].requires_grad_()
    y = ops.expert_ffn(half["x"], weight, layer.plan, half["w_in"], half["w_out"], backend=backend)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    exact = layer.rounded(torch.bfloat16).leaves | {"weight": layer.leaves["weight"].detach()}
    leaves = {name: leaf.double().requires_grad_() for name, leaf in exact.items()}
    want = reference.expert_ffn(leaves["x"], leaves["weight"], layer.plan, leaves["w_in"], leaves["w_out"])
    want.sum().backward()
    got = {"y": y.detach(), "weight": weight.grad, "w_in": half["w_in"].grad}
    assert_close(got, {"y": want.detach(), **{n: leaves[n].grad for n in ("weight", "w_in")}}, 1.6e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend: str) -> None:
    layer = make_layer(33, 18, 10, 4, random_index(33, 4, 2))
    want = layer.run(None, torch.float64)
    strided = {name: leaf.unsqueeze(-1).repeat_interleave(2, -1)[..., 0] for name, leaf in layer.leaves.items()}
    assert not strided["x"].is_contiguous()
    assert_close(Layer(strided, layer.plan, {}).run(backend), want, TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "options"), [(9, {}), (90, {"interleaved": True}), (20, {"activation": "relu2"})])
def test_weights_that_lie_as_in_out_are_read_and_differentiated_as_they_lie(
    backend: str, dtype: torch.dtype, tokens: int, options: dict
) -> None:
    layer = make_layer(tokens, 34, 21, 4, random_index(tokens, 4, 2), biases=True, **options).rounded(dtype)
    want = layer.run(None, torch.float64)
    for name in ("w_in", "w_out"):
        layer.leaves[name] = layer.leaves[name].mT.contiguous().mT
    for save in ("hidden", "x_only"):
        got = layer.run(backend, dtype, save=save)
        assert_close(got, want, tolerance_of(dtype))
        assert all(got[name].mT.is_contiguous() for name in ("w_in", "w_out"))
    assert cpu._prepare({"w_in": layer.leaves["w_in"]})["w_in"].data_ptr() == layer.leaves["w_in"].data_ptr()


RAGGED = {"any": [5, 1, 17, 9], "all alike": [8, 8, 8, 8], "without inner units": [0, 24, 3, 0]}


def make_ragged(widths: list[int], tokens: int, activation: str, biases: bool, model: int = 37) -> Layer:
    twice = 2 if activation in reference.GATED else 1
    layer = make_layer(tokens, model, sum(widths), 4, random_index(tokens, 4, 2), biases=biases, activation=activation)
    layer.leaves |= {"w_in": layer.leaves["w_in"][0], "w_out": layer.leaves["w_out"][0].T.contiguous()}
    if biases:
        layer.leaves["b_in"] = torch.randn(twice * sum(widths))
    layer.options["widths"] = ops.Widths.of(widths)
    return layer


def padded(layer: Layer, tensor: Tensor, name: str, sizes: list[int]) -> Tensor:
    """The stacked form of a concatenated matrix or bias: what an expert has not is zero."""
    gates, widest = tensor.shape[0] // sum(sizes), max(sizes)
    stacked = tensor.new_zeros(len(sizes), gates, widest, *tensor.shape[1:])
    for e, part in enumerate(tensor.split([gates * size for size in sizes])):
        stacked[e, :, : sizes[e]] = part.unflatten(0, (gates, -1)) if part.numel() else 0
    return stacked.flatten(1, 2).mT if name == "w_out" else stacked.flatten(1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("tokens", [3, 70, 1100])
@pytest.mark.parametrize(("activation", "biases"), [("swiglu", False), ("relu2", True), ("clamped_swiglu", True)])
def test_ragged_experts(backend: str, name: str, tokens: int, activation: str, biases: bool) -> None:
    layer = make_ragged(RAGGED[name], tokens, activation, biases)
    if activation == "clamped_swiglu":
        layer.options["limit"] = 7.0
    want = layer.run(None, torch.float64)
    for save in ("hidden", "x_only"):
        assert_close(layer.run(backend, save=save), want, TOLERANCE)
    # and as if the narrow ones had been padded with zeros, in the columns that there are
    wide = {
        n: padded(layer, t, n, RAGGED[name]) if n in ("w_in", "w_out", "b_in") else t for n, t in layer.leaves.items()
    }
    options = {key: value for key, value in layer.options.items() if key != "widths"}
    as_wide = Layer(wide, layer.plan, options).run(backend)
    got = {n: padded(layer, t, n, RAGGED[name]) if n in ("w_in", "w_out", "b_in") else t for n, t in want.items()}
    there = {
        n: padded(layer, torch.ones_like(t), n, RAGGED[name])
        for n, t in layer.leaves.items()
        if n in ("w_in", "w_out", "b_in")
    }
    assert_close({n: t * there.get(n, 1) for n, t in as_wide.items()}, got, TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", RAGGED)
def test_ragged_experts_of_other_types(backend: str, dtype: torch.dtype, name: str) -> None:
    for tokens in (3, 40, 1100):
        layer = make_ragged(RAGGED[name], tokens, "geglu", True)
        layer = layer if dtype == torch.float64 else layer.rounded(dtype)
        tolerance = 1e-13 if dtype == torch.float64 else tolerance_of(dtype)
        assert_close(layer.run(backend, dtype), layer.run(None, torch.float64), tolerance)


def test_widths_that_do_not_fit_are_refused() -> None:
    layer = make_ragged([5, 1, 17, 9], 6, "swiglu", False)
    for widths, message in (
        (ops.Widths.of([5, 1, 26]), "start_E1"),
        (ops.Widths.of([5, 1, 17, 8]), "do not fit"),
        (ops.Widths(torch.tensor([0, 5, 6, 23, 32]), 9), "do not fit"),
        (ops.Widths(torch.tensor([0, 5, 3, 23, 32]), 20), "do not fit"),
        (ops.Widths(torch.tensor([0, 5, 6, 23, 32]), 17, 2), "multiples of 2"),
    ):
        layer.options["widths"] = widths
        with pytest.raises(ValueError, match=message):
            layer.run("cpu")
    with pytest.raises(ValueError, match="negative"):
        ops.Widths.of([3, -1])


def test_gradcheck_of_the_reference() -> None:
    for activation in reference.ACTIVATIONS:
        layer = make_layer(5, 4, 3, 3, random_index(5, 3, 2), torch.rand(5, 2) > 0.2, True, activation=activation)
        inputs = [leaf.double().requires_grad_() for leaf in layer.leaves.values()]

        def function(x, weight, w_in, w_out, b_in, b_out, layer=layer):
            return reference.expert_ffn(x, weight, layer.plan, w_in, w_out, b_in=b_in, b_out=b_out, **layer.options)

        assert torch.autograd.gradcheck(function, inputs)


def test_matches_a_hand_calculation() -> None:
    x = torch.tensor([[1.0, 2.0]])
    w_in = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # gate = 1, up = 2
    w_out = torch.tensor([[[3.0], [-1.0]]])
    plan = ops.plan(torch.zeros(1, 1, dtype=torch.long), 1)
    y = ops.expert_ffn(x, torch.tensor([0.5]), plan, w_in, w_out)
    inner = 1 / (1 + torch.exp(torch.tensor(-1.0))) * 2
    torch.testing.assert_close(y, 0.5 * inner * torch.tensor([[3.0, -1.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_bytes_are_the_minimum(dtype: torch.dtype) -> None:
    layer = make_layer(64, 32, 16, 8, random_index(64, 8, 2))
    leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in layer.leaves.items()}

    def saved(save: str) -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ops.expert_ffn(leaves["x"], leaves["weight"], layer.plan, leaves["w_in"], leaves["w_out"], save=save)
        weights = {leaves[name].untyped_storage().data_ptr() for name in ("w_in", "w_out")}
        return sum(size for pointer, size in storages.items() if pointer not in weights)

    tokens, pairs, width = 64, 128, 32
    each = dtype.itemsize
    x_bytes, routing = each * tokens * 32, each * pairs + 8 * (2 * pairs + 9)
    assert saved("hidden") == x_bytes + each * pairs * width + routing
    assert saved("x_only") == x_bytes + routing


def test_inference_keeps_no_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(8, 6, 4, 3, random_index(8, 3, 2))
    kept = []
    forward = reference.ffn_forward

    def spy(*args):
        kept.append(args[10])
        return forward(*args)

    monkeypatch.setattr(reference, "ffn_forward", spy)
    leaves = [leaf.requires_grad_() for leaf in layer.leaves.values()]
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            ops.expert_ffn(*leaves[:2], layer.plan, *leaves[2:], backend="reference")
    assert kept == [False, True]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots", [0, 3])
def test_expand_and_combine_and_their_gradients(backend: str, slots: int) -> None:
    """Of T x K pairs, and of any list of pairs."""
    torch.manual_seed(0)
    expert, used = torch.randint(0, 4, (60,)), torch.rand(60) < 0.8
    plan = ops.plan(expert.view(20, 3), 4, used.view(20, 3))
    if not slots:
        plan = ops.plan_pairs(torch.randint(0, 19, (60,)), expert, 20, 4, used)
    assert plan.slots == slots
    results = []
    inputs = torch.randn(20, 21), torch.randn(60, 21), torch.rand(60)
    for dtype in (torch.float32, torch.float64):
        x, rows, weight = (tensor.to(dtype).requires_grad_() for tensor in inputs)
        with ops.use_backend(backend if dtype == torch.float32 else "reference"):
            outs = ops.expand(x, plan), ops.combine(rows, weight, plan)
        loss = sum((out * out.detach().cos()).sum() for out in outs)
        results.append([*outs, *torch.autograd.grad(loss, (x, rows, weight))])
    for got, want in zip(*results, strict=True):
        assert (got.double() - want).norm() <= 2e-6 * want.norm()


def test_expert_choice_is_a_list_of_pairs() -> None:
    torch.manual_seed(0)
    scores_ET, capacity = torch.rand(4, 10), 3
    token_EC = scores_ET.topk(capacity).indices
    plan = ops.plan_pairs(token_EC.flatten(), torch.arange(4).repeat_interleave(capacity), 10, 4)
    x, weight, w_in, w_out = (torch.randn(*s) for s in ((10, 6), (12,), (4, 10, 6), (4, 6, 5)))
    want = torch.zeros(10, 6)
    for e in range(4):
        for c in range(capacity):
            t = token_EC[e, c]
            want[t] += weight[e * capacity + c] * (w_out[e] @ reference.activate(w_in[e] @ x[t], "swiglu"))
    torch.testing.assert_close(ops.expert_ffn(x, weight, plan, w_in, w_out), want)


def test_expand_and_combine_build_the_same_layer() -> None:
    layer = make_layer(20, 6, 4, 3, random_index(20, 3, 2), torch.rand(20, 2) > 0.3)
    x, weight, w_in, w_out = (leaf.double().requires_grad_() for leaf in layer.leaves.values())
    rows = ops.expand(x, layer.plan)
    offsets = layer.plan.offset_E1.tolist()
    outs = [reference.activate(rows[offsets[e] : offsets[e + 1]] @ w_in[e].T, "swiglu") @ w_out[e].T for e in range(3)]
    garbage = torch.full_like(rows[offsets[-1] :], torch.nan)  # what a bank leaves in unused rows is never read
    y = ops.combine(torch.cat([*outs, garbage]), weight, layer.plan)
    want = layer.run(None, torch.float64)
    grads = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    torch.testing.assert_close(y, want["y"])
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-7)])
def test_quantised_experts_of_other_types(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = make_layer(9, 16, 8, 4, random_index(9, 4, 2))
    (w_in, s_in), (w_out, s_out) = (ops.quantise_int8(layer.leaves[name]) for name in ("w_in", "w_out"))
    x, weight = layer.leaves["x"], layer.leaves["weight"]
    y = ops.expert_ffn_quantised(x.to(dtype), weight, layer.plan, w_in, w_out, s_in, s_out, backend=backend)
    wide = (ops.dequantise(w_in, s_in).double(), ops.dequantise(w_out, s_out).double())
    want = reference.expert_ffn(x.to(dtype).double(), weight.double(), layer.plan, *wide)
    assert y.dtype == dtype
    assert_close({"y": y}, {"y": want}, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantise", [ops.quantise_int8, ops.quantise_ternary])
@pytest.mark.parametrize(("tokens", "interleaved"), [(3, False), (10, True), (60, False)])
def test_quantised_experts(backend: str, quantise, tokens: int, interleaved: bool) -> None:
    layer = make_layer(tokens, 52, 20, 4, random_index(tokens, 4, 2), biases=True, interleaved=interleaved)
    (w_in, scale_in), (w_out, scale_out) = (quantise(layer.leaves[name]) for name in ("w_in", "w_out"))
    got = ops.expert_ffn_quantised(
        layer.leaves["x"], layer.leaves["weight"], layer.plan, w_in, w_out, scale_in, scale_out,
        b_in=layer.leaves["b_in"], b_out=layer.leaves["b_out"], interleaved=interleaved, backend=backend,
    )  # fmt: skip
    exact = {"w_in": ops.dequantise(w_in, scale_in), "w_out": ops.dequantise(w_out, scale_out)}
    want = Layer(layer.leaves | exact, layer.plan, layer.options).run(None, torch.float64)["y"]
    assert_close({"y": got}, {"y": want}, TOLERANCE)
    error = (exact["w_in"] - layer.leaves["w_in"]).norm() / layer.leaves["w_in"].norm()
    assert error < (0.01 if quantise is ops.quantise_int8 else 0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda leaf, plan: ops.expert_ffn(*leaf, activation="tanh"), "unknown activation 'tanh'"),
        (lambda leaf, plan: ops.expert_ffn(*leaf, save="all"), "unknown save mode"),
        (lambda leaf, plan: ops.expert_ffn(*leaf, backend="cuda"), "unknown backend"),
        (lambda leaf, plan: ops.expert_ffn(*leaf, activation="relu"), "w_in has shape"),
        (lambda leaf, plan: ops.expert_ffn(*leaf, activation="relu", limit=1.0), "need a gated activation"),
        (lambda leaf, plan: ops.expert_ffn(leaf[0].double(), *leaf[1:]), "but x is torch.float64"),
        (lambda leaf, plan: ops.plan(torch.tensor([[0, 3]]), 3), "expert index 3 is not in 0..2"),
        (lambda leaf, plan: ops.plan(torch.tensor([[0, -1]]), 3), "expert index -1 is not in 0..2"),
        (lambda leaf, plan: ops.route(torch.randn(2, 4), 5), "k=5, but 4 experts"),
        (lambda leaf, plan: ops.route(torch.randn(2, 4), 3, num_groups=2, groups_kept=1), "k=3, but 2 experts"),
        (lambda leaf, plan: ops.route(torch.randn(2, 4), 1, num_groups=3, groups_kept=1), "impossible"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", None])
def test_user_errors(call, message: str, backend: str | None) -> None:
    layer = make_layer(4, 6, 5, 3, random_index(4, 3, 2))
    x, weight, w_in, w_out = layer.leaves.values()
    with ops.use_backend(backend), pytest.raises(ValueError, match="zoo_kernels: .*" + message):
        call((x, weight, layer.plan, w_in, w_out), layer.plan)
