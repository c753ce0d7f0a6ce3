"""Weights of quantised experts in the K loop: the codes of `zoo_kernels.quant`, int8 or ternary in two bits.

The K loop widens the codes to the type of the activations; the scale is applied once, to the accumulator.
Decoding is bound by the bytes of weights read, so the ceiling against bf16 is 2x (int8) and 8x (ternary).
Shape suffixes: E experts, C output channels, R the contracted width.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def unpack_ternary(packed, BK: tl.constexpr, BN: tl.constexpr):
    """(BK // 4, BN) bytes -> (BK, BN) int8 in {-1, 0, 1}; bits 2i of byte j hold row 4j + i as value + 1."""
    even = tl.join(packed & 3, (packed >> 4) & 3)
    odd = tl.join((packed >> 2) & 3, (packed >> 6) & 3)
    codes = tl.permute(tl.join(even, odd), (0, 2, 3, 1))
    return tl.reshape(codes, (BK, BN)).to(tl.int8) - 1


@triton.jit
def load_weight(
    w_ptr, col, r, R, in_cols, stride_wc, stride_wr, dtype: tl.constexpr,
    WEIGHT: tl.constexpr, EVEN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The (BK, BN) tile w[col, r : r + BK] of one expert, transposed, as `dtype`; `w_ptr` points at the expert."""
    if WEIGHT == "ternary":
        k = r // 4 + tl.arange(0, BK // 4)
        mask = in_cols[None, :] if EVEN else in_cols[None, :] & (k < R // 4)[:, None]
        # Code 85 is four zeros, so what is masked adds nothing.
        packed = tl.load(w_ptr + col[None, :] * stride_wc + k[:, None] * stride_wr, mask=mask, other=85)
        w = unpack_ternary(packed, BK, col.shape[0])
    else:
        k = r + tl.arange(0, BK)
        mask = in_cols[None, :] if EVEN else in_cols[None, :] & (k < R)[:, None]
        w = tl.load(w_ptr + col[None, :] * stride_wc + k[:, None] * stride_wr, mask=mask, other=0)
    return w.to(dtype)


def weight_kind(weight: torch.Tensor) -> str:
    """How the K loop reads a weight: int8 codes and packed ternary (uint8) have types of their own."""
    return {torch.int8: "int8", torch.uint8: "ternary"}.get(weight.dtype, "float")
