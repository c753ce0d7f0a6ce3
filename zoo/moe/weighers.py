"""Weighers: how much. ``forward(x_TD, logits_TE, scores_TE, index_TK, used_TK, ctx) -> (weight_TK, shared_TS)``.

Unused slots get weight 0 from the router. ``shared_TS`` is None unless the weigher also weighs the shared experts.

Shapes: T tokens, K slots, E experts, S shared experts, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError

Weights = tuple[Tensor, Tensor | None]
FAR = -1e30


class Gather(nn.Module):
    """``w_e = s_e``, the scores of the chosen experts; ``renorm`` divides by their sum, ``scale`` multiplies.

    The last ``num_null`` experts are null: their weight is 0 and they stay out of the renormalisation, so that the true
    experts' weights sum to 1 (AdaMoE, arXiv:2406.13233; the zero expert of MoE++, arXiv:2410.07348). A null expert with
    ``num_null=0`` keeps its share, and the output shrinks (Uni-MoE-2.0, arXiv:2511.12609).
    """

    @dataclass
    class Config:
        renorm: bool = False
        scale: float = 1.0
        num_null: int = 0

        def __post_init__(self) -> None:
            at_least(0, self, "num_null")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if config.num_null > num_experts:
            raise ZooError(f"num_null={config.num_null} is more than num_experts={num_experts}")
        self.config = config

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        return self.finish(scores_TE.gather(-1, index_TK), index_TK, used_TK, scores_TE.shape[-1]), None

    def finish(self, weight_TK: Tensor, index_TK: Tensor, used_TK: Tensor, num_experts: int) -> Tensor:
        """Null, renormalise and scale."""
        c = self.config
        if c.num_null:
            used_TK = used_TK & (index_TK < num_experts - c.num_null)
        weight_TK = weight_TK.masked_fill(~used_TK, 0.0)
        if c.renorm:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return weight_TK * c.scale


class ChosenSoftmax(Gather):
    """``softmax`` over the chosen logits only (JetMoE, GPT-OSS, Moirai-MoE)."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        chosen_TK = logits_TE.gather(-1, index_TK).masked_fill(~used_TK, FAR)
        return self.finish(chosen_TK.softmax(-1), index_TK, used_TK, logits_TE.shape[-1]), None


class ChosenSigmoid(Gather):
    """``sigmoid`` of the chosen logits (Llama 4)."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        chosen_TK = logits_TE.gather(-1, index_TK)
        return self.finish(chosen_TK.sigmoid(), index_TK, used_TK, logits_TE.shape[-1]), None


class Uniform(Gather):
    """``w_e = 1`` for every chosen expert, or with ``renorm`` 1 / (number of them): where a label decides."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        return self.finish(used_TK.to(scores_TE.dtype), index_TK, used_TK, scores_TE.shape[-1]), None


class DecoupledScale(Gather):
    """``w_e = s_e + (V x)_e`` with a scale adapter ``V`` of its own: which expert and how much are two numbers
    (AdaMoE-VLA, arXiv:2510.14300)."""

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        both_TE = scores_TE + F.linear(x_TD, self.weight.float())
        return self.finish(both_TE.gather(-1, index_TK), index_TK, used_TK, scores_TE.shape[-1]), None


class JointSoftmax(Gather):
    """One softmax over routed and shared experts, ``softmax([z; V x])``: a shared expert weighs its share; the chosen
    experts divide all of the routed share among them with ``renorm``, else keep their own (Uni-MoE-2.0,
    arXiv:2511.12609; UniMoE-Audio)."""

    @dataclass
    class Config(Gather.Config):
        num_shared: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(1, self, "num_shared")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.weight = nn.Parameter(torch.empty(config.num_shared, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        experts = logits_TE.shape[-1]
        joint_TES = torch.cat([logits_TE, F.linear(x_TD, self.weight.float())], -1).softmax(-1)
        routed_TE, shared_TS = joint_TES[:, :experts], joint_TES[:, experts:]
        weight_TK = self.finish(routed_TE.gather(-1, index_TK), index_TK, used_TK, experts)
        return (weight_TK * routed_TE.sum(-1, keepdim=True) if self.config.renorm else weight_TK), shared_TS


class SparseMixer(Gather):
    """``w_j``, slot by slot, is the chosen expert's share of a softmax over what earlier slots left. In training an
    expert that is not the best one left counts in full with probability 1/4, else 1/3 of that, while its gradient is
    that of the share itself: Heun's third-order estimate of the gradient of sampling (SparseMixer, arXiv:2310.00811;
    GRIN, arXiv:2409.12136). Sample by the select hook ``gumbel`` with ``log``."""

    def forward(
        self, x_TD: Tensor, logits_TE: Tensor, scores_TE: Tensor, index_TK: Tensor, used_TK: Tensor, ctx: RouteContext
    ) -> Weights:
        left_TE, weights = logits_TE, []
        for slot in range(index_TK.shape[-1]):
            index_T1 = index_TK[:, slot : slot + 1]
            share_T1 = left_TE.softmax(-1).gather(-1, index_T1)
            if self.training:
                best_T1 = left_TE.argmax(-1, keepdim=True) == index_T1
                full_T1 = best_T1 | (torch.rand_like(share_T1) < 0.25)
                share_T1 = share_T1 - (share_T1 * torch.where(full_T1, 0.0, 2 / 3)).detach()
            weights.append(share_T1)
            left_TE = left_TE.scatter(-1, index_T1, FAR)
        return self.finish(torch.cat(weights, -1), index_TK, used_TK, logits_TE.shape[-1]), None
