"""Texts as packed windows of tokens: what all data sets of text share, and the user's own.

A data set gives the documents of each split; here they become tokens, each document ended by the vocabulary's end
token, one after the other in one stream. Nothing is cut off and nothing dropped: a document longer than the context
goes on in the next window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from zoo import config as zc
from zoo.spec import ZooError
from zoo.vocabulary import Vocabulary, saved
from zoo_language.data.windows import Windows, pack

SPLITS = ("train", "val", "test")


@dataclass
class TextConfig:
    """Every data set of text has these. ``context`` is the number of tokens that a window predicts."""

    context: int = 256
    vocabulary: Any = zc.part("vocabulary", "language/byte")

    def __post_init__(self) -> None:
        zc.at_least(1, self, "context")


class Texts:
    """A data set made of documents, ``{"train": [...], "val": [...], "test": [...]}``.

    Attributes:
        vocabulary: learned from the train split, unless `use` gave another.
        preprocessing: the vocabulary and the context.
        notes: lengths in characters and tokens, and what the reader of the files had to tell.

    Raises:
        ZooError: a split without text, a train split shorter than the context, a character without a token.
    """

    def __init__(self, config: TextConfig, documents: Mapping[str, list[str]], notes: list[str], what: str) -> None:
        self.config, self.documents, self.what, self._told = config, documents, what, notes
        for split in SPLITS:
            if not any(documents[split]):
                raise ZooError(f"{what} has no text in its {split} split; give more text")
        vocabulary: Vocabulary = zc.build("vocabulary", config.vocabulary)
        vocabulary.fit(documents["train"])
        self.use(vocabulary)

    def use(self, vocabulary: Vocabulary) -> None:
        """Encode with another vocabulary, such as that of a trained model."""
        self.vocabulary = vocabulary
        self.preprocessing = {"vocabulary": saved(vocabulary), "context": self.config.context}
        encoded: dict[int, dict[str, NDArray[Any]]] = {}  # two splits may be one list
        for documents in self.documents.values():
            if id(documents) not in encoded:
                encoded[id(documents)] = self._encode(documents)
        self.columns = {split: encoded[id(documents)] for split, documents in self.documents.items()}
        train = len(self.columns["train"]["tokens"])
        if train <= self.config.context:
            raise ZooError(
                f"context={self.config.context} leaves no window in the {train} training tokens of {self.what}; "
                f"lower data.context to at most {max(1, train // 10)}, or give more text"
            )
        name = self.preprocessing["vocabulary"]["name"].rpartition("/")[2]
        self.notes = [*self._told, f"vocabulary {name} of {vocabulary.size} tokens"]
        for split, documents in self.documents.items():
            self.notes.append(
                f"{split}: {len(documents):,} document{'s' if len(documents) > 1 else ''}, "
                f"{sum(map(len, documents)):,} characters, {len(self.columns[split]['tokens']):,} tokens"
            )

    def split(self, name: str) -> Windows:
        return pack(self.columns[name], self.config.context, every=name == "train")

    def _encode(self, documents: list[str]) -> dict[str, NDArray[Any]]:
        tokens, widths, numbers = [], [], []
        single, end = len(documents) == 1, self.vocabulary.end
        for number, document in enumerate(documents):
            tokens_N, bytes_N = self.vocabulary.encode(document)
            if not single and end is not None:
                tokens_N, bytes_N = np.append(tokens_N, end), np.append(bytes_N, 0)
            tokens.append(tokens_N)
            widths.append(bytes_N)
            numbers.append(np.full(len(tokens_N), number, np.int32))
        columns = {"tokens": np.concatenate(tokens), "bytes": np.concatenate(widths)}
        return columns if single else {**columns, "document": np.concatenate(numbers)}


class Text(Texts):
    """Your own text: a file, JSON lines or Parquet (a document a line or row), or a folder of such files.

    ``split`` gives the fractions of train, val and test. From 20 documents on they are whole in one split, in the order
    of names or lines; fewer are cut where the fraction falls.
    """

    @dataclass
    class Config(TextConfig):
        path: str = MISSING
        key: str = "text"  # of a JSON line, or a column
        split: list[float] = field(default_factory=lambda: [0.9, 0.05, 0.05])

    def __init__(self, config: Config) -> None:
        notes: list[str] = []
        documents = read_documents(Path(config.path).expanduser(), config.key, notes)
        super().__init__(config, split_documents(documents, config.split), notes, f"'{config.path}'")


def read_documents(path: Path, key: str, notes: list[str]) -> list[str]:
    """The documents behind a path. Raises `ZooError` for what is missing, empty, binary or malformed."""
    if not path.exists():
        raise ZooError(f"'{path}' does not exist; set data.path to a text file, a folder or a .jsonl file")
    if path.is_dir():
        return _read_folder(path, key, notes)
    if path.suffix in READERS:
        return READERS[path.suffix](path, key, notes)
    text = read_text(path)
    if not text.strip():
        raise ZooError(f"'{path}' is empty; give a file with text in it")
    return [text]


def read_text(path: Path) -> str:
    """A file of UTF-8, line ends as ``\\n``. Raises `ZooError` when it is something else."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ZooError(f"'{path}' is UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8 FILE")
    if (nul := content.find(b"\0")) >= 0:
        raise ZooError(f"'{path}' is binary (NUL at byte {nul}), not text; give plain text in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ZooError(
            f"'{path}' is not UTF-8 text (byte {content[error.start]:#x} at {error.start}); "
            f"convert it, for example: iconv -f latin1 -t utf-8 FILE"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_folder(folder: Path, key: str, notes: list[str]) -> list[str]:
    documents, skipped = [], []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix in READERS:
            documents += READERS[path.suffix](path, key, notes)
            continue
        try:
            document = read_text(path)
        except ZooError:
            document = ""
        if document.strip():
            documents.append(document)
        else:
            skipped.append(path.name)
    if not documents:
        raise ZooError(f"folder '{folder}' holds no text file; put files in UTF-8 there")
    if skipped:
        notes.append(f"skipped {len(skipped)} files of '{folder}' that are empty or no text: {', '.join(skipped[:5])}")
    return documents


def read_jsonl(path: Path, key: str, notes: list[str]) -> list[str]:
    """The field ``key`` of every line. Raises `ZooError` naming the line that is malformed or lacks it."""
    texts: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ZooError(f"line {number} of '{path}' is no JSON: {error}; mend or remove it") from error
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            there = ", ".join(item) if isinstance(item, dict) else f"a {type(item).__name__}"
            raise ZooError(f"line {number} of '{path}' has no text '{key}' (found: {there}); set data.key=...")
        texts.append(item[key])
    return _with_text(texts, path, key, notes)


def read_parquet(path: Path, key: str, notes: list[str]) -> list[str]:
    """The column ``key`` of a Parquet file. Raises `ZooError` when there is none of text, or no reader."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ZooError(f"'{path}' needs pyarrow, which is not installed; run: pip install pyarrow") from error
    try:
        file = ParquetFile(path)
        if key not in (there := file.schema_arrow.names):
            raise ZooError(f"'{path}' has no column '{key}' (found: {', '.join(there)}); set data.key=...")
        texts = [value or "" for value in file.read([key])[key].to_pylist()]
    except ArrowException as error:
        raise ZooError(f"'{path}' cannot be read as Parquet: {error}; write it anew") from error
    if not all(isinstance(text, str) for text in texts):
        raise ZooError(f"column '{key}' of '{path}' is no text; set data.key=...")
    return _with_text(texts, path, key, notes)


READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".parquet": read_parquet}


def _with_text(texts: list[str], path: Path, key: str, notes: list[str]) -> list[str]:
    documents = [text for text in texts if text.strip() and "\0" not in text]
    if not documents:
        raise ZooError(f"'{path}' is empty: no line has text in '{key}'; give a file with text in it")
    if empty := len(texts) - len(documents):
        notes.append(f"skipped {empty} lines of '{path}' whose '{key}' is empty or binary")
    return documents


def split_documents(documents: list[str], fractions: list[float]) -> dict[str, list[str]]:
    """The documents of each split: whole ones where there are 20 or more, else cut at the fractions of the text."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ZooError(f"split={fractions} must be three positive fractions that sum to 1")
    ends_D = np.cumsum([len(d) for d in documents])
    cuts = [round(f * int(ends_D[-1])) for f in np.cumsum([0.0, *fractions])]
    if len(documents) >= 20:
        cuts = [0, *(int(ends_D[np.abs(ends_D - cut).argmin()]) for cut in cuts[1:3]), cuts[3]]
    parts: dict[str, list[str]] = {}
    for split, low, high in zip(SPLITS, cuts, cuts[1:], strict=False):
        starts = ends_D - [len(d) for d in documents]
        pieces = (d[max(0, low - s) : max(0, high - s)] for d, s in zip(documents, starts.tolist(), strict=True))
        parts[split] = [piece for piece in pieces if piece]
    return parts
