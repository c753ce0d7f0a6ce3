"""What every policy is: observations in, a chunk of actions out, its losses by name.

Shapes: B batch, S numbers of a state, K actions of a chunk, A numbers of an action, P phases, V views, C channels,
H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from zoo import config as zc
from zoo.hub import Model
from zoo.moe import Routing
from zoo.spec import ZooError

Batch = Mapping[str, Tensor]
ARGUMENTS = {
    "observation": "observation_BS",
    "task": "task_B",
    "actions": "actions_BKA",
    "valid": "valid_BK",
    "phase": "phase_BK",
    "images": "images_BVCHW",
}
"""Keys of a batch, and what ``forward`` calls them. ``valid`` is False on steps beyond the end of an episode."""
FAR = 5.0
"""Normalised observations are clamped to so many deviations: what no demonstration shows is far, not infinite."""


@dataclass
class EyesConfig:
    """Args:
    views: cameras, 0 for a policy that sees only the state; all share one tower.
    size: height and width of a picture; others are refused.
    tower: ``conv``, four convolutions of stride 2, or ``resnet18`` (timm's, group norms in place of batch norms, which
        a batch of one cannot have).
    """

    views: int = 0
    size: int = 84
    tower: Literal["conv", "resnet18"] = "conv"

    def __post_init__(self) -> None:
        zc.at_least(0, self, "views")
        zc.at_least(32, self, "size")


NO_EYES = EyesConfig()


class Chunk(NamedTuple):
    """Actions in [-1, 1] and, for a head with a router, the probability of every expert for each of them."""

    actions_BKA: Tensor
    gate_BKP: Tensor | None = None


@dataclass
class PolicyConfig:
    """What a policy is about. The data must agree with the first six.

    Args:
        state, actions: numbers of an observation and of an action.
        chunk: actions foretold at once (K).
        tasks: names of the tasks, in the order of their numbers.
        phases: names of the phases that demonstrations are labelled with.
        execute: so many actions of a chunk are carried out before the policy is asked anew.
        ensemble: ask at every step and average what all chunks say of it with weights exp(-m i), i = 0 the oldest
            (ACT, arXiv:2304.13705, section IV-B); needs execute=1.
    """

    state: int = 39
    actions: int = 4
    chunk: int = 8
    tasks: list[str] = field(default_factory=lambda: ["assembly", "peg-insert-side", "pick-place", "hammer"])
    phases: list[str] = field(default_factory=lambda: ["reach", "descend", "grasp", "transport", "insert"])
    execute: int = 4
    ensemble: float | None = None

    def __post_init__(self) -> None:
        zc.at_least(1, self, "state", "actions", "chunk", "execute")
        zc.at_least(0, self, "ensemble")
        if self.execute > self.chunk:
            raise ZooError(f"execute={self.execute} is more than the chunk={self.chunk} actions there are")
        if self.ensemble is not None and self.execute != 1:
            raise ZooError(f"ensemble={self.ensemble} asks the policy at every step; set execute=1 with it")
        for name in ("tasks", "phases"):
            if not (names := getattr(self, name)) or len(set(names)) < len(names):
                raise ZooError(f"{name}={names} must be one or more different names")


class Policy(Model):
    """Base of all policies. The statistics of observations travel with the weights."""

    Config: type = PolicyConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("mean_S", torch.zeros(config.state))
        self.register_buffer("std_S", torch.ones(config.state))

    @property
    def tasks(self) -> list[str]:
        tasks: list[str] = self.config.tasks
        return tasks

    @property
    def phases(self) -> list[str]:
        phases: list[str] = self.config.phases
        return phases

    @property
    def chunk(self) -> int:
        chunk: int = self.config.chunk
        return chunk

    @property
    def views(self) -> int:
        """Pictures that it wants with an observation; 0 for a policy that sees only the state."""
        views: int = getattr(self.config, "eyes", NO_EYES).views
        return views

    @property
    def view_size(self) -> int:
        """Height and width of each of them."""
        size: int = getattr(self.config, "eyes", NO_EYES).size
        return size

    def set_statistics(self, statistics: Mapping[str, Any]) -> None:
        """Normalise observations by ``{"observation": {"mean": [S], "std": [S]}}``, in raw units, from now on.
        Raises `ZooError` when they are of another size or no deviation is above 0."""
        given = statistics["observation"]
        mean_S, std_S = (torch.tensor(given[name], dtype=torch.float32) for name in ("mean", "std"))
        if mean_S.shape != self.mean_S.shape or std_S.shape != self.std_S.shape:
            raise ZooError(f"statistics of {len(mean_S)} numbers do not fit a policy with state={self.config.state}")
        if not bool((std_S > 0).all()):
            raise ZooError("statistics hold a deviation that is not above 0; give constant numbers a deviation of 1")
        self.mean_S.copy_(mean_S)
        self.std_S.copy_(std_S)

    def normalised(self, observation_BS: Tensor) -> Tensor:
        """(B, S). Raises `ZooError` for observations of another size."""
        if observation_BS.dim() != 2 or observation_BS.shape[-1] != self.config.state:
            size = observation_BS.shape[-1] if observation_BS.dim() else 0
            raise ZooError(f"an observation has {size} numbers, but this policy takes state={self.config.state}")
        return ((observation_BS - self.mean_S) / self.std_S).clamp(-FAR, FAR)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Routing]:
        """Losses by name with their weights applied, ``action`` always among them, and the routing behind them, whose
        balance losses the trainer adds. Padded steps count nowhere."""
        raise TypeError(f"{type(self).__name__} must override losses")

    def act(self, batch: Batch, generator: torch.Generator | None = None) -> Chunk:
        """What to do, without gradients. Phases in the batch are for routers that are told to follow labels."""
        raise TypeError(f"{type(self).__name__} must override act")

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        c = self.config
        return {
            "observation_BS": torch.randn(batch_size, c.state),
            "task_B": torch.arange(batch_size) % len(c.tasks),
            "phase_BK": torch.arange(batch_size * c.chunk).view(batch_size, c.chunk) % len(c.phases),
        }


def known(batch: Batch, *more: str) -> dict[str, Tensor]:
    """A batch's keys as the arguments of a policy's ``forward``: observation, task and phase, and ``more``."""
    return {ARGUMENTS[key]: batch[key] for key in ("observation", "task", "phase", *more) if key in batch}


def masked_mean(values_BKA: Tensor, valid_BK: Tensor | None) -> Tensor:
    """Mean over the numbers of real steps (``valid`` True)."""
    if valid_BK is None:
        return values_BKA.mean()
    return (values_BKA * valid_BK[..., None]).sum() / (valid_BK.sum() * values_BKA.shape[-1]).clamp(min=1)
