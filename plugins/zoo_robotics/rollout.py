"""Episodes: a policy, or a script, acts in a world until the task is solved or the time is up.

An episode is a function of the weights and its seed: the policy acts on one observation at a time, on one thread, and
no episode sees another. So the result is the same to the last bit however the episodes are dealt to processes.

Shapes: S numbers of an observation, A of an action, P phases (experts of the head), T steps.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import hub
from zoo.resources import cache_dir
from zoo.spec import ZooError
from zoo.threads import one_thread
from zoo_robotics.execution import Executor
from zoo_robotics.sim.world import World, check_action, make_world, version_of

BINS = 20
"""Parts of an episode, for the use of experts over it."""
FIRST_SEED = 500_000_000
"""Of evaluations: far from those of demonstrations."""
PIECE = 10
"""Episodes that a process takes at a time."""


@dataclass
class Episode:
    """What came of one. ``use_BP`` is the mean gate in each of `BINS` parts of the episode, ``agreed`` of ``gated``
    steps had the gate's largest expert where the script has its phase, ``effort`` is the mean size of the numbers of
    its actions, and ``seconds`` went into finding them."""

    task: str
    seed: int
    success: bool
    steps: int
    effort: float = 0.0
    seconds: float = 0.0
    agreed: int = 0
    gated: int = 0
    use_BP: list[list[float]] = field(default_factory=list)


@dataclass
class Step:
    """A moment of an episode: the picture before the action, the gate behind the action, and the script's phase."""

    picture_HWC: Any
    action_A: list[float]
    gate_P: list[float] | None
    phase: int


@dataclass(frozen=True)
class Manner:
    """How a policy acts: ``steps`` that it has (None: as many as the world gives), and how its chunks are carried out,
    ``execute`` of each, or ``ensemble`` (None: as the policy says)."""

    steps: int | None = None
    execute: int | None = None
    ensemble: float | None = None


AS_IT_IS = Manner()


def act(
    policy: Any,
    world: World,
    number: int,
    seed: int,
    manner: Manner = AS_IT_IS,
    film: list[Step] | None = None,
    *,
    size: int = 0,
    every: int = 1,
) -> Episode:
    """One episode of a policy.

    Args:
        number: of the task, in the policy's list.
        film: gets every step; every ``every``-th has a picture of ``size`` pixels where one can be drawn.

    Raises:
        ZooError: the policy does not fit the world, or says what is not finite.
    """
    if manner.execute is not None and manner.execute > policy.chunk:
        raise ZooError(f"execute={manner.execute} is more than the {policy.chunk} actions of a chunk; lower it")
    executor = Executor(policy, manner.execute, manner.ensemble)
    generator = torch.Generator(policy.device).manual_seed(seed)
    episode = Episode(world.task, seed, False, 0)
    gates: list[Tensor] = []
    observation_S, effort = world.reset(seed), 0.0
    with one_thread(), torch.no_grad():
        for step in range(min(manner.steps or world.limit, world.limit)):
            extra = _view(policy, world) if policy.views else None
            start = time.perf_counter()
            action, gate_P = executor.step(
                torch.from_numpy(observation_S.astype(np.float32)), number, generator=generator, extra=extra
            )
            episode.seconds += time.perf_counter() - start
            action_A = check_action(action.double().numpy(), world.actions)
            if gate_P is not None or film is not None:
                phase = world.advise(observation_S).phase
            if gate_P is not None:
                gates.append(gate_P)
                episode.gated += 1
                episode.agreed += int(gate_P.argmax()) == phase
            if film is not None:
                picture = world.picture(size) if size and step % every == 0 else None
                film.append(Step(picture, action_A.tolist(), None if gate_P is None else gate_P.tolist(), phase))
            observation_S, success = world.step(action_A)
            episode.steps, effort = step + 1, effort + float(np.abs(action_A).mean())
            if success:
                episode.success = True
                break
    episode.effort = effort / max(1, episode.steps)
    if gates:
        episode.use_BP = _in_bins(torch.stack(gates))
    return episode


def follow_script(world: World, seed: int, steps: int | None = None) -> Episode:
    """One episode of the world's own script."""
    observation_S = world.reset(seed)
    episode = Episode(world.task, seed, False, 0)
    for step in range(min(steps or world.limit, world.limit)):
        observation_S, success = world.step(world.advise(observation_S).action_A)
        episode.steps = step + 1
        if success:
            episode.success = True
            break
    return episode


def _view(policy: Any, world: World) -> dict[str, Tensor]:
    picture = world.picture(policy.view_size)
    if picture is None:
        raise ZooError(
            "the policy sees, and nothing can be drawn here; install libegl1 or libosmesa6, or set MUJOCO_GL"
        )
    return {"images": torch.from_numpy(picture).movedim(-1, 0)[None, None]}


def _in_bins(gate_TP: Tensor) -> list[list[float]]:
    """(BINS, P): mean gate in each part of an episode; of a short one, neighbours repeat."""
    length = len(gate_TP)
    edges = [length * b // BINS for b in range(BINS + 1)]
    rows = [gate_TP[min(low, length - 1) : max(high, low + 1)] for low, high in pairwise(edges)]
    return torch.stack([part.mean(0) for part in rows]).tolist()


# -- many --------------------------------------------------------------------------------------------------------------


def rollouts(
    policy: Any,
    world: str,
    tasks: Sequence[str],
    episodes: int,
    *,
    first_seed: int = FIRST_SEED,
    manner: Manner = AS_IT_IS,
    workers: int = 1,
) -> list[Episode]:
    """``episodes`` of every task, of the seeds from ``first_seed`` on, in their order, whatever ``workers`` is.

    Args:
        policy: the model; further processes get it through a folder, as it would be saved.
        tasks: of the policy's own, by name.
    """
    numbers = {task: policy.config.tasks.index(task) for task in tasks}
    seeds = [first_seed + n for n in range(episodes)]
    jobs = [
        (world, task, numbers[task], seeds[n : n + PIECE], manner) for task in tasks for n in range(0, episodes, PIECE)
    ]
    if workers <= 1 or len(jobs) == 1:
        found = [episode for job in jobs for episode in _job(policy, job)]
    else:
        with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
            hub.save(folder, policy)
            context = _context()
            with context.Pool(min(workers, len(jobs)), _start, (folder,)) as pool:
                found = [episode for part in pool.imap(_in_worker, jobs) for episode in part]
    order = {task: n for n, task in enumerate(tasks)}
    return sorted(found, key=lambda episode: (order[episode.task], episode.seed))


def _context() -> Any:
    """Clean processes, without the threads and locks of this one; where it can be, forked from one that has imported
    what they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


Job = tuple[str, str, int, list[int], Manner]


def _job(policy: Any, job: Job) -> list[Episode]:
    world, task, number, seeds, manner = job
    return [act(policy, make_world(world, task), number, seed, manner) for seed in seeds]


_policy: Any = None


def _start(folder: str) -> None:
    global _policy
    torch.set_num_threads(1)
    _policy = hub.load(Path(folder)).model


def _in_worker(job: Job) -> list[Episode]:
    return _job(_policy, job)


def script_episodes(world: str, task: str, seeds: Sequence[int], steps: int | None = None) -> list[Episode]:
    """Episodes of a task's script. They do not change, so they are kept in the cache."""
    path = cache_dir() / "robotics" / "scripts" / f"{world}-{version_of(world)}-{task}-{steps or 'all'}.json"
    known: dict[str, Any] = {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            known = {}  # cut off, by a disk that was full: it is written anew
    if missing := [seed for seed in seeds if str(seed) not in known]:
        place = make_world(world, task)
        known |= {str(seed): asdict(follow_script(place, seed, steps)) for seed in missing}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(known), encoding="utf-8")
        os.replace(new, path)
    return [Episode(**known[str(seed)]) for seed in seeds]


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share by Wilson (1927), by default of 95%: its ends stay within 0 and 1.

    Of none at all it is everything, (0, 1).
    """
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, z * z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == count else middle + half
