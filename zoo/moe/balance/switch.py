"""The Switch loss and its kin: share of assignments times mean gate probability, summed over experts.

Shapes: T tokens, K slots, E experts, N MoE layers, R rows over which shares and means are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.config import at_least
from zoo.moe.balance.base import Balancer, distribution, progress, tag
from zoo.moe.types import RouterOutput, Routing
from zoo.spec import ZooError


@dataclass
class SwitchConfig:
    """``coef`` goes linearly to ``end_coef`` over ``steps`` where those are given; ``layers`` says how the losses of
    the layers come together; ``choices`` which slots count as load; ``by`` splits the tokens; ``weighted`` counts every
    token as often as ``ctx.importance`` says."""

    coef: float = 0.01
    scope: Literal["micro_batch", "sequence", "global_batch", "all_layers", "pool"] = "micro_batch"
    norm: Literal["slots", "tokens"] = "slots"
    layers: Literal["sum", "mean"] = "sum"
    choices: Literal["all", "first"] = "all"
    by: Literal["none", "modality", "domain"] = "none"
    weighted: bool = False
    end_coef: float | None = None
    steps: int = 0
    pool: int = 1

    def __post_init__(self) -> None:
        at_least(0, self, "steps")
        at_least(1, self, "pool")
        if (self.pool > 1) != (self.scope == "pool"):
            raise ZooError(
                f"scope={self.scope} with pool={self.pool}: a pool of 2 or more layers is a scope of its own"
            )
        if self.by != "none" and self.scope in ("sequence", "global_batch"):
            raise ZooError(f"a balance loss by {self.by} has scope micro_batch, pool or all_layers, not {self.scope}")
        if self.end_coef is not None and not self.steps:
            raise ZooError("end_coef needs the number of steps on the way to it; set steps")


class Switch(Balancer):
    """``coef * E * sum_e f_e P_e``: f_e share of assignments, P_e mean gate probability (arXiv:2101.03961, eq. 4).

    ``scope`` says over what f and P are taken: each layer's micro-batch; each sequence of it, the mean over sequences
    (DeepSeek-V3, arXiv:2412.19437, eq. 17-20); each layer's global batch, f summed over processes and over the
    micro-batches of the step so far (arXiv:2501.11873, eq. 4); or all layers together as one long batch (Time-MoE, and
    transformers' Mixtral), or each ``pool`` of so many neighbouring layers that share their experts. ``layers`` adds
    the losses of the layers (MoE-LLaVA) or takes their mean (UniMoE-Audio).
    ``norm=tokens`` counts assignments per token, so that the value at balance is k; ``norm=slots`` makes it 1.
    ``by=modality`` takes a loss of each modality's tokens and adds them (MoIIE, arXiv:2508.09779).
    """

    Config: Any = SwitchConfig

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        self.register_buffer("seen_NE1", torch.zeros(num_layers, num_experts + 1), persistent=False)

    def inner(self, share_RE: Tensor, prob_RE: Tensor) -> Tensor:
        """(R,): what shares and mean probabilities make together; 1 at balance where the shares add up to 1."""
        return prob_RE.shape[-1] * (share_RE * prob_RE).sum(-1)

    def loss(self, routing: Routing) -> Tensor:
        c = self.config
        group_NT, rows = self._groups(routing)
        sums = [self._sums(out, group_T, rows) for out, group_T in zip(routing, group_NT, strict=True)]
        load_NRE, prob_NRE, total_NR = (torch.stack(each) for each in zip(*sums, strict=True))
        if c.scope in ("all_layers", "pool"):
            size = c.pool if c.scope == "pool" else len(routing)
            load_NRE, prob_NRE, total_NR = (
                torch.stack([part.sum(0) for part in each.split(size)]) for each in (load_NRE, prob_NRE, total_NR)
            )
        prob_NRE = prob_NRE / _at_least_a_bit(total_NR)
        if c.scope == "global_batch":
            seen_NE1 = torch.cat([load_NRE, total_NR[..., None]], -1)[:, 0] + self.seen_NE1
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(seen_NE1)
            load_NRE, total_NR = seen_NE1[:, None, :-1], seen_NE1[:, -1:]
        slots = 1 if c.norm == "tokens" or c.choices == "first" else routing[0].index_TK.shape[-1]
        share_NRE = load_NRE / (_at_least_a_bit(total_NR) * slots)
        loss_NR = self.inner(share_NRE, prob_NRE)
        if c.scope == "sequence":
            loss_NR = loss_NR * (total_NR > 0) / (total_NR > 0).sum(-1, keepdim=True).clamp(min=1)
        loss_N = loss_NR.sum(-1)
        return self._coef(routing) * (loss_N.mean() if c.layers == "mean" else loss_N.sum())

    def observe(self, routing: Routing) -> None:
        if self.config.scope == "global_batch":
            for seen_E1, out in zip(self.seen_NE1, routing, strict=True):
                load_RE, _, total_R = self._sums(out, torch.zeros_like(out.valid_T, dtype=torch.int64), 1)
                seen_E1 += torch.cat([load_RE[0], total_R])

    def step(self) -> None:
        self.seen_NE1.zero_()

    def _coef(self, routing: Routing) -> float:
        c = self.config
        coef: float = c.coef
        return coef if c.end_coef is None else coef + (c.end_coef - coef) * progress(routing, c.steps)

    def _groups(self, routing: Routing) -> tuple[list[Tensor], int]:
        """The row of every token of every layer, and how many rows there are."""
        c = self.config
        if c.scope != "sequence" and c.by == "none":
            return [torch.zeros_like(out.valid_T, dtype=torch.int64) for out in routing], 1
        name = "seq_id" if c.scope == "sequence" else c.by
        each = tag(routing, name, "a balance loss for each " + name.removesuffix("_id"))
        ids, row_T = torch.unique(torch.cat(each), return_inverse=True)
        return list(row_T.split([len(value) for value in each])), max(1, len(ids))

    def _sums(self, out: RouterOutput, group_T: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: load (R, E), probability (R, E) and number of tokens (R,), summed over its valid tokens."""
        c, experts = self.config, out.num_experts
        weight_T = out.valid_T.to(out.scores_TE.dtype)
        if c.weighted:
            weight_T = weight_T * tag((out,), "importance", "a weighted balance loss")[0]
        slots = slice(1) if c.choices == "first" else slice(None)
        index_TK, used_TK = out.index_TK[:, slots], out.used_TK[:, slots]
        place_N = (group_T[:, None] * experts + index_TK).flatten()
        load = weight_T.new_zeros(rows * experts).index_add(0, place_N, (used_TK * weight_T[:, None]).flatten())
        prob_TE = distribution(out) * weight_T[:, None]
        prob_RE = prob_TE.new_zeros(rows, experts).index_add(0, group_T, prob_TE)
        return load.view(rows, experts), prob_RE, weight_T.new_zeros(rows).index_add(0, group_T, weight_T)


class DeviceLevel(Switch):
    """``coef * E * sum_d f'_d P'_d``, f' the mean share and P' the summed probability of the experts of a device:
    ``devices`` equal groups of neighbours (DeepSeek-V2, arXiv:2405.04434, device-level balance loss)."""

    @dataclass
    class Config(SwitchConfig):
        devices: int = 2

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        if config.devices < 1 or num_experts % config.devices:
            raise ZooError(f"devices={config.devices} must divide num_experts={num_experts}")

    def inner(self, share_RE: Tensor, prob_RE: Tensor) -> Tensor:
        share_RDE, prob_RDE = (value.unflatten(-1, (self.config.devices, -1)) for value in (share_RE, prob_RE))
        return prob_RE.shape[-1] * (share_RDE.mean(-1) * prob_RDE.sum(-1)).sum(-1)


class NullMean(Switch):
    """The Switch loss with the shares of the last ``num_null`` experts replaced by their mean: it controls how much
    goes to null experts, not to which of them (AdaMoE, arXiv:2406.13233)."""

    @dataclass
    class Config(SwitchConfig):
        num_null: int = 1

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        if not 0 < config.num_null <= num_experts:
            raise ZooError(f"num_null={config.num_null} must be from 1 to num_experts={num_experts}")

    def inner(self, share_RE: Tensor, prob_RE: Tensor) -> Tensor:
        true = share_RE.shape[-1] - self.config.num_null
        mean_RE = share_RE[..., true:].mean(-1, keepdim=True).expand(*share_RE.shape[:-1], self.config.num_null)
        return super().inner(torch.cat([share_RE[..., :true], mean_RE], -1), prob_RE)


class Weighted(Switch):
    """``coef * E * sum_e eta_e f_e P_e`` with eta = 1 for true experts and ``tau`` for the last ``num_free``, which
    cost nothing: the smaller, the more they may take (MoE++, arXiv:2410.07348, eq. 7, there without E and with f per
    token: ``norm=tokens`` and ``coef`` over E)."""

    @dataclass
    class Config(SwitchConfig):
        num_free: int = 1
        tau: float = 0.75

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        if not 0 < config.num_free <= num_experts:
            raise ZooError(f"num_free={config.num_free} must be from 1 to num_experts={num_experts}")
        eta_E = torch.ones(num_experts)
        eta_E[num_experts - config.num_free :] = config.tau
        self.register_buffer("eta_E", eta_E, persistent=False)

    def inner(self, share_RE: Tensor, prob_RE: Tensor) -> Tensor:
        return super().inner(share_RE * self.eta_E, prob_RE)


def _at_least_a_bit(total_NR: Tensor) -> Tensor:
    """(N, R) or (N, R, 1)-shaped divisor: empty rows divide by 1."""
    return torch.where(total_NR > 0, total_NR, 1.0)[..., None]
