"""Scorers that look at the token (or at what the unit made of several tokens) and nothing else.

Shapes: T tokens, E experts, D model width, R rank, H hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


class Linear(nn.Module):
    """``z = W x [+ b]``: the router of nearly every published system (Shazeer et al., arXiv:1701.06538)."""

    @dataclass
    class Config:
        bias: bool = False

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if config.bias else None

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x_TD, self.weight.float(), bias), state


class Nothing(nn.Module):
    """``z = 0``, no parameters: for selectors that know already (label, modality, hash, forced)."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        return x_TD.new_zeros(len(x_TD), self.num_experts), state


class Cosine(nn.Module):
    """``z_e = cos(V x, p_e) / tau``, ``tau`` learned (X-MoE, arXiv:2204.09179). ``rank=0`` leaves the projection ``V``
    out: prototypes in the model's own space (ProMoE)."""

    @dataclass
    class Config:
        rank: int = 0
        temperature: float = 0.07

        def __post_init__(self) -> None:
            at_least(0, self, "rank")
            if self.temperature <= 0:
                raise ZooError(f"temperature={self.temperature} must be above 0")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Parameter(torch.empty(config.rank, hidden_size)) if config.rank else None
        self.prototype = nn.Parameter(torch.empty(num_experts, config.rank or hidden_size))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    def reset_parameters(self, std: float) -> None:
        for weight in (self.prototype, self.down):
            if weight is not None:
                nn.init.normal_(weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        view_TR = x_TD if self.down is None else F.linear(x_TD, self.down.float())
        cosine_TE = F.normalize(view_TR, dim=-1) @ F.normalize(self.prototype.float(), dim=-1).T
        return cosine_TE / self.log_temperature.float().exp(), state


class MLP(nn.Module):
    """``z = W_n relu(... W_1 x + b_1 ...) + b_n``, dropout after the first layer (DriftMoE); or silu (MoE-ACT)."""

    @dataclass
    class Config:
        hidden: list[int] = field(default_factory=lambda: [256, 128])
        dropout: float = 0.0
        activation: Literal["relu", "silu"] = "relu"

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        sizes = [hidden_size, *config.hidden, num_experts]
        self.dropout, self.act = config.dropout, F.silu if config.activation == "silu" else F.relu
        self.weight = nn.ParameterList(torch.empty(after, before) for before, after in pairwise(sizes))
        self.bias = nn.ParameterList(torch.zeros(size) for size in sizes[1:])

    def reset_parameters(self, std: float) -> None:
        for weight in self.weight:
            nn.init.xavier_normal_(weight)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        y_TH, last = x_TD, len(self.weight) - 1
        for n, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            y_TH = F.linear(y_TH, weight.float(), bias.float())
            y_TH = y_TH if n == last else self.act(y_TH)
            y_TH = F.dropout(y_TH, self.dropout, self.training) if n == 0 and last else y_TH
        return y_TH, state


class Centroid(nn.Module):
    """``z_e = sign * |x - C_e|``, the centroids ``C`` fixed (Moirai-MoE, arXiv:2410.10469).

    ``sign=-1`` prefers the nearest centroid; the released checkpoints select the farthest, so they need ``+1``. The
    buffer is filled by a checkpoint, or from k-means: ``scorer.centroid_ED.copy_(centroids)``.
    """

    @dataclass
    class Config:
        sign: Literal[-1, 1] = -1

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.sign = float(config.sign)
        self.register_buffer("centroid_ED", torch.zeros(num_experts, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.centroid_ED)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        # Exact differences: the expansion through |x|^2 - 2 x C + |C|^2 loses digits for near centroids.
        distance_TE = torch.cdist(x_TD, self.centroid_ED.float(), compute_mode="donot_use_mm_for_euclid_dist")
        return self.sign * distance_TE, state


class DomainEmbedding(nn.Module):
    """``z_e = r_e . x + min(b_e, 0)``; ``b`` is 0 for the ``public`` experts (FlexOlmo, arXiv:2507.07024).

    The rows ``r`` start from embeddings of the experts' corpora: ``scorer.weight.data[e].copy_(embedding)``. The bias
    is in the logits, so unlike a selection bias it changes weights as well.
    """

    @dataclass
    class Config:
        public: list[int] = field(default_factory=lambda: [0])

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if not all(0 <= expert < num_experts for expert in config.public):
            raise ZooError(f"public={config.public} names experts beyond num_experts={num_experts}")
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts))
        own_E = torch.tensor([expert not in config.public for expert in range(num_experts)])
        self.register_buffer("own_E", own_E, persistent=False)

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        # Not clamp: at 0, where the bias starts, its gradient is 0.
        bias_E = torch.where(self.own_E & (self.bias <= 0), self.bias.float(), 0.0)
        return F.linear(x_TD, self.weight.float(), bias_E), state


class Uncertainty(nn.Module):
    """``z = Sigma^(-1/2) mu``: mean and covariance of the logits over ``samples`` passes with dropout on ``x`` (the
    uncertainty-aware router of MoFME, arXiv:2312.16610).

    The covariance is a statistic: no gradient flows through it; ``floor`` is added to its diagonal. Evaluation uses the
    same rule with dropout masks that were drawn once, so it is deterministic.
    """

    @dataclass
    class Config:
        samples: int = 5
        dropout: float = 0.1
        floor: float = 1e-2

        def __post_init__(self) -> None:
            at_least(2, self, "samples")
            if not 0 < self.dropout < 1 or self.floor <= 0:
                raise ZooError(f"dropout={self.dropout} must lie in (0, 1), and floor={self.floor} be above 0")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.register_buffer("mask_SD", torch.ones(config.samples, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        self.mask_SD.bernoulli_(1 - self.config.dropout).div_(1 - self.config.dropout)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        c = self.config
        if self.training:
            seen_TSD = F.dropout(x_TD[:, None].expand(-1, c.samples, -1), c.dropout)
        else:
            seen_TSD = x_TD[:, None] * self.mask_SD.float()
        logits_TSE = F.linear(seen_TSD, self.weight.float())
        mean_TE = logits_TSE.mean(1)
        with torch.no_grad():
            off_TSE = logits_TSE - mean_TE[:, None]
            covariance_TEE = off_TSE.mT @ off_TSE / (c.samples - 1)
            value_TE, vector_TEE = torch.linalg.eigh(covariance_TEE + c.floor * torch.eye(mean_TE.shape[-1]).to(x_TD))
            root_TEE = vector_TEE * value_TE.clamp(min=c.floor).rsqrt()[:, None] @ vector_TEE.mT
        return (root_TEE @ mean_TE[..., None])[..., 0], state
