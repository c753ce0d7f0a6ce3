"""Losses on a layer's scores and logits, each added over the layers.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.balance.base import Balancer, distribution, tag, valid_mean
from zoo.moe.types import RouterOutput, Routing
from zoo.spec import ZooError


class Nothing(Balancer):
    """No balance at all, said aloud: label-routed systems, and those balanced by construction."""

    @dataclass
    class Config:
        pass


class Term(Balancer):
    """``coef`` times the sum over layers of what `of` says of one."""

    @dataclass
    class Config:
        coef: float = 0.01

    def of(self, out: RouterOutput) -> Tensor:
        """A scalar of one layer."""
        raise TypeError(f"{type(self).__name__} must override of")

    def loss(self, routing: Routing) -> Tensor:
        coef: float = self.config.coef
        return coef * torch.stack([self.of(out) for out in routing]).sum()


class ZLoss(Term):
    """``coef * mean_t logsumexp_e(logits)^2``, added over layers (ST-MoE, arXiv:2202.08906, eq. 5)."""

    @dataclass
    class Config:
        coef: float = 0.001

    def of(self, out: RouterOutput) -> Tensor:
        return valid_mean(out.logits_TE.logsumexp(-1).square(), out.valid_T)


class Entropy(Term):
    """``+- coef * H(p)``, ``H(p) = -sum_e p_e log p_e``: of each token's scores, the mean over tokens, or (``of=load``)
    of the mean scores. ``minimise`` makes a token's choice sharp (dynamic top-p, MoE-ACT); ``maximise`` with
    ``of=load`` spreads the load. Papers differ in the sign: it has no default."""

    @dataclass
    class Config:
        direction: Literal["minimise", "maximise", "unset"] = "unset"
        coef: float = 0.01
        of: Literal["token", "load"] = "token"

        def __post_init__(self) -> None:
            if self.direction == "unset":
                raise ZooError("the entropy loss has no default sign; set direction=minimise or direction=maximise")

    def of(self, out: RouterOutput) -> Tensor:
        share_TE = distribution(out)
        if self.config.of == "load":
            share_TE = share_TE.sum(0, keepdim=True) / out.valid_T.sum().clamp(min=1)
        entropy_T = -(share_TE * share_TE.clamp(min=1e-20).log()).sum(-1)
        entropy = entropy_T.sum() if self.config.of == "load" else valid_mean(entropy_T, out.valid_T)
        return entropy if self.config.direction == "minimise" else -entropy


class LoadVariance(Term):
    """``coef * E * sum_e (P_e - 1/E)^2``, E^2 times the variance over experts of their mean scores (MENTOR, S142)."""

    def of(self, out: RouterOutput) -> Tensor:
        mean_E = distribution(out).sum(0) / out.valid_T.sum().clamp(min=1)
        spread = len(mean_E) * (mean_E - 1 / len(mean_E)).square().sum()
        return torch.where(out.valid_T.any(), spread, spread * 0)


class LabelCrossEntropy(Term):
    """``-coef * mean_t (1 - p_y)^gamma sum_e q_e log p_e``, p the softmax of the logits, q the expert ``ctx.label``,
    smoothed to ``1 - smoothing + smoothing / E`` there and ``smoothing / E`` elsewhere. ``gamma=0`` is cross-entropy
    (MoE-ACT: smoothing 0.2), ``gamma=2`` the focal loss (arXiv:1708.02002). Negative labels do not count."""

    @dataclass
    class Config:
        coef: float = 0.1
        gamma: float = 0.0
        smoothing: float = 0.0

    def of(self, out: RouterOutput) -> Tensor:
        label_T = tag((out,), "label", "the label loss")[0].long()
        counts_T = out.valid_T & (label_T >= 0)
        log_TE = out.logits_TE.log_softmax(-1)
        # not masked logits, which may be -inf: a smoothed target would make them infinite
        own_T = log_TE.gather(-1, label_T.clamp(0, out.num_experts - 1)[:, None])[:, 0]
        entropy_T = -own_T
        if self.config.smoothing:
            s = self.config.smoothing
            entropy_T = (1 - s) * entropy_T - s * log_TE.clamp(min=-1e4).mean(-1)
        return valid_mean(entropy_T * (1 - own_T.exp()).clamp(min=1e-12) ** self.config.gamma, counts_T)


class Orthogonality(Term):
    """``coef * sum_(i != j) cos^2(s_i, s_j)``, s_e the scores of expert e over the tokens of the batch: experts that
    are wanted by the same tokens are pushed apart (router similarity of Race-DiT, arXiv:2503.16057)."""

    def of(self, out: RouterOutput) -> Tensor:
        share_TE = distribution(out)
        unit_TE = share_TE / (share_TE.square().sum(0, keepdim=True) + 1e-12).sqrt()
        cosine_EE = unit_TE.T @ unit_TE
        return cosine_EE.square().sum() - cosine_EE.diagonal().square().sum()
