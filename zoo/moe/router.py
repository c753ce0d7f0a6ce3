"""Routers: from token states to experts and weights. Routing is done in fp32 whatever the precision around it.

Shapes: T tokens, K slots, E experts, D model width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.types import RouteContext, RouterOutput
from zoo.spec import ZooError


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off; the meta device knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class TopK(nn.Module):
    """Linear scores, top-k of them, and the gate conventions of the literature as flags.

    ======================================  ==========================================================
    softmax, score_then_topk, renorm=False  Switch, Time-MoE, DiT-MoE, OLMoE, DeepSeekMoE
    softmax, score_then_topk, renorm=True   Mixtral, Qwen3-MoE
    softmax, topk_then_score                JetMoE, GPT-OSS: softmax over the chosen logits only
    sigmoid, renorm=True, scale=2.5         DeepSeek-V3 (its selection bias is a balancer)
    ======================================  ==========================================================
    """

    @dataclass
    class Config:
        k: int = 2
        score: Literal["softmax", "sigmoid"] = "softmax"
        order: Literal["score_then_topk", "topk_then_score"] = "score_then_topk"
        renorm: bool = False
        scale: float = 1.0

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not 1 <= config.k <= num_experts:
            raise ZooError(f"router.k={config.k} must lie between 1 and num_experts={num_experts}")
        self.config = config
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    @property
    def slots(self) -> int:
        """Slots per token, the K of `RouterOutput`."""
        return self.config.k

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, x_TD: Tensor, valid_T: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        c = self.config
        with full_precision(x_TD.device):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
            scores_TE = logits_TE.sigmoid() if c.score == "sigmoid" else logits_TE.softmax(-1)
            select_TE = scores_TE if c.order == "score_then_topk" else logits_TE
            if ctx.balancers is not None and (bias := ctx.balancers.bias(ctx.layer)) is not None:
                select_TE = select_TE.detach() + bias
            index_TK = select_TE.topk(c.k, dim=-1).indices
            if c.order == "score_then_topk":
                weight_TK = scores_TE.gather(-1, index_TK)
            else:
                chosen_TK = logits_TE.gather(-1, index_TK)
                weight_TK = chosen_TK.sigmoid() if c.score == "sigmoid" else chosen_TK.softmax(-1)
            if c.renorm:
                weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
            used_TK = valid_T[:, None].expand_as(index_TK)
            weight_TK = (weight_TK * c.scale).masked_fill(~used_TK, 0.0)
        return RouterOutput(logits_TE, scores_TE, select_TE, index_TK, weight_TK, used_TK, valid_T, state=state)
