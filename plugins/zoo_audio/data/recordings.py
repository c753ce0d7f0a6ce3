"""Recordings: clips of one speaker saying one text, as waveforms to learn a codec or a recogniser from.

Shapes: N samples.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.download import fetch, unpack
from zoo.spec import ZooError
from zoo_audio.data.files import FSDD
from zoo_audio.sound import SUFFIXES, levelled, read_sound

SPLITS = ("train", "val", "test")
PIECE = 20.0  # seconds: to judge a codec, a longer recording counts as several
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Clip(NamedTuple):
    """One recording: what is said, by whom, and the mono waveform at the data set's rate."""

    name: str
    text: str
    speaker: str
    wave_N: Tensor


Clips = dict[str, list[Clip]]


def fsdd(rate: int, notes: list[str]) -> Clips:
    """The Free Spoken Digit Dataset: of 50 takes of each digit by each of six speakers, 0 to 4 are test (the official
    split), 5 and 6 val, the rest train."""
    folder = unpack(fetch(FSDD)) / "recordings"
    clips: Clips = {split: [] for split in SPLITS}
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        split = "test" if int(take) < 5 else "val" if int(take) < 7 else "train"
        wave_N, _ = read_sound(path, rate)
        clips[split].append(Clip(path.name, DIGITS[int(digit)], speaker, wave_N))
    if not all(clips.values()):
        raise ZooError(f"'{folder}' does not hold the Free Spoken Digit Dataset; delete it, to unpack it again")
    notes.append("FSDD: CC BY-SA 4.0; " + ", ".join(f"{len(clips[split]):,} {split}" for split in SPLITS))
    return clips


def folder(path: str, rate: int, split: Sequence[float], notes: list[str]) -> Clips:
    """Sound files below a folder. What a file says and who speaks come from a line ``file,text,speaker`` of its
    ``metadata.csv``, else from a name ``TEXT_SPEAKER_....wav``, else the text is the name of the folder it is in.

    A file that cannot be read is left out and told; splits are by a hash of the name, so that more files move none.

    Raises:
        ZooError: no such folder, no sound in it, a metadata.csv that names none of its files, or fractions that do not
            sum to 1.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ZooError(f"'{path}' is not a folder; set data.path to one that holds sound files ({', '.join(SUFFIXES)})")
    files = sorted(f for f in root.rglob("*") if f.is_file() and not f.name.startswith("."))
    found = [f for f in files if f.suffix.lower() in SUFFIXES]
    fractions(split)
    if not found:
        raise ZooError(f"folder '{path}' holds no sound file ({', '.join(SUFFIXES)}); put some there")
    keys = [file.relative_to(root).as_posix() for file in found]
    told = _told(root / "metadata.csv", keys, notes)
    if others := Counter(f.suffix.lower() or f.name for f in files if f not in set(found) and f.name != "metadata.csv"):
        notes.append(f"passed over: {', '.join(f'{n} {suffix}' for suffix, n in others.most_common(8))}")
    read: dict[str, Clip] = {}
    broken, remarks = [], list[str]()
    for file, key in zip(found, keys, strict=True):
        try:
            wave_N, odd = read_sound(file, rate)
        except ZooError as error:
            broken.append((key, str(error)))
            continue
        remarks += odd
        pieces = file.stem.split("_")
        text, speaker = told.get(key) or (pieces[:2] if len(pieces) > 2 else (file.parent.name, ""))
        read[key] = Clip(key, text.lower(), speaker.lower(), wave_N)
    if not read:
        raise ZooError(f"no file of '{path}' can be read: {broken[0][1]}")
    notes += left_out(broken, len(found)) + gathered(remarks)
    return dealt(read, split, notes)


def _told(table: Path, keys: Sequence[str], notes: list[str]) -> dict[str, tuple[str, str]]:
    """What ``metadata.csv`` says of each file: text and speaker."""
    import csv

    if not table.is_file():
        return {}
    try:
        rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"'{table}' cannot be read ({error}); write lines file,text,speaker in UTF-8") from error
    told = {row[0].strip(): (row[1].strip(), row[2].strip() if len(row) > 2 else "") for row in rows if len(row) > 1}
    known = set(keys)
    if not known & told.keys():
        first = ",".join(rows[0]) if rows else "nothing"
        raise ZooError(
            f"'{table}' names none of the {len(keys)} sound files ('{first[:60]}'); write lines file,text,speaker, "
            f"such as '{keys[0]},hello,ann'"
        )
    unknown = [",".join(row) for row in rows[1:] if row and (len(row) < 2 or row[0].strip() not in known)]
    if unknown:
        notes.append(f"metadata.csv: {len(unknown)} lines name no sound file, such as '{unknown[0][:60]}'")
    if missing := [key for key in keys if key not in told]:
        notes.append(
            f"metadata.csv: no line for {len(missing)} files, such as {missing[0]}; their names speak for them"
        )
    return told


def fractions(split: Sequence[float]) -> None:
    """Raises `ZooError` unless these are three shares that sum to 1."""
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ZooError(f"split={list(split)} must be three fractions that sum to 1")


def dealt(items: Mapping[str, Any], split: Sequence[float], notes: list[str]) -> dict[str, list[Any]]:
    """Items into splits, by a hash of their names."""
    parts: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for key, item in items.items():
        place = (zlib.crc32(key.encode()) % 10_000) / 10_000
        parts["train" if place < split[0] else "val" if place < split[0] + split[1] else "test"].append(item)
    for name in SPLITS:
        if not parts[name]:
            parts[name] = list(items.values())
            notes.append(f"{len(items)} files are too few for a {name} split of their own: it is all of them")
    return parts


def left_out(broken: Sequence[tuple[str, str]], total: int) -> list[str]:
    """A line on files that cannot be read, each with its cause: three whole, the names of some more."""
    if not broken:
        return []
    more = ", ".join(name for name, _ in broken[3:23]) + " ..." * (len(broken) > 23)
    causes = "; ".join(cause for _, cause in broken[:3])
    return [f"{len(broken)} of {total} files left out: {causes}{f'; and {more}' if more else ''}"]


def gathered(remarks: Iterable[str]) -> list[str]:
    """Remarks ``NAME: WHAT`` on many files, a line for every kind of them: how many, and the first."""
    kinds: dict[str, list[str]] = {}
    for remark in remarks:
        what = remark.partition(": ")[2]
        kind = what if "resampled" in what or "channels" in what else re.sub(r"[\d.,]+", "", what)
        kinds.setdefault(kind, []).append(remark)
    return [found[0] if len(found) == 1 else f"{len(found):,} files, such as {found[0]}" for found in kinds.values()]


@dataclass
class WaveConfig:
    """``window``: seconds of an item; ``level``: root mean square of every clip in dB below full scale."""

    sample_rate: int = 8000
    window: float = 1.28
    level: float = -20.0


class Stretches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """To learn a codec: stretches of ``size`` samples out of all clips one after the other, every eighth of one."""

    def __init__(self, clips: Sequence[Clip], size: int) -> None:
        self.size, wave_N = size, torch.cat([clip.wave_N for clip in clips])
        self.wave_N = torch.nn.functional.pad(wave_N, (0, max(0, size - len(wave_N))))

    def __len__(self) -> int:
        return max(1, (len(self.wave_N) - self.size) // (self.size // 8) + 1)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        start = item * (self.size // 8)
        return {"wave": self.wave_N[start : start + self.size], "valid": torch.ones(self.size, dtype=torch.bool)}


class Whole(torch.utils.data.Dataset[dict[str, Tensor]]):
    """One clip an item, in the middle of ``size`` samples (None: of the longest), with what it says and who speaks."""

    def __init__(
        self, clips: Sequence[Clip], size: int | None, texts: Sequence[str] = (), speakers: Sequence[str] = ()
    ) -> None:
        self.clips, self.size = clips, size or max(len(clip.wave_N) for clip in clips)
        self.texts, self.speakers = {t: i for i, t in enumerate(texts)}, {s: i for i, s in enumerate(speakers)}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        clip = self.clips[item]
        wave, room = clip.wave_N, self.size - len(clip.wave_N)
        before = room // 2 if room >= 0 else -((-room) // 2)
        wave = torch.nn.functional.pad(wave, (before, room - before))
        place = torch.arange(self.size)
        valid = (place >= before) & (place < before + len(clip.wave_N))
        label, speaker = self.texts.get(clip.text, -1), self.speakers.get(clip.speaker, -1)
        return {"wave": wave, "valid": valid, "label": torch.tensor(label), "speaker": torch.tensor(speaker)}


class Recordings:
    """Clips as waveforms. ``form: stretches`` gives pieces to learn a codec from in the train split, and in the others
    clips of up to 20 seconds; ``clips`` gives clips of ``window`` seconds with labels, to learn a recogniser from."""

    def __init__(self, clips: Clips, config: Any, notes: list[str]) -> None:
        c = self.config = config
        self.notes = notes
        self.clips = {s: [k._replace(wave_N=levelled(k.wave_N, c.level)) for k in clips[s]] for s in SPLITS}
        self.texts = sorted({clip.text for clip in self.clips["train"]})
        self.speakers = sorted({clip.speaker for clip in self.clips["train"]})
        size = round(c.window * c.sample_rate)
        long = [clip for split in SPLITS for clip in self.clips[split] if len(clip.wave_N) > size]
        if c.form == "clips" and long:
            notes.append(
                f"{len(long)} clips, such as {long[0].name}, are longer than data.window={c.window} s: only their "
                "middle is heard"
            )
        self.preprocessing = {
            "sample_rate": c.sample_rate,
            "level": c.level,
            "texts": self.texts,
            "speakers": self.speakers,
            "window": c.window,
        }

    def split(self, name: str) -> Any:
        size = round(self.config.window * self.config.sample_rate)
        if self.config.form == "clips":
            return Whole(self.clips[name], size, self.texts, self.speakers)
        if name == "train":
            return Stretches(self.clips[name], size)
        most = max(1, round(PIECE * self.config.sample_rate))
        return Whole([clip._replace(wave_N=p) for clip in self.clips[name] for p in clip.wave_N.split(most)], None)
