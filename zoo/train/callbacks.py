"""The callbacks that Lightning does not ship: random states that survive a resume, and expert load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.moe.stats import ExpertLoad


class RandomStates(L.Callback):
    """Keeps the states of all generators in the checkpoint, as tensors and numbers: ``weights_only`` can load them."""

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            "python": [version, list(words), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (state := self.restored) is None:
            return
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all(state["cuda"])
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        self.restored = None


class ExpertLoadLogger(L.Callback):
    """Logs load, entropy, dead experts and the largest violation of every MoE layer, over each logging interval."""

    def __init__(self) -> None:
        self.load = ExpertLoad()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.load.observe(outputs["routing"])
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches
        if not self.load.counts or (batch_idx + 1) % every:
            return
        for layer, (row, share_E) in enumerate(zip(self.load.summary(), self.load.shares(), strict=True)):
            values = {f"moe/layer{layer}/{name}": value for name, value in row.items()}
            values |= {f"moe/layer{layer}/load{e}": float(share) for e, share in enumerate(share_E)}
            pl_module.log_dict(values)
        self.load = ExpertLoad()


class MovingAverage(WeightAveraging):
    """The exponential moving average of the weights, which validation, the best checkpoint and the saved model use.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, as TensorFlow's: a short run does not remember the
    weights that it began with (Lightning's own `EMAWeightAveraging` does, with ``decay ** n``).
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Sequence[Tensor], now: Sequence[Tensor], updates: Tensor) -> None:
            n = int(updates)
            torch._foreach_lerp_(mean, now, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None
