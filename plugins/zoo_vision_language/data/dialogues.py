"""Dialogues about images: what all data sets of this plugin share.

A data set names the image files of each split and the dialogues about them; here they become rows of tokens and pixels,
once a task has said for which model (`Dialogues.use`). Images that cannot be read are left out with their dialogues,
and told.

Shapes: B rows, L places, N images of a row, Q questions of a row, H height, W width.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo import config as zc
from zoo.images import read_image, read_images
from zoo.registry import suggest
from zoo.spec import ZooError
from zoo.vocabulary import Vocabulary, restore, saved
from zoo_vision_language.data.blind import Blind
from zoo_vision_language.data.layout import Example, Layout, Row
from zoo_vision_language.templates import saved_template, template_of

SPLITS = ("train", "val", "test")
IN_MEMORY = 2_000_000_000
"""Bytes of pixels of a split that are kept in memory; beyond it, every image is read when its row is."""


@dataclass
class DialogueConfig:
    """Every data set of dialogues has these. ``context`` bounds the tokens of a row, those of its images too; ``fit``
    says how an image comes to the model's size; ``template`` is one of `TEMPLATES`; with ``train_kinds`` only questions
    of these kinds are trained on."""

    vocabulary: Any = zc.part("vocabulary", "vision_language/words")
    template: str = "plain"
    context: int = 192
    fit: Literal["pad", "crop", "stretch"] = "pad"
    train_kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        zc.at_least(8, self, "context")


class Split(NamedTuple):
    """The image files of a split, and the dialogues about them."""

    files: list[Path]
    examples: list[Example]


class Dialogues:
    """A data set of dialogues.

    Attributes:
        kinds: the kinds of questions, as scores name them.
        preprocessing: vocabulary, template, context and how images are fitted.
        notes: sizes, the blind control, what was left out.

    Raises:
        ZooError: a split without a dialogue.
    """

    def __init__(self, config: DialogueConfig, splits: Mapping[str, Split], notes: list[str], what: str) -> None:
        self.config, self.what = config, what
        for name in SPLITS:
            if not splits[name].examples:
                raise ZooError(f"{what} has no dialogue in its {name} split; give more, or other fractions")
        pairs = {name: [(t.question, t.answer) for e in splits[name].examples for t in e.turns] for name in SPLITS}
        blind = Blind(pairs["train"], pairs["val"])
        self.splits = {name: _judged(splits[name], blind, pairs[name]) for name in SPLITS}
        found = {turn.kind for split in self.splits.values() for e in split.examples for turn in e.turns}
        self.kinds = sorted(found)
        for kind in config.train_kinds:
            if kind not in found:
                raise ZooError(f"data.train_kinds: {what} has no questions of kind '{kind}'; {suggest(kind, found)}")
        vocabulary: Vocabulary = zc.build("vocabulary", config.vocabulary)
        texts = {text for pair in set(pairs["train"]) for text in pair}
        vocabulary.fit(sorted(texts))
        self._speak(vocabulary, config.template)
        self.notes = [*notes, f"vocabulary of {vocabulary.size:,} tokens"]
        for name, split in self.splits.items():
            turns = [turn for e in split.examples for turn in e.turns]
            self.notes.append(
                f"{name}: {len(split.files):,} images, {len(turns):,} questions; the blind control (question only) "
                f"answers {np.mean([turn.blind for turn in turns]):.3f} of them"
            )
        self._made: dict[str, Rows] = {}
        self._told = 0

    def _speak(self, vocabulary: Vocabulary, template: Any) -> None:
        self.vocabulary, self.template = vocabulary, template_of(template)
        self.preprocessing: dict[str, Any] = {
            "vocabulary": saved(vocabulary),
            "template": saved_template(self.template),
            "context": self.config.context,
            "fit": self.config.fit,
        }

    def use(self, image_size: Sequence[int], image_tokens: int, trained: Mapping[str, Any] = {}) -> None:
        """Make rows for a model: the size of its images, the places that one takes, and the vocabulary and template
        that it was trained with, if it was."""
        if "vocabulary" in trained and trained["vocabulary"] != self.preprocessing["vocabulary"]:
            self._speak(restore(trained["vocabulary"]), trained.get("template", self.config.template))
        self._size = (int(image_size[0]), int(image_size[1]))
        self._layout = Layout(self.vocabulary, self.template, image_tokens, self.config.context)
        self._made = {}

    def split(self, name: str) -> Rows:
        """The rows of a split. Raises `ZooError` before `use`, or when nothing of the split can be used."""
        if not hasattr(self, "_layout"):
            raise ZooError(f"{self.what} does not know its model yet; call the task's match, or use, first")
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Rows:
        files, examples = self.splits[name]
        notes: list[str] = []
        if name == "train" and (wanted := self.config.train_kinds):
            some = [replace(e, turns=tuple(turn for turn in e.turns if turn.kind in wanted)) for e in examples]
            examples = [e for e in some if e.turns]
        pixels, kept = _pixels(files, self._size, self.config.fit, notes)
        if len(kept) < len(files):
            place = {old: new for new, old in enumerate(kept)}
            left = len(examples)
            examples = [
                replace(e, images=tuple(place[i] for i in e.images)) for e in examples if place.keys() >= set(e.images)
            ]
            left -= len(examples)
            notes.append(f"{left:,} of {left + len(examples):,} dialogues go with the images that are left out")
            files = [files[i] for i in kept]
        rows = self._layout.rows(examples, notes)
        if not rows:
            raise ZooError(f"{self.what} has no row left in its {name} split: {'; '.join(notes) or 'it is empty'}")
        for note in notes:
            print(f"data: {name}: {note}", file=sys.stderr)
        return Rows(rows, pixels, files, self._size, self.config.fit, self.kinds)

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch: every field padded to the longest of its rows, ``valid`` False on places that are padding."""
        batch = {}
        for name, first in items[0].items():
            longest = max(item[name].shape[0] for item in items)
            batch[name] = first.new_full((len(items), longest, *first.shape[1:]), PADDING.get(name, 0))
            for row, item in enumerate(items):
                batch[name][row, : len(item[name])] = item[name]
        return batch


PADDING = {"kind": -1, "modality": 1, "yes": -1}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Item: ``tokens``, ``modality``, ``document``, ``question``, ``valid`` (L,); ``pixels`` (N, H, W, 3) in 8 bits;
    ``kind``, ``blind`` and ``yes`` (1 yes, 0 no, -1 another answer) of each question (Q,)."""

    def __init__(
        self,
        rows: Sequence[Row],
        pixels_NHWC: NDArray[np.uint8] | None,
        files: Sequence[Path],
        size: tuple[int, int],
        fit: Any,
        kinds: Sequence[str],
    ) -> None:
        self.rows, self.pixels_NHWC, self.files, self.size, self.fit = rows, pixels_NHWC, files, size, fit
        self.kinds = {kind: place for place, kind in enumerate(kinds)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        row = self.rows[item]
        fields = {name: torch.from_numpy(row.array(name)) for name in ("tokens", "modality", "document", "question")}
        yes = {"yes": 1, "no": 0, "true": 1, "false": 0}
        return {
            **fields,
            "valid": torch.ones(len(row.tokens_L), dtype=torch.bool),
            "pixels": torch.from_numpy(self.look(row.images)),
            "kind": torch.tensor([self.kinds[turn.kind] for turn in row.turns]),
            "blind": torch.tensor([turn.blind for turn in row.turns]),
            "yes": torch.tensor([yes.get(turn.answer.strip().lower().rstrip("."), -1) for turn in row.turns]),
        }

    def look(self, images: Sequence[int]) -> NDArray[np.uint8]:
        """Pixels of some of the split's images, (N, H, W, 3)."""
        if self.pixels_NHWC is not None:
            found: NDArray[np.uint8] = self.pixels_NHWC[list(images)]
            return found
        read = [read_image(self.files[i], self.size, self.fit).pixels_HWC for i in images]
        return np.stack(read) if read else np.zeros((0, *self.size, 3), np.uint8)


def _pixels(
    files: Sequence[Path], size: tuple[int, int], fit: Any, notes: list[str]
) -> tuple[NDArray[np.uint8] | None, list[int]]:
    """The pixels of all files that can be read, None where they would not fit into memory; and their places."""
    if not files:
        return np.zeros((0, *size, 3), np.uint8), []
    chunk = max(1, IN_MEMORY // (3 * size[0] * size[1]))
    parts, kept = [], list[int]()
    for start in range(0, len(files), chunk):
        found = read_images(files[start : start + chunk], size, fit)
        notes += found.notes
        kept += [start + place for place in found.kept]
        parts.append(found.pixels_NHWC)
        if len(files) > chunk:
            parts.clear()
    return (np.concatenate(parts) if parts else None), kept


def _judged(split: Split, blind: Blind, pairs: Sequence[tuple[str, str]]) -> Split:
    """The split, every turn with whether the blind control is right about it."""
    said = iter(blind.answer(question for question, _ in pairs))
    examples = [
        replace(e, turns=tuple(replace(turn, blind=next(said) == turn.answer) for turn in e.turns))
        for e in split.examples
    ]
    return Split(split.files, examples)


def divide(count: int, fractions: Sequence[float]) -> dict[str, range]:
    """Whole items for train, val and test by fractions, at least one each. Raises `ZooError` when they do not fit."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ZooError(f"split={list(fractions)} must be three positive fractions that sum to 1")
    if count < 3:
        raise ZooError(f"{count} images with dialogues are too few for train, val and test; give at least 3")
    val, test = (max(1, round(f * count)) for f in fractions[1:])
    train = max(1, count - val - test)
    val = min(val, count - train - 1)
    return {"train": range(train), "val": range(train, train + val), "test": range(train + val, count)}
