"""A router of this plugin's own. Any config can use it: ``model.body.moe.router.name=birdsong/cosine``.

Shapes: T tokens, K slots, E experts, D model width, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe import RouteContext, RouterOutput
from zoo.moe.router import full_precision


class Cosine(nn.Module):
    """Softmax over cosines between a low-rank view of the token and each expert's embedding, divided by a learned
    temperature; the top k of it (X-MoE, Chi et al., arXiv:2204.09179)."""

    @dataclass
    class Config:
        k: int = 2
        rank: int = 8
        temperature: float = 0.3

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Parameter(torch.empty(config.rank, hidden_size))
        self.embedding = nn.Parameter(torch.empty(num_experts, config.rank))
        self.log_temperature = nn.Parameter(torch.empty(()))

    @property
    def slots(self) -> int:
        return self.config.k

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.down, std=std)
        nn.init.normal_(self.embedding, std=std)
        nn.init.constant_(self.log_temperature, math.log(self.config.temperature))

    def forward(self, x_TD: Tensor, valid_T: Tensor, ctx: RouteContext, state: Any = None) -> RouterOutput:
        with full_precision(x_TD.device):
            view_TR = F.normalize(F.linear(x_TD.float(), self.down.float()), dim=-1)
            embedding_ER = F.normalize(self.embedding.float(), dim=-1)
            logits_TE = view_TR @ embedding_ER.T / self.log_temperature.float().exp()
            scores_TE = logits_TE.softmax(-1)
            select_TE = scores_TE.detach()
            if ctx.balancers is not None and (bias := ctx.balancers.bias(ctx.layer)) is not None:
                select_TE = select_TE + bias
            index_TK = select_TE.topk(self.config.k, dim=-1).indices
            used_TK = valid_T[:, None].expand_as(index_TK)
            weight_TK = scores_TE.gather(-1, index_TK).masked_fill(~used_TK, 0.0)
        return RouterOutput(logits_TE, scores_TE, select_TE, index_TK, weight_TK, used_TK, valid_T, state=state)
