"""Sounds made here: vowels by source and filter, and four-part cadences. What runs without any file.

Shapes: N samples, T frames, H keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_audio.data.recordings import SPLITS, Clip, Clips
from zoo_audio.music import KEYS, LOWEST

# Formants in Hz of English vowels (Peterson and Barney 1952, men), and voices by their pitch.
FORMANTS = {
    "ee": (270, 2290, 3010),
    "eh": (530, 1840, 2480),
    "ah": (730, 1090, 2440),
    "oo": (300, 870, 2240),
    "er": (490, 1350, 1690),
}
VOICES = {"low": 100.0, "middle": 150.0, "high": 210.0}
# Cadences: keys of bass, tenor, alto and soprano above the tonic, chord by chord (I IV V I and the like).
CADENCES = (
    ((0, 16, 19, 24), (5, 17, 21, 24), (7, 14, 19, 23), (0, 16, 19, 24)),
    ((0, 16, 19, 24), (9, 16, 21, 24), (2, 17, 21, 26), (7, 14, 19, 23), (0, 12, 19, 24)),
    ((0, 15, 19, 24), (8, 15, 20, 24), (7, 14, 19, 23), (0, 15, 19, 24)),
)


def vowels(size: int, rate: int, draw: torch.Generator) -> Clips:
    """``size`` train, a fifth of that val and test clips of one vowel each."""
    clips: Clips = {}
    for split, count in zip(SPLITS, (size, size // 5, size // 5), strict=True):
        clips[split] = []
        for i in range(count):
            vowel, voice = list(FORMANTS)[i % len(FORMANTS)], list(VOICES)[i // len(FORMANTS) % len(VOICES)]
            clips[split].append(Clip(f"{vowel}_{voice}_{i}", vowel, voice, sung(vowel, voice, rate, draw)))
    return clips


def sung(vowel: str, voice: str, rate: int, draw: torch.Generator) -> Tensor:
    """(N,): harmonics of a gliding pitch, each as loud as the formants let it through."""
    seconds, glide, shift = (float(x) for x in torch.rand(3, generator=draw))
    time = torch.arange(round(rate * (0.25 + 0.2 * seconds))) / rate
    pitch = VOICES[voice] * (1 + 0.05 * (shift - 0.5)) * (1 + 0.15 * (glide - 0.5) * time / time[-1])
    phase = 2 * torch.pi * pitch.cumsum(0) / rate
    wave = 0.002 * torch.randn(len(time), generator=draw)
    for harmonic in range(1, int(rate / 2 / float(pitch.max()))):
        frequency = harmonic * float(pitch.mean())
        gain = sum(1 / (1 + ((frequency - formant) / (60 + 0.04 * formant)) ** 2) for formant in FORMANTS[vowel])
        wave = wave + gain / harmonic**0.5 * torch.sin(harmonic * phase)
    fade = (time * 40).clamp(max=1) * ((time[-1] - time) * 20).clamp(max=1)
    return 0.3 * wave * fade / wave.abs().max()


def cadences(size: int, draw: torch.Generator) -> dict[str, list[Tensor]]:
    """Piano rolls (T, H): two cadences a piece, each chord one or two frames long, in any key."""
    rolls: dict[str, list[Tensor]] = {}
    for split, count in zip(SPLITS, (size, size // 5, size // 5), strict=True):
        rolls[split] = []
        for _ in range(count):
            tonic = 43 + int(torch.randint(12, (), generator=draw)) - LOWEST
            frames = []
            for which in torch.randint(len(CADENCES), (2,), generator=draw).tolist():
                for chord in CADENCES[which]:
                    row = torch.zeros(KEYS, dtype=torch.bool)
                    row[[tonic + key for key in chord]] = True
                    frames += [row] * (1 + int(torch.randint(2, (), generator=draw)))
            rolls[split].append(torch.stack(frames))
    return rolls
