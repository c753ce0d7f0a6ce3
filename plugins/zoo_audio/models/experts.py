"""What UniMoE-Audio's mixture has of its own: how it weighs routed and shared experts, and the latter side by side.

Shapes: T tokens, K slots, E routed and null experts, S shared experts, D model width, I inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.shared import Shared
from zoo.moe.types import RouteContext
from zoo.moe.weighers import FAR, JointSoftmax, Weights
from zoo.spec import ZooError


class MaskedJoint(JointSoftmax):
    """The chosen experts divide among them what a softmax over the *chosen* routed and all shared logits leaves to the
    routed side (UniMoE-Audio, arXiv:2510.13344). A chosen null expert keeps its part, so that the output shrinks.

    ``shares: softmax`` divides by the softmax over the chosen. ``shares: winner`` is what the published code does: slot
    by slot, the chosen expert's share among the logits left that are within ``2 * jitter`` of the best, relative to its
    size; as few are so near, the shares are nearly equal.
    """

    @dataclass
    class Config(JointSoftmax.Config):
        shares: Literal["softmax", "winner"] = "softmax"
        jitter: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, self, "jitter")

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        shared_TS = F.linear(x_TD, self.weight.float())
        chosen_TK = logits_TE.gather(-1, index_TK).masked_fill(~used_TK, FAR)
        joint = torch.cat([chosen_TK, shared_TS], -1).softmax(-1)
        routed_TK, shared_TS = joint.split([index_TK.shape[-1], shared_TS.shape[-1]], -1)
        own_TK = chosen_TK.softmax(-1) if self.config.shares == "softmax" else self._winners(logits_TE, index_TK)
        own_TK = own_TK.masked_fill(~used_TK, 0.0)
        own_TK = own_TK / (own_TK.sum(-1, keepdim=True) + 1e-6) if self.config.shares == "winner" else own_TK
        return self.finish(own_TK * routed_TK.sum(-1, keepdim=True), index_TK, used_TK, logits_TE.shape[-1]), shared_TS

    def _winners(self, logits_TE: Tensor, index_TK: Tensor) -> Tensor:
        left_TE, shares = logits_TE, []
        for slot in range(index_TK.shape[-1]):
            best_T1 = left_TE.amax(-1, keepdim=True).detach()
            scale_TE = torch.maximum(logits_TE.abs(), best_T1.abs()).detach()
            far_TE = (best_T1 - logits_TE.detach()) / scale_TE > 2 * self.config.jitter
            index_T1 = index_TK[:, slot : slot + 1]
            shares.append(left_TE.masked_fill(far_TE, FAR).softmax(-1).gather(-1, index_T1))
            left_TE = left_TE.scatter(-1, index_T1, FAR)
        return torch.cat(shares, -1)


class SideBySide(Shared):
    """``count`` SwiGLU experts for every token, of ``intermediate_size``, weighed by the router or simply added
    (UniMoE-Audio, arXiv:2510.13344)."""

    @dataclass
    class Config(Shared.Config):
        count: int = 2
        intermediate_size: int = 256

        def __post_init__(self) -> None:
            at_least(1, self, "count", "intermediate_size")

    def make(self, hidden_size: int) -> None:
        count, inner = self.config.count, self.config.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(count, inner, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(count, inner, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, hidden_size, inner))
        for matrix in (self.gate_proj, self.up_proj, self.down_proj):
            if not matrix.is_meta:
                nn.init.normal_(matrix, std=0.02)

    def branch(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None and weight.shape[-1] != self.config.count:
            raise ZooError(f"the router weighs {weight.shape[-1]} shared experts, the layer has {self.config.count}")
        gate, up = (F.linear(x, m.flatten(0, 1).to(x.dtype)) for m in (self.gate_proj, self.up_proj))
        inner = (F.silu(gate) * up).unflatten(-1, (self.config.count, -1))
        inner = inner if weight is None else inner * weight[..., None]
        return F.linear(inner.flatten(-2), self.down_proj.transpose(0, 1).flatten(1).to(x.dtype))
