"""Experts that are MLPs, computed together by `ops.expert_ffn`.

Shapes: T tokens, N pairs, E experts, D model width, F expert width, W = 2F (gated) or F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.experts.base import Bank, BankConfig, View
from zoo.moe.experts.grouped import grouped_linear
from zoo.spec import ZooError
from zoo_kernels import ops
from zoo_kernels.plan import Plan, Widths

BASE = {"swiglu": F.silu, "geglu": F.gelu, "reglu": F.relu, "silu": F.silu, "gelu": F.gelu, "relu": F.relu}
GATED = ("swiglu", "geglu", "reglu")
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class MLP(Bank):
    """``W_out act(W_in x)``; a family names its activation. Also base of banks that store their matrices otherwise."""

    activation: str = "silu"

    def weights(self) -> Weights:
        """``w_in`` (E, W, D), ``w_out`` (E, D, F) and their biases or None, as the kernels want them."""
        raise TypeError(f"{type(self).__name__} must override weights")

    def seen(self, x: Tensor) -> Tensor:
        """What the experts see of their input."""
        return x

    def first_EFD(self) -> Tensor:
        """The matrix before the activation, for scorers that look at it."""
        w_in = self.weights()[0]
        return w_in[:, : w_in.shape[1] // 2] if self.activation in GATED else w_in

    def fused(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        x_TD = self.seen(x.flatten(1))
        w_in, w_out, b_in, b_out = (None if w is None else w.to(x.dtype) for w in self.weights())
        y_TD = ops.expert_ffn(x_TD, weight_N, plan, w_in, w_out, activation=self.activation, b_in=b_in, b_out=b_out)  # type: ignore[arg-type]
        return y_TD.view_as(x)

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        w_in, w_out, b_in, b_out = self.weights()
        hidden_NW = grouped_linear(self.seen(x.flatten(1)), w_in, plan, b_in)
        gate, up = hidden_NW.chunk(2, -1) if self.activation in GATED else (hidden_NW, None)
        atomic_NF = BASE[self.activation](gate) if up is None else BASE[self.activation](gate) * up
        atomic_NF = self.tap("atomic", atomic_NF, plan)
        return grouped_linear(atomic_NF, w_out, plan, b_out).view_as(x)


class SwiGLU(MLP):
    """``down(silu(gate x) * up x)`` (Shazeer, arXiv:2002.05202). Layout as transformers': gate above up."""

    activation = "swiglu"
    stacked = ("gate_up_proj", "down_proj")

    @dataclass
    class Config(BankConfig):
        intermediate_size: int = 256

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        inner = self.inner()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, inner))

    def inner(self) -> int:
        """F, the inner units of an expert."""
        width: int = self.config.intermediate_size
        return width

    def weights(self) -> Weights:
        return self.gate_up_proj, self.down_proj, None, None

    def resize(self, keep: Tensor, widths: Tensor | None = None) -> Bank:
        if widths is None:
            return super().resize(keep)
        w_in_EWD, w_out_EDF = (weight.detach() for weight in self.weights()[:2])
        inner = w_out_EDF.shape[-1]
        if widths.shape != keep.shape or not bool(((widths > 0) & (widths <= inner)).all()):
            raise ZooError(f"widths={widths.tolist()} must be one number from 1 to {inner} for each expert kept")
        places = keep.tolist()
        members = [asdict(self.members[place]) for place in places]
        config = Ragged.Config(members=members, widths=widths.tolist())
        new = Ragged(config, self.hidden_size, len(places)).to(w_in_EWD)
        for e, place in enumerate(places):
            new.write(e, cut({"gate_up_proj": w_in_EWD[place], "down_proj": w_out_EDF[place]}, config.widths[e]))
        return new


class Ungated(MLP):
    """``down(act(up x + b) + c)`` in one tensor a matrix, biases if asked for."""

    stacked = ("up_proj", "down_proj")

    @dataclass
    class Config(BankConfig):
        intermediate_size: int = 256
        bias: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        inner = config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(num_experts, inner, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, inner))
        self.up_proj_bias = nn.Parameter(torch.zeros(num_experts, inner)) if config.bias else None
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, hidden_size)) if config.bias else None
        if config.bias:
            self.stacked = (*type(self).stacked, "up_proj_bias", "down_proj_bias")

    def weights(self) -> Weights:
        return self.up_proj, self.down_proj, self.up_proj_bias, self.down_proj_bias


class GELU(Ungated):
    """``down(gelu(up x))``, the exact GELU (vision transformers, connectors of MoCHA)."""

    activation = "gelu"


class ReLU(Ungated):
    """``down(relu(up x))``: few inner units speak, which makes them readable (MoE-X, arXiv:2503.07639)."""

    activation = "relu"


class Slices(SwiGLU):
    """The E parts of one dense SwiGLU of width ``intermediate_size``, F / E inner units each: with all weights 1 their
    sum is the dense layer (Union of Experts, arXiv:2503.02495)."""

    def inner(self) -> int:
        inner, rest = divmod(self.config.intermediate_size, self.num_experts)
        if rest:
            raise ZooError(f"intermediate_size={self.config.intermediate_size} is not {self.num_experts} equal slices")
        return inner

    def _sized(self, members: Any) -> Bank:
        width = self.inner() * len(members)
        config = replace(self.config, intermediate_size=width, members=[asdict(member) for member in members])
        return type(self)(config, self.hidden_size, len(members)).to(self.down_proj)


class Ternary(SwiGLU):
    """SwiGLU whose weights are seen as ``s * clip(round(W / s), -1, 1)``, ``s = mean|W|`` of each matrix of each
    expert, and whose input is rounded to 8 bits a token; the gradient passes straight through (BitNet b1.58,
    arXiv:2402.17764; MoTE). The full weights stay for training. Inner units are not rounded."""

    @dataclass
    class Config(SwiGLU.Config):
        round_input: bool = True

    def weights(self) -> Weights:
        gate_up_E2FD = self.gate_up_proj.unflatten(1, (2, -1))
        return ternary(gate_up_E2FD).flatten(1, 2), ternary(self.down_proj), None, None

    def seen(self, x: Tensor) -> Tensor:
        if not self.config.round_input:
            return x
        scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        return (x / scale).detach().round() * scale + (x - x.detach())


def ternary(weight: Tensor) -> Tensor:
    """The last two dimensions as -s, 0 or s; the gradient is that of the identity."""
    scale = weight.detach().abs().mean((-2, -1), keepdim=True).clamp(min=1e-8)
    return (weight / scale).detach().round().clamp(-1, 1) * scale + (weight - weight.detach())


def cut(view: Mapping[str, Tensor], width: int) -> View:
    """The first inner units of a gated expert."""
    gate, up = view["gate_up_proj"].chunk(2)
    return {"gate_up_proj": torch.cat([gate[:width], up[:width]]), "down_proj": view["down_proj"][:, :width]}


class Ragged(MLP):
    """Gated experts of different widths, as they are after pruning: ``widths`` has one number an expert. Their matrices
    lie one below the other and are read there; only what looks at rows one by one pads them to the widest.
    An expert's view is that of `SwiGLU`, narrower."""

    @dataclass
    class Config(BankConfig):
        widths: list[int] = field(default_factory=list)
        activation: Literal["swiglu", "geglu", "reglu"] = "swiglu"

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        if len(config.widths) != num_experts or min(config.widths, default=1) < 1:
            raise ZooError(f"ragged widths={config.widths} must be {num_experts} numbers above 0, one for each expert")
        self.activation, total = config.activation, sum(config.widths)
        self.gate_up_proj = nn.Parameter(torch.empty(2 * total, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(total, hidden_size))  # a row is an inner unit
        self.widest, self.multiple = max(config.widths, default=0), math.gcd(*config.widths)
        self.register_buffer("start_E1", Widths.of(config.widths).start_E1, persistent=False)

    def fused(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        w_in, w_out = self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype)
        widths = Widths(self.start_E1, self.widest, self.multiple)
        y_TD = ops.expert_ffn(x.flatten(1), weight_N, plan, w_in, w_out, activation=self.activation, widths=widths)
        return y_TD.view_as(x)

    def weights(self) -> Weights:
        wide_E = [2 * width for width in self.config.widths]
        padded = [
            F.pad(e.unflatten(0, (2, -1)), (0, 0, 0, self.widest - len(e) // 2))
            for e in self.gate_up_proj.split(wide_E)
        ]
        down_EFD = [F.pad(e, (0, 0, 0, self.widest - len(e))) for e in self.down_proj.split(self.config.widths)]
        return torch.stack(padded).flatten(1, 2), torch.stack(down_EFD).mT, None, None

    def view(self, e: int) -> View:
        start, stop = (sum(self.config.widths[:place]) for place in (e, e + 1))
        w_in, w_out = self.gate_up_proj.detach(), self.down_proj.detach()
        return {"gate_up_proj": w_in[2 * start : 2 * stop], "down_proj": w_out[start:stop].mT}

    def resize(self, keep: Tensor, widths: Tensor | None = None) -> Bank:
        places = keep.tolist()
        views = [self.view(place) for place in places]
        if widths is not None:
            views = [cut(view, width) for view, width in zip(views, widths.tolist(), strict=True)]
        return self._of([self.members[place] for place in places], views)

    def append(self, views: Any, origin: str = "") -> Bank:
        first = 1 + max((member.id for member in self.members), default=-1)
        new = [type(self.members[0])(first + n, origin) for n in range(len(views))]
        return self._of([*self.members, *new], [*(self.view(e) for e in range(self.num_experts)), *views])

    def _of(self, members: Any, views: Any) -> Bank:
        widths = [view["down_proj"].shape[1] for view in views]
        config = replace(self.config, widths=widths, members=[asdict(member) for member in members])
        new = type(self)(config, self.hidden_size, len(views)).to(self.down_proj)
        for e, view in enumerate(views):
            new.write(e, view)
        return new

    def active_parameters(self, slots: float) -> float:
        return sum(p.numel() for p in self.parameters()) * slots / max(1, self.num_experts)
