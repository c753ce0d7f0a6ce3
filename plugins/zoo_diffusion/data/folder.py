"""Your own pictures: a folder, and what is said of each."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from omegaconf import MISSING

from zoo.config import at_least
from zoo.images import find_images, read_images
from zoo.spec import ZooError
from zoo_diffusion.data.pictures import Known, PictureData, TextSettings, divided

LISTS = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.jsonl", "metadata.csv")
NAMED = 5


class Folder(PictureData):
    """Pictures of any size and kind below a folder. Those that cannot be read, or of which nothing is known, are left
    out and told.

    Config:
        path: the folder.
        size: side of the squares that they become.
        channels: 3, or 1 for grey.
        known: ``caption`` for text to image, ``folder`` for the name of the sub-folder as a class.
        captions: a table (CSV, TSV, JSON lines) with columns ``file`` (or ``file_name``) and ``caption`` (or ``text``);
            by default one called captions.csv or metadata.jsonl in the folder, else ``NAME.txt`` beside each picture,
            else its file name in words.
        fit: the middle of each picture, all of it on white, or all of it out of shape.
    """

    @dataclass
    class Config:
        path: str = MISSING
        size: int = 24
        channels: int = 3
        known: Literal["caption", "folder"] = "caption"
        captions: str | None = None
        fit: Literal["crop", "pad", "stretch"] = "crop"
        split: list[float] = field(default_factory=lambda: [0.7, 0.2, 0.1])
        text: TextSettings = field(default_factory=TextSettings)
        flip: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "size")
            if self.channels not in (1, 3):
                raise ZooError(f"channels={self.channels} must be 3 for colours or 1 for grey")

    def __init__(self, config: Config) -> None:
        folder = Path(config.path).expanduser()
        paths, notes = find_images(folder), list[str]()
        if config.known == "folder":
            said = {path: "/".join(path.relative_to(folder).parts[:-1]) for path in paths}
            if "" in said.values():
                loose = next(path for path, name in said.items() if not name)
                raise ZooError(
                    f"'{loose}' lies in no sub-folder, which would name its class; move it, or known=caption"
                )
        else:
            said = captions(folder, paths, config.captions, notes)
            paths = [path for path in paths if path in said]
        read = read_images(paths, config.size, config.fit)
        names = [said[paths[place]] for place in read.kept]
        pixels_NHWC = read.pixels_NHWC
        if config.channels == 1:
            weights = np.array([0.299, 0.587, 0.114], np.float32)  # of ITU-R BT.601
            pixels_NHWC = np.round(pixels_NHWC @ weights).astype(np.uint8)[..., None]
        if config.known == "folder":
            classes = tuple(sorted(set(names)))
            known = Known(np.array([classes.index(name) for name in names], np.int64), classes)
        else:
            known = Known(captions=tuple(names))
        text = config.text if config.known == "caption" else None
        super().__init__(*divided(pixels_NHWC, known, config.split), [*notes, *read.notes], text, config.flip)


def captions(folder: Path, paths: list[Path], table: str | None, notes: list[str]) -> dict[Path, str]:
    """What is said of each picture. Raises `ZooError` for a table that is missing or malformed."""
    found = folder / table if table and not Path(table).is_absolute() else Path(table or "")
    if table and not found.is_file():
        found = Path(table).expanduser()
        if not found.is_file():
            raise ZooError(f"the table of captions '{table}' does not exist in '{folder}'; set data.captions=FILE")
    if not table:
        found = next((folder / name for name in LISTS if (folder / name).is_file()), found)
    if found.is_file():
        rows = read_table(found)
        named = {path.relative_to(folder).as_posix(): path for path in paths}
        said = {named[file]: text for file, text in rows.items() if file in named and text}
        _tell(notes, "captions have no picture", [file for file in rows if file not in named])
        _tell(notes, "pictures have no caption and are left out", [name for name, p in named.items() if p not in said])
    elif any(path.with_suffix(".txt").is_file() for path in paths):
        texts = {path: path.with_suffix(".txt") for path in paths}
        said = {path: _text(file) for path, file in texts.items() if file.is_file()}
        said = {path: text for path, text in said.items() if text}
        _tell(notes, "pictures have no caption and are left out", [path.name for path in paths if path not in said])
    else:
        said = {path: " ".join(path.stem.replace("_", " ").replace("-", " ").split()) for path in paths}
        notes.append(f"the names of the files are their captions; put captions.csv into '{folder}' for others")
    if not said:
        raise ZooError(f"no picture of '{folder}' has a caption; name them in {found.name or 'captions.csv'}")
    return said


def read_table(file: Path) -> dict[str, str]:
    """File name to caption. Raises `ZooError` naming the line or the columns."""
    text = _text(file)
    if file.suffix in (".jsonl", ".ndjson"):
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise ZooError(f"line {number} of '{file}' is no JSON ({error}); mend or remove it") from error
            if not isinstance(row, dict):
                raise ZooError(f"line {number} of '{file}' is no JSON object; mend or remove it")
            rows += [row] if row else []
    else:
        try:
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ","))
        except csv.Error as error:
            raise ZooError(f"'{file}' cannot be read as a table ({error}); mend it") from error
    columns = {key for row in rows for key in row if isinstance(key, str)}
    name = next((key for key in ("file", "file_name", "image", "filename") if key in columns), None)
    said = next((key for key in ("caption", "text") if key in columns), None)
    if name is None or said is None:
        there = ", ".join(sorted(columns)) or "nothing"
        raise ZooError(f"'{file}' needs columns file and caption, and has {there}; name them in its first line")
    return {str(row[name]): str(row.get(said) or "").strip() for row in rows if row.get(name)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ZooError(f"'{file}' is not UTF-8 text; convert it, for example: iconv -f latin1 -t utf-8 FILE") from error


def _tell(notes: list[str], what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        notes.append(f"{len(names):,} {what}: {', '.join(names[:NAMED])}{more}")
