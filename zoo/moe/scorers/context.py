"""Scorers that look at more than the token: at the layers below, at what conditions the model, at the experts' weights.

Shapes: T tokens, E experts, D model width, F expert width, H router state width, C conditioning width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.hooks import expert_table
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


class GRU(nn.Module):
    """A GRU cell in fp32 whatever the precision of its parameters. ``forward(x_TH, h_TH) -> h_TH``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(size, size)

    def forward(self, x_TH: Tensor, h_TH: Tensor) -> Tensor:
        c = self.cell
        weights = (c.weight_ih.float(), c.weight_hh.float(), c.bias_ih.float(), c.bias_hh.float())
        return torch.gru_cell(x_TH, h_TH, *weights)


class Recurrent(nn.Module):
    """``h_l = GRU(A_l x, h_{l-1})``, ``z = B_l h_l``, ``h_0 = 0`` (RMoE, arXiv:2408.06793, eq. 4-6).

    The recurrence runs over depth, for each token on its own. With ``gru=shared`` one cell serves all layers; the stack
    owns it and passes it in ``ctx.common``. ``gru=own`` gives every layer its own.
    """

    @dataclass
    class Config:
        size: int = 256
        gru: Literal["shared", "own"] = "shared"

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Parameter(torch.empty(config.size, hidden_size))
        self.up = nn.Parameter(torch.empty(num_experts, config.size))
        self.gru = GRU(config.size) if config.gru == "own" else None

    def common(self) -> nn.Module | None:
        return GRU(self.config.size) if self.gru is None else None

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.down, std=std)
        nn.init.normal_(self.up, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        cell = self.gru if self.gru is not None else ctx.common
        if cell is None:
            raise ZooError("the recurrent scorer has no shared GRU here (ctx.common); set router.scorer.gru=own")
        x_TH = F.linear(x_TD, self.down.float())
        state = cell(x_TH, torch.zeros_like(x_TH) if state is None else state)
        return F.linear(state, self.up.float()), state


class GateResidual(nn.Module):
    """``z_l = W_l x + U_l z_{l-1}``, ``z_0 = 0`` (gating residuals of MoE++, arXiv:2410.07348, eq. 6). Normalisation of
    the logits is the logit hook ``normalise``; the next layer sees them without it, as in the authors' code."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.residual = nn.Parameter(torch.empty(num_experts, num_experts))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        nn.init.normal_(self.residual, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        logits_TE = F.linear(x_TD, self.weight.float())
        # Zeros rather than nothing in the first layer: every parameter has a gradient, as DDP wants.
        logits_TE = logits_TE + F.linear(torch.zeros_like(logits_TE) if state is None else state, self.residual.float())
        return logits_TE, logits_TE


class Conditional(nn.Module):
    """``z = W c``, ``c = ctx.cond``: routed by noise level, text or task alone, so that a decision can be cached for
    each ``c``. With ``token`` also by the token: ``z = W c + V x``."""

    @dataclass
    class Config:
        size: int = 256
        token: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, config.size))
        self.token = nn.Parameter(torch.empty(num_experts, hidden_size)) if config.token else None

    def reset_parameters(self, std: float) -> None:
        for weight in (self.weight, self.token):
            if weight is not None:
                nn.init.normal_(weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        if ctx.cond is None:
            raise ZooError("the conditional scorer needs ctx.cond, which this model does not give; use another scorer")
        logits_TE = F.linear(ctx.cond.float(), self.weight.float())
        return logits_TE if self.token is None else logits_TE + F.linear(x_TD, self.token.float()), state


class ByModality(nn.Module):
    """``z_e = (W_m x)_e`` for the experts ``groups[m]``, ``m = ctx.modality``, and -inf for all others: a router of its
    own for each modality, over private and shared experts (MoIIE, arXiv:2508.09779). A modality beyond the groups has
    the last one's."""

    @dataclass
    class Config:
        groups: list[list[int]] = field(default_factory=list)

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        groups = config.groups or [list(range(num_experts))]
        expert_table(groups, num_experts)
        if not all(groups):
            raise ZooError(f"by_modality groups={groups} leave a modality without any expert")
        self.groups, self.num_experts = groups, num_experts
        self.weight = nn.ParameterList(torch.empty(len(group), hidden_size) for group in groups)

    def reset_parameters(self, std: float) -> None:
        for weight in self.weight:
            nn.init.normal_(weight, std=std)

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        if ctx.modality is None:
            raise ZooError("the by_modality scorer needs ctx.modality, which this model does not give; use another one")
        # All of them and then one's own: the matrices are small, and no shape depends on the data.
        own_T, logits_TE = ctx.modality.clamp(0, len(self.groups) - 1), x_TD.new_zeros(len(x_TD), self.num_experts)
        for m, (group, weight) in enumerate(zip(self.groups, self.weight, strict=True)):
            theirs_TE = torch.full_like(logits_TE, -torch.inf)
            theirs_TE[:, group] = F.linear(x_TD, weight.float())
            logits_TE = torch.where((own_T == m)[:, None], theirs_TE, logits_TE)
        return logits_TE, state


class SparsityAware(nn.Module):
    """``z_e = -erf(mu_e / (sqrt(2) sigma_e))``, ``mu_e = sum_d x_d mean_f W1_efd``, ``sigma_e^2 = sum_d x_d^2 var_f
    W1_efd``: 1 minus twice the share of expert e's units that would be positive, were its weights normal (MoE-X,
    arXiv:2503.07639, which takes the softmax over the chosen experts: weigher ``chosen_softmax``).

    No parameters of its own: it looks at ``ctx.experts.first_EFD()``, the matrix before the experts' activation, and
    its gradient goes there.
    """

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, ctx: RouteContext, state: Any = None) -> tuple[Tensor, Any]:
        if not hasattr(ctx.experts, "first_EFD"):
            raise ZooError("the sparsity_aware scorer needs experts with one first matrix each, such as swiglu")
        first_EFD = ctx.experts.first_EFD().float()  # type: ignore[union-attr,operator]
        mean_ED, variance_ED = first_EFD.mean(1), first_EFD.var(1, correction=0)
        sigma_TE = (F.linear(x_TD.square(), variance_ED) + 1e-12).sqrt()
        return -torch.erf(F.linear(x_TD, mean_ED) / (sigma_TE * 2**0.5)), state
