"""From chunks to one action at a time: carry out some of a chunk, or average what all chunks say of a step.

Shapes: S state, K actions of a chunk, A numbers of an action, P phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.spec import ZooError
from zoo_robotics.models.policy import Chunk, Policy


class Executor:
    """Carries a policy's chunks out, one episode at a time, a batch of one.

    Attributes:
        fresh: whether the last step asked the policy anew.
        execute, ensemble: the policy's own settings unless they are given (see `PolicyConfig`).
    """

    def __init__(self, policy: Policy, execute: int | None = None, ensemble: float | None = None) -> None:
        self.policy = policy
        self.ensemble = policy.config.ensemble if ensemble is None and execute is None else ensemble
        self.execute = 1 if self.ensemble is not None else execute or policy.config.execute
        self.reset()

    def reset(self) -> None:
        """Forget the episode: nothing of its chunks reaches the next one."""
        self.chunks: list[tuple[int, Chunk]] = []  # with the step each was made at, oldest first
        self.now = 0
        self.fresh = False

    def step(
        self,
        observation_S: Tensor,
        task: int,
        generator: torch.Generator | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The action (A,) in [-1, 1] for this observation, and the gate (P,) behind it or None.

        Args:
            extra: further inputs of the policy (``images``), with a batch dimension of 1.

        Raises:
            ZooError: the observation has another size than the policy's, or the policy said NaN.
        """
        self.fresh = not self.chunks or self.ensemble is not None or self.now - self.chunks[-1][0] >= self.execute
        if self.fresh:
            batch = {"observation": observation_S[None], "task": torch.tensor([task]), **(extra or {})}
            batch = {name: value.to(self.policy.device) for name, value in batch.items()}
            chunk = self.policy.act(batch, generator)
            if not bool(chunk.actions_BKA.isfinite().all()):
                raise ZooError(
                    f"policy {self.policy.zoo_name or type(self.policy).__name__} says NaN at step {self.now} of an "
                    f"episode; look at its training loss, or at the observation for numbers that are not finite"
                )
            self.chunks.append((self.now, chunk))
        size = self.policy.chunk
        self.chunks = [(made, chunk) for made, chunk in self.chunks if self.now - made < size]
        self.chunks = self.chunks if self.ensemble is not None else self.chunks[-1:]
        actions = torch.stack([chunk.actions_BKA[0, self.now - made] for made, chunk in self.chunks])
        gates = [chunk.gate_BKP[0, self.now - made] for made, chunk in self.chunks if chunk.gate_BKP is not None]
        weight = weights(len(self.chunks), self.ensemble or 0.0).to(actions)
        self.now += 1
        return (weight @ actions).cpu(), (weight @ torch.stack(gates)).cpu() if gates else None


def in_own_units(action: Any, preprocessing: Mapping[str, Any]) -> NDArray[np.float64]:
    """Actions (..., A) of a policy as its demonstrations had them, where those leave [-1, 1] and so were scaled to it.

    Args:
        preprocessing: of the predictor, as `zoo.load` gives it.
    """
    action = np.asarray(action, np.float64)
    if (scale := preprocessing.get("action_range")) is None:
        return action
    low_A, high_A = np.array(scale[0]), np.array(scale[1])
    return (low_A + high_A) / 2 + action * (high_A - low_A) / 2


def weights(count: int, rate: float) -> Tensor:
    """(count,): ``exp(-rate i)``, i = 0 the oldest chunk, adding up to 1 (ACT, arXiv:2304.13705, section IV-B)."""
    weight = torch.tensor([math.exp(-rate * i) for i in range(count)])
    return weight / weight.sum()
