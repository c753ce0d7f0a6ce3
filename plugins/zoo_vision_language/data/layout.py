"""Dialogues about images as rows of tokens, packed: several dialogues about the same images share the images' tokens.

A row is ``[images][dialogue 0][dialogue 1]...``: each dialogue sees the images and itself. Places of image tokens hold
id 0 and modality IMAGE; the model puts the image's vectors there.

Shapes: L places of a row, Q questions of a row, P tokens of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.vocabulary import Vocabulary
from zoo_vision_language.models.vision_language import IMAGE, TEXT
from zoo_vision_language.templates import Template

MARK = "<image>"
SHARED = -1


@dataclass(frozen=True)
class Turn:
    """A question and its answer; ``kind`` is what the scores are told apart by; ``blind``, whether the control that
    sees no image answers it right."""

    question: str
    answer: str
    kind: str = "all"
    blind: bool = False


@dataclass(frozen=True)
class Example:
    """A dialogue about ``images``, places in a list of files."""

    images: tuple[int, ...]
    turns: tuple[Turn, ...]


@dataclass
class Row:
    """``question_L`` is 1 + the place in ``turns`` of the turn whose answer a token belongs to, else 0."""

    images: tuple[int, ...] = ()
    tokens_L: list[int] = field(default_factory=list)
    modality_L: list[int] = field(default_factory=list)
    document_L: list[int] = field(default_factory=list)
    question_L: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def add(self, tokens: Iterable[int], document: int, question: int = 0, modality: int = TEXT) -> None:
        new = list(tokens)
        self.tokens_L += new
        self.modality_L += [modality] * len(new)
        self.document_L += [document] * len(new)
        self.question_L += [question] * len(new)

    def extend(self, other: Row, document: int) -> None:
        """Lay the dialogue of another row behind."""
        shift = len(self.turns)
        self.tokens_L += other.tokens_L
        self.modality_L += other.modality_L
        self.document_L += [document] * len(other.tokens_L)
        self.question_L += [q + shift if q else 0 for q in other.question_L]
        self.turns += other.turns

    def array(self, name: str) -> NDArray[Any]:
        return np.array(getattr(self, f"{name}_L"), np.int64)


class Layout:
    """Writes dialogues down: with a vocabulary, a template, and P tokens an image. ``context`` bounds a row."""

    def __init__(self, vocabulary: Vocabulary, template: Template, image_tokens: int, context: int) -> None:
        self.vocabulary, self.template = vocabulary, template
        self.image_tokens, self.context = image_tokens, context
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[text] = self.vocabulary.encode(text).tokens_N.tolist() if text else []
        return self._known[text]

    @property
    def stop(self) -> int | None:
        """The token that ends an answer."""
        return next(iter(self.ids(self.template.end)), self.vocabulary.end)

    def start(self, images: int) -> Row:
        """The images, shared by all dialogues of a row."""
        row = Row()
        row.add([0] * (images * self.image_tokens), SHARED, modality=IMAGE)
        return row

    def dialogue(self, example: Example, ask: bool = False) -> Row:
        """One dialogue without shared images. With ``ask`` it ends where the answer of the last turn would begin."""
        t, row = self.template, Row(example.images)
        row.add(self.ids(t.system), 0)
        turns, inline = example.turns, 0 if t.images_first else len(example.images)
        marks = sum(turn.question.count(MARK) for turn in turns)
        if turns and inline > marks:
            turns = (replace(turns[0], question=MARK * (inline - marks) + "\n" + turns[0].question), *turns[1:])
        for number, turn in enumerate(turns):
            row.add(self.ids(t.user), 0)
            for place, piece in enumerate(turn.question.split(MARK)):
                if place and inline:
                    inline -= 1
                    row.add(self.ids(t.image_start), 0)
                    row.add([0] * self.image_tokens, 0, modality=IMAGE)
                    row.add(self.ids(t.image_end), 0)
                piece = piece.strip(" ") if t.images_first else piece
                row.add(self.ids(piece.lstrip("\n") if t.images_first else piece), 0)
            row.add(self.ids(t.assistant), 0)
            if ask and number == len(turns) - 1:
                break
            row.turns.append(turn)
            row.add([*self.ids(turn.answer), *self.ids(t.end)], 0, len(row.turns))
        return row

    def rows(self, examples: Sequence[Example], notes: list[str]) -> list[Row]:
        """All dialogues, those about the same images together as long as they fit; what does not fit is cut to the
        turns that do, or left out, and told."""
        together: dict[tuple[int, ...], list[Row]] = {}
        order: list[list[Row]] = []
        cut = left = 0
        for example in examples:
            shared = len(example.images) * self.image_tokens if self.template.images_first else 0
            row = self.dialogue(example)
            while len(row.tokens_L) + shared > self.context and len(example.turns) > 1:
                example = replace(example, turns=example.turns[:-1])
                row, cut = self.dialogue(example), cut + 1
            if len(row.tokens_L) + shared > self.context:
                left += 1
                continue
            if not self.template.images_first or not example.images:
                order.append([row])
                continue
            if example.images not in together:
                order.append(together.setdefault(example.images, []))
            together[example.images].append(row)
        if cut:
            notes.append(f"{cut:,} turns at the end of dialogues do not fit into context={self.context}")
        if left:
            notes.append(f"{left:,} dialogues are longer than context={self.context} and are left out")
        return [row for group in order for row in self._packed(group)]

    def _packed(self, dialogues: Sequence[Row]) -> Iterable[Row]:
        images = dialogues[0].images
        start = self.start(len(images) if self.template.images_first else 0)
        row: Row | None = None
        document = 0
        for dialogue in dialogues:
            if row is not None and len(row.tokens_L) + len(dialogue.tokens_L) > self.context:
                yield row
                row = None
            if row is None:
                row, document = replace(start, **{k: list(v) for k, v in vars(start).items() if k != "images"}), 0
                row.images = images
            row.extend(dialogue, document)
            document += 1
        if row is not None:
            yield row
