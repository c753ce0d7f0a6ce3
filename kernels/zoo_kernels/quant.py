"""Weight-only quantised experts: int8, or ternary {-1, 0, 1} in two bits, one scale an output channel.

Legend: E experts, C output channels, R the contracted width.
"""

import torch
from torch import Tensor


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (E, C, R) int8, scale (E, C) fp32): round to nearest, scaled by the largest magnitude of each channel."""
    scale = weight.float().abs().amax(-1).clamp(min=1e-12) / 127
    return (weight.float() / scale.unsqueeze(-1)).round().to(torch.int8), scale


def quantise_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(packed (E, C, R / 4) uint8, scale (E, C) fp32): {-1, 0, 1} times the mean magnitude (BitNet b1.58, eq. 1 to 3).

    Bits 2i and 2i + 1 of byte j hold weight 4j + i, plus one. Raises ValueError when R is not a multiple of 4.
    """
    if weight.shape[-1] % 4:
        raise ValueError(f"zoo_kernels: ternary packs 4 weights a byte, but the width is {weight.shape[-1]}; pad it")
    scale = weight.float().abs().mean(-1).clamp(min=1e-12)
    codes = (weight.float() / scale.unsqueeze(-1)).round().clamp(-1, 1) + 1
    shifts = torch.arange(0, 8, 2, device=weight.device, dtype=torch.uint8)
    return (codes.to(torch.uint8).unflatten(-1, (-1, 4)) << shifts).sum(-1, dtype=torch.uint8), scale


def dequantise(codes: Tensor, scale: Tensor) -> Tensor:
    """The fp32 weight (..., C, R) that int8 codes or packed ternary stand for."""
    if codes.dtype == torch.uint8:
        shifts = torch.arange(0, 8, 2, device=codes.device, dtype=torch.uint8)
        codes = (codes.unsqueeze(-1) >> shifts & 3).flatten(-2).float() - 1
    return codes.float() * scale.unsqueeze(-1)
