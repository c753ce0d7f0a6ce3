"""The data sets: Meta-World's scripts, recorded here; a world of a few lines; and one's own demonstrations."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from zoo.config import at_least
from zoo.resources import cache_dir
from zoo.spec import ZooError
from zoo_robotics.data import lerobot
from zoo_robotics.data.demonstrations import SPLITS, ChunkConfig, Demonstration, DemonstrationData
from zoo_robotics.data.record import Recording, record
from zoo_robotics.sim.point import TASKS as POINT_TASKS
from zoo_robotics.sim.world import PHASES, WORLDS, make_world, version_of

FORM = 1
"""Of what is recorded; another number records anew."""
FAR = 1_000_000
"""Seeds between those of training, validation, test and evaluation."""
MT4 = ("assembly", "peg-insert-side", "pick-place", "hammer")


@dataclass
class RecordedConfig(ChunkConfig):
    """How many demonstrations of each task a script gives, and how.

    Config:
        demos: solved episodes for training, by task.
        held_out: as many again for validation, and for testing.
        seed: another one, other layouts.
    """

    tasks: list[str] = field(default_factory=list)
    demos: int = 20
    held_out: int = 5
    seed: int = 0
    recording: Recording = field(default_factory=Recording)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "demos", "held_out")
        at_least(0, self, "seed")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ZooError(f"data.tasks={self.tasks} must name tasks, each once")


class Recorded(DemonstrationData):
    """Scripts of a world, recorded when they are first asked for."""

    world = ""

    def __init__(self, config: RecordedConfig) -> None:
        super().__init__(config, config.tasks, self.world, [])
        size = config.recording.size
        self.preprocessing |= {"state": 39, "actions": 4, "pictures": [1, size] if size else None}

    def demonstrations(self, split: str) -> list[Demonstration]:
        return [d for task in self.config.tasks for d in self.of_task(task, split)]

    def few(self) -> None:
        self.config.demos = self.config.held_out = 1

    def of_task(self, task: str, split: str) -> list[Demonstration]:
        c = self.config
        count = c.demos if split == "train" else c.held_out
        first = (3 * c.seed + SPLITS.index(split)) * FAR
        return record(make_world(self.world, task), count, first, c.recording)


class Synthetic(Recorded):
    """A point that grasps and carries, in a world of a few lines: see `zoo_robotics.sim.point`."""

    world = "synthetic"

    @dataclass
    class Config(RecordedConfig):
        tasks: list[str] = field(default_factory=lambda: list(POINT_TASKS))

    def __init__(self, config: Config) -> None:
        super().__init__(config)


class MetaWorldData(Recorded):
    """Meta-World's scripts. What they do is recorded once, into the cache, as a LeRobotDataset for each task and split:
    the same settings give the same demonstrations on every machine with these versions."""

    world = "meta_world"

    @dataclass
    class Config(RecordedConfig):
        tasks: list[str] = field(default_factory=lambda: list(MT4))

        def __post_init__(self) -> None:
            self.tasks = [task.removesuffix("-v3") for task in self.tasks]
            super().__post_init__()

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def of_task(self, task: str, split: str) -> list[Demonstration]:
        folder = self.folder(task, split)
        if not folder.is_dir():
            make_world(self.world, task)  # names a task that is not there, before anything is made
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # another process may be at it
                if not folder.is_dir():
                    found = super().of_task(task, split)
                    lerobot.write(folder, found, make_world(self.world, task).fps, "sawyer")
                    steps = sum(len(d) for d in found)
                    self.notes.append(f"recorded {len(found)} of {task} for {split}, {steps:,} steps: {folder}")
        return lerobot.read(folder, self.notes, pictures=bool(self.config.recording.size))

    def folder(self, task: str, split: str) -> Path:
        """Where the demonstrations of a task and split are, or will be."""
        c = self.config
        count = c.demos if split == "train" else c.held_out
        settings = json.dumps([FORM, version_of(self.world), task, split, count, c.seed, asdict(c.recording)])
        mark = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return cache_dir() / "robotics" / "meta_world" / f"{task}-{split}-{count}-{mark}"


class Own(DemonstrationData):
    """Your own demonstrations: a LeRobotDataset, or NumPy files, one ``.npz`` an episode, with ``observation`` (T, S),
    ``action`` (T, A), and where you have them ``phase`` (T,) and ``task``, else the name of the file's folder.

    Config:
        path: the data set's folder; of NumPy files, the folder that they are in or below.
        split: shares of episodes for train, val and test, task by task.
        world: where its tasks can be acted in, if they can: ``meta_world`` or ``synthetic``.
        pictures: read the pictures of a LeRobotDataset, too.
    """

    @dataclass
    class Config(ChunkConfig):
        path: str = "demonstrations"
        split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
        world: str | None = None
        pictures: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
                raise ZooError(f"split={self.split} must be three positive fractions that sum to 1")
            if self.world not in (None, *WORLDS):
                raise ZooError(f"world={self.world} must be one of {', '.join(WORLDS)}, or null")

    def __init__(self, config: Config) -> None:
        notes: list[str] = []
        found = read_own(Path(config.path).expanduser(), notes, config.pictures)
        super().__init__(config, sorted({d.task for d in found}), config.world, notes)
        self.dealt = _deal(found, config.split, notes)
        self.preprocessing |= {"state": found[0].observation_TS.shape[1], "actions": found[0].action_TA.shape[1]}
        if (pictures := found[0].image_TVHWC) is not None:
            self.preprocessing["pictures"] = list(pictures.shape[1:3])
        self._scale(found)
        labelled = sum(int((d.phase_T >= 0).sum()) for d in found)
        total = sum(len(d) for d in found)
        counts = ", ".join(f"{len(self.dealt[s])} {s}" for s in SPLITS)
        notes.append(
            f"{len(found)} episodes ({counts}), {total:,} steps, {', '.join(self.tasks)}; "
            f"{labelled / total:.0%} of the steps have a phase"
        )

    def demonstrations(self, split: str) -> list[Demonstration]:
        return self.dealt[split]

    def _scale(self, found: list[Demonstration]) -> None:
        """Bring actions that leave [-1, 1] into it, number by number, by what they reach in training."""
        if max(float(np.abs(d.action_TA).max()) for d in found) <= 1.0:
            return
        action_NA = np.concatenate([d.action_TA for d in self.dealt["train"]]).astype(np.float64)
        self._scale_by(action_NA.min(0).tolist(), action_NA.max(0).tolist())
        self.notes.append("actions leave [-1, 1], so each of their numbers is scaled to it, from least to most")

    def _scale_by(self, low: list[float], high: list[float]) -> None:
        self.preprocessing["action_range"] = [low, high]
        low_A, high_A = np.array(low), np.array(high)
        half_A = np.where(high_A > low_A, (high_A - low_A) / 2, 1.0)
        for split in SPLITS:
            for d in self.dealt[split]:
                d.action_TA = ((d.action_TA - (low_A + high_A) / 2) / half_A).clip(-1.0, 1.0).astype(np.float32)

    def normalise_as(self, preprocessing: Mapping[str, Any]) -> None:
        before = self.preprocessing.get("action_range")
        if preprocessing.get("action_range") != before:
            path = Path(self.config.path).expanduser()
            self.dealt = _deal(read_own(path, [], self.config.pictures), self.config.split, [])
            self.found = {}
            self.preprocessing.pop("action_range", None)
            if preprocessing.get("action_range") is not None:
                self._scale_by(*preprocessing["action_range"])
        super().normalise_as(preprocessing)


def read_own(path: Path, notes: list[str], pictures: bool = False) -> list[Demonstration]:
    """All episodes of a LeRobotDataset or of NumPy files. Raises `ZooError` when there are none, or one is damaged."""
    if not path.exists():
        raise ZooError(f"'{path}' does not exist; set data.path to a LeRobotDataset or a folder of .npz files")
    if path.is_dir() and lerobot.is_lerobot(path):
        return lerobot.read(path, notes, pictures)
    if path.is_file() and path.suffix.lower() != ".npz":
        raise ZooError(f"'{path}' is no .npz file; save every episode as one, or name a LeRobotDataset's folder")
    below = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    files = [file for file in below if file.suffix.lower() == ".npz"]
    if not files:
        raise ZooError(f"'{path}' holds neither meta/info.json (of a LeRobotDataset) nor .npz files; set data.path")
    found = [read_npz(file) for file in files]
    widths = Counter((d.observation_TS.shape[1], d.action_TA.shape[1]) for d in found)
    if len(widths) > 1:
        (usual, _), (rare, count) = widths.most_common()[0], widths.most_common()[-1]
        odd = next(
            f for f, d in zip(files, found, strict=True) if (d.observation_TS.shape[1], d.action_TA.shape[1]) == rare
        )
        raise ZooError(
            f"the episodes in '{path}' differ in observations and actions: {count} have {rare}, such as '{odd.name}', "
            f"others {usual}; keep one kind"
        )
    if others := Counter(file.suffix.lower() or file.name for file in below if file.suffix.lower() != ".npz"):
        notes.append(f"passed over: {', '.join(f'{n} {suffix}' for suffix, n in others.most_common(8))}")
    return found


def read_npz(path: Path) -> Demonstration:
    """An episode. Raises `ZooError` for a file that is damaged or does not hold one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(f"episode file '{path}' is cut off or damaged ({reason}); record it again") from error
    for name in ("observation", "action"):
        if name not in arrays or arrays[name].ndim != 2 or arrays[name].dtype.kind not in "fiu":
            held = {key: value.shape for key, value in arrays.items()}
            raise ZooError(f"'{path}' needs {name} (T, numbers) and holds {held}; save it so")
    observation, action = (arrays[name].astype(np.float32) for name in ("observation", "action"))
    if not len(observation) and not len(action):
        raise ZooError(f"'{path}' holds no step; leave it out")
    if len(observation) != len(action):
        raise ZooError(f"'{path}' has {len(observation)} observations and {len(action)} actions; give as many of each")
    if not (np.isfinite(observation).all() and np.isfinite(action).all()):
        raise ZooError(f"'{path}' has numbers that are not finite; leave it out")
    phase = _phase_of(path, arrays.get("phase", np.full(len(action), -1)), len(action))
    names = np.unique(arrays["task"]).tolist() if "task" in arrays else [path.resolve().parent.name or "task"]
    if len(names) != 1:
        raise ZooError(f"task in '{path}' must be one name, and is {names[:3]}; save an episode of one task a file")
    return Demonstration(str(names[0]), observation, action, phase)


def _phase_of(path: Path, phase: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Phases as places in `PHASES`, -1 for none; a file may name them instead."""
    flat = phase.ravel()
    if flat.dtype.kind == "U":
        flat = np.array([PHASES.index(name) if name in PHASES else -1 if name == "" else len(PHASES) for name in flat])
    whole = flat.dtype.kind in "iu" or (flat.dtype.kind == "f" and bool((flat == np.round(flat)).all()))
    if not whole or len(flat) != count or flat.min() < -1 or flat.max() >= len(PHASES):
        raise ZooError(
            f"phase in '{path}' must be {count} of {', '.join(PHASES)}, by name or by number from 0, or -1; save it so"
        )
    return flat.astype(np.int64)


def write_npz(folder: Path, demonstrations: list[Demonstration]) -> list[Path]:
    """One file an episode, as `Own` reads them: ``<task>-000.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for n, d in enumerate(demonstrations):
        files.append(folder / f"{d.task}-{n:03d}.npz")
        np.savez_compressed(
            files[-1], observation=d.observation_TS, action=d.action_TA, phase=d.phase_T, task=np.array(d.task)
        )
    return files


def _deal(found: list[Demonstration], shares: list[float], notes: list[str]) -> dict[str, list[Demonstration]]:
    """Episodes by split, task by task, in an order that is always the same; training gets what rounding leaves, and all
    of a task that has too few."""
    dealt: dict[str, list[Demonstration]] = {split: [] for split in SPLITS}
    rare = []
    for task in sorted({d.task for d in found}):
        own = [d for d in found if d.task == task]
        order = np.random.default_rng(0).permutation(len(own))
        val, test = (max(1, round(share * len(own))) for share in shares[1:])
        if len(own) <= val + test:
            rare.append(task)
            val = test = 0
        for place, number in enumerate(order):
            split = "val" if place < val else "test" if place < val + test else "train"
            dealt[split].append(own[number])
    if not dealt["val"]:
        raise ZooError(f"{len(found)} episodes are too few to keep some for val and test; give at least 3 of a task")
    if rare:
        notes.append(f"too few episodes for val and test, all are trained on: {', '.join(rare[:5])}")
    return dealt


def read_observations(path: Path) -> tuple[NDArray[np.float32], str | None]:
    """``observation`` (N, S) or (S,) of an ``.npz`` file, and its ``task`` if it names one. Raises `ZooError`."""
    if not path.is_file():
        raise ZooError(f"'{path}' does not exist; give input=FILE.npz with an array 'observation'")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            observation = np.atleast_2d(stored["observation"]).astype(np.float32)
            task = str(stored["task"]) if "task" in stored.files else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, AttributeError, IndexError) as error:
        raise ZooError(f"'{path}' gives no array 'observation' ({error}); save one with numpy.savez") from error
    if observation.ndim != 2 or not np.isfinite(observation).all():
        raise ZooError(f"'observation' in '{path}' must be (N, numbers), all finite; it is {observation.shape}")
    return observation, task
