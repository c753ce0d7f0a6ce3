"""Weighers: how much. ``forward(x_TD, logits_TE, scores_TE, index_TK, used_TK, ctx) -> (weight_TK, shared_weight)``.

Unused slots get weight 0 from the router. ``shared_weight`` (T, 1) is None unless the weigher also weighs the shared
expert.

Shapes: T tokens, K slots, E experts, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.moe.types import RouteContext

Weights = tuple[Tensor, Tensor | None]


class Gather(nn.Module):
    """The scores of the chosen experts, optionally renormalised to sum to 1 over the used slots, times ``scale``."""

    @dataclass
    class Config:
        renorm: bool = False
        scale: float = 1.0

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        return self.finish(scores_TE.gather(-1, index_TK), used_TK), None

    def finish(self, weight_TK: Tensor, used_TK: Tensor) -> Tensor:
        """Renormalise and scale."""
        weight_TK = weight_TK.masked_fill(~used_TK, 0.0)
        if self.config.renorm:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return weight_TK * self.config.scale


class ChosenSoftmax(Gather):
    """Softmax over the chosen logits only (JetMoE, GPT-OSS, Moirai-MoE)."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        chosen_TK = logits_TE.gather(-1, index_TK).masked_fill(~used_TK, -1e30)
        return self.finish(chosen_TK.softmax(-1), used_TK), None


class ChosenSigmoid(Gather):
    """Sigmoid of the chosen logits (Llama 4)."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        return self.finish(logits_TE.gather(-1, index_TK).sigmoid(), used_TK), None
