"""A part of this plugin's own: a new router is usually one new scorer, selector or weigher.

Any config can use it: ``model.body.moe.router={name: composed, scorer: birdsong/cosine}``.

Shapes: T tokens, E experts, D model width, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe import RouteContext


class Cosine(nn.Module):
    """Cosines between a low-rank view of the token and an embedding of each expert, divided by a learned temperature
    (X-MoE, Chi et al., arXiv:2204.09179)."""

    @dataclass
    class Config:
        rank: int = 8
        temperature: float = 0.3

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Parameter(torch.empty(config.rank, hidden_size))
        self.embedding = nn.Parameter(torch.empty(num_experts, config.rank))
        self.log_temperature = nn.Parameter(torch.empty(()))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.down, std=std)
        nn.init.normal_(self.embedding, std=std)
        nn.init.constant_(self.log_temperature, math.log(self.config.temperature))

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (T, E), and the state as it came. The router calls this in fp32."""
        view_TR = F.normalize(F.linear(x_TD, self.down.float()), dim=-1)
        embedding_ER = F.normalize(self.embedding.float(), dim=-1)
        return view_TR @ embedding_ER.T / self.log_temperature.float().exp(), state
