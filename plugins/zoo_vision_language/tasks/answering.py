"""Answers to questions about images: the objective, its scores, and what a user is told.

Shapes: B rows, L places, Q questions of a row, N answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection

from zoo.images import read_image
from zoo.nn.generation import generate, spell
from zoo.spec import ZooError
from zoo.train.task import Batch, Loss, Task
from zoo.vocabulary import restore
from zoo_vision_language.data.layout import MARK, Example, Layout, Turn
from zoo_vision_language.tasks.scores import AnswerScores
from zoo_vision_language.templates import template_of

NO = ("no", "not", "No", "Not", " no", " not", " No", " Not", "false", " false")


class Answer(NamedTuple):
    """What `Answering.predict` returns: the text, the images as the model saw them, and which experts their patches and
    the words chose (`zoo_vision_language.figure.Choices`, None of a model without experts)."""

    prompt: str
    text: str
    pixels_NHWC: NDArray[np.uint8]
    choices: Any
    notes: list[str]


class Blind(nn.Module):
    """The control that sees no image, as a rival in tables: the data know what it answers."""


class Answering(Task):
    """Cross-entropy of the answers' tokens, their ends among them; questions and images are only read."""

    monitor = "loss"
    kinds: list[str] = ["all"]  # noqa: RUF012  set anew by match
    no_N: Tensor | None = None

    @dataclass
    class Config:
        pass

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Lay the data out for the model: its images' size and tokens, the vocabulary that it was trained with."""
        if not callable(getattr(data, "use", None)):
            raise ZooError("these data are no dialogues about images; choose some of vision_language, see `zoo list`")
        data.use(model.config.image_size, model.image_tokens, trained)
        if data.vocabulary.size > model.vocab_size:
            raise ZooError(
                f"the data's vocabulary has {data.vocabulary.size} tokens and the model {model.vocab_size}; set "
                f"model.language.vocab_size={data.vocabulary.size}, or choose another data.vocabulary"
            )
        if data.config.context > model.config.max_length:
            raise ZooError(
                f"the data's rows have up to context={data.config.context} tokens and the model takes "
                f"{model.config.max_length}; set data.context={model.config.max_length} or model.max_length"
            )
        self.kinds = data.kinds
        self.no_N = torch.tensor(sorted({int(t[0]) for w in NO if len(t := data.vocabulary.encode(w).tokens_N)}))

    def loss(self, model: Any, batch: Batch) -> Loss:
        out, target_N, _ = self._answers(model, batch)
        return Loss(F.cross_entropy(out.logits.float(), target_N), out.routing)

    def metrics(self) -> MetricCollection:
        """See `AnswerScores`."""
        return MetricCollection({"scores": AnswerScores(self.kinds)})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        asked_BQ = batch["kind"] >= 0
        yes_BQ = batch["yes"]
        if isinstance(model, Blind):
            right_BQ = batch["blind"]
            said_BQ = torch.where(right_BQ, yes_BQ == 1, yes_BQ == 0)
            nats_N = torch.full((1,), torch.nan)
        else:
            out, target_N, key_N = self._answers(model, batch)
            nats_N = F.cross_entropy(out.logits.float(), target_N, reduction="none")
            likeliest_N = out.logits.argmax(-1)
            right_BQ = _whole(likeliest_N == target_N, key_N, asked_BQ)
            first_N = torch.ones_like(key_N, dtype=torch.bool)
            first_N[1:] = key_N[1:] != key_N[:-1]
            said = torch.zeros(asked_BQ.numel(), dtype=torch.bool, device=key_N.device)
            assert self.no_N is not None
            said[key_N[first_N]] = ~torch.isin(likeliest_N[first_N], self.no_N.to(key_N.device))
            said_BQ = said.view_as(asked_BQ)
        fields = (right_BQ, batch["kind"], batch["blind"], yes_BQ, said_BQ)
        metrics["scores"].update(nats_N, *(value[asked_BQ] for value in fields))

    def rivals(self, preprocessing: Mapping[str, Any]) -> dict[str, nn.Module]:
        return {"blind (question only)": Blind()}

    def right(self, model: Any, batch: Batch) -> Tensor:
        """(B, Q): whether the greedy answer to each question is right, to its end; True where a row has fewer."""
        out, target_N, key_N = self._answers(model, batch)
        return _whole(out.logits.argmax(-1) == target_N, key_N, batch["kind"])

    @staticmethod
    def _answers(model: Any, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """The model's output at the places before answer tokens, those tokens, and which question of the batch, row by
        row, each belongs to."""
        question_BL = batch["question"]
        wanted_BL = question_BL[:, 1:] > 0
        inputs = {f"{name}_BL": batch[name][:, :-1] for name in ("tokens", "modality", "document", "valid")}
        out = model(**inputs, pixels_BNHWC=batch["pixels"], wanted_BL=wanted_BL)
        row_B1 = torch.arange(len(question_BL), device=question_BL.device)[:, None]
        key_BL = row_B1 * batch["kind"].shape[1] + question_BL[:, 1:] - 1
        return out, batch["tokens"][:, 1:][wanted_BL], key_BL[wanted_BL]

    # -- a user's question ---------------------------------------------------------------------------------------------

    def stream(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[str]:
        """The answer in pieces; the generator's value is the `Answer`."""
        prompt = inputs["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ZooError('prompt is empty; ask something about the image, such as prompt="what is it?"')
        for name, kind in (("max_tokens", int), ("temperature", float), ("seed", int)):
            value = inputs[name]
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ZooError(f"{name}={value!r} is not a {kind.__name__}")
        given = inputs["image"]
        paths = given if isinstance(given, list | tuple) else [given]
        pictures = [look(path, model.config.image_size, preprocessing) for path in paths]
        return (
            yield from reply(
                model,
                preprocessing,
                [picture for picture, _ in pictures],
                [Turn(prompt, "")],
                max_tokens=inputs["max_tokens"],
                temperature=inputs["temperature"],
                seed=inputs["seed"],
                notes=[note for _, notes in pictures for note in notes],
            )
        )

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Answer:
        return exhaust(self.stream(model, preprocessing, inputs))

    def write(self, result: Answer, out: Path) -> list[Path]:
        """``answer.txt``, and ``experts.png``: which experts the patches and words chose."""
        from zoo_vision_language.figure import draw

        (out / "answer.txt").write_text(f"{result.prompt}\n{result.text}\n", encoding="utf-8")
        return [out / "answer.txt", *draw(result, out / "experts.png")]


def _whole(right_N: Tensor, key_N: Tensor, of_BQ: Tensor) -> Tensor:
    """(B, Q): questions of whose answer no token is wrong."""
    wrong = torch.zeros(of_BQ.numel(), dtype=torch.int64, device=key_N.device)
    return (wrong.index_add_(0, key_N, (~right_N).long()) == 0).view_as(of_BQ)


def look(image: Any, image_size: list[int], preprocessing: Mapping[str, Any]) -> tuple[NDArray[np.uint8], list[str]]:
    """An image as a model sees it, from a path or an (H, W, 3) array of 8-bit colours, and what was done to it."""
    size, fit = (image_size[0], image_size[1]), preprocessing.get("fit", "pad")
    if isinstance(image, str | Path):
        return read_image(image, size, fit)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.shape[:2] == size:
            return image, []
        import tempfile

        from zoo.images import write_image

        with tempfile.TemporaryDirectory() as folder:
            return read_image(write_image(image, Path(folder) / "image.png"), size, fit)
    raise ZooError(f"image={str(image)[:60]!r} is neither a path nor an (H, W, 3) array of uint8; give a file")


def reply(
    model: Any,
    preprocessing: Mapping[str, Any],
    images: list[NDArray[np.uint8]],
    turns: list[Turn],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    notes: list[str] | None = None,
) -> Iterator[str]:
    """The answer to the last of ``turns``, in pieces; the generator's value is the `Answer`. Raises `ZooError` for a
    model without a vocabulary, or a dialogue longer than it takes."""
    from zoo_vision_language.figure import watch

    if "vocabulary" not in preprocessing:
        raise ZooError("the model was saved without a vocabulary, so it reads no text; train it with `zoo train`")
    vocabulary, template = restore(preprocessing["vocabulary"]), template_of(preprocessing["template"])
    layout = Layout(vocabulary, template, model.image_tokens, model.config.max_length)
    if (marks := sum(turn.question.count(MARK) for turn in turns)) > len(images):
        raise ZooError(f"the prompt says {MARK} {marks} times and there are {len(images)} images; give one for each")
    row = layout.start(len(images) if template.images_first else 0)
    row.extend(layout.dialogue(Example(tuple(range(len(images))), tuple(turns)), ask=True), 0)
    device = model.device
    pixels = np.stack(images) if images else np.zeros((0, *model.config.image_size, 3), np.uint8)
    tokens_1L, modality_1L = (torch.from_numpy(row.array(n))[None].to(device) for n in ("tokens", "modality"))
    beside = {"modality_BL": modality_1L, "pixels_BNHWC": torch.from_numpy(pixels)[None].to(device)}
    generator = torch.Generator(device).manual_seed(seed)
    text = ""
    with torch.no_grad():
        drawn = generate(
            model, tokens_1L, max_tokens=max_tokens, temperature=temperature, generator=generator, prompt=beside
        )
        said = (int(token_B) for token_B in drawn)
        for piece in spell(vocabulary, _until(said, layout.stop)):
            text += piece
            yield piece
    with torch.no_grad(), watch(model) as seen:  # generation asks the last layer about the last place alone
        model(tokens_1L, **beside)
    words = [MARK if m == 0 else vocabulary.decode([t]) for t, m in zip(row.tokens_L, row.modality_L, strict=True)]
    choices = seen.choices(words, row.modality_L, model.connector.places)
    return Answer(turns[-1].question, text.strip(), pixels, choices, notes or [])


def _until(tokens: Iterator[int], stop: int | None) -> Iterator[int]:
    for token in tokens:
        if token == stop:
            return
        yield token


def exhaust(pieces: Iterator[str]) -> Answer:
    """The value of a generator of pieces."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
