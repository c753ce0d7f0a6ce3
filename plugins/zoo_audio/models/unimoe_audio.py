"""UniMoE-Audio (arXiv:2510.13344): one decoder for speech and music, over text and several codebooks at once.

A frame of codes enters as the sum of its channels' embeddings and is answered by one linear head over all channels; the
layers are those of `zoo.nn`, their mixtures of routed, null and shared experts named parts.

Shapes: B sequences, P text tokens, S steps of codes, L = P + S positions, C channels, V entries of a channel (codes and
EOS, PAD, BOS), D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Cache, Transformer, TransformerConfig
from zoo.spec import ZooError
from zoo_audio.delay import SPECIAL


class Output(NamedTuple):
    """``logits_BSCV`` over the next step of each channel, and the routing of every mixture layer."""

    logits_BSCV: Tensor
    routing: Routing


class UniMoEAudio(Model):
    """A causal model of text, then frames of codes in delayed order (see `zoo_audio.delay`).

    Config:
        text_vocab: ids of text tokens.
        codebook_size: codes of each channel; EOS, PAD and BOS come on top.
        delay: steps by which each channel is late; as many as there are channels.
        output_importance: how much a step of codes counts in balance losses that are ``weighted``; text counts 1.
        max_length: positions it may be asked for.
    """

    @dataclass
    class Config:
        text_vocab: int = 256
        codebook_size: int = 1024
        delay: list[int] = field(default_factory=lambda: [0, *range(8, 19)])
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        output_importance: float = 1.0
        max_length: int = 2048

        def __post_init__(self) -> None:
            at_least(1, self, "text_vocab", "codebook_size", "max_length")
            at_least(0, self, "output_importance")
            if not self.delay or min(self.delay) != self.delay[0] or self.delay[0] != 0:
                raise ZooError(f"delay={self.delay} must start with 0, the channel that the others wait for")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, self.entries = config.stack.hidden_size, config.codebook_size + SPECIAL
        self.channels = len(config.delay)
        self.text = nn.Embedding(config.text_vocab, width)
        self.codes = nn.ModuleList(nn.Embedding(self.entries, width) for _ in config.delay)
        self.stack = Transformer(config.stack)
        self.head = nn.Linear(width, self.channels * self.entries, bias=False)
        if not self.head.weight.is_meta:
            for weight in (self.text.weight, self.head.weight, *(table.weight for table in self.codes)):
                nn.init.normal_(weight, std=config.stack.init_std)

    def forward(
        self,
        text_BP: Tensor,
        codes_BSC: Tensor,
        valid_BL: Tensor | None = None,
        domain_B: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        """Logits of the step after each step of codes, or after the last position alone.

        Args:
            text_BP, codes_BSC: the prompt and the steps after it; with a cache, the new ones. Either may be empty.
            valid_BL: False on padding, which stands left of the prompt or after the last step.
            domain_B: what kind of sound a sequence is: routers and balancers may look at it.
        """
        x_BLD = torch.cat([self.text(text_BP), self.embed(codes_BSC)], 1)
        text, length = text_BP.shape[1], x_BLD.shape[1]
        sound_BL = (torch.arange(length, device=x_BLD.device) >= text).expand(len(x_BLD), -1)
        importance_BL = torch.where(sound_BL, self.config.output_importance, 1.0)
        domain_BL = None if domain_B is None else domain_B[:, None].expand(-1, length)
        states_BLD, routing = self.stack(
            x_BLD,
            valid_BL,
            cache,
            last_only,
            modality=sound_BL.long(),
            importance=importance_BL,
            domain=domain_BL,
        )
        states_BLD = states_BLD if last_only else states_BLD[:, text:]
        return Output(self.head(states_BLD).unflatten(-1, (self.channels, self.entries)), routing)

    def embed(self, codes_BSC: Tensor) -> Tensor:
        """(B, S, D): the sum of the channels' embeddings."""
        return torch.stack([table(c) for table, c in zip(self.codes, codes_BSC.unbind(-1), strict=True)]).sum(0)

    def dummy_inputs(self, batch_size: int = 2, text: int = 4, steps: int = 12) -> dict[str, Tensor]:
        return {
            "text_BP": torch.randint(self.config.text_vocab, (batch_size, text)),
            "codes_BSC": torch.randint(self.entries, (batch_size, steps, self.channels)),
        }
