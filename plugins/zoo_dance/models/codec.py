"""The tokeniser of motion: for each stream of the body an encoder, a quantiser and a decoder (MEGADance's HFDQ; the
convolutions are those of Jukebox, arXiv:2005.00341, as in Bailando).

Shapes: B clips, T frames, t tokens, C features, W width, N digits of a code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.hub import Model
from zoo.spec import ZooError
from zoo_dance.motion.skeleton import STREAMS, WIDTH


class Coded(NamedTuple):
    """``motion_BTC`` again, from the codes ``digits`` (B, t, N) of each stream; ``loss_B`` is the quantisers'."""

    motion_BTC: Tensor
    digits: tuple[Tensor, ...]
    loss_B: Tensor


@dataclass
class CodecConfig:
    """A tokeniser.

    Args:
        streams: features of each stream; those of a motion stand side by side.
        downs: how often time is halved.
        depth: residual blocks at each rate, dilated by 1, ``growth``, ``growth``^2, ...
        causal: the decoder sees no later token, so that what comes later changes nothing before it.
    """

    streams: list[int] = field(default_factory=lambda: list(STREAMS))
    width: int = 512
    downs: int = 3
    depth: int = 2
    growth: int = 2
    causal: bool = True
    quantiser: Any = zc.part("quantiser", "dance/fsq")

    def __post_init__(self) -> None:
        zc.at_least(1, self, "width", "depth", "growth")
        zc.at_least(0, self, "downs")
        if not self.streams or min(self.streams) < 1:
            raise ZooError(f"streams={self.streams} must be numbers of features")

    @property
    def stride(self) -> int:
        """Frames of a token."""
        return int(2**self.downs)


class Codec(nn.Module):
    """Encoders, quantisers and decoders of all streams."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config, self.stride = config, config.stride
        self.encoders = nn.ModuleList(Encoder(config, width) for width in config.streams)
        self.quantisers = nn.ModuleList(zc.build("quantiser", config.quantiser, config.width) for _ in config.streams)
        self.decoders = nn.ModuleList(Decoder(config, width) for width in config.streams)

    @property
    def levels(self) -> list[int]:
        levels: list[int] = self.quantisers[0].levels  # type: ignore[assignment]
        return levels

    def forward(self, motion_BTC: Tensor) -> Coded:
        """Encode and decode; T must be a multiple of the stride."""
        if motion_BTC.shape[1] % self.stride:
            raise ZooError(f"{motion_BTC.shape[1]} frames are no multiple of {self.stride}; cut the clip")
        parts, digits, loss = [], [], motion_BTC.new_zeros(len(motion_BTC))
        split = motion_BTC.split(self.config.streams, -1)
        for x, encode, quantise, decode in zip(split, self.encoders, self.quantisers, self.decoders, strict=True):
            found = quantise(encode(x))
            parts.append(decode(found.z_BTC))
            digits.append(found.digits_BTN)
            loss = loss + found.loss_B
        return Coded(torch.cat(parts, -1), tuple(digits), loss)

    def encode(self, motion_BTC: Tensor) -> tuple[Tensor, ...]:
        """Digits (B, t, N) of each stream."""
        split = motion_BTC.split(self.config.streams, -1)
        both = zip(split, self.encoders, self.quantisers, strict=True)
        return tuple(quantise(encode(x)).digits_BTN for x, encode, quantise in both)

    def decode(self, digits: tuple[Tensor, ...]) -> Tensor:
        """Motion (B, T, C)."""
        both = zip(digits, self.quantisers, self.decoders, strict=True)
        return torch.cat([decode(quantise.decode(each)) for each, quantise, decode in both], -1)

    @property
    def reach(self) -> int:
        """Tokens before a token that its frames depend on, at most."""
        rate, frames = self.stride, 2.0 * self.stride  # the first convolution: two tokens back
        for _ in range(self.config.downs):
            frames += sum(2 * self.config.growth**n for n in range(self.config.depth)) * rate
            rate //= 2
            frames += 4 * rate
        return int(-(-(frames + 2) // self.stride)) + 1


class Encoder(nn.Module):
    """(B, T, C) to (B, t, W)."""

    def __init__(self, config: CodecConfig, features: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for n in range(config.downs):
            down = nn.Conv1d(config.width if n else features, config.width, 4, 2, 1)
            blocks.append(nn.Sequential(down, Residual(config, reverse=False, causal=False)))
        last = nn.Conv1d(config.width if config.downs else features, config.width, 3, 1, 1)
        self.model = nn.Sequential(*blocks, last)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y: Tensor = self.model(x_BTC.mT).mT
        return y


class Decoder(nn.Module):
    """(B, t, W) to (B, T, C)."""

    def __init__(self, config: CodecConfig, features: int) -> None:
        super().__init__()
        causal = config.causal
        blocks: list[nn.Module] = [Conv(config.width, config.width, 3, causal=causal)]
        for _ in range(config.downs):
            blocks.append(nn.Sequential(Residual(config, True, causal), Up(config.width, causal)))
        self.model = nn.Sequential(*blocks)
        self.out = Conv(config.width, features, 3, causal=causal)

    def forward(self, z_BTW: Tensor) -> Tensor:
        y: Tensor = self.out(self.model(z_BTW.mT)).mT
        return y


class Conv(nn.Conv1d):
    """A convolution that keeps the length, with zeros on both sides, or before the start alone."""

    def __init__(self, inputs: int, outputs: int, size: int, dilation: int = 1, causal: bool = False) -> None:
        super().__init__(inputs, outputs, size, dilation=dilation)
        room = (size - 1) * dilation
        self.room = (room, 0) if causal else (room // 2, room - room // 2)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCT, self.room))


class Up(nn.ConvTranspose1d):
    """Doubles the rate; causal: a frame hears its own token and the one before."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__(width, width, 4, 2, 0 if causal else 1)
        self.causal = causal

    def forward(self, x_BCT: Tensor, output_size: Any = None) -> Tensor:
        y = super().forward(x_BCT)
        return y[..., : 2 * x_BCT.shape[-1]] if self.causal else y


class Residual(nn.Module):
    """Blocks of ``x + conv1(relu(conv3(relu(x))))``, wider and wider, or the other way round."""

    def __init__(self, config: CodecConfig, reverse: bool, causal: bool) -> None:
        super().__init__()
        dilations = [config.growth**n for n in range(config.depth)]
        width = config.width
        self.model = nn.ModuleList(
            nn.Sequential(nn.ReLU(), Conv(width, width, 3, dilation, causal), nn.ReLU(), nn.Conv1d(width, width, 1))
            for dilation in (dilations[::-1] if reverse else dilations)
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        for block in self.model:
            x_BCT = x_BCT + block(x_BCT)
        return x_BCT


class MotionCodec(Model):
    """The tokeniser alone, a model of its own: rivals are compared with it."""

    Config = CodecConfig

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        self.codec = Codec(config)

    def forward(self, motion_BTC: Tensor) -> Coded:
        coded: Coded = self.codec(motion_BTC)
        return coded

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        width = sum(self.config.streams) if self.config.streams else WIDTH
        return {"motion_BTC": torch.randn(batch_size, 4 * self.config.stride, width)}
