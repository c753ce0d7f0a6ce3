"""Quantisers: vectors become codes. Two rivals at equal rate, finite scalar quantisation and a learned code book.

A quantiser has ``levels`` (a code is as many digits), ``size`` (codes there are), ``forward(z_BTC) -> Quantised`` and
``decode(digits_BTN) -> z_BTC``. Shapes: B sequences, T tokens, C channels, N digits, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.spec import ZooError


class Quantised(NamedTuple):
    """``z_BTC`` with the gradient of what came in; ``digits_BTN`` from 0 on; a ``loss_B`` of the quantiser's own."""

    z_BTC: Tensor
    digits_BTN: Tensor
    loss_B: Tensor


class FSQ(nn.Module):
    """Finite scalar quantisation (arXiv:2309.15505): a projection to few numbers, each squashed and rounded to one of
    ``levels``. No code book is learned, so none of it can die."""

    @dataclass
    class Config:
        levels: list[int] = field(default_factory=lambda: [7, 5, 5, 5, 5])

        def __post_init__(self) -> None:
            if not self.levels or min(self.levels) < 2:
                raise ZooError(f"levels={self.levels} must be one or more numbers of at least 2")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.levels, self.size = list(config.levels), math.prod(config.levels)
        self.project_in = nn.Linear(width, len(self.levels))
        self.project_out = nn.Linear(len(self.levels), width)
        self.register_buffer("level_N", torch.tensor(self.levels), persistent=False)

    def bound(self, z_BTN: Tensor) -> Tensor:
        """Squashed so that rounding gives each dimension its number of levels; those of an even number lie between the
        integers that an odd number has."""
        half_N = (self.level_N - 1) * (1 + 1e-3) / 2
        offset_N = torch.where(self.level_N % 2 == 0, 0.5, 0.0)
        shift_N = torch.atanh(offset_N / half_N)
        return torch.tanh(z_BTN + shift_N) * half_N - offset_N

    def forward(self, z_BTC: Tensor) -> Quantised:
        bounded = self.bound(self.project_in(z_BTC).float())
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = (rounded.detach() + self.level_N // 2).round().long()
        return Quantised(self._spread(rounded).to(z_BTC.dtype), digits, z_BTC.new_zeros(len(z_BTC)))

    def decode(self, digits_BTN: Tensor) -> Tensor:
        return self._spread((digits_BTN - self.level_N // 2).to(self.project_out.weight.dtype))

    def _spread(self, whole_BTN: Tensor) -> Tensor:
        spread: Tensor = self.project_out(whole_BTN / (self.level_N // 2))
        return spread


class VQ(nn.Module):
    """The nearest of ``size`` learned vectors e, which learn by |sg(z) - e|^2 + ``commitment`` |z - sg(e)|^2
    (VQ-VAE, arXiv:1711.00937)."""

    @dataclass
    class Config:
        size: int = 240
        commitment: float = 0.25

        def __post_init__(self) -> None:
            at_least(2, self, "size")
            at_least(0, self, "commitment")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.levels, self.size, self.commitment = [config.size], config.size, config.commitment
        self.book_KC = nn.Parameter(torch.empty(config.size, width).uniform_(-1 / config.size, 1 / config.size))

    def forward(self, z_BTC: Tensor) -> Quantised:
        flat = z_BTC.detach().flatten(0, -2).float()
        book = self.book_KC.detach().float()
        far_NK = flat.square().sum(-1, keepdim=True) - 2 * flat @ book.T + book.square().sum(-1)
        digits = far_NK.argmin(-1).view(z_BTC.shape[:-1])
        chosen = F.embedding(digits, self.book_KC)
        gap = (chosen - z_BTC.detach()).square() + self.commitment * (z_BTC - chosen.detach()).square()
        return Quantised(z_BTC + (chosen - z_BTC).detach(), digits[..., None], gap.flatten(1).mean(1))

    def decode(self, digits_BTN: Tensor) -> Tensor:
        return F.embedding(digits_BTN[..., 0], self.book_KC)


def code_of(digits: Tensor, levels: list[int]) -> Tensor:
    """One number for each code of (..., N) digits, the first counting most."""
    code = torch.zeros_like(digits[..., 0])
    for n, level in enumerate(levels):
        code = code * level + digits[..., n]
    return code


def digits_of(code: Tensor, levels: list[int]) -> Tensor:
    """`code_of` undone: (..., N)."""
    digits = []
    for level in reversed(levels):
        digits.append(code % level)
        code = code // level
    return torch.stack(digits[::-1], -1)
