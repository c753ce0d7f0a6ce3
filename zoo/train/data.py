"""The datamodule shell around a `Data`. The order of training batches is a function of seed and step alone, so that a
resumed run sees exactly what the uninterrupted one would have seen."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from zoo.train.recipe import Training
from zoo.train.sampling import StepSampler, Strided, spread
from zoo.train.task import Data


class DataModule(L.LightningDataModule):
    """Loaders over a `Data`. ``limit`` ends a validation pass early by spreading its batches over the whole split."""

    def __init__(self, data: Data, config: Training, seed: int) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed

    def _loader(self, dataset: Any, **kwargs: Any) -> DataLoader[Any]:
        workers = self.config.workers
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=getattr(self.data, "collate", None),
            **kwargs,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        dataset, c = self.data.split("train"), self.config
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = StepSampler(len(dataset), c.batch_size, c.steps * c.accumulate, self.seed, rank, world)  # type: ignore[arg-type]
        sampler.start = self.trainer.global_step * c.accumulate
        return self._loader(dataset, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        dataset = self.data.split("val")
        if self.config.val_batches is not None:
            count = self.config.val_batches * self.config.eval_batch_size
            dataset = torch.utils.data.Subset(dataset, spread(len(dataset), count))  # type: ignore[arg-type]
        sampler = Strided(len(dataset), self.trainer.global_rank, self.trainer.world_size)  # type: ignore[arg-type]
        return self._loader(dataset, batch_size=self.config.eval_batch_size, sampler=sampler)
