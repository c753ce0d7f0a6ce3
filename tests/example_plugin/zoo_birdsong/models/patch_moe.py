"""A transformer over patches of a waveform whose feed-forward layers are mixtures of experts.

Shapes: B batch, N samples of a waveform, L patches, P samples a patch, D model width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Transformer, TransformerConfig


class PatchMoE(Model):
    """Patches, a linear embedding, the stack of `zoo.nn`, and the last position's state to the classes."""

    @dataclass
    class Config:
        patch: int = 64
        num_classes: int = 3
        body: TransformerConfig = field(default_factory=TransformerConfig)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.patch, config.body.hidden_size)
        self.body = Transformer(config.body)
        self.head = nn.Linear(config.body.hidden_size, config.num_classes)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        return {"wave_BN": torch.randn(batch_size, 4 * self.config.patch)}

    def forward(self, wave_BN: Tensor) -> tuple[Tensor, Routing]:
        """Logits (B, C) and the routing of every layer. Samples beyond the last whole patch are left out."""
        patches_BLP = wave_BN.unfold(1, self.config.patch, self.config.patch)
        states_BLD, routing = self.body(torch.tanh(self.embed(patches_BLP)))
        return self.head(states_BLD[:, -1]), routing
