"""Hooks: ``forward(values_TE, x_TD, ctx) -> values_TE``. As ``logit_hook`` they change the logits, and so which experts
and how much; as ``select_hook`` they change the selection scores, and so only which. -inf forbids an expert.

Shapes: T tokens, E experts, G groups, M modalities, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError


def expert_table(groups: list[list[int]], num_experts: int) -> Tensor:
    """(M, E) bool: which experts each entry of ``groups`` names. Raises `ZooError` for an expert that is not there."""
    table_ME = torch.zeros(len(groups), num_experts, dtype=torch.bool)
    for row, experts in enumerate(groups):
        for expert in experts:
            if not 0 <= expert < num_experts:
                raise ZooError(f"expert {expert} in {groups} is not among num_experts={num_experts} (0 to E - 1)")
            table_ME[row, expert] = True
    return table_ME


def deviation(values_TE: Tensor) -> Tensor:
    """(T, 1): standard deviation over experts, never 0 and with a gradient everywhere; T may be 0."""
    off_TE = values_TE - values_TE.mean(-1, keepdim=True)
    return (off_TE.square().sum(-1, keepdim=True) / max(1, values_TE.shape[-1] - 1) + 1e-12).sqrt()


class Bias(nn.Module):
    """``s_e + b_e`` with fixed ``b``: selection by hand. Learned biases are balancers."""

    @dataclass
    class Config:
        values: list[float] = field(default_factory=list)

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        values = config.values or [0.0] * num_experts
        if len(values) != num_experts:
            raise ZooError(f"bias values={values} must have one value for each of {num_experts} experts")
        self.register_buffer("value_E", torch.tensor(values, dtype=torch.float32))

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        return values_TE + self.value_E


class ModalityMask(nn.Module):
    """``-inf`` for the experts outside ``groups[modality]`` (MoIIE, arXiv:2508.09779: private and shared experts; MoMa,
    arXiv:2407.21770: private ones). A modality beyond the table may go anywhere."""

    @dataclass
    class Config:
        groups: list[list[int]] = field(default_factory=list)

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        table_ME = expert_table(config.groups, num_experts)
        if not all(config.groups):
            raise ZooError(f"modality mask groups={config.groups} leave a modality without any expert")
        free_1E = torch.ones(1, num_experts, dtype=torch.bool)
        self.register_buffer("allowed_ME", torch.cat([table_ME, free_1E]), persistent=False)

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        if ctx.modality is None:
            raise ZooError("the modality mask needs ctx.modality, which this model does not give; remove the hook")
        last = len(self.allowed_ME) - 1
        row_T = torch.where((ctx.modality >= 0) & (ctx.modality < last), ctx.modality, last)
        return values_TE.masked_fill(~self.allowed_ME[row_T], -torch.inf)


class GroupLimit(nn.Module):
    """Keeps the ``keep`` groups whose best ``top`` experts have the highest sum, -inf elsewhere (DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2: node-limited routing)."""

    @dataclass
    class Config:
        groups: int = 8
        keep: int = 4
        top: int = 2

        def __post_init__(self) -> None:
            at_least(1, self, "groups", "keep", "top")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        c = self.config = config
        if num_experts % c.groups or c.keep > c.groups or c.top > num_experts // c.groups:
            raise ZooError(f"group_limit groups={c.groups} keep={c.keep} top={c.top} do not fit {num_experts} experts")

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        c = self.config
        grouped_TGE = values_TE.unflatten(-1, (c.groups, -1))
        score_TG = grouped_TGE.topk(c.top, dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
        kept_TG = kept_TG.scatter(-1, score_TG.topk(c.keep, dim=-1).indices, True)
        return grouped_TGE.masked_fill(~kept_TG[..., None], -torch.inf).flatten(-2)


class Steer(nn.Module):
    """``v_e + alpha * std(v)`` for the named experts in the named layers (none named: all layers), or, with ``force``,
    they come before all others (steering of multilingual routing, soft and hard)."""

    @dataclass
    class Config:
        experts: list[int] = field(default_factory=list)
        alpha: float = 1.0
        force: bool = False
        layers: list[int] = field(default_factory=list)

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("chosen_E", expert_table([config.experts], num_experts)[0], persistent=False)

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        c = self.config
        if c.layers and ctx.layer not in c.layers:
            return values_TE
        finite_TE = values_TE.detach().masked_fill(values_TE == -torch.inf, 0.0)
        spread_T1 = (
            finite_TE.amax(-1, keepdim=True) - finite_TE.amin(-1, keepdim=True) + 1 if c.force else deviation(finite_TE)
        )
        return values_TE + (1.0 if c.force else c.alpha) * spread_T1 * self.chosen_E


class Gumbel(nn.Module):
    """``v + scale * Gumbel noise`` while training. On log-probabilities (``log``) with scale 1 the top k of it are a
    sample without replacement (SparseMixer, arXiv:2310.00811; MoMa, arXiv:2407.21770)."""

    @dataclass
    class Config:
        scale: float = 1.0
        log: bool = False

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.config = config

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        values_TE = values_TE.clamp(min=1e-30).log() if self.config.log else values_TE
        if not self.training:
            return values_TE
        return values_TE - self.config.scale * torch.empty_like(values_TE).exponential_().clamp(min=1e-30).log()


class StochasticWarmup(nn.Module):
    """``a z + (1 - a) (mean(z) + std(z) eps)``, ``a = min(step / steps, 1)``, ``eps`` normal: routing begins at random
    and becomes the router's own (Ling, arXiv:2503.05139). Off in evaluation."""

    @dataclass
    class Config:
        steps: int = 1000

        def __post_init__(self) -> None:
            at_least(1, self, "steps")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.steps = config.steps

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        own = ctx.progress(self.steps)
        if not self.training or own == 1:
            return values_TE
        noise_TE = values_TE.mean(-1, keepdim=True) + deviation(values_TE) * torch.randn_like(values_TE)
        return own * values_TE + (1 - own) * noise_TE


class NormaliseLogits(nn.Module):
    """``z / std(z) * scale`` (MoE++, arXiv:2410.07348)."""

    @dataclass
    class Config:
        scale: float = 1.0

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.scale = config.scale

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        return values_TE / deviation(values_TE) * self.scale


class GrowPool(nn.Module):
    """-inf for a random part of the experts that are not a layer's own, drawn anew each forward pass; the part shrinks
    linearly from all to none over ``steps`` (progressive scaling routing of ReXMoE). Off in evaluation.

    Of a pool of E experts, ``own`` belong to each of E / own neighbouring layers, in their order."""

    @dataclass
    class Config:
        own: int = 1
        steps: int = 1000

        def __post_init__(self) -> None:
            at_least(1, self, "own", "steps")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if config.own > num_experts:
            raise ZooError(f"grow_pool own={config.own} is more than num_experts={num_experts}")
        self.config = config

    def forward(self, values_TE: Tensor, x_TD: Tensor, ctx: RouteContext) -> Tensor:
        done = ctx.progress(self.config.steps)
        if not self.training or done == 1:
            return values_TE
        experts, own = values_TE.shape[-1], self.config.own
        others = experts - own
        rank_E = torch.rand(others, device=values_TE.device).argsort()
        closed_E = torch.cat([rank_E.new_zeros(own, dtype=torch.bool), rank_E < round(others * (1 - done))])
        closed_E = closed_E.roll(own * (ctx.layer % max(1, experts // own)))
        return values_TE.masked_fill(closed_E, -torch.inf)
