"""Next-token prediction: the objective and its metrics.

Shapes: B sequences, L positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from zoo.train.task import Batch, Loss, Task


class Modeling(Task):
    """Cross-entropy of the next token, in nats a token.

    Args (config):
        z_loss: coefficient of the mean squared log-sum-exp of the head's logits (as ST-MoE, arXiv:2202.08906, eq. 5).
    """

    monitor = "loss"

    @dataclass
    class Config:
        z_loss: float = 0.0

    def loss(self, model: Any, batch: Batch) -> Loss:
        inputs, target_BL, counts_BL = self._shift(batch)
        out = model(**inputs)
        loss = _mean(_nats(out.logits_BLV, target_BL), counts_BL)
        if not self.config.z_loss:
            return Loss(loss, out.routing)
        z_loss = self.config.z_loss * _mean(out.logits_BLV.logsumexp(-1).square(), counts_BL)
        return Loss(loss + z_loss, out.routing, {"cross_entropy": loss, "head_z": z_loss})

    def metrics(self) -> MetricCollection:
        """``loss`` in nats a token."""
        return MetricCollection({"loss": MeanMetric()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        inputs, target_BL, counts_BL = self._shift(batch)
        metrics["loss"].update(_nats(model(**inputs).logits_BLV, target_BL)[counts_BL])

    @staticmethod
    def _shift(batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Inputs of the model, targets (B, L), and which of them count: valid ones of the same document."""
        tokens, valid, document = batch["tokens"], batch.get("valid"), batch.get("document")
        inputs = {
            f"{name}_BL": value[:, :-1]
            for name, value in batch.items()
            if name in ("tokens", "valid", "document", "domain")
        }
        counts_BL = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
        if valid is not None:
            counts_BL = counts_BL & valid[:, 1:] & valid[:, :-1]
        if document is not None:
            counts_BL = counts_BL & (document[:, 1:] == document[:, :-1])
        return inputs, tokens[:, 1:], counts_BL


def _nats(logits_BLV: Tensor, target_BL: Tensor) -> Tensor:
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), target_BL.flatten(), reduction="none").view_as(target_BL)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)
