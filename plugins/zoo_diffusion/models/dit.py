"""Diffusion transformers: a stack of `zoo.nn` over patches of a noisy picture (DiT, arXiv:2212.09748; with mixtures,
DiT-MoE, arXiv:2407.11633).

Every model of this plugin is this class with another YAML.

Shapes: B pictures, C channels, H height, W width, L patches, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Transformer, TransformerConfig
from zoo.spec import ZooError
from zoo_diffusion.blocks.adaln import PatchHead

FREQUENCIES = 256
"""Width of the sines and cosines of a time."""


class Output(NamedTuple):
    """``prediction_BCHW``: what the objective asks for (noise, velocity), with ``learn_sigma`` twice as many channels;
    and the routing of every mixture layer."""

    prediction_BCHW: Tensor
    routing: Routing


class DiT(Model):
    """A denoiser.

    Config:
        image_size, channels: of a square picture, or of what an autoencoder makes of it.
        condition: what is known of the picture beside its noise (a label, a caption), or null.
        learn_sigma: predict the variance too, in as many further channels (arXiv:2102.09672).
        time_scale: what times are multiplied with before their sines are taken. The public weights take them as the
            objective has them: 0 ... 999 of DDPM, 0 ... 1 of a flow.
    """

    @dataclass
    class Config:
        image_size: int = 8
        channels: int = 1
        patch_size: int = 2
        condition: Any = zc.part("condition", "diffusion/label")
        learn_sigma: bool = False
        time_scale: float = 1.0
        stack: TransformerConfig = field(default_factory=TransformerConfig)

        def __post_init__(self) -> None:
            zc.at_least(1, self, "image_size", "channels", "patch_size")
            if self.image_size % self.patch_size:
                raise ZooError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
            if self.stack.hidden_size % 4:
                raise ZooError(
                    f"hidden_size={self.stack.hidden_size} must be a multiple of 4: sines and cosines of 2-D"
                )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c, width = config, config.stack.hidden_size
        self.side = c.image_size // c.patch_size
        self.embed = nn.Conv2d(c.channels, width, c.patch_size, c.patch_size)
        self.register_buffer("positions", sincos(width, self.side)[None])
        self.time_mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = zc.build("condition", c.condition, width) if c.condition else None
        self.stack = Transformer(c.stack)
        self.out_channels = c.channels * (2 if c.learn_sigma else 1)
        self.head = PatchHead(width, c.patch_size**2 * self.out_channels, c.stack.norm_eps)
        if not self.embed.weight.is_meta:
            self._initialise()

    def _initialise(self) -> None:
        """As DiT's: patches like a linear map, small times, and nothing that a layer or the head adds at first."""
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))
        nn.init.zeros_(self.embed.bias)
        for module in self.time_mlp:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for part in (*self.stack.modules(), self.head):
            if isinstance(modulation := getattr(part, "modulation", None), nn.Linear):
                nn.init.zeros_(modulation.weight)
                nn.init.zeros_(modulation.bias)
        nn.init.zeros_(self.head.linear.weight)
        nn.init.zeros_(self.head.linear.bias)

    def forward(
        self, x_BCHW: Tensor, time_B: Tensor, condition: Tensor | None = None, domain_B: Tensor | None = None
    ) -> Output:
        """What is predicted of noisy pictures.

        Args:
            time_B: how noisy each is, in the objective's own terms.
            condition: a label (B,) or the pieces of a caption (B, W) each; None for nothing known.
            domain_B: what a picture counts as in traces and balance losses, such as a bin of its noise.
        """
        x_BLD = self.embed(x_BCHW).flatten(2).mT.contiguous() + self.positions  # the layers keep its layout
        cond_BD = self.time_mlp(waves(time_B.float() * self.config.time_scale).to(x_BLD.dtype))
        known = {"cond": cond_BD}
        if self.condition is not None:
            if condition is None:
                condition = self.condition.nothing(self.condition.examples(len(x_BCHW)).to(x_BCHW.device))
            known["cond"] = cond_BD = cond_BD + self.condition(condition)
            if condition.dim() == 1:
                known["label"] = condition[:, None].expand(-1, x_BLD.shape[1])
        if domain_B is not None:
            known["domain"] = domain_B[:, None].expand(-1, x_BLD.shape[1])
        states_BLD, routing = self.stack(x_BLD, **known)
        return Output(self.unpatch(self.head(states_BLD, cond_BD)), routing)

    def unpatch(self, y_BLP: Tensor) -> Tensor:
        """Patches (row, column, channel) side by side: (B, C, H, W)."""
        side, patch = self.side, self.config.patch_size
        y = y_BLP.unflatten(-1, (patch, patch, self.out_channels)).unflatten(1, (side, side))
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        c = self.config
        inputs = {"x_BCHW": torch.randn(batch_size, c.channels, c.image_size, c.image_size)}
        inputs["time_B"] = torch.rand(batch_size)
        if self.condition is not None:
            inputs["condition"] = self.condition.examples(batch_size)
        return inputs


def waves(time_B: Tensor) -> Tensor:
    """(B, FREQUENCIES): cosines, then sines, of frequencies from 1 down to nearly 1 / 10,000."""
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time_B.device, dtype=torch.float32) / half)
    angle = time_B[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def sincos(width: int, side: int) -> Tensor:
    """(L, D): fixed positions of a square of patches, as MAE and DiT have them: sines and cosines of the column, then
    of the row; computed in fp64."""
    quarter = width // 4
    frequency = 10_000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], -1)  # (side, D / 2)
    column, row = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([column, row], -1).flatten(0, 1).float()
