"""The Triton path (NVIDIA sm_80 and newer, AMD CDNA). `zoo_kernels.ops` imports it on demand, nothing else does."""

import torch

from .dispatch import combine_rows, expand_rows
from .ffn import ffn_backward, ffn_forward
from .plan import sort_pairs
from .rounding import round_tokens
from .router import route_backward, route_forward
from .tiles import INTERPRET

__all__ = [
    "combine_rows",
    "expand_rows",
    "ffn_backward",
    "ffn_forward",
    "round_tokens",
    "route_backward",
    "route_forward",
    "sort_pairs",
    "unavailable",
]


def unavailable() -> str:
    """Why the kernels cannot run here; empty when they can."""
    if INTERPRET or torch.cuda.is_available():
        return ""
    return "no CUDA or ROCm device (TRITON_INTERPRET=1 runs the kernels slowly on the CPU)"
