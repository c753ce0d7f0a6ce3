"""How a path from noise to data is walked. A sampler is ``run(objective, predict, noise, draw, tick) -> x``.

Shapes: B samples; x of any shape (B, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zoo.config import at_least
from zoo.spec import ZooError
from zoo_diffusion.objectives import DDPM, Objective, Predict


class Sampler:
    """Base of all samplers. ``evaluations`` is how often ``run`` asks the model, and calls ``tick``."""

    @dataclass
    class Config:
        steps: int = 50

        def __post_init__(self) -> None:
            at_least(1, self, "steps")

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def evaluations(self) -> int:
        steps: int = self.config.steps
        return steps

    def run(
        self,
        objective: Objective,
        predict: Predict,
        noise: Tensor,
        draw: Callable[[], Tensor],
        tick: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Samples, one for each of ``noise``. ``draw()`` gives fresh noise of the same shape."""
        raise TypeError(f"{type(self).__name__} must override run")


class Euler(Sampler):
    """``x <- x + (s' - s) slope(x, s)``: one evaluation a step."""

    def run(
        self,
        objective: Objective,
        predict: Predict,
        noise: Tensor,
        draw: Callable[[], Tensor],
        tick: Callable[[], None] = lambda: None,
    ) -> Tensor:
        x = objective.start(noise)
        for node, below in pairwise(objective.path(self.config.steps)):
            x = x + (below.at - node.at) * objective.slope(predict, x, node)
            tick()
        return x


class Heun(Sampler):
    """Euler's step, then once more with the mean of the slopes at both ends (as EDM, arXiv:2206.00364, algorithm 1):
    two evaluations a step, one at the last."""

    @property
    def evaluations(self) -> int:
        return 2 * int(self.config.steps) - 1

    def run(
        self,
        objective: Objective,
        predict: Predict,
        noise: Tensor,
        draw: Callable[[], Tensor],
        tick: Callable[[], None] = lambda: None,
    ) -> Tensor:
        x, path = objective.start(noise), objective.path(self.config.steps)
        for node, below in pairwise(path):
            slope = objective.slope(predict, x, node)
            tick()
            if below is not path[-1]:
                ahead = objective.slope(predict, x + (below.at - node.at) * slope, below)
                slope = (slope + ahead) / 2
                tick()
            x = x + (below.at - node.at) * slope
        return x


class Ancestral(Sampler):
    """DDPM's own chain over evenly spaced times, with fresh noise at each step (arXiv:2006.11239, algorithm 2)."""

    @dataclass
    class Config(Sampler.Config):
        steps: int = 250

    def run(
        self,
        objective: Objective,
        predict: Predict,
        noise: Tensor,
        draw: Callable[[], Tensor],
        tick: Callable[[], None] = lambda: None,
    ) -> Tensor:
        if not isinstance(objective, DDPM):
            raise ZooError(
                "sampler diffusion/ancestral is DDPM's own; set task.sampler=diffusion/heun for other models"
            )
        x = noise
        for time, before in pairwise([*objective.spaced(self.config.steps), -1]):
            time_B, before_B = (torch.full((len(x),), t, device=x.device) for t in (time, before))
            mean, log_var = objective.step(predict(x, time_B), x, time_B, before_B)
            x = mean if before < 0 else mean + (0.5 * log_var).exp() * draw()
            tick()
        return x
