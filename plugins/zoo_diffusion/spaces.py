"""Where diffusion takes place: among pixels, or in what an autoencoder makes of them.

A space has ``encode(x_BCHW) -> z``, ``decode(z) -> x_BCHW`` (pixels from -1 to 1) and ``shape(channels, size)``, the
channels and the side of z.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from torch import Tensor

from zoo.spec import ZooError


class Pixels:
    """The picture itself."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def encode(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW

    def decode(self, z: Tensor) -> Tensor:
        return z

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        return channels, size


class Diffusers:
    """The latents of an ``AutoencoderKL`` of diffusers, in a local folder with safetensors, times ``scale`` (0.18215
    for that of Stable Diffusion, which DiT and DiT-MoE use). Encoding takes the mean. Needs diffusers installed; the
    autoencoder is frozen, and is no part of the saved model."""

    @dataclass
    class Config:
        path: str = MISSING
        scale: float = 0.18215

    def __init__(self, config: Config) -> None:
        self.config, self._loaded = config, None

    @property
    def autoencoder(self) -> Any:
        if self._loaded is None:
            try:
                from diffusers import AutoencoderKL
            except ImportError as error:
                raise ZooError("space diffusion/diffusers needs diffusers; run: pip install diffusers") from error
            path = Path(self.config.path).expanduser()
            if not (path / "config.json").is_file():
                raise ZooError(f"'{path}' holds no autoencoder of diffusers (config.json); set task.space.path=FOLDER")
            try:
                loaded = AutoencoderKL.from_pretrained(path, use_safetensors=True, local_files_only=True)
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise ZooError(f"the autoencoder in '{path}' cannot be loaded: {reason}; download it again") from error
            self._loaded = loaded.eval().requires_grad_(False)
        return self._loaded

    def encode(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.expand(-1, 3, -1, -1) if x_BCHW.shape[1] == 1 else x_BCHW
        z: Tensor = self.autoencoder.to(x.device).encode(x).latent_dist.mean * self.config.scale
        return z

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.autoencoder.to(z.device).decode(z / self.config.scale).sample
        return x

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        c = self.autoencoder.config
        return int(c.latent_channels), size // 2 ** (len(c.block_out_channels) - 1)
