"""Your own images: dialogues in LLaVA's format, or a folder of images with captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from zoo.images import find_images
from zoo.spec import ZooError
from zoo_vision_language.data.dialogues import DialogueConfig, Dialogues, Split, divide
from zoo_vision_language.data.layout import MARK, Example, Turn

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
Record = tuple[tuple[Path, ...], tuple[Turn, ...]]


@dataclass
class OwnConfig(DialogueConfig):
    """``split`` gives the fractions of train, val and test; what is about the same images stays together."""

    path: str = MISSING
    split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    context: int = 256


def _splits(records: list[Record], fractions: list[float]) -> dict[str, Split]:
    """Whole groups of the same images in one split, in the order of the records."""
    groups: dict[tuple[Path, ...], list[Record]] = {}
    for number, record in enumerate(records):
        groups.setdefault(record[0] or (Path(f"text-{number}"),), []).append(record)
    keys = list(groups)
    splits = {}
    for name, places in divide(len(keys), fractions).items():
        chosen = [record for place in places for record in groups[keys[place]]]
        files = sorted({file for images, _ in chosen for file in images})
        place_of = {file: place for place, file in enumerate(files)}
        splits[name] = Split(files, [Example(tuple(place_of[f] for f in images), turns) for images, turns in chosen])
    return splits


class Llava(Dialogues):
    """Dialogues in the format of LLaVA: JSON lines, or one JSON list, of ``{"image": FILE, "conversations": [{"from":
    "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}``. Also read: a list of images,
    none at all, and the short form ``{"image", "question", "answer"}``; ``kind`` names the kind of a record's
    questions.

    Config:
        path: the file.
        images: the folder that image paths are relative to; by default the file's own.
    """

    @dataclass
    class Config(OwnConfig):
        images: str | None = None

    def __init__(self, config: Config) -> None:
        path = Path(config.path).expanduser()
        if not path.is_file():
            raise ZooError(f"'{path}' does not exist; set data.path to a file of dialogues, .jsonl or .json")
        root = Path(config.images).expanduser() if config.images else path.parent
        if not root.is_dir():
            raise ZooError(f"image folder '{root}' does not exist; set data.images to the folder of the images")
        records = [_record(item, root, where) for where, item in _items(path)]
        if not records:
            raise ZooError(f"'{path}' holds no dialogue; write one JSON object a line")
        super().__init__(config, _splits(records, config.split), [], f"'{config.path}'")


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record, and what to call the place where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ZooError(f"'{path}' is not UTF-8 text (byte {error.start}); convert it, as with iconv") from error
    except OSError as error:
        raise ZooError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ZooError(f"'{path}' is no JSON: {error}; mend it") from error
        yield from ((f"entry {number} of '{path}'", item) for number, item in enumerate(items, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {number} of '{path}'"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ZooError(f"{where} is no JSON: {error}; mend or remove it") from error


def _record(item: Any, root: Path, where: str) -> Record:
    if not isinstance(item, dict):
        raise ZooError(f"{where} is a {type(item).__name__}, not an object with 'image' and 'conversations'; mend it")
    images = item.get("image", [])
    images = [images] if isinstance(images, str) else images or []
    if not isinstance(images, list) or not all(isinstance(name, str) and name for name in images):
        raise ZooError(f"{where}: 'image' must be the name of a file, or a list of names; mend it")
    kind = item.get("kind", "all")
    if not isinstance(kind, str) or not kind.replace("_", "").isalnum():
        raise ZooError(f"{where}: 'kind' must be a name of letters, digits and _; mend it")
    talk = item.get("conversations")
    if talk is None and "question" in item and "answer" in item:
        talk = [{"from": "human", "value": item["question"]}, {"from": "gpt", "value": item["answer"]}]
    if not isinstance(talk, list) or len(talk) < 2:
        raise ZooError(f"{where} has neither 'conversations' of two turns nor 'question' and 'answer'; mend it")
    turns = []
    for asked, said in zip(talk[::2], talk[1::2], strict=False):
        for entry, who in ((asked, ASKS), (said, ANSWERS)):
            if not isinstance(entry, dict) or entry.get("from") not in who or not isinstance(entry.get("value"), str):
                raise ZooError(f"{where}: in turn, 'from' must be one of {'/'.join(who)} and 'value' a text; mend it")
        if not said["value"].strip():
            raise ZooError(f"{where} has an empty answer; write one, or remove the record")
        turns.append(Turn(asked["value"], said["value"].strip(), kind))
    marks = sum(turn.question.count(MARK) for turn in turns)
    if marks > len(images):
        raise ZooError(f"{where} says {MARK} {marks} times and names {len(images)} images; make them equal")
    return tuple(root / name for name in images), tuple(turns)


class Captions(Dialogues):
    """A folder of images with captions: beside ``cat.png`` a ``cat.txt``, or one ``captions.csv``, ``.tsv`` or
    ``.jsonl`` in the folder with a file name and a caption a line. Images without a caption are left out, and told.

    Config:
        path: the folder.
        question: what a caption answers.
    """

    @dataclass
    class Config(OwnConfig):
        question: str = "describe the image"

    def __init__(self, config: Config) -> None:
        folder = Path(config.path).expanduser()
        files = find_images(folder)
        table = _table(folder)
        records: list[Record] = []
        for file in files:
            name = file.relative_to(folder).as_posix()
            beside = file.with_suffix(".txt")
            caption = table.get(name, "")
            if not caption and beside.is_file():
                try:
                    caption = beside.read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    raise ZooError(f"'{beside}' is not UTF-8 text (byte {error.start}); convert it") from error
            if caption.strip():
                records.append(((file,), (Turn(config.question, " ".join(caption.split())),)))
        if not records:
            raise ZooError(f"no image in '{folder}' has a caption; write cat.txt beside cat.png, or a captions.csv")
        notes = [f"{len(files) - len(records):,} of {len(files):,} images have no caption and are left out"]
        if absent := sorted(set(table) - {file.relative_to(folder).as_posix() for file in files}):
            notes.append(f"{len(absent):,} captions are of images that are not there: {', '.join(absent[:5])}")
        super().__init__(
            config,
            _splits(records, config.split),
            notes[len(files) == len(records) :],
            f"'{config.path}'",
        )


def _table(folder: Path) -> dict[str, str]:
    """Captions by file name out of a ``captions`` file, if there is one."""
    found: dict[str, str] = {}
    for path in (folder / f"captions.{suffix}" for suffix in ("csv", "tsv", "jsonl")):
        if not path.is_file():
            continue
        if path.suffix == ".jsonl":
            for where, item in _items(path):
                name = item.get("file", item.get("file_name", item.get("image"))) if isinstance(item, dict) else None
                caption = item.get("caption", item.get("text")) if isinstance(item, dict) else None
                if not isinstance(name, str) or not isinstance(caption, str):
                    raise ZooError(f"{where} needs 'file' and 'caption'; mend or remove it")
                found[name] = caption
            continue
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                for number, row in enumerate(csv.reader(stream, delimiter="," if path.suffix == ".csv" else "\t"), 1):
                    if row and len(row) != 2:
                        raise ZooError(f"line {number} of '{path}' has {len(row)} fields, not a file and its caption")
                    if row:
                        found[row[0].strip()] = row[1]
        except UnicodeDecodeError as error:
            raise ZooError(f"'{path}' is not UTF-8 text (byte {error.start}); convert it") from error
    return found
