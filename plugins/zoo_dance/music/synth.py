"""A small band: drums, bass and chords in several styles, at given beats. For tests, and for motion without music.

Shapes: N samples.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.spec import ZooError
from zoo_dance.music.features import RATE

Samples = NDArray[np.float64]


class Style(NamedTuple):
    """``kick``, ``snare`` and ``hat`` on fractions of a bar of four beats; chords as semitones over ``root`` Hertz."""

    kick: tuple[float, ...]
    snare: tuple[float, ...]
    hat: tuple[float, ...]
    root: float
    chords: tuple[tuple[int, ...], ...]
    bright: int
    bass: tuple[float, ...]


_MAJOR, _MINOR = (0, 4, 7), (0, 3, 7)


def _at(chord: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(note + step for note in chord)


STYLES: dict[str, Style] = {
    "march": Style((0, 2), (1, 3), (0, 1, 2, 3), 130.8, (_MAJOR, _at(_MAJOR, 5), _at(_MAJOR, 7)), 3, (0, 1, 2, 3)),
    "house": Style((0, 1, 2, 3), (1, 3), (0.5, 1.5, 2.5, 3.5), 110.0, (_MINOR, _at(_MAJOR, 8)), 6, (0.5, 1.5, 2.5)),
    "hiphop": Style(
        (0, 0.75, 2.5), (1, 3), tuple(n / 2 for n in range(8)), 98.0, (_MINOR, _at(_MINOR, 5)), 4, (0, 0.75, 2.5)
    ),
    "latin": Style(
        (0, 1.5, 2, 3.5), (1, 3), (0, 1, 2, 2.5, 3), 146.8, (_MAJOR, _at(_MINOR, 2), _at(_MAJOR, 7)), 2, (0, 1.5, 3)
    ),
    "ballad": Style(
        (0,), (2,), (0, 1, 2, 3), 87.3, (_MAJOR, _at(_MINOR, 9), _at(_MAJOR, 5), _at(_MAJOR, 7)), 1, (0, 2)
    ),
    "breaks": Style((0, 1.5, 2.25), (1, 2.75, 3), tuple(n / 4 for n in range(16)), 82.4, (_MINOR,), 8, (0, 1.5, 3)),
}  # fmt: skip


def style_of(genre: str) -> str:
    """Always the same style for a genre's name; that style itself where it is called so."""
    names = list(STYLES)
    return genre if genre in STYLES else names[zlib.crc32(genre.encode()) % len(names)]


def steady(seconds: float, bpm: float) -> list[float]:
    """Seconds of the beats of a steady tempo."""
    return [float(t) for t in np.arange(0, seconds, 60 / bpm)]


def synthesise(style: str, seconds: float, beats: Sequence[float], seed: int = 0) -> Tensor:
    """(N,) at `RATE`: four beats are a bar, the first of ``beats`` (in seconds, rising) the first of one.

    Raises:
        ZooError: a style that nobody plays, or beats that are none.
    """
    if style not in STYLES:
        raise ZooError(f"no style '{style}'; choose one of {', '.join(STYLES)}")
    times = np.asarray(beats, dtype=np.float64)
    if len(times) < 2 or (np.diff(times) <= 0).any() or seconds <= 0:
        raise ZooError("a piece needs a length, and two or more beats that rise; give beats in seconds")
    played, rng = STYLES[style], np.random.default_rng(seed)
    # Beats go on before the first and after the last as they were there.
    first, last, step0, step1 = times[0], times[-1], np.diff(times)[0], np.diff(times)[-1]
    before = int(np.ceil(first / step0 / 4)) * 4
    after = int(np.ceil(max(0.0, seconds - last) / step1)) + 4
    grid = np.concatenate([first - step0 * np.arange(before, 0, -1), times, last + step1 * np.arange(1, after + 1)])
    sound = np.zeros(int(seconds * RATE))

    def when(bar: int, beat: float) -> float:
        return float(np.interp(bar * 4 + beat, np.arange(len(grid)), grid))

    for bar in range(len(grid) // 4):
        chord = played.chords[bar % len(played.chords)]
        length = when(bar, 4) - when(bar, 0)
        _add(sound, when(bar, 0), _chord(chord, played.root * 2, length, played.bright), 0.10)
        for beat in played.kick:
            _add(sound, when(bar, beat), _kick(), 0.7)
        for beat in played.snare:
            _add(sound, when(bar, beat), _noise(rng, 0.12, 30.0), 0.35)
        for beat in played.hat:
            _add(sound, when(bar, beat), np.diff(_noise(rng, 0.05, 90.0), prepend=0.0), 0.15)
        for beat in played.bass:
            _add(sound, when(bar, beat), _tone(played.root * 2 ** (chord[0] / 12) / 2, length / 5, 3), 0.25)
    return torch.from_numpy(sound / max(1.0, float(np.abs(sound).max()))).float()


def _add(sound: Samples, at: float, piece: Samples, level: float) -> None:
    start = round(at * RATE)
    if start < 0:
        piece, start = piece[-start:], 0
    stop = min(len(sound), start + len(piece))
    if stop > start:
        sound[start:stop] += level * piece[: stop - start]


def _time(seconds: float) -> Samples:
    return np.arange(max(1, int(seconds * RATE))) / RATE


def _kick() -> Samples:
    t = _time(0.15)
    return np.asarray(np.sin(2 * np.pi * (50 * t + 4 * (1 - np.exp(-30 * t)))) * np.exp(-18 * t))


def _noise(rng: np.random.Generator, seconds: float, decay: float) -> Samples:
    t = _time(seconds)
    return np.asarray(rng.uniform(-1, 1, len(t)) * np.exp(-decay * t))


def _tone(frequency: float, seconds: float, partials: int) -> Samples:
    t = _time(seconds)
    wave = sum(np.sin(2 * np.pi * n * frequency * t) / n for n in range(1, partials + 1) if n * frequency < RATE / 2)
    return np.asarray(wave * np.exp(-3 * t / max(seconds, 1e-3)))


def _chord(notes: tuple[int, ...], root: float, seconds: float, partials: int) -> Samples:
    return np.asarray(sum(_tone(root * 2 ** (note / 12), seconds, partials) for note in notes))


def played(asked: str, seconds: float) -> Tensor | None:
    """What the band plays for ``house`` or ``house@124`` (beats a minute); None for anything else.

    Raises:
        ZooError: a tempo that nobody dances to.
    """
    found = re.fullmatch(r"(\w+)(?:@(\d+(?:\.\d+)?))?", asked)
    if found is None or found[1] not in STYLES:
        return None
    tempo = float(found[2] or 120)
    if not 40 <= tempo <= 240:
        raise ZooError(f"music={asked}: the band plays 40 to 240 beats a minute")
    return synthesise(found[1], seconds, steady(seconds + 2, tempo))


def write_song(sound_N: Tensor, path: Path) -> Path:
    """Write a sound at `RATE` as 16-bit wav."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound_N.numpy(), RATE, subtype="PCM_16")
    return path
