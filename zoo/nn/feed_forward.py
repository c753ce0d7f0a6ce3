"""What a layer does with each position: a mixture of experts, or one dense MLP.

A feed-forward is ``feed_forward(x_BLD, ctx, state) -> (y, RouterOutput or None)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.layer import MoE
from zoo.moe.types import RouteContext, RouterOutput
from zoo.nn.build import Site

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}


class Mixture(MoE):
    """The mixture that the stack's ``moe`` describes, with the site's experts if it lends some."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site.moe, site.hidden_size, site.lent)

    def forward(self, x: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, RouterOutput]:
        return super().forward(x, ctx.at(self.layer), state)


class Dense(nn.Module):
    """``down(act(gate x) * up x)``, or ``down(act(up x))`` without ``gated``."""

    @dataclass
    class Config:
        intermediate_size: int = 256
        activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
        gated: bool = True
        bias: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.act, size, bias = ACTIVATIONS[config.activation], config.intermediate_size, config.bias
        self.gate_proj = nn.Linear(site.hidden_size, size, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(site.hidden_size, size, bias=bias)
        self.down_proj = nn.Linear(size, site.hidden_size, bias=bias)

    def forward(self, x: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, None]:
        up = self.up_proj(x)
        return self.down_proj(self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up), None
