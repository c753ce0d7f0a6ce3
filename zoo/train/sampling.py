"""Which items a loader takes, and in what order: functions of sizes, seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from zoo.spec import ZooError


class StepSampler(Sampler[list[int]]):
    """Batches ``start .. total`` of an endless sequence of shuffled epochs; each process takes its share of a batch."""

    def __init__(self, size: int, batch: int, total: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if size == 0:
            raise ZooError("the training split is empty; give it more data or a shorter context and horizon")
        self.size, self.batch, self.total, self.seed, self.rank, self.world = size, batch, total, seed, rank, world
        self.start = 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        stride = self.batch * self.world
        for step in range(self.start, self.total):
            picked = []
            for position in range(step * stride + self.rank, (step + 1) * stride, self.world):
                if position // self.size != epoch:
                    epoch = position // self.size
                    generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
                    order = torch.randperm(self.size, generator=generator)
                picked.append(int(order[position % self.size]))
            yield picked


class Strided(Sampler[int]):
    """Every item once, in order, dealt out over the processes."""

    def __init__(self, size: int, rank: int, world: int) -> None:
        self.range = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)


def spread(size: int, count: int) -> list[int]:
    """``count`` indices spread evenly over ``range(size)``, all of them when there are fewer."""
    return [i * size // count for i in range(count)] if count < size else list(range(size))
