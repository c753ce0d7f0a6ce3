"""Expert banks: E experts behind one call, whatever they are made of."""

from zoo.moe.experts.base import Bank, BankConfig, Member, Taps, View
from zoo.moe.experts.mlp import GELU, MLP, Ragged, ReLU, Slices, SwiGLU, Ternary

__all__ = [
    "GELU",
    "MLP",
    "Bank",
    "BankConfig",
    "Member",
    "Ragged",
    "ReLU",
    "Slices",
    "SwiGLU",
    "Taps",
    "Ternary",
    "View",
]
