"""Recordings: clips of one speaker saying one text, as waveforms to learn a codec or a recogniser from.

Shapes: N samples.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
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
        ZooError: no such folder, no sound in it, or fractions that do not sum to 1.
    """
    import csv

    root = Path(path).expanduser()
    if not root.is_dir():
        raise ZooError(f"'{path}' is not a folder; set data.path to one that holds sound files ({', '.join(SUFFIXES)})")
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ZooError(f"split={list(split)} must be three fractions that sum to 1")
    told: dict[str, tuple[str, str]] = {}
    if (table := root / "metadata.csv").is_file():
        try:
            rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ZooError(f"'{table}' cannot be read ({error}); write lines file,text,speaker in UTF-8") from error
        told = {
            row[0].strip(): (row[1].strip(), row[2].strip() if len(row) > 2 else "") for row in rows if len(row) > 1
        }
    found = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not found:
        raise ZooError(f"folder '{path}' holds no sound file ({', '.join(SUFFIXES)}); put some there")
    clips: Clips = {name: [] for name in SPLITS}
    broken, done = [], []
    for file in found:
        key = file.relative_to(root).as_posix()
        try:
            wave_N, remarks = read_sound(file, rate)
        except ZooError as error:
            broken.append(str(error))
            continue
        done += remarks
        pieces = file.stem.split("_")
        text, speaker = told.get(key) or (pieces[:2] if len(pieces) > 2 else (file.parent.name, ""))
        place = (zlib.crc32(key.encode()) % 10_000) / 10_000
        into = "train" if place < split[0] else "val" if place < split[0] + split[1] else "test"
        clips[into].append(Clip(key, text.lower(), speaker.lower(), wave_N))
    if broken:
        notes.append(
            f"{len(broken)} of {len(found)} files left out: {'; '.join(broken[:3])}{' ...' * (len(broken) > 3)}"
        )
    for what, count in Counter(remark.partition(": ")[2] for remark in done).most_common(8):
        notes.append(f"{count} file{'s' if count > 1 else ''}: {what}")
    whole = [clip for name in SPLITS for clip in clips[name]]
    if not whole:
        raise ZooError(f"no file of '{path}' can be read: {broken[0]}")
    for name in SPLITS:
        if not clips[name]:
            clips[name] = whole
            notes.append(f"{len(whole)} files are too few for a {name} split of their own: it is all of them")
    return clips


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
    """Clips as waveforms. ``form: stretches`` gives pieces to learn a codec from in the train split, ``clips`` whole
    clips of ``window`` seconds with labels, to learn a recogniser from."""

    def __init__(self, clips: Clips, config: Any, notes: list[str]) -> None:
        c = self.config = config
        self.notes = notes
        self.clips = {s: [k._replace(wave_N=levelled(k.wave_N, c.level)) for k in clips[s]] for s in SPLITS}
        self.texts = sorted({clip.text for clip in self.clips["train"]})
        self.speakers = sorted({clip.speaker for clip in self.clips["train"]})
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
        return Stretches(self.clips[name], size) if name == "train" else Whole(self.clips[name], None)
