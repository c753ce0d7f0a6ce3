"""A small recogniser of words and speakers, to judge what is generated: trained on real recordings only.

Shapes: B waveforms, N samples, F spectral frames, M mel bands, D width, Y words, S speakers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.hub import Model


class Heard(NamedTuple):
    """``word_BY`` and ``speaker_BS``: logits, each of a yes or no of its own, so that nothing may be recognised."""

    word_BY: Tensor
    speaker_BS: Tensor


class Recogniser(Model):
    """Log mel spectrum, convolutions along time, mean and maximum over time, two heads.

    Config:
        words, speakers: how many of each it knows.
    """

    @dataclass
    class Config:
        sample_rate: int = 8000
        mels: int = 40
        width: int = 96
        depth: int = 3
        words: int = 10
        speakers: int = 6
        dropout: float = 0.2

        def __post_init__(self) -> None:
            at_least(1, self, "sample_rate", "mels", "width", "depth", "words", "speakers")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        sizes = [c.mels, *[c.width] * c.depth]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, 5, stride=2 if i else 1, padding=2) for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, b) for b in sizes[1:])
        self.word_head = nn.Linear(2 * c.width, c.words)
        self.speaker_head = nn.Linear(2 * c.width, c.speakers)

    def forward(self, wave_BN: Tensor) -> Heard:
        x_BDF = self.features(wave_BN)
        if self.training:
            x_BDF = self._spoiled(x_BDF)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BDF = F.gelu(norm(convolution(x_BDF)))
        pooled = torch.cat([x_BDF.mean(-1), x_BDF.amax(-1)], -1)
        pooled = F.dropout(pooled, self.config.dropout, self.training)
        return Heard(self.word_head(pooled), self.speaker_head(pooled))

    def features(self, wave_BN: Tensor) -> Tensor:
        """(B, M, F): log mel magnitudes, a frame every 10 ms."""
        from torchaudio.functional import melscale_fbanks

        rate = self.config.sample_rate
        size, hop = rate // 25, rate // 100
        window = torch.hann_window(size, device=wave_BN.device)
        padded = F.pad(wave_BN, (size // 2, size // 2))
        magnitude = torch.stft(padded, size, hop, window=window, center=False, return_complex=True).abs()
        banks_KM = melscale_fbanks(size // 2 + 1, 0.0, rate / 2, self.config.mels, rate, norm="slaney")
        banks_KM = banks_KM.to(wave_BN.device) / banks_KM.sum(0).clamp(min=1e-12).to(wave_BN.device)
        return (banks_KM.T @ magnitude).clamp(min=1e-2).log() / 3 + 1

    def _spoiled(self, x_BMF: Tensor) -> Tensor:
        """Half of the spectra smeared over three or five frames; in each a band and a stretch of time left out
        (SpecAugment, arXiv:1904.08779)."""
        batch, bands, frames = x_BMF.shape
        smeared = F.avg_pool1d(x_BMF, 3 + 2 * int(torch.randint(2, ())), stride=1, padding=0)
        smeared = F.interpolate(smeared, frames)
        half_B11 = torch.rand(batch, 1, 1, device=x_BMF.device) < 0.5
        x_BMF = torch.where(half_B11, smeared, x_BMF)
        for size, dim, most in ((bands, 1, 6), (frames, 2, 10)):
            width_B1, start_B1 = torch.rand(2, batch, 1, device=x_BMF.device) * torch.tensor([most, size]).view(
                2, 1, 1
            ).to(x_BMF)
            place = torch.arange(size, device=x_BMF.device)
            out = (place >= start_B1) & (place < start_B1 + width_B1)
            x_BMF = x_BMF.masked_fill(out.unsqueeze(2 if dim == 1 else 1), 0.0)
        return x_BMF

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        return {"wave_BN": 0.1 * torch.randn(batch_size, self.config.sample_rate // 4)}
