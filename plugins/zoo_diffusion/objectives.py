"""What a denoiser is trained to predict, and the path from noise to data that follows from it.

A *predictor* is ``predict(x, time_B) -> prediction``, guidance included, for x of any shape (B, ...). A path is an
ordinary differential equation in a variable that falls from its first node to its last: ``dx/ds = slope(x, s)``.

Shapes: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from zoo.config import at_least

Predict = Callable[[Tensor, Tensor], Tensor]


class Node(NamedTuple):
    """A point of a path: the variable of the equation, and the time that the model is told there."""

    at: float
    time: float


def like(value_B: Tensor, x: Tensor) -> Tensor:
    """One value a sample, shaped to be multiplied with samples."""
    return value_B.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


class Objective:
    """Base of all objectives."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def times(self, uniform_B: Tensor) -> Tensor:
        """Times of training, from numbers that are uniform in (0, 1)."""
        raise TypeError(f"{type(self).__name__} must override times")

    def level(self, time_B: Tensor) -> Tensor:
        """How far towards pure noise a time is, 0 to 1."""
        raise TypeError(f"{type(self).__name__} must override level")

    def losses(self, predict: Predict, x: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """(B,): the loss of each sample."""
        raise TypeError(f"{type(self).__name__} must override losses")

    def path(self, steps: int) -> list[Node]:
        """``steps`` + 1 nodes, from noise to data."""
        raise TypeError(f"{type(self).__name__} must override path")

    def start(self, noise: Tensor) -> Tensor:
        """Where the path begins for standard normal noise."""
        return noise

    def slope(self, predict: Predict, x: Tensor, node: Node) -> Tensor:
        """``dx/ds`` at a node."""
        raise TypeError(f"{type(self).__name__} must override slope")


class RectifiedFlow(Objective):
    """``x_t = (1 - t) x + t z``; the model predicts the velocity ``z - x``, and ``dx/dt`` is what it predicts
    (arXiv:2209.03003; times as arXiv:2403.03206, section 3.1).

    Config:
        times: ``logit_normal``, t = sigmoid(N(0, 1)), as DiT-MoE; or ``uniform``.
    """

    @dataclass
    class Config:
        times: Literal["logit_normal", "uniform"] = "logit_normal"

    def times(self, uniform_B: Tensor) -> Tensor:
        if self.config.times == "uniform":
            return uniform_B
        return torch.special.ndtri(uniform_B.clamp(1e-6, 1 - 1e-6)).sigmoid()

    def level(self, time_B: Tensor) -> Tensor:
        return time_B

    def losses(self, predict: Predict, x: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        t = like(time_B, x)
        velocity = predict((1 - t) * x + t * noise, time_B)[:, : x.shape[1]]
        return (velocity - (noise - x)).square().flatten(1).mean(1)

    def path(self, steps: int) -> list[Node]:
        return [Node(1 - n / steps, 1 - n / steps) for n in range(steps + 1)]

    def slope(self, predict: Predict, x: Tensor, node: Node) -> Tensor:
        return predict(x, x.new_full((len(x),), node.time))[:, : x.shape[1]]


class DDPM(Objective):
    """``x_t = sqrt(a_t) x + sqrt(1 - a_t) z``, a_t the product of ``1 - beta``, beta linear over ``steps`` times; the
    model predicts the noise z (arXiv:2006.11239). With a variance beside it (twice the channels), the bound on the
    likelihood trains that too, its mean held fixed (arXiv:2102.09672, section 3.1: v in log space between the two
    bounds; each term over ``steps`` / 1000 as in its code).

    The path is the probability flow in ``sigma = sqrt((1 - a) / a)`` for ``x / sqrt(a)``, whose slope is the noise:
    Euler's steps are DDIM's (arXiv:2010.02502).
    """

    @dataclass
    class Config:
        steps: int = 1000
        beta_start: float = 1e-4
        beta_end: float = 0.02

        def __post_init__(self) -> None:
            at_least(2, self, "steps")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        scale = 1000 / config.steps
        self.beta = torch.linspace(scale * config.beta_start, scale * config.beta_end, config.steps).double()
        self.kept = torch.cumprod(1 - self.beta, 0)

    def times(self, uniform_B: Tensor) -> Tensor:
        return (uniform_B * self.config.steps).long().clamp(max=self.config.steps - 1)

    def level(self, time_B: Tensor) -> Tensor:
        return time_B / self.config.steps

    def losses(self, predict: Predict, x: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        kept = self.kept.to(x.device)[time_B]
        noisy = like(kept.sqrt(), x) * x + like((1 - kept).sqrt(), x) * noise
        both = predict(noisy, time_B)
        found, channels = both[:, : x.shape[1]], x.shape[1]
        loss_B = (found - noise).square().flatten(1).mean(1)
        if both.shape[1] == channels:
            return loss_B
        bound_B = self._bound(torch.cat([found.detach(), both[:, channels:]], 1), x, noisy, time_B)
        return loss_B + bound_B * self.config.steps / 1000

    def _bound(self, both: Tensor, x: Tensor, noisy: Tensor, time_B: Tensor) -> Tensor:
        """Terms of the variational bound, in bits a value: the divergence from the true posterior, and at time 0 how
        unlikely the 8-bit value is."""
        before_B = time_B - 1
        true_mean, true_var_B = self._posterior(x, noisy, time_B, before_B)
        mean, log_var = self.step(both, noisy, time_B, before_B)
        true_log = like(true_var_B.clamp(min=float(self._posterior_var(1))).log(), x)
        divergence = 0.5 * (log_var - true_log + (true_log - log_var).exp() - 1)
        divergence = divergence + 0.5 * (true_mean - mean).square() * (-log_var).exp()
        spread = (-0.5 * log_var).exp()
        high = torch.special.ndtr((x - mean + 1 / 255) * spread)
        low = torch.special.ndtr((x - mean - 1 / 255) * spread)
        high, low = torch.where(x > 0.999, 1.0, high), torch.where(x < -0.999, 0.0, low)
        unlikely = -(high - low).clamp(min=1e-12).log()
        terms = torch.where(like((time_B == 0).float(), x) > 0, unlikely, divergence)
        return terms.flatten(1).mean(1) / math.log(2)

    def _posterior_var(self, time: int) -> Tensor:
        return self.beta[time] * (1 - self.kept[time - 1]) / (1 - self.kept[time])

    def _steps(self, x: Tensor, time_B: Tensor, before_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept at a time and at an earlier one (-1: all of it), and beta of a step between them."""
        table = torch.cat([self.kept, self.kept.new_ones(1)]).to(x.device)  # its last row is that of time -1
        now_B, earlier_B = table[time_B], table[before_B]
        return now_B, earlier_B, 1 - now_B / earlier_B

    def _posterior(self, x: Tensor, noisy: Tensor, time_B: Tensor, before_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the picture at an earlier time, given the one now and the clean one."""
        now_B, earlier_B, beta_B = self._steps(x, time_B, before_B)
        rest_B = 1 - now_B
        mean = like(earlier_B.sqrt() * beta_B / rest_B, x) * x
        mean = mean + like((now_B / earlier_B).sqrt() * (1 - earlier_B) / rest_B, x) * noisy
        return mean, beta_B * (1 - earlier_B) / rest_B

    def step(self, both: Tensor, noisy: Tensor, time_B: Tensor, before_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the model's own step to an earlier time."""
        channels = noisy.shape[1]
        now_B, _, beta_B = self._steps(noisy, time_B, before_B)
        clean = (noisy - like((1 - now_B).sqrt(), noisy) * both[:, :channels]) / like(now_B.sqrt(), noisy)
        mean, var_B = self._posterior(clean, noisy, time_B, before_B)
        least = like(var_B.clamp(min=float(self._posterior_var(1))).log(), noisy)
        if both.shape[1] == channels:
            return mean, least.expand_as(noisy)
        share, most = (both[:, channels:] + 1) / 2, like(beta_B.log(), noisy)
        return mean, share * most + (1 - share) * least

    def spaced(self, steps: int) -> list[int]:
        """That many of the times, evenly spaced, from the last to the first."""
        last = self.config.steps - 1
        return [round(last * (1 - n / max(1, steps - 1))) for n in range(min(steps, self.config.steps))]

    def path(self, steps: int) -> list[Node]:
        sigma = ((1 - self.kept) / self.kept).sqrt()
        return [*(Node(float(sigma[t]), t) for t in self.spaced(steps)), Node(0.0, 0)]

    def start(self, noise: Tensor) -> Tensor:
        return noise / float(self.kept[-1].sqrt())

    def slope(self, predict: Predict, x: Tensor, node: Node) -> Tensor:
        time_B = torch.full((len(x),), int(node.time), device=x.device)
        return predict(x / math.sqrt(1 + node.at**2), time_B)[:, : x.shape[1]]
