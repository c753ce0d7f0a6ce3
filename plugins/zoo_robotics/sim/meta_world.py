"""Meta-World (arXiv:1910.10897; metaworld 3.1.1, MIT) on MuJoCo, a task at a time, with its script as expert.

An observation has 39 numbers: hand (3), gripper opening, places and turns of up to two things (14), the same a step
before, and the goal (3), which is shown. The four actions are a way of the hand and the gripper's effort.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from zoo import registry
from zoo.spec import ZooError
from zoo_robotics.sim.render import Camera, choose_backend
from zoo_robotics.sim.scripts import Branches, phase_names
from zoo_robotics.sim.world import PHASES, Advice, Floats, Pixels


def _library() -> Any:
    """The module. Raises `ZooError` when it or what it stands on is missing."""
    choose_backend()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gymnasium, about its own future
            import metaworld
            import metaworld.policies
    except (AttributeError, RuntimeError) as error:  # of a MUJOCO_GL that cannot be
        asked = os.environ.get("MUJOCO_GL", "")
        raise ZooError(
            f"MuJoCo does not load with MUJOCO_GL={asked} ({error}); unset it, or try egl or osmesa"
        ) from error
    except ImportError as error:
        raise ZooError(
            f"Meta-World is not here ({error}), so nothing can be simulated; run: pip install 'moe-zoo[robotics]'"
        ) from error
    return metaworld


def tasks() -> list[str]:
    """Names of all tasks, without the version at their end: ``pick-place``."""
    return [name.removesuffix("-v3") for name in _library().policies.ENV_POLICY_MAP]


class MetaWorld:
    """See the module.

    Args:
        task: a task's name, with or without ``-v3``.
    """

    state, actions, fps, limit = 39, 4, 80, 300

    def __init__(self, task: str) -> None:
        library, known = _library(), tasks()
        self.task = task.removesuffix("-v3")
        if self.task not in known:
            raise ZooError(f"no task '{task}' in Meta-World; {registry.suggest(self.task, known)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            observable = library.env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
            self.env: Any = observable[f"{self.task}-v3-goal-observable"](seed=0)
        # A new layout at every reset, drawn from the environment's own generator, which `reset` seeds.
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True
        self.script: Any = library.policies.ENV_POLICY_MAP[f"{self.task}-v3"]()
        chosen = getattr(self.script, "_desired_pos", self.script.get_action)
        self.branches = Branches(chosen)
        self.phases = phase_names(self.task, len(self.branches.bodies), PHASES)
        self.camera = Camera(self.env)

    def reset(self, seed: int) -> Floats:
        self.env.seed(int(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            observation_S, _ = self.env.reset()
        return np.asarray(observation_S, np.float64)

    def step(self, action_A: Floats) -> tuple[Floats, bool]:
        observation_S, _, _, _, info = self.env.step(np.asarray(action_A, np.float32))
        return np.asarray(observation_S, np.float64), bool(info["success"])

    def advise(self, observation_S: Floats) -> Advice:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a step is longer than the hand can go; it is clipped
            action_A, branch = self.branches.found(lambda: self.script.get_action(observation_S))
        return Advice(np.clip(np.asarray(action_A, np.float64), -1.0, 1.0), self.phases[branch])

    def picture(self, size: int) -> Pixels | None:
        return self.camera.picture(size)
