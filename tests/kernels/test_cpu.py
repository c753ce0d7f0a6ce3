"""The C path as a piece of software: determinism, reuse, threads, forks, builds that fail, compile and export."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo_kernels import build, cpu, ops

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason="no C compiler")


def leaves(
    tokens: int = 700,
    model: int = 64,
    inner: int = 48,
    experts: int = 6,
    k: int = 2,
    dtype: torch.dtype = torch.float32,
) -> tuple:
    torch.manual_seed(0)
    x, w_in, w_out = (
        torch.randn(*shape).to(dtype).requires_grad_()
        for shape in ((tokens, model), (experts, 2 * inner, model), (experts, model, inner))
    )
    index, weight, _ = ops.route(torch.randn(tokens, experts) + torch.arange(experts), k)
    return x, weight.detach().flatten().requires_grad_(), w_in, w_out, ops.plan(index, experts)


def run(x: Tensor, weight: Tensor, w_in: Tensor, w_out: Tensor, plan, **options) -> list[Tensor]:
    y = ops.expert_ffn(x, weight, plan, w_in, w_out, backend="cpu", **options)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, w_in, w_out), torch.ones_like(y))]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


HALF = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_same_bits_run_to_run_and_for_one_and_two_threads(dtype: torch.dtype) -> None:
    inputs, threads = leaves(dtype=dtype), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            results.append(run(*inputs))
        torch.set_num_threads(5)  # more groups: another order of the sums, still the same run to run
        many = run(*inputs), run(*inputs)
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:]) and same(*many)
    for got, want in zip(many[0], results[0], strict=True):
        assert (got - want).norm() <= (1e-6 if got.dtype == torch.float32 else 1e-3) * want.norm()


def test_rows_and_routing_have_the_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    logits, x = torch.randn(999, 33, requires_grad=True), torch.randn(999, 70, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            index, weight, scores = ops.route(logits, 4, renorm=True)
            plan = ops.plan(index, 33)
            y = ops.combine(ops.expand(x, plan), weight.flatten(), plan)
            rounded = ops.round_tokens(scores, index, 16)
            results.append([y, rounded, *torch.autograd.grad(y.square().sum() + scores.square().sum(), (logits, x))])
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_an_expert_cut_between_groups(threads: int, dtype: torch.dtype) -> None:
    x, weight, w_in, w_out, _ = leaves(dtype=dtype)
    plan = ops.plan(torch.full((700, 2), 2), 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = run(x, weight, w_in, w_out, plan)
    finally:
        torch.set_num_threads(before)
    double = [leaf.detach().double().requires_grad_() for leaf in (x, weight, w_in, w_out)]
    y = ops.expert_ffn(*double[:2], plan, *double[2:])
    want = [y, *torch.autograd.grad(y, double, torch.ones_like(y))]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= (2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps) * b.norm()


def test_retain_graph_and_double_use() -> None:
    x, weight, w_in, w_out, plan = leaves()
    y = ops.expert_ffn(x, weight, plan, w_in, w_out, backend="cpu")
    first = torch.autograd.grad(y.sum(), (x, w_in), retain_graph=True)
    kept = [grad.clone() for grad in first]
    for _ in range(3):  # other calls of the same sizes must not reuse what the first graph still holds
        run(x * 2, weight, w_in, w_out, plan)
    again = torch.autograd.grad(y.sum(), (x, w_in))
    assert same(kept, list(again)) and same(kept, list(first))
    twice = ops.expert_ffn(x, weight, plan, w_in, w_out) + ops.expert_ffn(x, weight, plan, w_in, w_out)
    for got, want in zip(torch.autograd.grad(twice.sum(), (x, w_in)), kept, strict=True):
        torch.testing.assert_close(got, 2 * want)


def test_python_threads() -> None:
    inputs = leaves()
    want, wrong = run(*inputs), []

    def work() -> None:
        wrong.extend(1 for _ in range(10) if not same(run(*inputs), want))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def _in_child(queue, inputs: tuple) -> None:
    queue.put(run(*inputs)[0][0].tolist())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # so that the parent has a pool of threads that the child has not
        inputs = leaves(tokens=50)
        want = run(*inputs)[0][0].tolist()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(queue, inputs))
        child.start()
        child.join(60)
        alive = child.is_alive()
        child.kill()
    finally:
        torch.set_num_threads(threads)
    assert not alive and queue.get() == want


def test_buffers_are_reused_and_bounded() -> None:
    inputs, library = leaves(), build.library()
    library.zoo_pool_idle.restype = ctypes.c_int64
    run(*inputs)
    idle = library.zoo_pool_idle()
    assert idle > 0
    for _ in range(5):
        run(*inputs)
    assert library.zoo_pool_idle() == idle
    library.zoo_pool_limit(ctypes.c_int64(0))
    try:
        run(*inputs)
        assert library.zoo_pool_idle() == 0
    finally:
        library.zoo_pool_limit(ctypes.c_int64(1 << 30))


def test_memory_outlives_the_pool() -> None:
    tensor = cpu.empty(300, 7)
    alias = tensor[10:]
    tensor.fill_(3)
    del tensor
    cpu.empty(300, 7).fill_(4)
    assert (alias == 3).all()


class Small(torch.nn.Module):
    def __init__(self, experts: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = torch.nn.Linear(8, experts)
        self.w_in, self.w_out = (torch.nn.Parameter(torch.randn(*s)) for s in ((experts, 12, 8), (experts, 8, 6)))

    def forward(self, x: Tensor) -> Tensor:
        index, weight, _ = ops.route(self.router(x), 2, renorm=True)
        return x + ops.expert_ffn(x, weight.flatten(), ops.plan(index, len(self.w_in)), self.w_in, self.w_out)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_full_graph(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    model, x = Small(), torch.randn(11, 8)
    with ops.use_backend(backend):
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for rows in (11, 7):
            results = []
            for module in (model, compiled):
                model.zero_grad()
                y = module(x[:rows])
                y.square().sum().backward()
                results.append([y.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
            for got, want in zip(results[1], results[0], strict=True):
                torch.testing.assert_close(got, want)


def test_export_keeps_all_experts() -> None:
    model = Small()
    tokens = torch.export.Dim("tokens", min=1, max=64)
    program = torch.export.export(model, (torch.randn(9, 8),), dynamic_shapes=({0: tokens},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("zoo.expert_ffn.default") == 1
    x = torch.randn(13, 8)  # other tokens choose other experts
    torch.testing.assert_close(program.module()(x), model(x))


def test_opcheck() -> None:
    x, weight, w_in, w_out, plan = leaves(tokens=6, model=5, inner=4, experts=3)
    args = (x, weight, *plan[:3], 2, None, 0, 1, w_in, w_out, None, None, "swiglu", None, False, True, "cpu")
    # what is promised to autograd and the compiler: schema, fakes, registrations
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.zoo.expert_ffn.default, args, test_utils=utils)
    ragged = (torch.tensor([0, 4, 5, 12]), 7, 1, w_in.detach().reshape(24, 5), torch.randn(12, 5))
    torch.library.opcheck(torch.ops.zoo.expert_ffn.default, (*args[:6], *ragged, *args[11:]), test_utils=utils)
    logits = torch.randn(6, 3, requires_grad=True)
    route = (logits, None, 2, "softmax", "score_then_topk", True, 1.0, 0, 0, "cpu")
    rows = torch.randn(12, 5, requires_grad=True)
    for op, arguments in (
        ("sort_pairs", (torch.tensor([1, 0, 1]), None, 2, "cpu")),
        ("route", route),
        ("round_tokens", (logits.detach(), torch.ones(6, 3, dtype=torch.uint8), 2, "cpu")),
        ("expand", (x, *plan[:3], 2, "cpu")),
        ("combine", (rows, weight, *plan[:3], 6, 2, "cpu")),
    ):
        torch.library.opcheck(getattr(torch.ops.zoo, op).default, arguments, test_utils=utils)


def test_autocast() -> None:
    x, weight, w_in, w_out, plan = leaves(tokens=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.expert_ffn(x, weight, plan, w_in, w_out)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == w_in.grad.dtype == torch.float32


SCRIPT = """
import sys, warnings
import torch
from zoo_kernels import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        plan = ops.plan(torch.tensor([[0, 1]]), 2)
        y = ops.expert_ffn(torch.ones(1, 2), torch.ones(2), plan, torch.ones(2, 4, 2), torch.ones(2, 2, 2))
print(len(caught), caught[0].message if caught else "", ops.backends()["cpu"], round(y[0, 0].item(), 3))
try:
    with ops.use_backend("cpu"):
        ops.plan(torch.tensor([[0, 1]]), 2)
except RuntimeError as error:
    print(error)
"""


def test_without_a_compiler_plain_torch_is_used_and_told_once(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(Path(ops.__file__).parents[1]), "ZOO_CACHE": str(tmp_path), "CC": "nosuchcc"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    why = "no C compiler found (CC=nosuchcc)"
    first, forced = done.stdout.strip().splitlines()
    assert first.startswith(f"1 zoo_kernels: backend 'cpu' is not available ({why}); using plain PyTorch")
    assert "'available': False" in first and first.endswith(" 14.093")
    assert forced == f"zoo_kernels: backend 'cpu' is not available: {why}"


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"PATH": "/nowhere"}, r"no C compiler found \(cc, gcc, clang\)"),
        ({"CC": "false"}, "false failed: exit status 1"),
        ({"CC": sys.executable}, "python.* failed: "),
        ({"ZOO_CACHE": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_a_failed_build_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], why: str
) -> None:
    for name, value in {"ZOO_CACHE": str(tmp_path), **env}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(build.BuildError, match=why):
        build.library.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_is_built_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    stamps = []
    for _ in range(2):
        build.library.__wrapped__()
        (file,) = (tmp_path / "kernels").iterdir()
        stamps.append(file.stat().st_mtime_ns)
    assert file.suffix == ".so" and stamps[0] == stamps[1]


def test_plain_flags_build_warning_free_and_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor without this one's vectors gets: no products of bf16 pairs above all."""
    warn = (*build.FLAG_SETS[-1], "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    assert build._compile([*build.compiler(), *build.BASE, *warn], tmp_path / "zoo.so") == ""
    inputs = [leaves(tokens, model=67, inner=29, dtype=dtype) for dtype in HALF for tokens in (9, 200)]
    want = [run(*one) for one in inputs]
    plain = ctypes.CDLL(str(tmp_path / "zoo.so"))
    plain.zoo_tensor.restype = ctypes.c_void_p
    monkeypatch.setattr(cpu, "library", lambda: plain)
    for one, wanted in zip(inputs, want, strict=True):
        for got, want in zip(run(*one), wanted, strict=True):
            assert (got - want).norm() <= (2e-6 if got.dtype == torch.float32 else 1.6e-2) * want.norm()


def test_bf16_of_many_rows_is_left_to_torch_where_it_has_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def spy(x, *args):
        rows.append(x.shape[0])
        return forward(x, *args)

    forward = cpu.reference.ffn_forward
    monkeypatch.setattr(cpu.reference, "ffn_forward", spy)
    for amx in (False, True):
        monkeypatch.setattr(cpu, "_has_amx", lambda amx=amx: amx)
        for tokens in (50, 500):
            run(*leaves(tokens, dtype=torch.bfloat16))
            run(*leaves(tokens))
    assert rows == [500]
