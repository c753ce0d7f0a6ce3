"""Shared experts: what every token passes beside the routed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least


class SwiGLU(nn.Module):
    """A dense SwiGLU, added as it is (DeepSeekMoE) or times ``sigmoid(w . x)`` (Qwen2-MoE, Time-MoE).

    A router that weighs S shared experts itself gives ``weight`` (..., S): the inner units, in S equal blocks, are
    those experts side by side.
    """

    @dataclass
    class Config:
        intermediate_size: int = 256
        gate: Literal["none", "sigmoid"] = "none"

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Config, hidden_size: int) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, 1, bias=False) if config.gate == "sigmoid" else None

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        if weight is not None:
            h = (h.unflatten(-1, (weight.shape[-1], -1)) * weight[..., None]).flatten(-2)
        y: Tensor = self.down_proj(h)
        return y if self.gate is None else y * self.gate(x).sigmoid()
