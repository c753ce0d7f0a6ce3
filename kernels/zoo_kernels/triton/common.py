"""What every kernel shares: launching, activations, and loading a tile of float, int8 or ternary weights.

Shape suffixes: T tokens, K slots, E experts, D model, F inner, N pairs (T * K), M row tiles.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ..plan import Widths
from . import tiles
from .tiles import INTERPRET, Tile

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, tile: Tile | None = None, **constants: Any) -> None:
    """Runs `kernel` over `grid`; nothing if it is empty (no tokens). All launches of the package go through here."""
    if math.prod(grid) == 0:
        return
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    constants |= options(tile, device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)


def ragged(widths: Widths | None, other: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(start_ptr, MULTIPLE) for `units_of`; `other` stands in for a pointer that is not read."""
    return (other, 0) if widths is None else (widths.start_E1, math.gcd(widths.multiple, 16))


def check_dtype(dtype: torch.dtype) -> None:
    """Raises TypeError, with the remedy, for what the kernels would silently compute in fp32."""
    if dtype not in DTYPES:
        raise TypeError(f"zoo_kernels: the triton path has no {dtype}; pass backend='reference' or cast to float32")


def options(tile: Tile | None, device: torch.device) -> dict[str, int]:
    """Warps and stages; kernels without a tile stream through memory with 128 threads, 16 bytes each."""
    if tile is None:
        return {"num_warps": 2 if tiles.arch(device).startswith("gfx") else 4}
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def upcast(dtype: torch.dtype) -> bool:
    """Whether tiles are widened right after loading: the interpreter multiplies bf16 as raw bits, silently."""
    return INTERPRET and dtype == torch.bfloat16


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: fp32 stays exact unless the user allowed TF32 for torch's own matrix products."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def units_of(start_ptr, expert, F, MULTIPLE: tl.constexpr):
    """(first, number) of the inner units of an expert; MULTIPLE 0: all have F, else `start_ptr` says it."""
    if MULTIPLE == 0:
        first, units = expert.to(tl.int64) * F, F
    else:
        first = tl.load(start_ptr + expert)
        units = tl.multiple_of((tl.load(start_ptr + expert + 1) - first).to(tl.int32), MULTIPLE)
    return first, units


@triton.jit
def base_activation(z, ACT: tl.constexpr):
    """(value, derivative) of what the gate goes through, in fp32."""
    if (ACT == "relu") | (ACT == "reglu"):
        slope = tl.where(z > 0.0, 1.0, 0.0)
        return z * slope, slope
    elif ACT == "relu2":
        base = tl.maximum(z, 0.0)
        return base * base, 2.0 * base
    elif (ACT == "gelu_tanh") | (ACT == "geglu_tanh"):
        # 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3)
        sig = tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        return z * sig, sig + z * sig * (1.0 - sig) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
    elif (ACT == "gelu") | (ACT == "geglu"):
        cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        return z * cdf, cdf + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    else:
        ALPHA: tl.constexpr = 1.702 if ACT == "clamped_swiglu" else 1.0
        sig = tl.sigmoid(ALPHA * z)
        return z * sig, sig * (1.0 + ALPHA * z * (1.0 - sig))


@triton.jit
def activate(gate, up, limit, ACT: tl.constexpr, HAS_UP: tl.constexpr, HAS_LIMIT: tl.constexpr):
    """fp32 activation of a tile; `up` is ignored by the ungated ones. Equations: `zoo_kernels.reference.activate`."""
    if HAS_LIMIT and HAS_UP:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    value, _ = base_activation(gate, ACT)
    if HAS_UP:
        value *= up + 1.0 if ACT == "clamped_swiglu" else up
    return value


@triton.jit
def activate_backward(gate, up, grad, limit, ACT: tl.constexpr, HAS_UP: tl.constexpr, HAS_LIMIT: tl.constexpr):
    """(d gate, d up) of `activate` for the gradient `grad` of its output; d up means nothing for the ungated ones."""
    if HAS_LIMIT and HAS_UP:
        gate_in = gate <= limit
        up_in = (up >= -limit) & (up <= limit)
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    value, slope = base_activation(gate, ACT)
    grad_gate = grad * slope
    grad_up = grad * value
    if HAS_UP:
        grad_gate *= up + 1.0 if ACT == "clamped_swiglu" else up
        if HAS_LIMIT:
            grad_gate = tl.where(gate_in, grad_gate, 0.0)
            grad_up = tl.where(up_in, grad_up, 0.0)
    return grad_gate, grad_up


@triton.jit
def load_pair(ptr, start, in_rows, F, HAS_UP: tl.constexpr, INTERLEAVED: tl.constexpr, BN: tl.constexpr):
    """(gate, up) columns start : start + BN of a tile of pre-activations, in fp32; `ptr` points at its rows."""
    if INTERLEAVED:
        both = 2 * start + tl.arange(0, 2 * BN)
        mask = in_rows[:, None] & (both < 2 * F)[None, :]
        pair = tl.load(ptr[:, None] + both[None, :], mask=mask, other=0.0).to(tl.float32)
        gate, up = tl.split(tl.reshape(pair, (ptr.shape[0], BN, 2)))
    else:
        col = start + tl.arange(0, BN)
        mask = in_rows[:, None] & (col < F)[None, :]
        gate = tl.load(ptr[:, None] + col[None, :], mask=mask, other=0.0).to(tl.float32)
        up = gate
        if HAS_UP:
            up = tl.load(ptr[:, None] + F + col[None, :], mask=mask, other=0.0).to(tl.float32)
    return gate, up


@triton.jit
def store_pair(ptr, gate, up, start, in_rows, F, HAS_UP: tl.constexpr, INTERLEAVED: tl.constexpr, BN: tl.constexpr):
    """Writes what `load_pair` reads."""
    dtype = ptr.dtype.element_ty
    if INTERLEAVED:
        both = 2 * start + tl.arange(0, 2 * BN)
        mask = in_rows[:, None] & (both < 2 * F)[None, :]
        tl.store(ptr[:, None] + both[None, :], tl.interleave(gate, up).to(dtype), mask=mask)
    else:
        col = start + tl.arange(0, BN)
        mask = in_rows[:, None] & (col < F)[None, :]
        tl.store(ptr[:, None] + col[None, :], gate.to(dtype), mask=mask)
        if HAS_UP:
            tl.store(ptr[:, None] + F + col[None, :], up.to(dtype), mask=mask)
