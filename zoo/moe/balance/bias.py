"""Balance without a loss: a bias on the selection scores, which changes which experts and never how much.

Shapes: T tokens, E experts, N MoE layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.config import at_least
from zoo.moe.balance.base import Balancer
from zoo.moe.types import Routing
from zoo.spec import ZooError


class LossFree(Balancer):
    """``b_e += rate * sign(mean load - load_e)`` after every optimiser step, load counted over all micro-batches and
    processes of the step (arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437). ``zero_mean`` takes the mean off b, so
    that biases do not drift (Ling-2.0)."""

    @dataclass
    class Config:
        rate: float = 0.001
        zero_mean: bool = False

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        self.register_buffer("bias_NE", torch.zeros(num_layers, num_experts))
        self.register_buffer("seen_NE", torch.zeros(num_layers, num_experts), persistent=False)

    def bias(self, layer: int, scores_TE: Tensor, valid_T: Tensor) -> Tensor:
        return self.bias_NE[layer].to(scores_TE.dtype)

    def observe(self, routing: Routing) -> None:
        self.seen_NE += torch.stack([out.counts_E() for out in routing])

    def step(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.seen_NE)
        share_NE = self.seen_NE / self.seen_NE.sum(-1, keepdim=True).clamp(min=1)
        moved_NE = self.bias_NE + self.change(share_NE)
        if self.config.zero_mean:
            moved_NE = moved_NE - moved_NE.mean(-1, keepdim=True)
        # a layer that saw no token stays as it is
        self.bias_NE.copy_(torch.where(self.seen_NE.sum(-1, keepdim=True) > 0, moved_NE, self.bias_NE))
        self.seen_NE.zero_()

    def change(self, share_NE: Tensor) -> Tensor:
        """What is added to the biases, from each expert's share of the assignments."""
        rate: float = self.config.rate
        return rate * torch.sign(1 / share_NE.shape[-1] - share_NE)


class PID(LossFree):
    """``b_e += k_p d_e + k_i sum d_e + k_d (d_e - previous d_e)``, ``d_e = target - E * share_e`` scaled so that an
    even load is 1. Of the last ``num_free`` experts, which cost nothing, b stays 0, and the true ones together get
    ``true_share`` of the assignments (LongCat-Flash, arXiv:2509.01322)."""

    @dataclass
    class Config:
        kp: float = 0.001
        ki: float = 0.0
        kd: float = 0.0
        num_free: int = 0
        true_share: float = 1.0
        zero_mean: bool = False

        def __post_init__(self) -> None:
            at_least(0, self, "num_free")
            if self.zero_mean and self.num_free:
                raise ZooError("zero_mean would move the bias of free experts; choose zero_mean or num_free")

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        if config.num_free >= num_experts:
            raise ZooError(f"num_free={config.num_free} must be below num_experts={num_experts}")
        self.register_buffer("sum_NE", torch.zeros(num_layers, num_experts))
        self.register_buffer("before_NE", torch.zeros(num_layers, num_experts))

    def change(self, share_NE: Tensor) -> Tensor:
        c, experts = self.config, share_NE.shape[-1]
        true = experts - c.num_free
        error_NE = experts * (c.true_share / true - share_NE)
        error_NE = torch.where(torch.arange(experts, device=share_NE.device) < true, error_NE, 0.0)
        change_NE = c.kp * error_NE + c.ki * (self.sum_NE + error_NE) + c.kd * (error_NE - self.before_NE)
        seen_N1 = self.seen_NE.sum(-1, keepdim=True) > 0
        self.sum_NE.copy_(torch.where(seen_N1, self.sum_NE + error_NE, self.sum_NE))
        self.before_NE.copy_(torch.where(seen_N1, error_NE, self.before_NE))
        return change_NE


class BIP(Balancer):
    """Prices ``q_e`` of the experts that balance this very batch: choose by ``s - q``, weigh by s (arXiv:2502.15451).

    They are the dual of ``max sum s_te x_te`` with k experts a token and at most ``k T / E`` tokens an expert, by
    ``sweeps`` of: p_t between the k-th and the next largest ``s_te - q_e`` of a token, q_e between the ``k T // E``-th
    and the next largest ``s_te - p_t`` of an expert, from where the last step ended. The paper takes the next largest
    ones themselves, at least 0: the fixed point of that lies up to 5% above the optimum of the linear program on skewed
    scores, for it overloads experts; this one reaches it. A price depends on later tokens of the batch; in evaluation
    the last ones stay. `bias` only computes: the state moves in `step`, to what `observe` found in the last
    micro-batch, so that a forward pass that activation checkpointing repeats sees the same prices.
    """

    @dataclass
    class Config:
        k: int = 2
        sweeps: int = 8

        def __post_init__(self) -> None:
            at_least(1, self, "k", "sweeps")

    def __init__(self, config: Any, num_layers: int, num_experts: int) -> None:
        super().__init__(config, num_layers, num_experts)
        self.register_buffer("price_NE", torch.zeros(num_layers, num_experts))
        self.register_buffer("next_NE", torch.zeros(num_layers, num_experts), persistent=False)
        self.fresh = False

    def bias(self, layer: int, scores_TE: Tensor, valid_T: Tensor) -> Tensor:
        price_E = self.price_NE[layer].to(scores_TE.dtype)
        return -(self.prices(price_E, scores_TE, valid_T) if self.training else price_E)

    @torch.no_grad()
    def prices(self, price_E: Tensor, scores_TE: Tensor, valid_T: Tensor) -> Tensor:
        """Better prices after ``sweeps`` over the batch, the lowest one 0."""
        k, (tokens, experts) = self.config.k, scores_TE.shape
        if not tokens or k >= experts:
            return torch.zeros_like(price_E)
        valid = valid_T.sum()
        room = (valid * k // experts).clamp(min=1)
        most = min(tokens, max(1, tokens * k // experts) + 1)  # room, were no token padding, and one more
        margin_E2 = torch.stack([room - 1, room]).clamp(max=most - 1).expand(experts, 2)
        for _ in range(self.config.sweeps):
            gain_T1 = (scores_TE - price_E).topk(k + 1).values[:, k - 1 :].mean(-1, keepdim=True)
            wanted_TE = (scores_TE - gain_T1).masked_fill(~valid_T[:, None], -torch.inf)
            price_E = wanted_TE.T.contiguous().topk(most).values.gather(1, margin_E2).mean(-1)
            # where every expert has room for all, there is nothing to pay for
            price_E = torch.where(room < valid, price_E - price_E.amin(), 0.0)
        return price_E

    def observe(self, routing: Routing) -> None:
        for layer, out in enumerate(routing):
            if out.index_TK.shape[-1] != self.config.k:
                raise ZooError(f"bip k={self.config.k}, but the router takes {out.index_TK.shape[-1]}; set both alike")
            scores_TE = out.scores_TE.detach()
            self.next_NE[layer] = self.prices(self.price_NE[layer].to(scores_TE.dtype), scores_TE, out.valid_T)
        self.fresh = True

    def step(self) -> None:
        if not self.fresh:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.next_NE)
            self.next_NE /= dist.get_world_size()
        self.price_NE.copy_(self.next_NE)
        self.fresh = False
