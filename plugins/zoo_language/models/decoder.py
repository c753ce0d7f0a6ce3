"""The decoder: token embedding, the stack of `zoo.nn`, and a head over the vocabulary.

Every language model of this plugin is this class with another YAML; what a paper adds is a named part of the stack.

Shapes: B sequences, L positions, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Cache, Transformer, TransformerConfig


class Output(NamedTuple):
    """``logits_BLV`` over the next token, and the routing of every mixture layer."""

    logits_BLV: Tensor
    routing: Routing


class Decoder(Model):
    """A causal language model.

    Config:
        tie_embeddings: the head's rows are the embedding's.
        head: ``normed`` divides each row of the head by its length in the forward pass (NormHead of Ling,
            arXiv:2503.05139).
        max_length: positions it may be asked for; `generate` refuses more.
    """

    @dataclass
    class Config:
        vocab_size: int = 256
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        tie_embeddings: bool = False
        head: Literal["linear", "normed"] = "linear"
        max_length: int = 2048

        def __post_init__(self) -> None:
            at_least(1, self, "vocab_size", "max_length")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.stack.hidden_size)
        self.stack = Transformer(config.stack)
        self.head = nn.Linear(config.stack.hidden_size, config.vocab_size, bias=False)
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=config.stack.init_std)
            nn.init.normal_(self.head.weight, std=config.stack.init_std)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens_BL: Tensor,
        valid_BL: Tensor | None = None,
        document_BL: Tensor | None = None,
        domain_BL: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        """Logits of the token after each position, or after the last one alone.

        Args:
            tokens_BL: ids; with a cache, the new ones.
            valid_BL: False on padding.
            document_BL: which document of a packed row a token belongs to: it sees no other, and its positions count
                from that document's start.
            domain_BL: what a token's text is about, where that is known: routers and balancers may look at it.
        """
        states_BLD, routing = self.stack(
            self.embed(tokens_BL), valid_BL, cache, last_only, document_BL, domain=domain_BL, token_ids=tokens_BL
        )
        weight_VD = self.head.weight
        if self.config.head == "normed":
            weight_VD = F.normalize(weight_VD, dim=-1)
        return Output(F.linear(states_BLD, weight_VD), routing)

    def dummy_inputs(self, batch_size: int = 2, length: int = 16) -> dict[str, Tensor]:
        return {"tokens_BL": torch.randint(self.config.vocab_size, (batch_size, length))}
