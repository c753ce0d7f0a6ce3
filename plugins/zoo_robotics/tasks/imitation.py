"""Learning from demonstrations, and what came of it: in held-out demonstrations, and acted out.

Shapes: B batch, K actions of a chunk, A numbers of an action, P phases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from zoo import registry
from zoo.config import at_least
from zoo.report import console
from zoo.spec import ZooError
from zoo.train.task import Batch, Loss, Task
from zoo_robotics.draw import plot_use, write_film
from zoo_robotics.execution import in_own_units
from zoo_robotics.rollout import FIRST_SEED, Episode, Manner, Step, act, rollouts, script_episodes, wilson
from zoo_robotics.sim.world import PHASES, WORLDS, make_world

SHOWN = 12.5
"""Pictures a second of a film, which is slower than life: a task takes a second or two."""


class ByPhase(Metric):
    """Mean absolute error of actions, ``l1``, the same by phase, ``l1_reach`` and so on, and ``gate_acc``: how often
    the head's largest expert is the phase. What was never there is left out."""

    full_state_update = False
    error_P: Tensor
    count_P: Tensor
    gate_2: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = len(PHASES) + 1  # the last: no label
        for name, width in (("error_P", size), ("count_P", size), ("gate_2", 2)):
            self.add_state(name, torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, error_N: Tensor, phase_N: Tensor, gate_NP: Tensor | None) -> None:
        place_N = torch.where(phase_N < 0, len(PHASES), phase_N)
        self.error_P.index_add_(0, place_N, error_N.double())
        self.count_P.index_add_(0, place_N, torch.ones_like(error_N, dtype=torch.float64))
        if gate_NP is not None:
            known = phase_N >= 0
            self.gate_2 += torch.stack([(gate_NP.argmax(-1) == phase_N)[known].sum(), known.sum()]).double()

    def compute(self) -> dict[str, Tensor]:
        found = {"l1": (self.error_P.sum() / self.count_P.sum().clamp(min=1)).float()}
        for n, name in enumerate(PHASES):
            if self.count_P[n] > 0:
                found[f"l1_{name}"] = (self.error_P[n] / self.count_P[n]).float()
        if self.gate_2[1] > 0:
            found["gate_acc"] = (self.gate_2[0] / self.gate_2[1]).float()
        return found


class Acted(NamedTuple):
    """What `Imitation.predict` returns: an episode and its film, or for observations of a file the actions ``NKA``."""

    episode: Episode | None
    film: list[Step]
    phases: list[str]
    fps: float
    notes: list[str]
    actions_NKA: Any = None


class Imitation(Task):
    """The policy's own losses in training; error and gates on held-out demonstrations, and success when acted out.

    Args (config):
        episodes: of each task, acted out in an evaluation, where the tasks have a world; 0 for none.
        steps: time of an episode; null: the world's own limit.
        workers: processes to act in. The result does not depend on it.
        first_seed: of the episodes.
        script: act out the task's own script on the same seeds, to compare with.
        execute, ensemble: how chunks are carried out, if not as the policy says: so many actions of each, or at every
            step what all chunks say of it, averaged.
    """

    monitor = "l1"
    sampled = ("latency_ms",)

    @dataclass
    class Config:
        episodes: int = 5
        steps: int | None = None
        workers: int = 1
        first_seed: int = FIRST_SEED
        script: bool = True
        execute: int | None = None
        ensemble: float | None = None

        def __post_init__(self) -> None:
            at_least(0, self, "episodes", "first_seed", "ensemble")
            at_least(1, self, "steps", "workers", "execute")
            if self.execute is not None and self.ensemble is not None:
                raise ZooError(f"execute={self.execute} and ensemble={self.ensemble} are two ways; set one of them")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.done: list[Episode] = []
        self.phases: list[str] = []

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Give a new policy the statistics of its data. Raises `ZooError` for data that are not of the policy's size,
        tasks, phases or chunk."""
        if trained:
            data.normalise_as(trained)
        p, c = data.preprocessing, model.config
        for key, what in (("state", "numbers of an observation"), ("actions", "numbers of an action")):
            if p[key] != getattr(c, key):
                raise ZooError(
                    f"the data have {p[key]} {what} and the policy takes {getattr(c, key)}; set model.{key}={p[key]}"
                )
        if p["chunk"] != c.chunk:
            raise ZooError(
                f"the data give chunks of {p['chunk']} actions and the policy says {c.chunk}; "
                f"set data.chunk={c.chunk}, or model.chunk={p['chunk']}"
            )
        for key in ("tasks", "phases"):
            if list(p[key]) != list(getattr(c, key)):
                asked = ",".join(name if re.fullmatch(r"[\w-]+", name) else json.dumps(name) for name in p[key])
                raise ZooError(
                    f"the data have the {key} {', '.join(p[key])} and the policy {', '.join(getattr(c, key))}; "
                    f"set 'model.{key}=[{asked}]'"
                )
        if model.views and p["pictures"] != [model.views, model.view_size]:
            there = "none" if p["pictures"] is None else "{} of {} pixels".format(*p["pictures"])
            raise ZooError(
                f"the policy sees {model.views} pictures of {model.view_size} pixels and the data have {there}; set "
                f"data.recording.size={model.view_size} (of your own data, data.pictures=true), or model.eyes"
            )
        if not trained:
            model.set_statistics(data.statistics())

    # -- demonstrations ------------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> Loss:
        terms, routing = model.losses(batch)
        terms = dict(terms)
        main = terms.pop("action")
        return Loss(main, routing, {"action": main.detach()}, terms)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"demonstrations": ByPhase()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        chunk = model.act(batch, torch.Generator(model.device).manual_seed(0))
        valid_BK = batch["valid"]
        error_BK = (chunk.actions_BKA - batch["actions"]).abs().mean(-1)
        gate_NP = None if chunk.gate_BKP is None else chunk.gate_BKP[valid_BK]
        metrics["demonstrations"].update(error_BK[valid_BK], batch["phase"][valid_BK], gate_NP)

    # -- acting --------------------------------------------------------------------------------------------------------

    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """Episodes of each task: ``success``, a mean over tasks with its interval (Wilson, 95%), the same by task,
        ``gate_acc_policy``: how often the largest expert is the script's phase at what the policy came across,
        ``latency_ms`` of an action, and with the script ``script``, its own success, and ``relative`` to that."""
        c, world = self.config, data.preprocessing.get("world")
        tasks, episodes = data.tasks, c.episodes
        self.done = []
        if world is None or not episodes:
            return {}
        if most is not None:
            episodes = max(1, min(episodes, most // len(tasks)))
        settings = {"first_seed": c.first_seed, "manner": Manner(c.steps, c.execute, c.ensemble)}
        with console(stderr=True).status(f"acting out {episodes} episodes of each of {len(tasks)} tasks"):
            self.done = rollouts(model, world, tasks, episodes, workers=c.workers, **settings)
        self.phases = list(model.config.phases)
        found = summary(self.done, tasks) | (self._against_script(world, tasks, episodes) if c.script else {})
        self.sampled = tuple(found)
        return found

    def _against_script(self, world: str, tasks: list[str], episodes: int) -> dict[str, float]:
        c, found = self.config, {}
        seeds = range(c.first_seed, c.first_seed + episodes)
        shares = [float(np.mean([e.success for e in script_episodes(world, task, seeds, c.steps)])) for task in tasks]
        found["script"] = float(np.mean(shares))
        if found["script"] > 0:
            found["relative"] = float(np.mean([e.success for e in self.done])) / found["script"]
        return found

    def plot(self, model: Any, data: Any, out: Path) -> list[Path]:
        """``episodes.json`` and the use of experts over an episode, of the evaluation before."""
        if not self.done:
            return []
        path = out / "episodes.json"
        path.write_text(json.dumps([asdict(e) for e in self.done], indent=1) + "\n", encoding="utf-8")
        return [path, *plot_use(self.done, self.phases, out / "expert_use.png")]

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Acted:
        """An episode of a task, with pictures; or the actions for the observations of a file."""
        if inputs["input"] is not None:
            return self._answer(model, preprocessing, inputs)
        known, world = model.config.tasks, inputs["world"] or preprocessing.get("world")
        if world is None:
            raise ZooError("this policy's tasks have no world to act in; give observations with input=FILE.npz")
        if world not in WORLDS:
            raise ZooError(f"no world '{world}'; {registry.suggest(str(world), WORLDS)}")
        notes: list[str] = []
        task = inputs["task"]
        if task is None:
            task = known[0]
            notes.append(f"no task=...: {task}; there are {', '.join(known)}")
        elif task not in known:
            raise ZooError(f"the policy does not know task '{task}'; {registry.suggest(task, known)}")
        seed, size = _whole("seed", inputs["seed"], 0, 2**31 - 1), _whole("size", inputs["size"], 0, 1024)
        place = make_world(world, task)
        steps = None if inputs["steps"] is None else _whole("steps", inputs["steps"], 1, place.limit)
        every = max(1, place.fps // 40)
        film: list[Step] = []
        manner = Manner(steps, self.config.execute, self.config.ensemble)
        episode = act(model, place, known.index(task), seed, manner, film, size=size, every=every)
        end = "solved" if episode.success else "not solved"
        notes.append(f"{task}, seed {seed}: {end} after {episode.steps} steps")
        if episode.gated:
            notes.append(
                f"the largest expert is the script's phase in {episode.agreed / episode.gated:.0%} of the steps"
            )
        return Acted(episode, film, list(model.config.phases), SHOWN, notes)

    def _answer(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Acted:
        from zoo_robotics.data.sets import read_observations

        observation_NS, task = read_observations(Path(inputs["input"]).expanduser())
        task = inputs["task"] or task or model.config.tasks[0]
        if task not in model.config.tasks:
            raise ZooError(f"the policy does not know task '{task}'; {registry.suggest(task, model.config.tasks)}")
        batch = {
            "observation": torch.from_numpy(observation_NS).to(model.device),
            "task": torch.full((len(observation_NS),), model.config.tasks.index(task), device=model.device),
        }
        actions_NKA = model.act(batch, torch.Generator(model.device).manual_seed(0)).actions_BKA.cpu().double().numpy()
        if not np.isfinite(actions_NKA).all():
            raise ZooError("the policy's actions are not finite; its weights, or the observations, are damaged")
        actions_NKA = in_own_units(actions_NKA, preprocessing)
        return Acted(None, [], list(model.config.phases), 0.0, [f"{task}: {len(actions_NKA)} chunks"], actions_NKA)

    def write(self, result: Acted, out: Path) -> list[Path]:
        """``episode.gif`` with the active expert drawn in, where pictures can be drawn, and ``episode.json``; or
        ``actions.npz``."""
        out.mkdir(parents=True, exist_ok=True)
        if result.episode is None:
            np.savez(out / "actions.npz", action=result.actions_NKA)
            return [out / "actions.npz"]
        files = write_film(result.film, result.phases, result.episode.success, result.fps, out / "episode.gif")
        gates = [step.gate_P for step in result.film]
        document = {
            **asdict(result.episode),
            "phases": result.phases,
            "actions": [step.action_A for step in result.film],
            "gates": gates if any(gate is not None for gate in gates) else None,
            "script_phases": [PHASES[step.phase] for step in result.film],
        }
        path = out / "episode.json"
        path.write_text(json.dumps(document) + "\n", encoding="utf-8")
        return [*files, path]


def summary(episodes: list[Episode], tasks: list[str]) -> dict[str, float]:
    """Numbers of episodes, see `Imitation.assess`. The interval is that of all episodes together."""
    shares = {task: [e.success for e in episodes if e.task == task] for task in tasks}
    low, high = wilson(sum(e.success for e in episodes), len(episodes))
    found = {"success": float(np.mean([np.mean(s) for s in shares.values()])), "success_low": low, "success_high": high}
    found |= {f"success_{task}": float(np.mean(share)) for task, share in shares.items()}
    if gated := sum(e.gated for e in episodes):
        found["gate_acc_policy"] = sum(e.agreed for e in episodes) / gated
    found["latency_ms"] = 1000 * sum(e.seconds for e in episodes) / max(1, sum(e.steps for e in episodes))
    return found


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ZooError(f"{name}={value!r} must be a whole number from {least} to {most}")
    return value
