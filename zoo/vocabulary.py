"""Vocabularies: text to token ids and back.

A vocabulary is a registered part. Its ``Config`` holds all that it learned, so a resolved node of the config is also
what is saved with the weights (`saved`, `restore`). Third parties register others of kind ``vocabulary``.

Shapes: N tokens of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.config import at_least
from zoo.spec import ZooError

END, UNKNOWN = "\0", "\ufffd"
END_NAMES = ("<|end|>", "<|endoftext|>", "<|im_end|>", "</s>", "<eos>", "[SEP]")


class Encoded(NamedTuple):
    """``tokens_N``, and ``bytes_N``: the bytes of the text in UTF-8 that each stands for; their sum is its size."""

    tokens_N: NDArray[Any]
    bytes_N: NDArray[Any]


class Vocabulary:
    """What every vocabulary does.

    Attributes:
        size: number of ids.
        end: id of the token that ends a document, or None.
    """

    size: int
    end: int | None

    def __init__(self, config: Any) -> None:
        self.config = config

    def fit(self, documents: Sequence[str]) -> None:
        """Learn from the documents of the train split, unless there is nothing to learn."""

    def encode(self, text: str) -> Encoded:
        """Raises `ZooError` for text that it cannot express."""
        raise TypeError(f"{type(self).__name__} must override encode")

    def decode(self, tokens: Sequence[int]) -> str:
        raise TypeError(f"{type(self).__name__} must override decode")


def saved(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary as plain data, for `restore`."""
    target = f"{type(vocabulary).__module__}:{type(vocabulary).__qualname__}"
    name = next(name for name, entry in registry.entries("vocabulary").items() if entry.spec.target == target)
    return {"name": name, **dataclasses.asdict(vocabulary.config)}


def restore(node: Mapping[str, Any]) -> Vocabulary:
    """What `saved` wrote. Raises `ZooError` when nobody registers it, or when the settings are of another kind."""
    target = registry.find("vocabulary", node["name"]).load()
    try:
        vocabulary: Vocabulary = target(target.Config(**{k: v for k, v in node.items() if k != "name"}))
    except TypeError as error:
        raise ZooError(f"the saved vocabulary '{node['name']}' cannot be restored: {error}; train it again") from error
    return vocabulary


class Byte(Vocabulary):
    """The 256 bytes of UTF-8. NUL, which no text holds, ends a document."""

    size, end = 256, 0

    @dataclass
    class Config:
        pass

    def encode(self, text: str) -> Encoded:
        tokens_N = np.frombuffer(_utf8(text), np.uint8)
        return Encoded(tokens_N.astype(np.int32), np.ones(len(tokens_N), np.int32))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t != self.end).decode("utf-8", errors="replace")


class Char(Vocabulary):
    """The characters of the train split, sorted. Several documents are ended by NUL.

    Config:
        unknown: keep an id for the characters that the train split lacks, instead of refusing them.
        characters: what it learned.
    """

    @dataclass
    class Config:
        unknown: bool = False
        characters: str | None = None

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self._characters)

    @property
    def end(self) -> int | None:  # type: ignore[override]
        return 0 if self._characters.startswith(END) else None

    @property
    def _characters(self) -> str:
        return self.config.characters or ""

    def fit(self, documents: Sequence[str]) -> None:
        if self.config.characters is None:
            found = set().union(*documents) | ({END} if len(documents) > 1 else set())
            self.config.characters = "".join(sorted(found | ({UNKNOWN} if self.config.unknown else set())))

    def encode(self, text: str) -> Encoded:
        points_N, known_V = _points(text), _points(self._characters)
        tokens_N = np.searchsorted(known_V, points_N).clip(max=len(known_V) - 1)
        strange_N = known_V[tokens_N] != points_N
        if strange_N.any():
            if UNKNOWN not in self._characters:
                raise ZooError(
                    f"character {chr(points_N[strange_N][0])!r} is not in the vocabulary of {self.size} characters; "
                    "leave it out, or train with data.vocabulary.unknown=true or with the vocabulary of bytes"
                )
            tokens_N[strange_N] = self._characters.index(UNKNOWN)
        return Encoded(tokens_N.astype(np.int32), _widths(points_N))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._characters[t] for t in tokens if t != self.end)


class Tokenizer(Vocabulary):
    """A ``tokenizer.json`` of the tokenizers library, as every recent model of the Hugging Face hub has one.

    Config:
        path: the file.
        end: name of its token that ends a document; found by the usual names when not given.
        text: content of the file, which travels with the weights.
    """

    @dataclass
    class Config:
        path: str | None = None
        end: str | None = None
        text: str | None = None

    def fit(self, documents: Sequence[str]) -> None:
        if self.config.text is not None:
            return
        if self.config.path is None:
            raise ZooError("a vocabulary of a tokenizer needs its file; set data.vocabulary.path=tokenizer.json")
        try:
            self.config.text = Path(self.config.path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"tokenizer '{self.config.path}' cannot be read: {error}; check the path") from error
        self.config.path = Path(self.config.path).name  # where it lay is nobody's business later
        self._tokenizer  # noqa: B018  a file of another kind is refused at once

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer as Library

        try:
            return Library.from_str(self.config.text)
        except Exception as error:  # the library raises the bare class
            raise ZooError(
                f"'{self.config.path}' is no tokenizer.json of the tokenizers library: {error}; save one with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
            ) from error

    @property
    def size(self) -> int:  # type: ignore[override]
        return max(self._tokenizer.get_vocab().values()) + 1  # ids may have holes

    @cached_property
    def end(self) -> int | None:  # type: ignore[override]
        ids = [self._tokenizer.token_to_id(name) for name in (self.config.end,) if name] or [
            self._tokenizer.token_to_id(name) for name in END_NAMES
        ]
        found: list[int] = [i for i in ids if i is not None]
        if self.config.end and not found:
            raise ZooError(f"the tokenizer has no token '{self.config.end}'; set data.vocabulary.end to one it has")
        return found[0] if found else None

    def encode(self, text: str) -> Encoded:
        _utf8(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids:
            return Encoded(np.zeros(0, np.int32), np.zeros(0, np.int32))
        # A token stands for the text from the end of the one before to its own, so what lies between is counted too.
        start_S = np.concatenate([[0], _widths(_points(text)).cumsum()])
        end_N = np.maximum.accumulate(start_S[[end for _, end in encoding.offsets]])
        end_N[-1] = start_S[-1]
        return Encoded(np.array(encoding.ids, np.int32), np.diff(end_N, prepend=0).astype(np.int32))

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


class Bpe(Tokenizer):
    """Byte-level byte-pair encoding (as GPT-2), trained on the train split. 256 bytes and an end token count in."""

    @dataclass
    class Config:
        vocab_size: int = 4096
        path: str | None = None
        end: str | None = None
        text: str | None = None

        def __post_init__(self) -> None:
            at_least(257, self, "vocab_size")

    def fit(self, documents: Sequence[str]) -> None:
        if self.config.text is not None or self.config.path is not None:
            return super().fit(documents)
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocab_size,
            special_tokens=[END_NAMES[0]],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(documents, trainer)
        self.config.text = library.to_str()


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ZooError(f"the text holds {text[error.start]!r}, which is no character; give it as UTF-8") from error


def _points(text: str) -> NDArray[Any]:
    """Code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _widths(points_S: NDArray[Any]) -> NDArray[Any]:
    """Bytes of each character in UTF-8."""
    return (1 + (points_S >= 0x80) + (points_S >= 0x800) + (points_S >= 0x10000)).astype(np.int32)
