"""Sound files of any rate, width and number of channels as mono waveforms at one rate, and back.

Shapes: N samples, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from zoo.spec import ZooError

SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff", ".mp3")
BLOCK = 1 << 20  # frames read at a time: what a file is in memory before it is mono and resampled
SILENT = 1e-4  # a peak below -80 dB
WIDTH = 16  # zero crossings of the resampling filter on each side


def read_sound(path: Path, rate: int) -> tuple[Tensor, list[str]]:
    """A file as a mono waveform (N,) in [-1, 1] at ``rate`` Hz, and what was done to it or is odd about it.

    Channels are averaged. The file is read and resampled in blocks, so that a long one with many channels is never
    whole in memory at its own rate.

    Raises:
        ZooError: the file is missing, empty, damaged or no sound, or has samples that are not finite.
    """
    import soundfile

    if not path.is_file():
        raise ZooError(f"sound file '{path}' does not exist; check the path")
    if path.stat().st_size == 0:
        raise ZooError(f"sound file '{path}' is empty (0 bytes); record or copy it again")
    try:
        with soundfile.SoundFile(path) as file:
            kind, channels, own = file.subtype, file.channels, file.samplerate
            blocks = (torch.from_numpy(b).mean(1) for b in file.blocks(BLOCK, dtype="float32", always_2d=True))
            wave_N = resample(blocks, own, rate)
            cut = "should be" in file.extra_info  # libsndfile: the header names another size than the file has
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        cause = str(error).strip().rstrip(".").partition("\n")[0]
        raise ZooError(f"'{path}' cannot be read as sound ({cause}); give a WAV, FLAC or OGG file") from error
    if not len(wave_N):
        raise ZooError(f"sound file '{path}' holds no samples; record or copy it again")
    if not bool(torch.isfinite(wave_N).all()):
        raise ZooError(f"sound file '{path}' has samples that are not finite; export it again")
    notes = []
    if cut:
        notes.append(f"{path.name}: its header names another length than it has: cut off?")
    if own != rate:
        notes.append(f"{path.name}: resampled from {own:,} to {rate:,} Hz")
    if channels > 1:
        notes.append(f"{path.name}: {channels} channels averaged")
    if kind not in ("PCM_16", "PCM_S8", "PCM_U8"):
        notes.append(f"{path.name}: {kind} samples read as 32-bit floats")
    peak = float(wave_N.abs().max())
    if peak < SILENT:
        notes.append(f"{path.name}: silent (peak {20 * math.log10(max(peak, 1e-9)):.0f} dB)")
    if peak > 1:
        notes.append(f"{path.name}: peak {peak:.2f} scaled to 1")
        wave_N = wave_N / peak
    clipped = float((wave_N.abs() > 0.999).float().mean())
    if clipped > 1e-3:
        notes.append(f"{path.name}: {100 * clipped:.1f}% of the samples are at full scale: clipped")
    return wave_N, notes


def resample(blocks, own: int, rate: int) -> Tensor:  # type: ignore[no-untyped-def]
    """The blocks (N,) of one waveform at ``rate`` instead of ``own``, joined: the same as of the whole at once."""
    from torchaudio.functional import resample as convert

    if own == rate:
        parts = list(blocks)
        return torch.cat(parts) if parts else torch.zeros(0)
    step, out_step = own // math.gcd(own, rate), rate // math.gcd(own, rate)
    # So far the filter looks to each side, in samples of the input; whole steps: pieces start on both grids.
    margin = step * math.ceil((WIDTH + 1) * max(1.0, own / rate) / step)
    done, first, left = [], True, torch.zeros(0)
    for block in blocks:
        left = torch.cat([left, block])
        whole = (len(left) - 2 * margin) // step * step
        if whole < step:
            continue
        piece = convert(left[: whole + 2 * margin], own, rate, lowpass_filter_width=WIDTH)
        head = 0 if first else margin // step * out_step
        done.append(piece[head : (whole + margin) // step * out_step])
        left, first = left[whole:], False
    if len(left):
        piece = convert(left, own, rate, lowpass_filter_width=WIDTH)
        done.append(piece[0 if first else margin // step * out_step :])
    return torch.cat(done) if done else torch.zeros(0)


def write_sound(path: Path, wave_N: Tensor, rate: int) -> Path:
    """A 16-bit WAV file; what lies beyond full scale is clipped."""
    import soundfile

    soundfile.write(path, wave_N.clamp(-1, 1).numpy(), rate, subtype="PCM_16")
    return path


def levelled(wave_N: Tensor, level: float = -20.0) -> Tensor:
    """The waveform at a root mean square of ``level`` dB below full scale, or as near as its peak allows; silence
    stays."""
    rms, peak = float(wave_N.square().mean().sqrt()), float(wave_N.abs().max())
    if peak < SILENT:
        return wave_N
    return wave_N * min(10 ** (level / 20) / rms, 0.99 / peak)
