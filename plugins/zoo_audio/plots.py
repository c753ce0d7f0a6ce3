"""Pictures of sounds and of piano rolls, with the number of experts at work under them.

Shapes: N samples, T frames, H pitches, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import report

FLOOR_DB = -80.0
MOST = 4000  # windows: more than a picture has columns


def plot_spectrograms(
    waves: Mapping[str, Tensor], rate: int, path: Path, experts_T: Tensor | None = None, frame_rate: float = 1.0
) -> list[Path]:
    """Spectrograms one above the other, and under them the mean number of active experts of each frame."""
    if not report.plots_available():
        return []
    rows = len(waves) + (experts_T is not None)
    fig, axes = report.figure(rows, 1, width=7, height=2.2)
    seconds = 0.0
    for axis, (name, wave_N) in zip(axes, waves.items(), strict=False):
        seconds = len(wave_N) / rate
        db = decibels(wave_N, rate)
        axis.imshow(
            db.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, rate / 2000),
            cmap="magma",
            vmin=-60,
            vmax=0,
        )
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_ylabel("kHz", fontsize=8)
    if experts_T is not None:
        _experts(axes[-1], experts_T, torch.arange(len(experts_T)) / frame_rate, "seconds")
        axes[-1].set_xlim(0, seconds)
    return report.save_figure(fig, path)


def plot_roll(roll_TH: Tensor, path: Path, experts_T: Tensor | None = None, given: int = 0) -> list[Path]:
    """A piano roll, the first ``given`` frames shaded, and under it the mean number of active experts."""
    if not report.plots_available():
        return []
    fig, axes = report.figure(2 if experts_T is not None else 1, 1, width=7, height=2.6)
    axes[0].imshow(roll_TH.T.numpy(), origin="lower", aspect="auto", cmap="Greys", interpolation="nearest")
    sounding = roll_TH.any(0).nonzero()
    if len(sounding):
        axes[0].set_ylim(int(sounding.min()) - 2, int(sounding.max()) + 2)
    if given:
        axes[0].axvspan(-0.5, given - 0.5, alpha=0.15)
    axes[0].set_ylabel("key", fontsize=8)
    if experts_T is not None:
        _experts(axes[-1], experts_T, torch.arange(len(experts_T)) - 0.5, "frame")
        axes[-1].set_xlim(axes[0].get_xlim())
    return report.save_figure(fig, path)


def decibels(wave_N: Tensor, rate: int) -> Any:
    """(K, F): magnitudes in dB below the loudest, windows of 32 ms, a quarter of one apart, in long sounds further."""
    size = max(16, round(0.032 * rate) // 2 * 2)
    hop = max(size // 4, len(wave_N) // MOST)
    wave_N = torch.nn.functional.pad(wave_N, (size // 2, size // 2))
    window = torch.hann_window(size)
    db = torch.stft(wave_N, size, hop, window=window, center=False, return_complex=True).abs()
    return (20 * (db / db.max().clamp(min=1e-9)).clamp(min=1e-9).log10()).clamp(min=FLOOR_DB)


def _experts(axis: Any, experts_T: Tensor, place_T: Tensor, unit: str) -> None:
    axis.step(place_T.numpy(), experts_T.numpy(), where="post", linewidth=1)
    axis.set(xlabel=unit, ylim=(0, max(1.0, 1.1 * float(experts_T.max()))))
    axis.set_ylabel("real experts", fontsize=8)
