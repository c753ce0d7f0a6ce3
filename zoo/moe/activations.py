"""Gate activations: logits to scores. ``forward(logits_TE, ctx) -> scores_TE``.

Scores that may be negative are no distribution, which balance losses need: such an activation has ``distribution``.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from zoo.moe.types import RouteContext
from zoo.spec import ZooError


class _Plain(nn.Module):
    @dataclass
    class Config:
        pass

    def __init__(self, config: Any, num_experts: int) -> None:
        super().__init__()


class Softmax(nn.Module):
    """``softmax(z / tau)`` over all experts.

    ``tau`` is ``temperature``; with ``start`` it goes there geometrically from ``start`` over the first ``steps``
    optimiser steps, which turns a dense gate into a sparse one.
    """

    @dataclass
    class Config:
        temperature: float = 1.0
        start: float | None = None
        steps: int = 0

        def __post_init__(self) -> None:
            if self.temperature <= 0 or (self.start is not None and self.start <= 0):
                raise ZooError(f"temperature={self.temperature} and start={self.start} must be above 0")
            if self.start is not None and self.steps < 1:
                raise ZooError(f"start={self.start} needs steps, the length of the schedule")

    def __init__(self, config: Config, num_experts: int) -> None:
        super().__init__()
        self.config = config

    def temperature(self, ctx: RouteContext) -> float:
        c = self.config
        return c.temperature if c.start is None else c.start * (c.temperature / c.start) ** ctx.progress(c.steps)

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return (logits_TE / self.temperature(ctx)).softmax(-1)


class ActivatedSoftmax(Softmax):
    """``softmax(a(z) / tau)`` with ``a`` sigmoid or tanh: an activation before the softmax removes the interaction of
    temperature and weights that slows estimation (Nguyen et al., arXiv:2401.13875)."""

    @dataclass
    class Config(Softmax.Config):
        function: Literal["sigmoid", "tanh"] = "sigmoid"

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        inner_TE = logits_TE.sigmoid() if self.config.function == "sigmoid" else logits_TE.tanh()  # type: ignore[attr-defined]
        return super().forward(inner_TE, ctx)


class Sigmoid(_Plain):
    """``sigmoid(z)``, each expert on its own (DeepSeek-V3, arXiv:2412.19437, eq. 15)."""

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return logits_TE.sigmoid()


class Identity(_Plain):
    """Scores are the logits, for weighers that normalise over the chosen experts only. Balance losses see their
    softmax over all experts, as those of transformers do."""

    def forward(self, logits_TE: Tensor, ctx: RouteContext) -> Tensor:
        return logits_TE

    def distribution(self, logits_TE: Tensor) -> Tensor:
        """(T, E), each row adding up to 1."""
        return logits_TE.softmax(-1)
