"""A small neural codec: spectra through convolutions and residual vector quantisation, phases from the magnitudes.

Shapes: B waveforms, N samples, F spectral frames, T code frames, K bins, C codebooks, V codes of each, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.hub import Model
from zoo.spec import ZooError

FLOOR = 1e-2  # of magnitudes before the logarithm


class Coded(NamedTuple):
    """``log_BFK``: the decoder's log magnitudes; ``target_BFK``: the waveform's; ``codes_BTC``; ``commitment_B``:
    the quantiser's loss."""

    log_BFK: Tensor
    target_BFK: Tensor
    codes_BTC: Tensor
    commitment_B: Tensor


class Block(nn.Module):
    """ConvNeXt block along time (as in Vocos, arXiv:2306.00814): depthwise convolution, norm, MLP, residual."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x_BFD: Tensor) -> Tensor:
        return x_BFD + self.down(F.gelu(self.up(self.norm(self.mix(x_BFD.mT).mT))))


class Quantiser(nn.Module):
    """Residual vector quantisation (SoundStream, arXiv:2107.03312) with the low-dimensional, length-normalised look-up
    of DAC (arXiv:2306.06546): each level codes what the levels before it left. In training a code that is hardly used
    takes the place of a latent of the batch, as the first batch does for all (Jukebox, arXiv:2005.00341)."""

    usage_CV: Tensor

    def __init__(self, width: int, codebooks: int, codes: int, dim: int) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(width, dim) for _ in range(codebooks))
        self.out = nn.ModuleList(nn.Linear(dim, width) for _ in range(codebooks))
        self.tables = nn.ModuleList(nn.Embedding(codes, dim) for _ in range(codebooks))
        self.register_buffer("usage_CV", torch.zeros(codebooks, codes))

    def forward(self, z_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents (straight through), codes (B, T, C), and codebook plus commitment loss (B,)."""
        left, total, codes, losses = z_BTD, torch.zeros_like(z_BTD), [], []
        for level, (into, out, table) in enumerate(zip(self.into, self.out, self.tables, strict=True)):
            low = F.normalize(into(left), dim=-1)
            if self.training and not low.is_meta:
                self._revive(level, table.weight, low.detach().flatten(0, -2))
            rows = F.normalize(table.weight, dim=-1)
            code_BT = (low @ rows.T).argmax(-1)
            chosen = rows[code_BT]
            losses.append((chosen - low.detach()).square().sum(-1).mean(1))
            losses.append(0.25 * (low - chosen.detach()).square().sum(-1).mean(1))
            if self.training and not low.is_meta:
                used_V = torch.bincount(code_BT.flatten(), minlength=len(rows)) / code_BT.numel()
                self.usage_CV[level].lerp_(used_V, 0.02)
            said = out(low + (chosen - low).detach())
            total, left = total + said, left - said.detach()
            codes.append(code_BT)
        return total, torch.stack(codes, -1), torch.stack(losses).sum(0)

    @torch.no_grad()
    def _revive(self, level: int, weight_VD: Tensor, low_ND: Tensor) -> None:
        usage_V = self.usage_CV[level]
        dead_V = usage_V < 0.05 / len(usage_V)
        if count := int(dead_V.sum()):
            weight_VD[dead_V] = low_ND[torch.randint(len(low_ND), (count,), device=low_ND.device)]
            usage_V[dead_V] = 1 / len(usage_V)

    def look_up(self, codes_BTC: Tensor) -> Tensor:
        """Latents of codes."""
        levels = zip(self.out, self.tables, codes_BTC.unbind(-1), strict=True)
        return torch.stack([out(F.normalize(table.weight, dim=-1)[c]) for out, table, c in levels]).sum(0)


class Codec(Model):
    """Waveform to ``codebooks`` streams of codes and back.

    Log magnitudes of a short-time Fourier transform go through ConvNeXt blocks and are quantised, ``stride`` spectral
    frames to a code frame; the decoder says log magnitudes again, and ``iterations`` rounds of the fast Griffin-Lim
    algorithm (Perraudin et al. 2013) find phases that agree with them. All of that sees a bounded stretch of time, so
    `encode` and `decode` work through a recording of any length in pieces of ``piece`` seconds, with the same result.

    Config:
        sample_rate: in Hz; frames of codes a second are ``sample_rate / (hop * stride)``.
    """

    @dataclass
    class Config:
        sample_rate: int = 8000
        n_fft: int = 320
        hop: int = 80
        stride: int = 2
        width: int = 96
        depth: int = 3
        kernel: int = 5
        codebooks: int = 4
        codebook_size: int = 256
        code_dim: int = 8
        iterations: int = 32
        piece: float = 20.0

        def __post_init__(self) -> None:
            at_least(1, self, "sample_rate", "n_fft", "hop", "stride", "width", "depth", "codebooks", "codebook_size")
            at_least(1, self, "code_dim", "piece")
            at_least(0, self, "iterations")
            if self.n_fft % (2 * self.hop) or self.kernel % 2 == 0:
                raise ZooError(f"n_fft={self.n_fft} must be a multiple of 2 * hop={2 * self.hop}, kernel odd")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        bins = c.n_fft // 2 + 1
        self.enter = nn.Linear(bins, c.width)
        self.encoder = nn.Sequential(*(Block(c.width, c.kernel) for _ in range(c.depth)))
        self.shrink = nn.Linear(c.stride * c.width, c.width)
        self.quantiser = Quantiser(c.width, c.codebooks, c.codebook_size, c.code_dim)
        self.grow = nn.Linear(c.width, c.stride * c.width)
        self.decoder = nn.Sequential(*(Block(c.width, c.kernel) for _ in range(c.depth)))
        self.leave = nn.Linear(c.width, bins)

    @property
    def samples(self) -> int:
        """Samples of the waveform to a frame of codes."""
        return int(self.config.hop * self.config.stride)

    @property
    def frame_rate(self) -> float:
        """Frames of codes a second."""
        return float(self.config.sample_rate / self.samples)

    def forward(self, wave_BN: Tensor) -> Coded:
        log_BFK = self.spectrum(self._padded(wave_BN)).abs().clamp(min=FLOOR).log()
        z_BTD, codes_BTC, commitment_B = self.quantiser(self._latent(log_BFK))
        return Coded(self._spectra(z_BTD), log_BFK, codes_BTC, commitment_B)

    @torch.no_grad()
    def encode(self, wave_N: Tensor) -> Tensor:
        """(T, C) int64: codes of a waveform; T is its length in code frames, rounded up."""
        frames = -(-len(wave_N) // self.samples)
        pieces = []
        for low, high, first, last in self._pieces(frames, self._reach()):
            part = self._padded(wave_N[first * self.samples : last * self.samples][None])
            log = self.spectrum(part).abs().clamp(min=FLOOR).log()
            pieces.append(self.quantiser(self._latent(log))[1][0, low - first : high - first])
        return torch.cat(pieces) if pieces else torch.zeros(0, self.config.codebooks, dtype=torch.int64)

    @torch.no_grad()
    def decode(self, codes_TC: Tensor) -> Tensor:
        """(N,): the waveform of codes, ``samples`` to each frame."""
        rounds = -(-(self.config.iterations + 1) * self.config.n_fft // self.samples)
        pieces = []
        for low, high, first, last in self._pieces(len(codes_TC), self._reach() + rounds):
            log_FK = self._spectra(self.quantiser.look_up(codes_TC[None, first:last]))[0]
            wave = self.phased(log_FK.exp())
            pieces.append(wave[(low - first) * self.samples : (high - first) * self.samples])
        return torch.cat(pieces) if pieces else torch.zeros(0)

    @torch.no_grad()
    def level(self, codes_TC: Tensor) -> Tensor:
        """(T,): mean square magnitude of each frame of codes as the decoder says it, in dB below the loudest."""
        power_T = self._spectra(self.quantiser.look_up(codes_TC[None]))[0].exp().square().mean(1)
        power_T = power_T.unflatten(0, (-1, self.config.stride)).mean(1)
        return 10 * (power_T / power_T.max()).log10()

    def phased(self, magnitude_FK: Tensor) -> Tensor:
        """(F * hop,): a waveform whose spectrum has these magnitudes, as nearly as the rounds get."""
        c, window = self.config, self._window(magnitude_FK)
        length, size_KF = magnitude_FK.shape[0] * c.hop, magnitude_FK.mT
        bins = torch.arange(size_KF.shape[0], device=size_KF.device)
        turn_KF = bins[:, None] * torch.arange(size_KF.shape[1], device=size_KF.device) * (c.hop / c.n_fft)
        angle_KF, before = torch.polar(torch.ones_like(size_KF), 2 * torch.pi * (turn_KF % 1)), 0.0

        def wave(angle: Tensor) -> Tensor:
            spectrum = F.pad(size_KF * angle, (0, 1))
            return torch.istft(spectrum, c.n_fft, c.hop, window=window, length=length)

        for _ in range(c.iterations):
            now = self.spectrum(wave(angle_KF)[None])[0].mT
            angle_KF = now - (0.99 / 1.99) * before
            angle_KF, before = angle_KF / angle_KF.abs().clamp(min=1e-16), now
        return wave(angle_KF)

    def spectrum(self, wave_BN: Tensor) -> Tensor:
        """(B, N / hop, K), complex; the window of a frame is centred on its first sample."""
        c = self.config
        pad = F.pad(wave_BN, (c.n_fft // 2, c.n_fft // 2))
        stft = torch.stft(pad, c.n_fft, c.hop, window=self._window(wave_BN), center=False, return_complex=True)
        return stft.mT[:, :-1]

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        return {"wave_BN": 0.1 * torch.randn(batch_size, 8 * self.samples)}

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.config.n_fft, device=like.device)

    def _latent(self, log_BFK: Tensor) -> Tensor:
        return self.shrink(self.encoder(self.enter(log_BFK)).unflatten(1, (-1, self.config.stride)).flatten(2))

    def _spectra(self, z_BTD: Tensor) -> Tensor:
        return self.leave(self.decoder(self.grow(z_BTD).unflatten(2, (self.config.stride, -1)).flatten(1, 2)))

    def _padded(self, wave_BN: Tensor) -> Tensor:
        return F.pad(wave_BN, (0, -wave_BN.shape[1] % self.samples))

    def _reach(self) -> int:
        """Code frames beyond which nothing matters to a frame of the encoder or of the decoder's spectra."""
        c = self.config
        return -(-(c.depth * (c.kernel // 2) * c.hop + c.n_fft) // self.samples) + 1

    def _pieces(self, frames: int, reach: int) -> Iterator[tuple[int, int, int, int]]:
        """Code frames ``low`` to ``high`` of each piece, and those from ``first`` to ``last`` that it is computed from.
        Pieces start where a window's whole number of turns does, so that phases start alike."""
        turn = self.config.n_fft // self.config.hop
        size = max(turn, round(self.config.piece * self.frame_rate) // turn * turn)
        margin = -(-reach // turn) * turn
        for low in range(0, frames, size):
            high = min(frames, low + size)
            yield low, high, max(0, low - margin), min(frames, high + margin)
