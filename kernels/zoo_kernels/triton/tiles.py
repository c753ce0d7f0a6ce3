"""Tile shapes: one table, a rule for few rows an expert, and a seam for tuning (off unless `tune` is called)."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import torch
import triton

INTERPRET = triton.knobs.runtime.interpret


class Tile(NamedTuple):
    """`m` rows of one expert x `n` columns, K steps of `k` two-byte elements; `group` row tiles share weights in L2."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int = 8


# Shared memory bounds them: 163 KB on sm_80 (99 KB on its consumer kin), 227 KB on sm_90 and sm_100, 64 KB on gfx942.
DEFAULT: dict[str, dict[str, Tile]] = {
    "sm_80": {
        "up": Tile(128, 64, 64, 8, 3),
        "gemm": Tile(128, 128, 64, 8, 3),
        "down_backward": Tile(128, 64, 64, 8, 3),
        "wgrad": Tile(128, 128, 32, 8, 3),
    },
    "sm_90": {
        "up": Tile(128, 64, 64, 8, 3),
        "gemm": Tile(128, 128, 64, 8, 3),
        "down_backward": Tile(128, 64, 64, 8, 3),
        "wgrad": Tile(128, 128, 64, 8, 3),
    },
    "sm_100": {
        "up": Tile(128, 64, 64, 8, 3),
        "gemm": Tile(128, 128, 64, 8, 3),
        "down_backward": Tile(128, 64, 64, 8, 3),
        "wgrad": Tile(128, 128, 64, 8, 3),
    },
    "gfx942": {
        "up": Tile(128, 64, 64, 8, 2),
        "gemm": Tile(128, 128, 64, 8, 2),
        "down_backward": Tile(128, 64, 64, 8, 2),
        "wgrad": Tile(128, 128, 32, 8, 2),
    },
    "interpret": {name: Tile(16, 32, 32, 4, 1) for name in ("up", "gemm", "down_backward", "wgrad")},
}
TMA = {"sm_90", "sm_100"}
TUNED: dict[tuple[str, str, torch.dtype], Tile] = {}


@cache
def arch(device: torch.device) -> str:
    """The row of `DEFAULT` for a device: the newest listed architecture that it can run."""
    if INTERPRET or device.type == "cpu":
        return "interpret"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def choose(kernel: str, device: torch.device, dtype: torch.dtype, rows: int) -> Tile:
    """The tile of `kernel` for about `rows` rows an expert; both are host numbers, so nothing waits for the device."""
    name = arch(device)
    if (kernel, name, dtype) in TUNED:
        return TUNED[kernel, name, dtype]
    tile = DEFAULT[name][kernel]
    if dtype.itemsize == 4:  # without matrix instructions, the operands are in registers too
        tile = tile._replace(m=min(tile.m, 64), k=max(16, tile.k // 2))
    if kernel != "wgrad" and rows < tile.m // 2:
        m = max(16, triton.next_power_of_2(max(rows, 1)))
        tile = tile._replace(m=m, warps=min(tile.warps, 4))
    return tile


def tune(
    kernel: str, device: torch.device, dtype: torch.dtype, candidates: Iterable[Tile], call: Callable[[], object]
) -> dict[Tile, float]:
    """Times `call` (which must launch `kernel`) once per candidate, keeps the fastest, returns milliseconds a tile.

    A tile that asks for more than the device has counts as infinitely slow. If none runs, or `call` raises anything
    else, the table is as before; ValueError without a candidate that runs.
    """
    times: dict[Tile, float] = {}
    key = (kernel, arch(device), dtype)
    before = TUNED.pop(key, None)
    best = None
    try:
        for tile in candidates:
            TUNED[key] = tile
            try:
                times[tile] = triton.testing.do_bench(call)
            except triton.runtime.errors.OutOfResources:
                times[tile] = float("inf")
        fastest = min(times, key=lambda tile: times[tile], default=None)
        best = None if fastest is None or times[fastest] == float("inf") else fastest
    finally:
        TUNED.pop(key, None)
        if best or before:
            TUNED[key] = best or before  # type: ignore[assignment]
    if best is None:
        raise ValueError(f"zoo_kernels: none of {len(times)} tiles of {kernel} runs on this device; try smaller ones")
    return times
