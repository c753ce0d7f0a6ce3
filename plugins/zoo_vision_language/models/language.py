"""Language models behind the eyes: the stack of `zoo.nn`, or any causal model of transformers.

A part of kind ``language_model`` has ``width``, ``vocab_size`` and three verbs: ``embed(tokens_BL)``,
``states(x_BLD, ...) -> (states, routing)`` and ``logits(states)``.

Shapes: B rows, L positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput, Routing
from zoo.nn import Cache, Transformer, TransformerConfig
from zoo.nn.span import span_of
from zoo.spec import ZooError


class Decoder(nn.Module):
    """Token embedding, the stack, and a head over the vocabulary.

    Config:
        embedding_std: of a new embedding; the stack's ``init_std`` by default. A small model learns faster from 1: what
            its layers add does not drown what a token is.
    """

    @dataclass
    class Config:
        vocab_size: int = 512
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        tie_embeddings: bool = False
        embedding_std: float | None = None

        def __post_init__(self) -> None:
            at_least(1, self, "vocab_size")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width, self.vocab_size = config.stack.hidden_size, config.vocab_size
        self.embedding = nn.Embedding(config.vocab_size, self.width)
        self.stack = Transformer(config.stack)
        self.head = nn.Linear(self.width, config.vocab_size, bias=False)
        if not self.embedding.weight.is_meta:
            std = config.stack.init_std
            nn.init.normal_(self.embedding.weight, std=std if config.embedding_std is None else config.embedding_std)
            nn.init.normal_(self.head.weight, std=std)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def embed(self, tokens_BL: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens_BL)
        return x

    def states(
        self,
        x_BLD: Tensor,
        valid_BL: Tensor | None,
        document_BL: Tensor | None,
        cache: Cache | None,
        last_only: bool,
        **known: Tensor | None,
    ) -> tuple[Tensor, Routing]:
        """The last states, (B, L, D), or those of the last position, and the routing; ``known`` as `RouteContext`."""
        found: tuple[Tensor, Routing] = self.stack(x_BLD, valid_BL, cache, last_only, document_BL, **known)
        return found

    def logits(self, states_BLD: Tensor) -> Tensor:
        return F.linear(states_BLD, self.head.weight)


class _Pass:
    """What a forward pass tells the mixtures inside a foreign model, and what they answer. Lives for one pass."""

    def __init__(self) -> None:
        self.ctx: RouteContext | None = None
        self.routing: list[RouterOutput] = []

    @contextmanager
    def of(self, ctx: RouteContext) -> Iterator[list[RouterOutput]]:
        self.ctx, self.routing = ctx, []
        try:
            yield self.routing
        finally:
            self.ctx, self.routing = None, []


class _Inside(nn.Module):
    """A mixture in the place of a foreign layer's MLP."""

    def __init__(self, moe: MoE, running: _Pass) -> None:
        super().__init__()
        self.moe = moe
        self._running = (running,)

    def forward(self, x_BLD: Tensor) -> Tensor:
        running = self._running[0]
        assert running.ctx is not None
        y, out = self.moe(x_BLD, running.ctx.at(self.moe.layer))
        running.routing.append(out)
        return y


class Transformers(nn.Module):
    """Any causal language model of transformers, mixtures in place of its MLPs where ``layers`` says so.

    Config:
        config: the model's own ``config.json``, ``model_type`` and all. Nothing is fetched and no code of others is
            run: see `zoo_vision_language.pretrained` for weights.
        layers: which layers' MLPs become mixtures; none of them for the model as it is.
        moe: the mixture. `zoo_vision_language.stages` clones the MLPs of trained weights into it.
    """

    @dataclass
    class Config:
        config: dict[str, Any] = field(default_factory=lambda: {"model_type": "llama"})
        layers: Literal["none", "even", "odd", "all"] = "none"
        moe: MoEConfig = field(default_factory=MoEConfig)

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_config(foreign_config(config.config), attn_implementation="sdpa")
        self.model.train()
        text = self.model.config.get_text_config()
        self.width, self.vocab_size = text.hidden_size, text.vocab_size
        self.running = _Pass()
        blocks = layers_of(self.model)
        first = {"none": len(blocks), "even": 0, "odd": 1, "all": 0}[config.layers]
        chosen = blocks[first :: 1 if config.layers == "all" else 2]
        for place, block in enumerate(chosen):
            if not hasattr(block, "mlp"):
                raise ZooError(f"{type(block).__name__} has no 'mlp' to put a mixture in; set language.layers=none")
            moe = MoE(config.moe, self.width)
            moe.layer = place
            if not next(moe.parameters()).is_meta:
                moe.reset_parameters(0.02)
            block.mlp = _Inside(moe, self.running)
        balance = config.moe.balance if len(chosen) else {}
        self.balancers = Balancers(balance, len(chosen), config.moe.num_experts if len(chosen) else 0)

    def embed(self, tokens_BL: Tensor) -> Tensor:
        x: Tensor = self.model.get_input_embeddings()(tokens_BL)
        return x

    def states(
        self,
        x_BLD: Tensor,
        valid_BL: Tensor | None,
        document_BL: Tensor | None,
        cache: Cache | None,
        last_only: bool,
        **known: Tensor | None,
    ) -> tuple[Tensor, Routing]:
        """As `Decoder.states`."""
        from transformers import DynamicCache

        span = span_of(x_BLD, valid_BL, document_BL, cache)
        mask, _ = span.mask()
        if mask is not None:  # what is added to the scores, as transformers wants a mask of one's own
            mask = torch.zeros(mask.shape, dtype=x_BLD.dtype, device=x_BLD.device).masked_fill(
                ~mask, torch.finfo(x_BLD.dtype).min
            )
            mask = mask.expand(len(x_BLD), -1, -1, -1)
        past = None
        if cache is not None:
            (past,) = cache.kept.setdefault(self, (DynamicCache(),))  # type: ignore[arg-type]
        with self.running.of(self.balancers.context(valid=valid_BL, **known)) as routing:
            out = self.model.base_model(
                inputs_embeds=x_BLD,
                attention_mask=mask,
                position_ids=span.position_BL.expand(len(x_BLD), -1),
                past_key_values=past,
                use_cache=cache is not None,
            )
        if cache is not None:
            cache.length += span.length
        states_BLD = out.last_hidden_state
        return states_BLD[:, -1:] if last_only else states_BLD, tuple(routing)

    def logits(self, states_BLD: Tensor) -> Tensor:
        y: Tensor = self.model.get_output_embeddings()(states_BLD)
        return y


def foreign_config(settings: dict[str, Any]) -> Any:
    """A config of transformers from plain data. Raises `ZooError` for a ``model_type`` that it does not know, or
    settings that the model refuses."""
    from transformers import AutoConfig

    if not isinstance(settings.get("model_type"), str):
        raise ZooError("language.config needs a model_type, such as llama; copy the model's config.json")
    try:
        return AutoConfig.for_model(**settings)
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:160]
        raise ZooError(
            f"language.config is no config of transformers: {reason}; copy the model's config.json"
        ) from error


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal language model. Raises `ZooError` when they are not to be found."""
    found = [m for m in model.base_model.children() if isinstance(m, nn.ModuleList)]
    if len(found) != 1:
        raise ZooError(f"{type(model).__name__} has no one list of layers; use the decoder of the zoo instead")
    return found[0]
