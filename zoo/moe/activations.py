"""Gate activations: logits to scores. ``forward(logits_TE, ctx) -> scores_TE``.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.moe.types import RouteContext


class Softmax(nn.Module):
    """``softmax(z / temperature)`` over all experts."""

    @dataclass
    class Config:
        temperature: float = 1.0

    def __init__(self, config: Config, num_experts: int) -> None:
        super().__init__()
        self.temperature = config.temperature

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return (logits_TE / self.temperature).softmax(-1)


class Sigmoid(nn.Module):
    """``sigmoid(z)``, each expert on its own (DeepSeek-V3, arXiv:2412.19437, eq. 15)."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, num_experts: int) -> None:
        super().__init__()

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return logits_TE.sigmoid()


class Identity(nn.Module):
    """Scores are the logits, for weighers that normalise over the chosen experts only."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, num_experts: int) -> None:
        super().__init__()

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return logits_TE
