"""Shared experts: what every token passes beside the routed ones, and how the two come together.

Shapes: T tokens, D model width, F inner width, S shared experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.spec import ZooError


class Shared(nn.Module):
    """``forward(x, y, weight)`` joins the routed output ``y`` and the shared `branch` of ``x``, both (..., D):

    - ``gate: none``     y + branch(x)                                         (DeepSeekMoE, arXiv:2401.06066)
    - ``gate: sigmoid``  y + sigmoid(w . x) branch(x)                          (Qwen2-MoE; Time-MoE, arXiv:2409.16040)
    - ``gate: mix``      c_1 branch(x) + c_2 y, c = softmax(W x)               (residual MoE, arXiv:2201.05596)

    ``frozen`` keeps a dense layer as it was (MoTE). ``norm`` gives the branch an RMSNorm of its own: a dense layer in
    parallel to the mixture. A router that weighs S shared experts itself gives ``weight`` (..., S): the inner units of
    the branch, in S equal blocks, are those experts side by side. A branch that ``mixes_tokens`` is given zeros for
    padding.
    """

    mixes_tokens = False

    @dataclass
    class Config:
        gate: Literal["none", "sigmoid", "mix"] = "none"
        frozen: bool = False
        norm: bool = False

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.RMSNorm(hidden_size) if config.norm else nn.Identity()
        ways = {"none": 0, "sigmoid": 1, "mix": 2}[config.gate]
        self.make(hidden_size)
        if config.frozen:
            self.requires_grad_(False)
        self.gate = nn.Linear(hidden_size, ways, bias=False) if ways else None

    def make(self, hidden_size: int) -> None:
        """Create the branch's parameters."""

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The shared experts' output, (..., D)."""
        raise TypeError(f"{type(self).__name__} must override branch")

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        own = self.branch(self.norm(x), weight)
        if self.gate is None:
            return y + own
        gate = self.gate(x)
        if self.config.gate == "sigmoid":
            return y + own * gate.sigmoid()
        share = gate.softmax(-1)
        return own * share[..., :1] + y * share[..., 1:]


class SwiGLU(Shared):
    """``down(silu(gate x) * up x)`` (arXiv:2002.05202) for every token, joined as `Shared` says."""

    @dataclass
    class Config(Shared.Config):
        intermediate_size: int = 256

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def make(self, hidden_size: int) -> None:
        inner = self.config.intermediate_size
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden_size, bias=False)

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        y: Tensor = self.down_proj(_blocks(F.silu(self.gate_proj(x)) * self.up_proj(x), weight))
        return y


class GELU(Shared):
    """``down(gelu(up x + b)) + c`` for every token, joined as `Shared` says: the dense layer of vision transformers."""

    @dataclass
    class Config(Shared.Config):
        intermediate_size: int = 256

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def make(self, hidden_size: int) -> None:
        self.up_proj = nn.Linear(hidden_size, self.config.intermediate_size)
        self.down_proj = nn.Linear(self.config.intermediate_size, hidden_size)

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        y: Tensor = self.down_proj(_blocks(F.gelu(self.up_proj(x)), weight))
        return y


class Bias(Shared):
    """The same learned vector for every token, zero at first: the bias on the sum of JetMoE's experts."""

    def make(self, hidden_size: int) -> None:
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            raise ZooError("a router cannot weigh a shared bias; set moe.shared.name=swiglu")
        return self.bias.expand_as(x)


class DepthwiseConv(Shared):
    """``y_td = sum_j w_dj x_(t+j)d + b_d`` along the sequence (the expert for continuity of MoHETS, S040), joined as
    `Shared` says. ``causal`` looks back only."""

    mixes_tokens = True

    @dataclass
    class Config(Shared.Config):
        kernel: int = 3
        causal: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "kernel")

    def make(self, hidden_size: int) -> None:
        self.weight = nn.Parameter(torch.empty(hidden_size, 1, self.config.kernel))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        nn.init.normal_(self.weight, std=self.config.kernel**-0.5)

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            raise ZooError("a router cannot weigh a shared depthwise_conv; set moe.shared.name=swiglu")
        after = 0 if self.config.causal else (self.config.kernel - 1) // 2
        # One position too many, cut off again: an empty sequence is no window at all.
        wide_BDL = F.pad(x.mT, (self.config.kernel - 1 - after, after + 1))
        return F.conv1d(wide_BDL, self.weight, self.bias, groups=x.shape[-1])[..., :-1].mT


def _blocks(h: Tensor, weight: Tensor | None) -> Tensor:
    """Inner units (..., F) in S equal blocks, each times its own weight (..., S)."""
    return h if weight is None else (h.unflatten(-1, (weight.shape[-1], -1)) * weight[..., None]).flatten(-2)
