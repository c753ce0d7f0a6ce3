"""Compiles every Triton kernel with no GPU, just as the host code launches it, and reads the machine code.

What must hold is asserted for each kernel and target; what may drift a little (registers, shared memory) is compared
with triton_golden.json, which `python tests/kernels/test_triton_aot.py [KERNEL ...]` rewrites after a wanted change.
ZOO_TEST_ALL_KERNELS=1 compiles every kernel for every target instead of all of them for one and the main ones for all.
"""

import collections
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from zoo_kernels import triton as zoo_triton
from zoo_kernels.plan import Plan, Widths
from zoo_kernels.triton import common, dispatch, rounding, router, tiles

GOLDEN = Path(__file__).with_name("triton_golden.json")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX = {"sm_80": r"HMMA\.", "sm_90": r"HGMMA\.", "sm_100": r"UTC\w*MMA\b", "gfx942": r"v_mfma_"}
SMALL_MATRIX = r"HMMA\.|v_mfma_"  # the newer instructions want 64 rows, decoding has 16
SHARED_KB = {"sm_80": 164, "sm_90": 228, "sm_100": 228, "gfx942": 64}  # of a multiprocessor


class Launch(NamedTuple):
    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routed(num_tokens: int, k: int, num_experts: int) -> Plan:
    index = functools.partial(meta, dtype=torch.int64)
    return Plan(index(num_tokens * k), index(num_tokens * k), index(num_experts + 1), num_tokens, num_experts, k)


def train(
    activation: str, bias: bool, interleaved: bool, keep: bool = True, dtype: torch.dtype = torch.bfloat16
) -> None:
    num_tokens, k, num_experts, model, inner = 8192, 8, 64, 2048, 1024
    plan, weight_N = routed(num_tokens, k, num_experts), meta(num_tokens * k, dtype=torch.float32)
    typed = functools.partial(meta, dtype=dtype)
    x_TD, w_in, w_out = typed(num_tokens, model), typed(num_experts, 2 * inner, model), typed(num_experts, model, inner)
    biases = (typed(num_experts, 2 * inner), typed(num_experts, model)) if bias else (None, None)
    limit = 7.0 if activation == "clamped_swiglu" else None
    inputs = (x_TD, weight_N, plan, w_in, w_out, *biases)
    _, hidden = zoo_triton.ffn_forward(*inputs, activation, limit, interleaved, keep)
    zoo_triton.ffn_backward(x_TD, *inputs, hidden, activation, limit, interleaved)


def train_ragged(keep: bool = True) -> None:
    """Widths that are multiples of 16, 700 on the mean."""
    num_tokens, k, num_experts, model, units = 8192, 8, 64, 2048, 64 * 700
    plan, weight_N = routed(num_tokens, k, num_experts), meta(num_tokens * k, dtype=torch.float32)
    widths = Widths(meta(num_experts + 1, dtype=torch.int64), 1024, 16)
    inputs = (meta(num_tokens, model), weight_N, plan, meta(2 * units, model), meta(units, model), None, None)
    _, hidden = zoo_triton.ffn_forward(*inputs, "swiglu", None, False, keep, None, widths)
    zoo_triton.ffn_backward(inputs[0], *inputs, hidden, "swiglu", None, False, widths)


def decode(dtype: torch.dtype) -> None:
    """Sixteen tokens through 64 quantised experts."""
    pack = 4 if dtype == torch.uint8 else 1
    weights = meta(64, 2048, 2048 // pack, dtype=dtype), meta(64, 2048, 1024 // pack, dtype=dtype)
    scales = tuple(meta(64, 2048, dtype=torch.float32) for _ in range(2))
    inputs = (meta(16, 2048), meta(128, dtype=torch.float32), routed(16, 8, 64), *weights, None, None)
    zoo_triton.ffn_forward(*inputs, "swiglu", None, False, False, scales)


def route() -> None:
    logits_TE, bias_E = meta(8192, 256, dtype=torch.float32), meta(256, dtype=torch.float32)
    options = ("sigmoid", "score_then_topk", True, 1.0)
    index_TK, weight_TK, scores_TE = router.route_forward(logits_TE, bias_E, 8, *options, 8, 4)
    router.route_backward(weight_TK, scores_TE, logits_TE, index_TK, scores_TE, *options)


def sort() -> None:
    zoo_triton.sort_pairs(meta(65536, dtype=torch.int64), meta(65536, dtype=torch.bool), 256)


def round_tokens() -> None:
    rounding.round_tokens(meta(8192, 64, dtype=torch.float32), meta(8192, 64, dtype=torch.uint8), 128)


swiglu = functools.partial(train, "swiglu", False, False)
gpt_oss = functools.partial(train, "clamped_swiglu", True, True)
# Name: what the host runs, which kernel of it, which launch of that kernel, and whether it multiplies matrices.
KERNELS: dict[str, tuple[Callable[[], None], str, int, bool]] = {
    "tiles": (swiglu, "tile_kernel", 0, False),
    "up": (swiglu, "up_kernel", 0, True),
    "up_fp32": (functools.partial(swiglu, dtype=torch.float32), "up_kernel", 0, False),
    "up_gpt_oss": (gpt_oss, "up_kernel", 0, True),
    "down": (swiglu, "gemm_(tma_)?kernel", 0, True),
    "combine": (swiglu, "combine_kernel", 0, False),
    "down_backward": (swiglu, "down_backward_kernel", 0, True),
    "down_backward_gpt_oss": (gpt_oss, "down_backward_kernel", 0, True),
    "input_gradient": (swiglu, "gemm_(tma_)?kernel", 1, True),
    "weight_gradient_in": (swiglu, "wgrad_kernel", 0, True),
    "weight_gradient_out": (swiglu, "wgrad_kernel", 1, True),
    "weight_gradient_sum": (swiglu, "reduce_kernel", 0, False),
    "down_backward_geglu_tanh": (functools.partial(train, "geglu_tanh", False, False), "down_backward_kernel", 0, True),
    "bias_gradient": (gpt_oss, "bias_kernel", 1, False),
    "recompute": (functools.partial(swiglu, keep=False), "gemm_kernel", -1, True),
    "up_int8": (functools.partial(decode, torch.int8), "up_kernel", 0, True),
    "down_int8": (functools.partial(decode, torch.int8), "gemm_kernel", 0, True),
    "up_ternary": (functools.partial(decode, torch.uint8), "up_kernel", 0, True),
    "down_ternary": (functools.partial(decode, torch.uint8), "gemm_kernel", 0, True),
    "up_ragged": (train_ragged, "up_kernel", 0, True),
    "down_ragged": (train_ragged, "gemm_kernel", 0, True),
    "down_backward_ragged": (train_ragged, "down_backward_kernel", 0, True),
    "input_gradient_ragged": (train_ragged, "gemm_kernel", 1, True),
    "weight_gradient_in_ragged": (train_ragged, "wgrad_kernel", 0, True),
    "weight_gradient_out_ragged": (train_ragged, "wgrad_kernel", 1, True),
    "recompute_ragged": (functools.partial(train_ragged, keep=False), "gemm_kernel", 1, True),
    "router": (route, "route_kernel", 0, False),
    "router_backward": (route, "route_backward_kernel", 0, False),
    "round_tokens": (round_tokens, "round_kernel", 0, False),
    "histogram": (sort, "histogram_kernel", 0, False),
    "scatter": (sort, "scatter_kernel", 0, False),
    "expand": (lambda: dispatch.expand_rows(meta(8192, 2048), routed(8192, 8, 64)), "expand_kernel", 0, False),
}

EVERYWHERE = ("up", "up_fp32", "down", "down_backward", "weight_gradient_in", "scatter")
CASES = [
    (target, name)
    for target in TARGETS
    for name in KERNELS
    if target == "sm_90" or name in EVERYWHERE or os.environ.get("ZOO_TEST_ALL_KERNELS")
]


def record(patch: pytest.MonkeyPatch, target: str, name: str) -> Launch:
    """The launch of kernel `name`, on meta tensors: the host code could not run on them if it waited for data."""
    launches: list[Launch] = []
    patch.setattr(tiles, "arch", lambda device: target)
    patch.setattr(
        common,
        "launch",
        lambda kernel, grid, *args, tile=None, **constants: launches.append(
            Launch(kernel, args, constants, common.options(tile, None))
        ),
    )
    call, kernel, which, _ = KERNELS[name]
    call()
    return [launch for launch in launches if re.fullmatch(kernel, launch.kernel.__name__)][which]


def compile_for(target: str, launch: Launch) -> Any:
    """As Triton specialises at a launch: tensors and integers divisible by 16 say so, an integer 1 is a constant."""
    names = [param.name for param in launch.kernel.params if not param.is_constexpr]
    values = dict(zip(names, launch.args, strict=True)) | launch.constants
    signature, constexprs, attributes = {}, {}, {}
    for param in launch.kernel.params:
        value = values[param.name]
        free_integer = type(value) is int and not param.do_not_specialize
        if param.is_constexpr or (free_integer and value == 1):
            signature[param.name], constexprs[param.name] = "constexpr", value
            continue
        signature[param.name] = mangle_type(value)
        if isinstance(value, torch.Tensor) or (free_integer and value % 16 == 0):
            attributes[(param.num,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    return triton.compile(source, target=TARGETS[target], options=launch.options)


def facts(target: str, compiled: Any, small: bool) -> dict[str, Any]:
    """Registers, spills, shared memory, programs that fit a multiprocessor, and counts of what matters in the code."""
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    if target.startswith("gfx"):
        code = compiled.asm["amdgcn"]
        field = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", code, re.MULTILINE)}
        regs = field["vgpr_count"] + field["agpr_count"]
        spills = field["vgpr_spill_count"] + field["sgpr_spill_count"] + field["private_segment_fixed_size"]
        names = re.findall(r"^\s+((?:global|buffer)_(?:load|store)_\w+|v_mfma_\w+)", code, re.MULTILINE)
        fit = 4 * (512 // (-(-regs // 8) * 8)) // warps
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
            run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
            usage = run([tools / "cuobjdump", "--dump-resource-usage", file.name]).stdout
            code = run([tools / "nvdisasm", "-c", file.name]).stdout
        regs, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
        names = re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code)
        spills = stack + local + sum(name.startswith(("LDL", "STL")) for name in names)
        fit = 65536 // (-(-regs * 32 // 256) * 256) // warps
    if shared:
        fit = min(fit, SHARED_KB[target] * 1024 // (shared + (0 if target.startswith("gfx") else 1024)))
    widths = collections.Counter()
    for name in names:
        access = re.match(r"(?:global|buffer)_(load|store)_|(LDGSTS|LDG|STG|UTMALDG)\b", name)
        if access:
            kind = access[1] or {"STG": "store"}.get(access[2], "load")
            width = re.search(r"\.(128|64|U16|S16|U8|S8)\b|(dwordx4|dwordx2|short|byte)|(UTMALDG)", name)
            widths[f"{kind}_{width_bits(width)}"] += 1
    matrix = sum(re.match(SMALL_MATRIX if small else MATRIX[target], name) is not None for name in names)
    counts = dict(sorted(widths.items()))
    return {"registers": regs, "spills": spills, "shared": shared, "programs": fit, "matrix": matrix, **counts}


def examine(patch: pytest.MonkeyPatch, target: str, name: str) -> dict[str, Any]:
    launch = record(patch, target, name)
    return facts(target, compile_for(target, launch), launch.constants.get("BM") == 16)


def width_bits(width: re.Match[str] | None) -> int:
    known = {"dwordx4": 128, "dwordx2": 64, "short": 16, "byte": 8, "UTMALDG": 128}
    return 32 if width is None else known.get(width[0], 0) or int(re.sub(r"\D", "", width[0]))


def check(target: str, found: dict[str, Any], multiplies: bool) -> None:
    """What holds for every kernel, whatever the golden file says."""
    assert found["spills"] == 0, f"registers spilled to memory: {found}"
    assert found["programs"] >= 1, f"does not fit a multiprocessor: {found}"
    if multiplies:
        assert found["matrix"] > 0, f"no matrix instruction: {found}"
        assert found.get("load_128", 0) > 0, f"no 128-bit load: {found}"
        # Triton stores straight from the MFMA layout, which holds four neighbours.
        wide = "store_64" if target == "gfx942" and "store_64" in found else "store_128"
        narrow = sum(count for key, count in found.items() if re.fullmatch(r"store_(8|16|32)", key))
        assert found.get(wide, 0) > narrow <= 1, f"stores are not wide: {found}"
        assert not found.keys() & {"load_8", "load_16"}, f"single elements are loaded: {found}"


def compare(found: dict[str, Any], golden: dict[str, Any]) -> None:
    """Tolerates a quarter of the registers and 2 KB of shared memory; the programs that fit must not get fewer."""
    assert found["programs"] >= golden["programs"], (found, golden)
    assert math.isclose(found["registers"], golden["registers"], rel_tol=0.25, abs_tol=8), (found, golden)
    assert found["shared"] <= golden["shared"] + 2048, (found, golden)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("target, name", CASES)
def test_kernel_compiles_without_spills_and_with_matrix_instructions(
    target: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(monkeypatch, target, name)
    check(target, found, KERNELS[name][3])
    compare(found, json.loads(GOLDEN.read_text())["kernels"][target][name])


def test_an_oversized_tile_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.DEFAULT["sm_90"], "up", tiles.Tile(128, 256, 64, 4, 3))
    found = examine(monkeypatch, "sm_90", "up")
    with pytest.raises(AssertionError, match="spilled"):
        check("sm_90", found, True)


def write_golden(names: list[str]) -> None:
    kernels = json.loads(GOLDEN.read_text())["kernels"] if GOLDEN.exists() else {}
    for target in TARGETS:
        for name in names:
            with pytest.MonkeyPatch.context() as patch:
                found = examine(patch, target, name)
            kernels.setdefault(target, {})[name] = found
            print(target, name, found)
    text = json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1)
    GOLDEN.write_text(re.sub(r"\{([^{}]*)\}", lambda match: "{" + " ".join(match[1].split()) + "}", text) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        write_golden(sys.argv[1:] or list(KERNELS))
