"""Clips of motion with music, cut into windows: what all data sets of this plugin share.

Shapes: T frames, C features of a motion, F numbers of music.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zoo.config import at_least
from zoo.resources import cache_dir
from zoo.spec import ZooError
from zoo_dance.motion.formats import SUFFIXES, read_motion
from zoo_dance.motion.retarget import canonical
from zoo_dance.motion.skeleton import FPS, Motion, facing, mirror, to_features
from zoo_dance.music.features import features, read_song
from zoo_dance.music.pairing import music_for

SPLITS = ("train", "val", "test")
LEAST_STD, LEAST_MUSIC_STD = 0.05, 1e-3
SHORTEST = 8
"""Frames; a clip with fewer is left out."""
VERSION = 2
"""Of what is kept in the cache; another number makes it anew."""
Floats = NDArray[np.float32]


@dataclass
class Clip:
    """``motion_TC`` in features, ``music_TF``, frame for frame, and what it shows."""

    name: str
    motion_TC: Floats
    music_TF: Floats
    genre: str
    content: str = ""
    held_out: bool = False


class Source(NamedTuple):
    """A file of motion, what it shows, and the music that belongs to it, if there is any."""

    path: Path
    genre: str
    content: str = ""
    music: Path | None = None


@dataclass
class WindowConfig:
    """How clips become windows.

    Config:
        frames: of a window; a shorter clip is padded, and cycles are gone through several times.
        hop: frames between two windows.
        mirror: half of the training windows are seen in a mirror.
        split: shares of train, val and test.
        by: split each clip in time (``time``; short clips are all training), or clip by clip (``clip``).
        held_out: ``content:genre`` pairs whose clips are kept from training and validation, for testing alone, beside
            the clips or ends of clips that are tested anyway.
    """

    frames: int = 64
    hop: int = 16
    mirror: bool = True
    split: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])
    by: str = "time"
    held_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_least(4, self, "frames")
        at_least(1, self, "hop")
        if self.by not in ("time", "clip"):
            raise ZooError(f"by={self.by} must be time or clip")
        if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ZooError(f"split={self.split} must be three positive fractions that sum to 1")


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of clips: ``motion`` (T, C) and ``music`` (T, F), normalised, ``valid`` (T,), ``genre``, ``content``,
    ``held_out`` and ``index``. With ``move`` each starts anywhere within ``hop`` frames, and half are mirrored."""

    def __init__(self, data: MotionData, clips: Sequence[Clip], move: bool) -> None:
        self.data, self.clips, self.move = data, clips, move
        c = data.config
        self.starts = [
            (n, start)
            for n, clip in enumerate(clips)
            for start in range(0, max(1, len(clip.motion_TC) - c.frames + 1), c.hop)
        ]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        number, start = self.starts[place]
        clip, c = self.clips[number], self.data.config
        length = len(clip.motion_TC)
        if self.move:
            start = max(0, min(length - c.frames, start + int(torch.randint(0, c.hop, ()))))
        rows = np.arange(start, start + c.frames)
        rows, valid = rows.clip(max=length - 1), rows < length
        motion = torch.from_numpy(clip.motion_TC[rows])
        if self.move and c.mirror and torch.rand(()) < 0.5:
            motion = mirror(motion)
        p = self.data.preprocessing
        return {
            "motion": (motion - self.data.mean_C) / self.data.std_C,
            "music": (torch.from_numpy(clip.music_TF[rows]) - self.data.music_mean_F) / self.data.music_std_F,
            "valid": torch.from_numpy(valid),
            "genre": torch.tensor(p["genres"].index(clip.genre)),
            "content": torch.tensor(p["contents"].index(clip.content) if p["contents"] else 0),
            "held_out": torch.tensor(clip.held_out),
            "index": torch.tensor(place),
        }


class MotionData:
    """A data set of clips.

    Attributes:
        preprocessing: ``genres``, ``contents``, ``fps``, ``frames`` of a window, and mean and spread of motion and
            music, which the training clips give.
        clips: by split.
    """

    def __init__(self, clips: Sequence[Clip], config: WindowConfig, notes: list[str]) -> None:
        self.config, self.notes = config, notes
        if not clips:
            raise ZooError("no clip of motion is left; see the notes above, or name another folder")
        genres, contents = sorted({clip.genre for clip in clips}), sorted({clip.content for clip in clips})
        self.clips = divide(clips, config)
        for split in SPLITS:
            if not self.clips[split]:
                raise ZooError(
                    f"{len(clips)} clips leave none for {split}; give more or longer ones, or set data.by=time|clip"
                )
        motion = np.concatenate([clip.motion_TC for clip in self.clips["train"]])
        music = np.concatenate([clip.music_TF for clip in self.clips["train"]])
        self.preprocessing: dict[str, Any] = {
            "fps": FPS,
            "frames": config.frames,
            "genres": genres,
            "contents": contents if contents != [""] else [],
            "motion": {"mean": motion.mean(0).tolist(), "std": motion.std(0).clip(min=LEAST_STD).tolist()},
            "music": {"mean": music.mean(0).tolist(), "std": music.std(0).clip(min=LEAST_MUSIC_STD).tolist()},
        }
        self.normalise_as(self.preprocessing)
        total = sum(len(clip.motion_TC) for clip in clips)
        counts = ", ".join(f"{len(self.split(split)):,} {split}" for split in SPLITS)
        notes.append(f"{len(clips):,} clips, {total:,} frames, {len(genres)} genres; windows: {counts}")

    def normalise_as(self, preprocessing: Mapping[str, Any]) -> None:
        """Take the means and spreads that a model was trained with, and its numbers of genres and contents.

        Raises:
            ZooError: a genre or content that it never saw.
        """
        for key in ("genres", "contents"):
            known = preprocessing[key]
            unknown = [name for name in self.preprocessing[key] if known and name not in known]
            if unknown:
                raise ZooError(
                    f"the data have {key} that the model does not know ({', '.join(unknown[:5])}); it knows "
                    f"{', '.join(known[:20])}: rename them, or train anew"
                )
        keep = {"frames": self.preprocessing["frames"]}
        self.preprocessing = {**preprocessing, **keep}
        both = preprocessing["motion"], preprocessing["music"]
        self.mean_C, self.music_mean_F = (torch.tensor(each["mean"]) for each in both)
        self.std_C, self.music_std_F = (torch.tensor(each["std"]) for each in both)

    def split(self, name: str) -> Windows:
        return Windows(self, self.clips[name], move=name == "train")


def divide(clips: Sequence[Clip], config: WindowConfig) -> dict[str, list[Clip]]:
    """Clips by split: held-out pairs are for testing, the others are cut in time or dealt out one by one."""
    out: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    if config.held_out:
        wanted = set(config.held_out)
        if unknown := wanted - {f"{clip.content}:{clip.genre}" for clip in clips}:
            raise ZooError(f"held_out: no clip is {sorted(unknown)[0]}; write content:genre")
        out["test"] = [replace(clip, held_out=True) for clip in clips if f"{clip.content}:{clip.genre}" in wanted]
        clips = [clip for clip in clips if f"{clip.content}:{clip.genre}" not in wanted]
    if config.by == "clip":
        rng = np.random.default_rng(0)
        order = rng.permutation(len(clips))
        val = max(1, round(config.split[1] * len(clips)))
        test = max(1, round(config.split[2] * len(clips)))
        for place, number in enumerate(order):
            split = "val" if place < val else "test" if place < val + test else "train"
            out[split].append(clips[number])
        return out
    for clip in clips:
        length = len(clip.motion_TC)
        one, two = round(config.split[0] * length), round((config.split[0] + config.split[1]) * length)
        if min(two - one, length - two) < SHORTEST:
            out["train"].append(clip)
            continue
        for split, (low, high) in zip(SPLITS, ((0, one), (one, two), (two, length)), strict=True):
            part = clip.motion_TC[low:high], clip.music_TF[low:high]
            out[split].append(Clip(clip.name, *part, clip.genre, clip.content))
    return out


# -- reading -----------------------------------------------------------------------------------------------------------


def load(sources: Sequence[Source], notes: list[str], kept_as: str = "") -> list[Clip]:
    """Clips of files, on the canonical skeleton at 30 frames a second, with the music that belongs to them, or else
    music made for them. Files that cannot be read are left out and reported; what was read is kept in the cache.

    Raises:
        ZooError: not a single one can be read.
    """
    key = hashlib.sha256(
        json.dumps(
            [VERSION, [[str(s.path), s.genre, s.content, str(s.music), _age(s.path), _age(s.music)] for s in sources]]
        ).encode()
    ).hexdigest()[:16]
    path = cache_dir() / "dance" / f"{kept_as or 'clips'}-{key}.npz"
    if (found := _kept(path)) is not None:
        clips, told = found
        notes += told
        return clips
    clips, remarks, refused = [], list[tuple[str, str]](), list[tuple[str, str]]()
    for source in sources:
        try:
            clip, own = _clip(source)
        except ZooError as error:
            refused.append((source.path.name, str(error)))
            continue
        clips.append(clip)
        remarks += [(source.path.name, remark) for remark in own]
    if refused and not clips:
        raise ZooError(refused[0][1])
    told = _summed(remarks) + [f"{name} is left out: {cause}" for name, cause in refused[:5]]
    if more := [name for name, _ in refused[5:]]:
        told.append(f"{len(more)} more are left out: {', '.join(more[:20])}{' ...' * (len(more) > 20)}")
    _keep(path, clips, told)
    notes += told
    return clips


def _age(path: Path | None) -> float:
    return path.stat().st_mtime if path is not None and path.is_file() else 0.0


def _clip(source: Source) -> tuple[Clip, list[str]]:
    motion = read_motion(source.path)
    motion = facing(canonical(motion, f"'{source.path}'", FPS))
    if motion.loop:
        motion = _twice(motion)
    if len(motion) < SHORTEST:
        raise ZooError(f"'{source.path}' has {len(motion)} frames at 30 a second; give at least {SHORTEST}")
    told = list(motion.notes)
    if source.music is None:
        sound = music_for(motion, source.genre)
        told.append("music was made for the steps")
    else:
        song = read_song(source.music)
        sound = song.sound_N
        told += song.notes
    music = features(sound)
    length = min(len(motion), len(music))
    if source.music is not None and abs(len(motion) - len(music)) > FPS:
        told.append("music and motion differ in length by more than a second: the longer is cut")
    x_TC = to_features(motion)[:length].numpy()
    return Clip(source.path.stem, x_TC, music[:length].numpy(), source.genre, source.content), told


def _twice(motion: Motion) -> Motion:
    """A cycle gone through until it lasts four seconds, each time going on from where it was."""
    times = max(1, -(-round(4 * motion.fps) // len(motion)))
    if times == 1 or len(motion) < 2:
        return motion
    step_3 = (motion.root_T3[-1] - motion.root_T3[0]) * len(motion) / (len(motion) - 1)
    step_3 = step_3 * torch.tensor([1.0, 0.0, 1.0], dtype=step_3.dtype)
    forward = motion.rotation_TJ33[[0, -1], 0] @ torch.tensor([0.0, 0.0, 1.0], dtype=step_3.dtype)
    if torch.nn.functional.cosine_similarity(forward[0, [0, 2]], forward[1, [0, 2]], dim=0) < 0.9:
        return motion  # it ends looking elsewhere: no cycle
    root = torch.cat([motion.root_T3 + n * step_3 for n in range(times)])
    return replace(motion, root_T3=root, rotation_TJ33=motion.rotation_TJ33.repeat(times, 1, 1, 1))


def _summed(remarks: Sequence[tuple[str, str]]) -> list[str]:
    """A line for every remark: how many files it is about, and the first of them."""
    about: dict[str, list[str]] = {}
    for name, remark in remarks:
        about.setdefault(remark, []).append(name)
    return [
        f"{remark} ({names[0]})" if len(names) == 1 else f"{remark} ({len(names)} clips, such as {names[0]})"
        for remark, names in about.items()
    ]


def _keep(path: Path, clips: Sequence[Clip], told: Sequence[str]) -> None:
    arrays: dict[str, Any] = {}
    for n, clip in enumerate(clips):
        arrays |= {f"motion{n}": clip.motion_TC, f"music{n}": clip.music_TF}
    index = json.dumps({"clips": [[c.name, c.genre, c.content] for c in clips], "told": list(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.npz")
    np.savez(new, index=np.frombuffer(index.encode(), np.uint8), **arrays)
    os.replace(new, path)


def _kept(path: Path) -> tuple[list[Clip], list[str]] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        index = json.loads(stored["index"].tobytes())
        clips = [
            Clip(name, stored[f"motion{n}"], stored[f"music{n}"], genre, content)
            for n, (name, genre, content) in enumerate(index["clips"])
        ]
    return clips, index["told"]


def motion_files(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[Path]:
    """All files of motion below a folder, sorted. Raises `ZooError` when there are none."""
    if not folder.is_dir():
        raise ZooError(f"motion folder '{folder}' does not exist; set data.path=FOLDER")
    wanted = set(suffixes)
    if not (found := sorted(p for p in folder.rglob("*") if p.suffix.lower() in wanted and p.is_file())):
        raise ZooError(f"'{folder}' holds no motion ({', '.join(sorted(wanted))}); set data.path=FOLDER")
    return found
