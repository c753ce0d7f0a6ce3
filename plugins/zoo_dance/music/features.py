"""Sound as a dancer hears it: 35 numbers a frame (20 cepstral coefficients, 12 of pitch classes, onset strength, beat,
onset peak), as in AIST++ (arXiv:2101.08779) and MEGADance, and the beats among them.

The pitch classes come from constant-Q filters laid over one long Fourier transform, not from librosa's recursion, so
they are near librosa's and not equal to them. Shapes: N samples, T frames, M mel bands.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from zoo.spec import ZooError

FPS = 30
HOP = 512
RATE = FPS * HOP
"""Samples a second, so that a frame of motion is a hop."""
FEATURES = 35
MFCC, CHROMA, ONSET, BEAT, PEAK = slice(0, 20), slice(20, 32), 32, 33, 34
SILENT = 1e-4
SHORTEST = 0.5
_FFT, _MEL, _LONG = 2048, 128, 8192


class Song(NamedTuple):
    """``sound_N`` in mono at `RATE`, from -1 to 1; ``notes`` say what was converted."""

    sound_N: Tensor
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.sound_N) / RATE


def read_song(path: str | Path) -> Song:
    """A sound file (wav, flac, ogg, mp3) in mono at `RATE`.

    Raises:
        ZooError: it is missing, no sound, silent, or shorter than half a second.
    """
    import soundfile

    path = Path(path).expanduser()
    if not path.is_file():
        raise ZooError(f"music file '{path}' does not exist; check the path")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise ZooError(f"'{path}' cannot be read as sound ({cause}); give wav, flac, ogg or mp3") from error
    notes = []
    sound = torch.from_numpy(samples).mean(1)
    if bad := int((~sound.isfinite()).sum()):
        sound = sound.nan_to_num(0.0, 0.0, 0.0)
        notes.append(f"{bad:,} samples that were no number became 0")
    checked(sound, f"'{path}'", rate)
    if samples.shape[1] > 1:
        notes.append(f"{samples.shape[1]} channels became one")
    if rate != RATE:
        sound = torchaudio.functional.resample(sound, rate, RATE)
        notes.append(f"{rate:,} samples a second became {RATE:,}")
    return Song(sound, tuple(notes))


def checked(sound_N: Tensor, where: str, rate: int) -> None:
    """Raises `ZooError` when nobody could dance to it."""
    if len(sound_N) < SHORTEST * rate:
        raise ZooError(f"{where} lasts {len(sound_N) / rate:.3g} s; give at least {SHORTEST:g} s of music")
    if sound_N.abs().max() < SILENT:
        raise ZooError(f"{where} is silent; give music that can be heard")


def features(sound_N: Tensor) -> Tensor:
    """(T, 35) of a sound at `RATE`, a row for every started hop; in blocks of a minute, so that long songs fit."""
    frames = -(-len(sound_N) // HOP)
    block, edge = 60 * FPS, _LONG // HOP
    rows: list[Tensor] = []
    logs: list[Tensor] = []
    for start in range(0, frames, block):
        stop = min(frames, start + block)
        low, high = max(0, start - edge), min(frames, stop + edge)
        piece = sound_N[low * HOP : high * HOP]
        piece = F.pad(piece, (0, (high - low) * HOP - len(piece)))
        log_TM, chroma_TC = _spectra(piece, high - low)
        inside = slice(start - low, stop - low)
        logs.append(log_TM[inside])
        rows.append(chroma_TC[inside])
    log_TM = torch.cat(logs)
    # As librosa: decibels, at most 80 below the loudest of all.
    log_TM = log_TM.clamp(min=float(log_TM.max()) - 80.0)
    mfcc_TC = log_TM @ _dct()
    onset_T = onset_strength(log_TM)
    marks = torch.zeros(frames, 2)
    marks[beats(onset_T), 0] = 1.0
    marks[peaks(onset_T), 1] = 1.0
    return torch.cat([mfcc_TC, torch.cat(rows), onset_T[:, None], marks], -1).float()


def _spectra(sound_N: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    short = torch.stft(sound_N, _FFT, HOP, window=torch.hann_window(_FFT), pad_mode="constant", return_complex=True)
    power_TF = short.abs().square().T[:frames]
    log_TM = 10 * (power_TF @ _mel()).clamp(min=1e-10).log10()
    long = torch.stft(sound_N, _LONG, HOP, window=torch.hann_window(_LONG), pad_mode="constant", return_complex=True)
    chroma_TC = long.abs().T[:frames] @ _chroma()
    return log_TM, chroma_TC / chroma_TC.amax(-1, keepdim=True).clamp(min=1e-6)


@cache
def _mel() -> Tensor:
    return torchaudio.functional.melscale_fbanks(
        _FFT // 2 + 1, 0.0, RATE / 2, _MEL, RATE, norm="slaney", mel_scale="slaney"
    )


@cache
def _dct() -> Tensor:
    return torchaudio.functional.create_dct(20, _MEL, norm="ortho")


@cache
def _chroma() -> Tensor:
    """(F, 12): seven octaves from C1, a Gaussian of a quarter tone about each semitone."""
    frequency = torch.arange(1, _LONG // 2 + 1) * RATE / _LONG
    semitone = 12 * torch.log2(frequency / 32.703)
    weight = torch.zeros(_LONG // 2 + 1, 12)
    for note in range(84):
        gauss = torch.exp(-0.5 * ((semitone - note) / 0.35) ** 2)
        weight[1:, note % 12] += gauss / gauss.sum().clamp(min=1e-6)
    return weight


def onset_strength(log_TM: Tensor) -> Tensor:
    """(T,): how much louder the bands became, on average."""
    rise = (log_TM[1:] - log_TM[:-1]).clamp(min=0).mean(-1)
    return torch.cat([torch.zeros(1), rise])


def peaks(onset_T: Tensor) -> list[int]:
    """Frames that are the highest of their surroundings and stand out from the mean of a longer stretch."""
    if len(onset_T) < 3 or onset_T.max() <= 0:
        return []
    scaled = (onset_T / onset_T.max())[None, None]
    highest = F.max_pool1d(scaled, 5, 1, 2)[0, 0]
    mean = F.avg_pool1d(scaled, 21, 1, 10, count_include_pad=False)[0, 0]
    return [int(n) for n in ((scaled[0, 0] == highest) & (scaled[0, 0] > mean + 0.07)).nonzero()[:, 0]]


def tempo(onset_T: Tensor, low: float = 50.0, high: float = 220.0) -> float:
    """Beats a minute: the lag at which the onsets repeat, tempi near 120 preferred (Ellis, 2007)."""
    centred = onset_T - onset_T.mean()
    size = 1 << (2 * len(centred)).bit_length()
    spectrum = torch.fft.rfft(centred, size)
    repeat = torch.fft.irfft(spectrum * spectrum.conj(), size)[: len(centred)]
    lags = torch.arange(max(1, int(60 * FPS / high)), min(len(centred) - 1, int(60 * FPS / low)) + 1)
    if not len(lags):
        return 120.0
    preference = torch.exp(-0.5 * (torch.log2(60 * FPS / lags / 120) / 0.9) ** 2)
    values = repeat[lags] * preference
    best = int(values.argmax())
    lag = float(lags[best])
    if 0 < best < len(lags) - 1:  # the top of a parabola through three lags
        left, top, right = (float(values[best + d]) for d in (-1, 0, 1))
        if (bend := left - 2 * top + right) < 0:
            lag += 0.5 * (left - right) / bend
    return 60 * FPS / lag


def beats(onset_T: Tensor, tightness: float = 100.0) -> list[int]:
    """Frames of the beats: the chain of onsets that is strong and steady, by dynamic programming (Ellis, 2007)."""
    length = len(onset_T)
    if length < 4 or onset_T.max() <= 0:
        return []
    period = 60 * FPS / tempo(onset_T)
    local = (onset_T / onset_T.std().clamp(min=1e-9)).numpy().astype(np.float64)
    reach = np.arange(round(-2 * period), round(-period / 2) + 1)
    cost = -tightness * np.log(-reach / period) ** 2
    score, back = local.copy(), np.full(length, -1)
    for t in range(length):
        before = t + reach
        seen = before >= 0
        if seen.any():
            values = score[before[seen]] + cost[seen]
            best = int(values.argmax())
            if values[best] > 0:
                score[t] = local[t] + values[best]
                back[t] = before[seen][best]
    last = max(range(max(0, length - int(period) - 1), length), key=lambda t: float(score[t]))
    chain = []
    while last >= 0:
        chain.append(int(last))
        last = back[last]
    chain.reverse()
    strong = float(np.median(local[local > 0])) * 0.5 if (local > 0).any() else 0.0
    while chain and local[chain[0]] < strong:  # silence before the first and after the last
        chain.pop(0)
    while chain and local[chain[-1]] < strong:
        chain.pop()
    return chain


def beat_times(features_TC: Tensor) -> list[float]:
    """Seconds of the beats in `features`."""
    return [float(n) / FPS for n in (features_TC[:, BEAT] > 0.5).nonzero()[:, 0]]
