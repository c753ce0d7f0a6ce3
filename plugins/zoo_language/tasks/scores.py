"""What a language model is judged by, counted over the tokens that count."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenScores(Metric):
    """``loss`` in nats a token, ``perplexity`` of a token, ``bits_per_byte`` of the text (which vocabularies of any
    size share), ``accuracy`` of the likeliest token; NaN before the first token."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    correct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "bytes", "correct"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, correct: Tensor, widths: Tensor) -> None:
        """One value a token: its negative log-likelihood, whether it was the likeliest, the bytes it stands for."""
        self.nats += nats.sum(dtype=torch.float64)
        self.tokens += nats.numel()
        self.correct += correct.sum()
        self.bytes += widths.sum()

    def compute(self) -> dict[str, Tensor]:
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": self.nats / (math.log(2) * self.bytes),
            "accuracy": self.correct.double() / self.tokens,
        }
