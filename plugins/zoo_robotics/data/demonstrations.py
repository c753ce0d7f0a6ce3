"""Demonstrations, and the windows of them that a policy learns from: an observation and the actions that follow it.

Shapes: T steps of an episode, S numbers of an observation, A of an action, K actions of a chunk, V cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from zoo import registry
from zoo.config import at_least
from zoo.spec import ZooError
from zoo_robotics.sim.world import PHASES

SPLITS = ("train", "val", "test")
LEAST_STD = 1e-3
"""Of an observation's number; one that moves less is only shifted."""


@dataclass
class Demonstration:
    """``observation_TS`` and the ``action_TA`` that was right there, in [-1, 1]; ``phase_T`` are places in `PHASES`, -1
    where nobody said. ``image_TVHWC`` in 8 bits where there are cameras."""

    task: str
    observation_TS: NDArray[np.float32]
    action_TA: NDArray[np.float32]
    phase_T: NDArray[np.int64]
    image_TVHWC: NDArray[np.uint8] | None = None
    seed: int = -1

    def __len__(self) -> int:
        return len(self.action_TA)


@dataclass
class ChunkConfig:
    """How demonstrations become windows.

    Config:
        chunk: actions that a policy foretells at an observation.
        stride: steps between two windows.
    """

    chunk: int = 8
    stride: int = 1

    def __post_init__(self) -> None:
        at_least(1, self, "chunk", "stride")


class Chunks(Dataset[dict[str, Tensor]]):
    """Windows: ``observation`` (S,), ``task``, ``actions`` (K, A), ``valid`` (K,): which of them are in the episode,
    ``phase`` (K,), and ``images`` (V, C, H, W) where there are cameras. Many are taken at once, as one batch."""

    def __init__(self, demonstrations: Sequence[Demonstration], tasks: Sequence[str], chunk: int, stride: int) -> None:
        self.observation_NS, self.action_NA, self.phase_N = (
            torch.from_numpy(np.concatenate([getattr(d, name) for d in demonstrations]))
            for name in ("observation_TS", "action_TA", "phase_T")
        )
        self.images_NVHWC = None
        if demonstrations[0].image_TVHWC is not None:
            self.images_NVHWC = torch.from_numpy(np.concatenate([d.image_TVHWC for d in demonstrations]))
        lengths = torch.tensor([len(d) for d in demonstrations])
        self.end_N = lengths.cumsum(0).repeat_interleave(lengths)
        self.task_N = torch.tensor([list(tasks).index(d.task) for d in demonstrations]).repeat_interleave(lengths)
        self.ahead_K = torch.arange(chunk)
        starts = (lengths.cumsum(0) - lengths).tolist()
        self.places = torch.cat([start + torch.arange(0, n, stride) for start, n in zip(starts, lengths, strict=True)])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([place]).items()}

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        """A batch, already collated: `DemonstrationData.collate` lets it pass."""
        row_B = self.places[places]
        row_BK, end_B1 = row_B[:, None] + self.ahead_K, self.end_N[row_B][:, None]
        valid_BK = row_BK < end_B1
        row_BK = row_BK.minimum(end_B1 - 1)
        batch = {
            "observation": self.observation_NS[row_B],
            "task": self.task_N[row_B],
            "actions": self.action_NA[row_BK],
            "valid": valid_BK,
            "phase": self.phase_N[row_BK].where(valid_BK, -1),
        }
        if self.images_NVHWC is not None:
            batch["images"] = self.images_NVHWC[row_B].movedim(-1, -3)
        return batch


class DemonstrationData:
    """A data set of demonstrations. A subclass gives them by split in `demonstrations`, which is asked once.

    Attributes:
        preprocessing: ``tasks`` and ``phases`` by name, ``state``, ``actions`` and ``chunk`` sizes, the ``world`` that
            its tasks can be acted in, if any, and of ``pictures`` how many cameras and which side.
        tasks: its own, where a model may know more.
    """

    def __init__(self, config: Any, tasks: Sequence[str], world: str | None, notes: list[str]) -> None:
        self.config, self.notes, self.tasks = config, notes, list(tasks)
        self.found: dict[str, list[Demonstration]] = {}
        self.preprocessing: dict[str, Any] = {
            "tasks": list(tasks),
            "phases": list(PHASES),
            "chunk": config.chunk,
            "world": world,
            "pictures": None,
        }

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Those of a split, all of one width."""
        raise TypeError(f"{type(self).__name__} must override demonstrations")

    def demos(self, split: str) -> list[Demonstration]:
        """`demonstrations`, checked and kept.

        Raises:
            ZooError: there is none, or their observations or actions are not all of one width.
        """
        if split not in self.found:
            found = self.demonstrations(split)
            if not found:
                raise ZooError(f"there is no demonstration for {split}; give more of them")
            widths = {(d.observation_TS.shape[1], d.action_TA.shape[1]) for d in found}
            if len(widths) > 1:
                raise ZooError(
                    f"demonstrations differ in observations and actions {sorted(widths)}; split the data set"
                )
            known = self.preprocessing.setdefault("state", found[0].observation_TS.shape[1])
            acts = self.preprocessing.setdefault("actions", found[0].action_TA.shape[1])
            if widths != {(known, acts)}:
                raise ZooError(f"{split} has observations and actions of {widths.pop()}, others of {(known, acts)}")
            self.found[split] = found
        return self.found[split]

    def split(self, name: str) -> Chunks:
        return Chunks(self.demos(name), self.preprocessing["tasks"], self.config.chunk, self.config.stride)

    @staticmethod
    def collate(items: Any) -> Any:
        """A batch as `Chunks` gives it, or single windows."""
        return items if isinstance(items, dict) else default_collate(items)

    def few(self) -> None:
        """Make do with little, for a trial of one step; what is at hand stays."""

    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """Means and spreads of the training demonstrations; a number that hardly moves has spread 1."""
        observation_NS = np.concatenate([d.observation_TS for d in self.demos("train")]).astype(np.float64)
        std_S = observation_NS.std(0)
        std_S = np.where(std_S < LEAST_STD, 1.0, std_S)
        return {"observation": {"mean": observation_NS.mean(0).tolist(), "std": std_S.tolist()}}

    def normalise_as(self, preprocessing: Mapping[str, Any]) -> None:
        """Number tasks and phases as a model was trained with.

        Raises:
            ZooError: a task that it never saw.
        """
        known = preprocessing["tasks"]
        for task in self.tasks:
            if task not in known:
                raise ZooError(f"the model was not trained on task '{task}'; {registry.suggest(task, known)}")
        self.preprocessing = {**self.preprocessing, "tasks": list(known), "phases": list(preprocessing["phases"])}
