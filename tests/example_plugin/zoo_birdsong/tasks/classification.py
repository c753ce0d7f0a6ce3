"""One label for a recording.

Shapes: B batch, N samples, C classes.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from zoo.spec import ZooError
from zoo.train.task import Batch, Loss, Task


class Classification(Task):
    """Cross-entropy; scored by it and by the share of wrong labels."""

    monitor = "cross_entropy"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        logits_BC, routing = model(batch["wave"])
        return Loss(F.cross_entropy(logits_BC, batch["label"]), routing)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"cross_entropy": MeanMetric(), "error": MeanMetric()}, compute_groups=False)

    def update(self, metrics: MetricCollection, model: nn.Module, batch: Batch) -> None:
        logits_BC, _ = model(batch["wave"])
        metrics["cross_entropy"].update(F.cross_entropy(logits_BC, batch["label"], reduction="none"))
        metrics["error"].update((logits_BC.argmax(-1) != batch["label"]).float())

    def predict(
        self, model: nn.Module, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> dict[str, float]:
        """Probability of each label."""
        wave_N = read_wav(Path(inputs["input"]), preprocessing["rate"], preprocessing["length"])
        device = next(model.parameters()).device
        logits_BC, _ = model(wave_N[None].to(device))
        return dict(zip(preprocessing["labels"], logits_BC[0].softmax(-1).tolist(), strict=True))

    def write(self, result: dict[str, float], out: Path) -> list[Path]:
        file = out / "labels.csv"
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([("label", "probability"), *result.items()])
        return [file]


def read_wav(path: Path, rate: int, length: int) -> Tensor:
    """The first ``length`` samples of a mono 16-bit file in [-1, 1]. Raises `ZooError` for any other file."""
    try:
        with wave.open(str(path)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            samples = np.frombuffer(file.readframes(length), "<i2") if form[1] == 2 else np.empty(0)
    except (OSError, EOFError, wave.Error) as error:
        raise ZooError(f"input '{path}' cannot be read as WAV ({error}); give a WAV file") from error
    if form != (1, 2, rate) or len(samples) < length:
        raise ZooError(
            f"input '{path}' has {form[0]} channels of {8 * form[1]} bit at {form[2]} Hz and {len(samples)} samples; "
            f"give at least {length} samples of 16-bit mono at {rate} Hz"
        )
    return torch.from_numpy(samples.astype(np.float32) / 32768)
