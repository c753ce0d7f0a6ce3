"""Next-token prediction: the objective, its metrics, and text from a prompt.

Shapes: B sequences, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from zoo.hub import create_model
from zoo.nn.generation import generate, spell
from zoo.spec import ZooError
from zoo.train.task import Batch, Loss, Task
from zoo.vocabulary import restore
from zoo_language.tasks.scores import TokenScores

LARGEST = 6144
"""Size of a vocabulary up to which n-grams stand beside a model: 5-grams of so many are numbers below 2**63."""


class Generation(NamedTuple):
    """What `Modeling.predict` returns: the prompt and the text that goes on from it."""

    prompt: str
    text: str
    notes: list[str]


class Modeling(Task):
    """Cross-entropy of the next token, in nats a token.

    Args (config):
        z_loss: coefficient of the mean squared log-sum-exp of the head's logits (as ST-MoE, arXiv:2202.08906, eq. 5).
        rivals: orders of the n-gram models that stand beside ours in every evaluation, fitted to the train split.
            With more than 6,144 tokens there are none, as their tables of the whole vocabulary would fill the memory.
    """

    monitor = "loss"

    @dataclass
    class Config:
        z_loss: float = 0.0
        rivals: list[int] = field(default_factory=lambda: [1, 2, 5])

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """A trained model keeps its vocabulary on other texts. Raises `ZooError` when the two do not fit."""
        ours, theirs = trained.get("vocabulary"), data.preprocessing["vocabulary"]
        if ours and ours != theirs:
            if not callable(getattr(data, "use", None)):
                raise ZooError(
                    f"the model was trained with vocabulary {ours['name']}, the data have {theirs['name']}; "
                    "choose data that can be read with the model's, such as data=language/text data.path=FILE"
                )
            data.use(restore(ours))
        size, rows = restore(data.preprocessing["vocabulary"]).size, model.config.vocab_size
        if size > rows:
            raise ZooError(
                f"the data's vocabulary has {size} tokens and the model {rows}; set model.vocab_size={size}, "
                "or choose another data.vocabulary"
            )
        context, longest = data.preprocessing.get("context", 1), model.config.max_length
        if context > longest:
            raise ZooError(
                f"the data's windows have context={context} and the model takes {longest} tokens at most; "
                f"set data.context={longest} or lower, or model.max_length={context}"
            )

    def loss(self, model: Any, batch: Batch) -> Loss:
        inputs, target_BL, counts_BL = self._shift(batch)
        out = model(**inputs)
        loss = _mean(_nats(out.logits_BLV, target_BL), counts_BL)
        if not self.config.z_loss:
            return Loss(loss, out.routing)
        z_loss = self.config.z_loss * _mean(out.logits_BLV.logsumexp(-1).square(), counts_BL)
        return Loss(loss + z_loss, out.routing, {"cross_entropy": loss, "head_z": z_loss})

    def metrics(self) -> MetricCollection:
        """See `TokenScores`."""
        return MetricCollection({"scores": TokenScores()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        inputs, target_BL, counts_BL = self._shift(batch)
        logits_BLV = model(**inputs).logits_BLV
        correct_BL = logits_BLV.argmax(-1) == target_BL
        widths_BL = batch["bytes"][:, 1:]
        metrics["scores"].update(_nats(logits_BLV, target_BL)[counts_BL], correct_BL[counts_BL], widths_BL[counts_BL])

    def rivals(self, preprocessing: Mapping[str, Any]) -> dict[str, nn.Module]:
        size = restore(preprocessing["vocabulary"]).size
        return {
            f"{order}-gram": create_model("language/ngram", order=order, vocab_size=size)
            for order in self.config.rivals
            if size <= LARGEST
        }

    def stream(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[str]:
        """The text after a prompt, in pieces; the generator's value is the `Generation`."""
        if "vocabulary" not in preprocessing:
            raise ZooError("the model was saved without a vocabulary, so it reads no text; train it with `zoo train`")
        vocabulary = restore(preprocessing["vocabulary"])
        prompt, stop = inputs["prompt"], inputs["stop"]
        for name, kind in (("prompt", str), ("max_tokens", int), ("temperature", float), ("top_p", float)):
            value = inputs[name]
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ZooError(f"{name}={value!r} is not a {'text' if kind is str else kind.__name__}")
        tokens = vocabulary.encode(prompt).tokens_N.tolist()
        if not tokens:
            if vocabulary.end is None:
                raise ZooError(
                    "prompt is empty, and the vocabulary has no token to start from; give a character or more"
                )
            tokens = [vocabulary.end]
        generator = torch.Generator(model.device).manual_seed(inputs["seed"])
        drawn = generate(
            model,
            torch.tensor([tokens], device=model.device),
            max_tokens=inputs["max_tokens"],
            temperature=inputs["temperature"],
            top_p=inputs["top_p"],
            generator=generator,
            use_cache=getattr(model, "keeps_cache", True),
        )
        text = ""
        for piece in spell(vocabulary, (int(token_B) for token_B in drawn), stop):
            text += piece
            yield piece
        return Generation(prompt, text, [])

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Generation:
        """The text after a prompt."""
        pieces = self.stream(model, preprocessing, inputs)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value

    def write(self, result: Generation, out: Path) -> list[Path]:
        """``generation.txt``: the prompt and what follows."""
        (out / "generation.txt").write_text(result.prompt + result.text, encoding="utf-8")
        return [out / "generation.txt"]

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
