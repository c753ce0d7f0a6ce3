"""Short tones whose pitch rises, falls or trills. Every item is a function of seed, split and index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

RATE = 8000
LENGTH = 1024
LABELS = ("rising", "falling", "trill")


class Chirps:
    @dataclass
    class Config:
        train: int = 2048
        test: int = 512
        noise: float = 0.3
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self.config = config
        self.preprocessing: dict[str, Any] = {"labels": list(LABELS), "rate": RATE, "length": LENGTH}
        self.notes: list[str] = []

    def split(self, name: str) -> Dataset[dict[str, Tensor]]:
        """The items of ``train``, ``val`` or ``test``: ``wave`` (LENGTH,) and ``label``, a scalar."""
        size = self.config.train if name == "train" else self.config.test
        return _Split(self.config, ("train", "val", "test").index(name), size)


class _Split(Dataset[dict[str, Tensor]]):
    def __init__(self, config: Chirps.Config, split: int, size: int) -> None:
        self.config, self.number, self.size = config, split, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.config.seed, self.number, index))
        label = int(rng.integers(len(LABELS)))
        wave = chirp(LABELS[label], rng) + self.config.noise * rng.standard_normal(LENGTH)
        return {"wave": torch.from_numpy(wave.astype(np.float32)), "label": torch.tensor(label)}


def chirp(label: str, rng: np.random.Generator) -> np.ndarray:
    """A tone of LENGTH samples between 400 and 2400 Hz, amplitude 1."""
    time = np.linspace(0, 1, LENGTH, endpoint=False)
    low, high = 400 + 400 * rng.random(), 1600 + 800 * rng.random()
    sweep = {"rising": time, "falling": 1 - time, "trill": 0.5 + 0.5 * np.sin(2 * np.pi * (4 * time + rng.random()))}
    pitch = low + (high - low) * sweep[label]
    return np.sin(2 * np.pi * (np.cumsum(pitch) / RATE + rng.random()))
