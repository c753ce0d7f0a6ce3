"""What a stack tells the parts that it builds.

A mixer, a feed-forward or a wiring is made as ``part(config, site)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from zoo import config as zc
from zoo.moe.experts.base import Bank
from zoo.moe.layer import MoEConfig
from zoo.nn.norm import RMSNorm


@dataclass(frozen=True)
class Site:
    """Where a part goes: the width of the stack, its mixture, the layer's parts, experts that another layer lends, its
    height in the stack (0 lowest, 1 highest), and the kind of norm."""

    hidden_size: int
    moe: MoEConfig = field(default_factory=MoEConfig)
    mixer_node: Any = None
    feed_forward_node: Any = None
    lent: Bank | None = None
    depth: float = 0.0
    norm_name: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6

    def norm(self, width: int | None = None, eps: float | None = None) -> nn.Module:
        """A norm over the last dimension, of the stack's width and epsilon unless told."""
        made = RMSNorm if self.norm_name == "rms" else nn.LayerNorm
        return made(width or self.hidden_size, eps=self.norm_eps if eps is None else eps)

    def mixer(self) -> nn.Module:
        """A mixer of this layer: ``mixer(x_BLD, span, ctx, state) -> (y, RouterOutput or None)``, ``y`` for the
        positions that the span asks for."""
        module: nn.Module = zc.build("mixer", self.mixer_node, self)
        return module

    def feed_forward(self) -> nn.Module:
        """A feed-forward of this layer: ``feed_forward(x, ctx, state) -> (y, RouterOutput or None)``."""
        module: nn.Module = zc.build("feed_forward", self.feed_forward_node, self)
        return module
