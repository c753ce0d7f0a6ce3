"""Recording: a script acts in a world, now and then pushed off its way; what it would do there is written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo.config import at_least
from zoo.report import console
from zoo.spec import ZooError
from zoo_robotics.data.demonstrations import Demonstration
from zoo_robotics.sim.world import World


@dataclass
class Recording:
    """How scripts are recorded.

    Config:
        noise: share of steps at which something else than the script's action is done. The script's own action at that
            observation is recorded, so that a policy learns the way back.
        noise_scale: spread of what is added there to the three numbers of the hand's way; the gripper is left alone.
        steps: an episode that is not solved after so many is thrown away; null: the world's own limit.
        after: steps recorded after the task is solved.
        size: side of pictures to record at every step; 0 for states alone, which is many times faster.
    """

    noise: float = 0.3
    noise_scale: float = 0.5
    steps: int | None = None
    after: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "noise", "noise_scale", "after", "size")
        at_least(1, self, "steps")
        if self.noise > 1:
            raise ZooError(f"recording.noise={self.noise} is a share of the steps; set it to at most 1")


def record_one(world: World, seed: int, config: Recording) -> Demonstration | None:
    """An episode of the script; None when it did not solve the task. The same seed, the same episode."""
    rng = np.random.default_rng([seed, 1])
    observation_S, solved = world.reset(seed), None
    observations, actions, phases, images = [], [], [], []
    limit = min(config.steps or world.limit, world.limit)
    for step in range(limit):
        advice = world.advise(observation_S)
        observations.append(observation_S.astype(np.float32))
        actions.append(advice.action_A.astype(np.float32))
        phases.append(advice.phase)
        if config.size:
            picture = world.picture(config.size)
            if picture is None:
                raise ZooError("data.recording.size asks for pictures, which cannot be drawn here; set it to 0")
            images.append(picture[None])
        done_A = advice.action_A.copy()
        if rng.random() < config.noise:
            done_A[:3] += rng.normal(0.0, config.noise_scale, 3)
        observation_S, success = world.step(np.clip(done_A, -1.0, 1.0))
        if success and solved is None:
            solved = step
        if solved is not None and step - solved >= config.after:
            break
    if solved is None:
        return None
    return Demonstration(
        world.task,
        np.stack(observations),
        np.stack(actions),
        np.array(phases, np.int64),
        np.stack(images) if images else None,
        seed,
    )


def record(world: World, count: int, first_seed: int, config: Recording) -> list[Demonstration]:
    """``count`` solved episodes, of the seeds from ``first_seed`` on.

    Raises:
        ZooError: the script fails too often: fewer than one in five tries is solved.
    """
    found: list[Demonstration] = []
    tries = 0
    with console(stderr=True).status(f"recording {world.task}") as status:
        while len(found) < count:
            if tries >= 10 + 5 * count:
                raise ZooError(
                    f"the script of {world.task} solves it in {len(found)} of {tries} tries; lower "
                    "data.recording.noise or noise_scale, or raise data.recording.steps"
                )
            one = record_one(world, first_seed + tries, config)
            tries += 1
            if one is not None:
                found.append(one)
                status.update(f"recording {world.task}: {len(found)} of {count}")
    return found
