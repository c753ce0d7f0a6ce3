"""What a world is, and how one is made: once per process and task, as building a simulation takes a second or more.

Shapes: S numbers of an observation, A of an action.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.spec import ZooError
from zoo_robotics.sim.point import TASKS as POINT_TASKS
from zoo_robotics.sim.point import Point

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

PHASES = ("reach", "descend", "grasp", "transport", "insert")
"""Names that all tasks share; a task that lacks one never has that label."""
WORLDS = ("meta_world", "synthetic")


class Advice(NamedTuple):
    """What a script does at an observation: an action in [-1, 1], and the place of its phase in `PHASES`."""

    action_A: Floats
    phase: int


class World(Protocol):
    """One task of a simulation. ``reset`` with the same seed gives the same episode, whatever went before."""

    task: str
    state: int
    actions: int
    fps: int
    limit: int
    """Steps after which an episode ends without success, unless a user sets fewer."""

    def reset(self, seed: int) -> Floats:
        """The first observation (S,)."""
        ...

    def step(self, action_A: Floats) -> tuple[Floats, bool]:
        """The next observation (S,), and whether the task is solved now."""
        ...

    def advise(self, observation_S: Floats) -> Advice:
        """What the task's script would do."""
        ...

    def picture(self, size: int) -> Pixels | None:
        """(size, size, 3) of the scene as it is; None where nothing can be drawn, which is said once."""
        ...


@cache
def make_world(world: str, task: str) -> World:
    """The world of a task, the same object in every call.

    Raises:
        ZooError: an unknown world or task with the near miss, or a simulator that is not installed.
    """
    if world == "synthetic":
        if task not in POINT_TASKS:
            raise ZooError(f"no task '{task}' in synthetic; {registry.suggest(task, POINT_TASKS)}")
        return Point(task)
    if world == "meta_world":
        from zoo_robotics.sim.meta_world import MetaWorld

        return MetaWorld(task)
    raise ZooError(f"no world '{world}'; {registry.suggest(world, WORLDS)}")


def version_of(world: str) -> str:
    """Changes with what episodes of a world depend on: of other versions they may be others."""
    if world != "meta_world":
        return "1"
    found = []
    for package in ("metaworld", "mujoco"):
        try:
            found.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            found.append("none")
    return "-".join(found)


def check_action(action_A: Floats, actions: int) -> Floats:
    """An action clipped to [-1, 1]. Raises `ZooError` for another width, or one that is not finite."""
    if action_A.shape != (actions,):
        raise ZooError(f"an action of shape {action_A.shape} where the world takes ({actions},); train a policy for it")
    if not np.isfinite(action_A).all():
        raise ZooError(f"the policy's action is not finite ({action_A.tolist()}); its weights are damaged: train anew")
    return np.clip(action_A, -1.0, 1.0)
