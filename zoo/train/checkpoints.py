"""Checkpoints that a kill or a full disk cannot spoil, and the newest one that can be read."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint


class AtomicIO(TorchCheckpointIO):
    """Writes beside the old checkpoint, then replaces it. Lightning's own goes through the system's temporary folder,
    from where a move to another disk is a copy that can be cut off."""

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()  # torch.save hides the cause when it writes to a full disk itself
        torch.save(dict(checkpoint), buffer)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        try:
            new.write_bytes(buffer.getbuffer())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise


class Best(ModelCheckpoint):
    """``best.ckpt`` by a metric; Lightning's own forgets what was best when the run folder has been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


class Last(Checkpoint):
    """Saves a checkpoint every so many steps and at the last one, which is always validated. Where a step is validated,
    that comes first: a run that goes on from the checkpoint does not validate the step again, and must know whether it
    was the best."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        micro = batch_idx + 1
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # which makes Lightning validate, even between two multiples of val_every
        elif micro % trainer.accumulate_grad_batches == 0 and micro % int(trainer.val_check_batch):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; tensors are read from disk when they are used."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Steps and path of the furthest checkpoint that can be read; one that cannot is named and passed over."""
    found: list[tuple[int, Path]] = []
    for path in sorted(folder.glob("*.ckpt")) if folder.is_dir() else []:
        try:
            found.append((read_checkpoint(path)["global_step"], path))
        except (RuntimeError, OSError, EOFError, KeyError, UnpicklingError) as error:
            reason = str(error).strip().partition("\n")[0]
            print(f"checkpoint {path} cannot be read and is passed over: {reason}", file=sys.stderr)
    return max(found, default=None)
