"""Coding: learn a neural codec, and say how much it loses.

Shapes: B waveforms, N samples, F spectral frames, K bins, C codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from zoo.config import at_least
from zoo.spec import ZooError
from zoo.threads import one_thread
from zoo.train.task import Batch, Loss, Task
from zoo_audio.models.codec import FLOOR
from zoo_audio.plots import plot_spectrograms
from zoo_audio.sound import levelled, read_sound, write_sound

MELS = 40


class Recoded(NamedTuple):
    """What `Coding.predict` returns: a sound before and after the codec, its codes, and its rate."""

    wave_N: Tensor
    again_N: Tensor
    codes_TC: Tensor
    sample_rate: int
    notes: list[str]


class CodecScores(Metric):
    """``si_sdr`` in dB (Le Roux et al., arXiv:1811.02508), ``mel`` the mean distance of log mel spectra in nats,
    ``code_use`` the share of codes that are used at all, ``code_bits`` the entropy of a code in bits; over clips."""

    higher_is_better = None
    full_state_update = False
    sdr: Tensor
    mel: Tensor
    clips: Tensor
    counts: Tensor

    def __init__(self, codebooks: int, codes: int) -> None:
        super().__init__()
        for name in ("sdr", "mel", "clips"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(codebooks, codes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, wave_N: Tensor, again_N: Tensor, codes_TC: Tensor, rate: int) -> None:
        self.sdr += si_sdr(again_N, wave_N)
        self.mel += (log_mel(again_N, rate) - log_mel(wave_N, rate)).abs().mean()
        self.clips += 1
        for level, code_T in enumerate(codes_TC.unbind(-1)):
            self.counts[level] += torch.bincount(code_T, minlength=self.counts.shape[1])

    def compute(self) -> dict[str, Tensor]:
        share = self.counts / self.counts.sum(1, keepdim=True)
        bits = -(share * share.clamp(min=1e-12).log2()).sum(1).mean()
        use = (self.counts > 0).double().mean()
        values = {"mel": self.mel / self.clips, "si_sdr": self.sdr / self.clips, "code_use": use, "code_bits": bits}
        return {name: value.float() for name, value in values.items()}


class Coding(Task):
    """Log spectra of the decoder against the waveform's, bin by bin and in mel bands, and the quantiser's own loss.

    Config:
        mel: factor on the distance in mel bands.
        commitment: factor on codebook and commitment loss.
    """

    monitor = "mel"

    @dataclass
    class Config:
        mel: float = 1.0
        commitment: float = 1.0

        def __post_init__(self) -> None:
            at_least(0, self, "mel", "commitment")

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        self.shape = (model.config.codebooks, model.config.codebook_size)
        if "sample_rate" not in data.preprocessing:
            raise ZooError("a codec learns from waveforms, and the data come as codes; set data.form=stretches")
        ours, theirs = model.config.sample_rate, data.preprocessing["sample_rate"]
        if theirs != ours:
            raise ZooError(f"the codec works at {ours} Hz and the data come at {theirs}; set data.sample_rate={ours}")

    def loss(self, model: Any, batch: Batch) -> Loss:
        out = model(batch["wave"])
        spectral = (out.log_BFK - out.target_BFK).abs().mean()
        banks_KM = mel_banks(out.log_BFK.shape[-1], model.config.sample_rate, out.log_BFK.device)
        said, wanted = ((log_BFK.exp() @ banks_KM).clamp(min=FLOOR).log() for log_BFK in (out.log_BFK, out.target_BFK))
        mel = (said - wanted).abs().mean()
        commitment = out.commitment_B.mean()
        logs = {"spectral": spectral, "mel": mel, "commitment": commitment}
        return Loss(spectral + self.config.mel * mel + self.config.commitment * commitment, (), logs)

    def metrics(self) -> MetricCollection:
        """See `CodecScores`."""
        return MetricCollection({"codec": CodecScores(*getattr(self, "shape", (1, 1)))})

    @one_thread()
    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        clips = [wave_N[valid_N] for wave_N, valid_N in zip(batch["wave"], batch["valid"], strict=True)]
        # One recording, some silence after each clip, so that it hears nothing of its neighbours.
        rooms = [-(-len(clip) // model.samples) + round(0.3 * model.frame_rate) for clip in clips]
        joined = [F.pad(c, (0, room * model.samples - len(c))) for c, room in zip(clips, rooms, strict=True)]
        codes_TC = model.encode(torch.cat(joined))
        again = model.decode(codes_TC).split([room * model.samples for room in rooms])
        rate = model.config.sample_rate
        for wave_N, again_N, own_TC in zip(clips, again, codes_TC.split(rooms), strict=True):
            used_TC = own_TC[: -(-len(wave_N) // model.samples)]
            metrics["codec"].update(wave_N, again_N[: len(wave_N)], used_TC, rate)

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Recoded:
        """A sound through the codec and back."""
        rate = model.config.sample_rate
        wave_N, notes = read_sound(Path(inputs["input"]).expanduser(), rate)
        wave_N = levelled(wave_N, preprocessing.get("level", -20.0)).to(model.device)
        codes_TC = model.encode(wave_N)
        again_N = model.decode(codes_TC)[: len(wave_N)]
        notes = [*notes, f"{len(wave_N) / rate:.2f} s as {len(codes_TC):,} frames of {codes_TC.shape[1]} codes"]
        return Recoded(wave_N.cpu(), again_N.cpu(), codes_TC.cpu(), rate, notes)

    def write(self, result: Recoded, out: Path) -> list[Path]:
        """``coded.wav``, and the spectrograms before and after."""
        files = [write_sound(out / "coded.wav", result.again_N, result.sample_rate)]
        waves = {"before": result.wave_N, "after": result.again_N}
        return files + plot_spectrograms(waves, result.sample_rate, out / "coded.png")


def si_sdr(estimate_N: Tensor, wave_N: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB."""
    target_N = (estimate_N @ wave_N) / (wave_N @ wave_N).clamp(min=1e-12) * wave_N
    noise = (estimate_N - target_N).square().sum()
    return 10 * (target_N.square().sum() / noise.clamp(min=1e-12)).clamp(min=1e-12).log10()


def log_mel(wave_N: Tensor, rate: int) -> Tensor:
    """(M, F): log magnitudes of 40 mel bands, a frame every 10 ms, floor 1e-2; of a waveform levelled to -20 dB."""
    size, hop = rate // 25, rate // 100
    window = torch.hann_window(size, device=wave_N.device)
    wave_N = F.pad(wave_N, (size // 2, size // 2))
    magnitude_KF = torch.stft(wave_N, size, hop, window=window, center=False, return_complex=True).abs()
    return (mel_banks(size // 2 + 1, rate, wave_N.device).T @ magnitude_KF).clamp(min=FLOOR).log()


def mel_banks(bins: int, rate: int, device: torch.device) -> Tensor:
    """(K, M): weights of the bins in each of 40 mel bands, which sum to 1."""
    from torchaudio.functional import melscale_fbanks

    banks_KM = melscale_fbanks(bins, 0.0, rate / 2, MELS, rate, norm="slaney").to(device)
    return banks_KM / banks_KM.sum(0, keepdim=True).clamp(min=1e-12)
