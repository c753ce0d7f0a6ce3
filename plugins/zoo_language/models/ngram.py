"""n-gram models in closed form: what a neural model has to beat.

Interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999, section 2.7), one discount an order:

    p_m(w | h) = max(c(h w) - D_m, 0) / c(h) + D_m |{w: c(h w) > 0}| / c(h) * p_{m-1}(w | h without its first token)

down to the uniform distribution. Orders below the highest count in how many contexts an m-gram was seen, not how often.

Shapes: B sequences, L positions, V vocabulary, N tokens of the training text, C contexts and R m-grams of an order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.config import at_least
from zoo.hub import Model
from zoo.spec import ZooError
from zoo_language.models.decoder import Output

PARTS = ("context", "offset", "token", "share", "backoff")


class Ngram(Model):
    """Predicts from the last ``order - 1`` tokens, fewer at the start of a window or a document. `fit` fills it.

    Config:
        max_tokens: `fit` looks at no more than the first so many.
        contexts, grams: what `fit` found, an entry an order; they size the tables.
    """

    keeps_cache = False

    @dataclass
    class Config:
        order: int = 5
        vocab_size: int = 256
        max_tokens: int = 20_000_000
        max_length: int = 1 << 20
        contexts: list[int] = field(default_factory=list)
        grams: list[int] = field(default_factory=list)

        def __post_init__(self) -> None:
            at_least(1, self, "order", "vocab_size", "max_tokens", "max_length")
            if self.vocab_size**self.order >= 2**63:
                raise ZooError(f"order={self.order} is too high for vocab_size={self.vocab_size}; lower one of them")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for m in range(config.order):
            contexts, grams = (config.contexts[m], config.grams[m]) if config.contexts else (0, 0)
            self._table(
                m,
                torch.zeros(contexts, dtype=torch.int64),
                torch.zeros(contexts + 1, dtype=torch.int64),
                torch.zeros(grams, dtype=torch.int64),
                torch.zeros(grams),
                torch.zeros(contexts),
            )

    def _table(self, m: int, *tensors: Tensor) -> None:
        """Order m + 1: ``context_C`` in base V, sorted; its m-grams lie from ``offset_C`` on: ``token_R``, ``share_R``;
        ``backoff_C`` is what it leaves to the order below."""
        for name, tensor in zip(PARTS, tensors, strict=True):
            self.register_buffer(f"{name}{m}", tensor)

    @torch.no_grad()
    def fit(self, train: Any, val: Any = None) -> None:
        """Count the stream behind a split of windows (its ``columns``)."""
        size = self.config.max_tokens
        tokens_N = train.columns["tokens"][:size].astype(np.int64)
        part = train.columns.get("document", train.columns.get("domain"))
        self._count(tokens_N, np.zeros(len(tokens_N), np.int64) if part is None else part[:size])

    def _count(self, tokens_N: NDArray[Any], part_N: NDArray[Any]) -> None:
        V, top = self.config.vocab_size, self.config.order
        key_R, count_R = np.unique(_grams(tokens_N, part_N, top, V), return_counts=True)
        contexts, grams = [0] * top, [0] * top
        for m in range(top - 1, -1, -1):
            once, twice = (count_R == 1).sum(), (count_R == 2).sum()
            discount = once / (once + 2 * twice) if once and twice else 0.5
            context_C, first_C, inverse_R = np.unique(key_R // V, return_index=True, return_inverse=True)
            total_C = np.bincount(inverse_R, count_R, minlength=len(context_C))
            share_R = (count_R - discount) / total_C[inverse_R]
            backoff_C = discount * np.bincount(inverse_R, minlength=len(context_C)) / total_C
            tables = (context_C, np.append(first_C, len(key_R)), key_R % V, share_R, backoff_C)
            kinds = (torch.int64, torch.int64, torch.int64, torch.float32, torch.float32)
            self._table(m, *(torch.from_numpy(t).to(self.device, kind) for t, kind in zip(tables, kinds, strict=True)))
            contexts[m], grams[m] = len(context_C), len(key_R)
            if m:  # a document's first m tokens have nothing before them: that counts as one more context
                starts_R = np.unique(_grams(tokens_N, part_N, m, V, at_start=True))
                key_R, count_R = np.unique(np.concatenate([key_R % V**m, starts_R]), return_counts=True)
        self.config.contexts, self.config.grams = contexts, grams

    def forward(
        self,
        tokens_BL: Tensor,
        valid_BL: Tensor | None = None,
        document_BL: Tensor | None = None,
        domain_BL: Tensor | None = None,
        cache: None = None,
        last_only: bool = False,
    ) -> Output:
        """Log-probabilities of the token after each position, or after the last one alone."""
        if cache is not None:
            raise ZooError("n-gram models keep no cache; generate with use_cache=False")
        V, length = self.config.vocab_size, tokens_BL.shape[1]
        key_BL, known_BL = torch.zeros_like(tokens_BL), torch.ones_like(tokens_BL, dtype=torch.bool)
        share_PV = torch.full((tokens_BL.numel(), V), 1 / V, device=tokens_BL.device)
        for m in range(self.config.order):
            if m:  # the context grows by the token m - 1 before the position, if that is of the same text
                back = m - 1
                earlier_BL = _shifted(tokens_BL, back)
                known_BL = known_BL & (torch.arange(length, device=tokens_BL.device) >= back)
                if valid_BL is not None:
                    known_BL = known_BL & _shifted(valid_BL, back)
                if document_BL is not None:
                    known_BL = known_BL & (_shifted(document_BL, back) == document_BL)
                key_BL = key_BL + earlier_BL * V ** (m - 1)
            share_PV = self._interpolate(m, key_BL.flatten(), known_BL.flatten(), share_PV)
        logits_BLV = share_PV.log().view(*tokens_BL.shape, V)
        return Output(logits_BLV[:, -1:] if last_only else logits_BLV, ())

    def _interpolate(self, m: int, key_P: Tensor, known_P: Tensor, lower_PV: Tensor) -> Tensor:
        context_C, offset_C, token_R, share_R, backoff_C = (getattr(self, f"{name}{m}") for name in PARTS)
        if not len(context_C):
            return lower_PV
        row_P = torch.searchsorted(context_C, key_P).clamp(max=len(context_C) - 1)
        found_P = known_P & (context_C[row_P] == key_P)
        share_PV = lower_PV * torch.where(found_P, backoff_C[row_P], 1.0)[:, None]
        place_F = found_P.nonzero()[:, 0]
        row_F = row_P[place_F]
        count_F = offset_C[row_F + 1] - offset_C[row_F]
        place_R = place_F.repeat_interleave(count_F)
        within_R = torch.arange(len(place_R), device=key_P.device) - (count_F.cumsum(0) - count_F).repeat_interleave(
            count_F
        )
        entry_R = offset_C[row_F].repeat_interleave(count_F) + within_R
        share_PV[place_R, token_R[entry_R]] += share_R[entry_R]
        return share_PV

    def dummy_inputs(self, batch_size: int = 2, length: int = 16) -> dict[str, Tensor]:
        return {"tokens_BL": torch.randint(self.config.vocab_size, (batch_size, length))}


def _grams(tokens_N: NDArray[Any], part_N: NDArray[Any], order: int, base: int, at_start: bool = False) -> NDArray[Any]:
    """Every m-gram within one part as a number in base V, its last token the lowest digit."""
    count = len(tokens_N) - order + 1
    if count <= 0:
        return np.zeros(0, np.int64)
    key = np.zeros(count, np.int64)
    for place in range(order):
        key = key * base + tokens_N[place : place + count]
    inside = part_N[:count] == part_N[order - 1 : order - 1 + count]
    if at_start:
        inside = inside & np.append(True, part_N[1:count] != part_N[: count - 1])
    return key[inside]


def _shifted(x_BL: Tensor, back: int) -> Tensor:
    """The value ``back`` positions before each; 0 where there is none."""
    return torch.nn.functional.pad(x_BL, (back, 0))[:, : x_BL.shape[1]] if back else x_BL
