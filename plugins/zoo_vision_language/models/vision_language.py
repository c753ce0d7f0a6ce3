"""A model that sees and speaks: an image tower, a connector, and a language model over rows of image and text tokens.

MoE-LLaVA, MoIIE, Mono-InternVL and MoTE are this class with another YAML: what each has of its own is a named part.

Shapes: B rows, L positions, N images of a row (of logits: places),
H height, W width, P tokens of an image, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Cache
from zoo.spec import ZooError

IMAGE, TEXT = 0, 1
"""Values of ``modality``; further ones, such as sound, are those of further media (see `VisionLanguage.embed`)."""


class Output(NamedTuple):
    """``logits`` over the next token, (B, L, V) or (N, V) of the places that were wanted, the routing of every mixture
    layer, and by name what further heads say of the last states."""

    logits: Tensor
    routing: Routing
    heads: dict[str, Tensor]

    @property
    def logits_BLV(self) -> Tensor:
        """The logits, as `zoo.nn.generation` asks for them."""
        return self.logits


class VisionLanguage(Model):
    """Image tokens take the places in a row whose ``modality`` is `IMAGE`; all other places hold text.

    Config:
        image_size: height and width that images are brought to.
        tower: a part of kind ``tower``: ``tower(pixels_NCHW) -> (N, T, C)``.
        connector: a part of kind ``connector``, from the tower's tokens and width to the language model's.
        language: a part of kind ``language_model``.
        heads: parts of kind ``output_head``, by name: ``head(states_BLD) -> Tensor``. None of this plugin's own: a
            place for generation heads.
        max_length: tokens, of images too, that a row may have.
    """

    @dataclass
    class Config:
        image_size: list[int] = field(default_factory=lambda: [64, 64])
        tower: Any = zc.part("tower", "vision_language/conv")
        connector: Any = zc.part("connector", "vision_language/mlp")
        language: Any = zc.part("language_model", "vision_language/decoder")
        heads: Any = zc.parts("output_head")
        max_length: int = 512

        def __post_init__(self) -> None:
            zc.at_least(1, self, "max_length")
            if len(self.image_size) != 2 or min(self.image_size) < 1:
                raise ZooError(f"image_size={self.image_size} must be [height, width] in pixels")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        height, width = config.image_size
        self.tower = zc.build("tower", config.tower, (height, width))
        self.language = zc.build("language_model", config.language)
        self.connector = zc.build("connector", config.connector, self.tower.grid, self.tower.width, self.language.width)
        self.heads = nn.ModuleDict(
            {
                name: zc.build("output_head", {"name": name, **node}, self.language.width)
                for name, node in config.heads.items()
                if node is not None
            }
        )

    @property
    def image_tokens(self) -> int:
        """P, the places that an image takes."""
        tokens: int = self.connector.tokens
        return tokens

    @property
    def vocab_size(self) -> int:
        size: int = self.language.vocab_size
        return size

    def see(self, pixels_BNHWC: Tensor) -> Tensor:
        """Tokens of images in 8-bit colours, (B, N * P, D)."""
        rows, images = pixels_BNHWC.shape[:2]
        pixels = pixels_BNHWC.flatten(0, 1).movedim(-1, 1).float() / 255
        tokens = self.connector(self.tower(pixels))
        return tokens.reshape(rows, images * self.image_tokens, tokens.shape[-1])

    def embed(self, tokens_BL: Tensor, media: dict[int, Tensor], modality_BL: Tensor | None) -> Tensor:
        """(B, L, D): text is embedded; the places of each medium hold its vectors, in their order.

        Args:
            media: vectors (B, M, D) by modality, as many as its places in a row or more.
        """
        x_BLD = self.language.embed(tokens_BL)
        for kind, vectors_BMD in media.items():
            if modality_BL is None or not vectors_BMD.shape[1]:
                continue
            here_BL = modality_BL == kind
            # Not by a mask that selects: shapes depend on no data, and no row on another.
            place_BL = (here_BL.cumsum(1) - 1).clamp(0, vectors_BMD.shape[1] - 1)
            laid_BLD = vectors_BMD.gather(1, place_BL[..., None].expand(-1, -1, x_BLD.shape[-1]))
            x_BLD = torch.where(here_BL[..., None], laid_BLD.to(x_BLD.dtype), x_BLD)
        return x_BLD

    def forward(
        self,
        tokens_BL: Tensor,
        modality_BL: Tensor | None = None,
        pixels_BNHWC: Tensor | None = None,
        valid_BL: Tensor | None = None,
        document_BL: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        wanted_BL: Tensor | None = None,
    ) -> Output:
        """Logits of the token after each position, after the last one alone, or after those that are wanted.

        Args:
            tokens_BL: ids; at the places of an image they are not looked at. With a cache, the new ones.
            modality_BL: what each place holds; all text when it is left out.
            pixels_BNHWC: the images of each row in their order, 8-bit colours; further ones of a row are padding.
            valid_BL: False on padding.
            document_BL: which dialogue of a row a token belongs to: it sees no other, and what has a negative number.
            wanted_BL: True where an answer is wanted: a large vocabulary costs as much as several layers.
        """
        media = {} if pixels_BNHWC is None or not pixels_BNHWC.shape[1] else {IMAGE: self.see(pixels_BNHWC)}
        if modality_BL is None:
            modality_BL = torch.full_like(tokens_BL, TEXT)
        x_BLD = self.embed(tokens_BL, media, modality_BL)
        states_BLD, routing = self.language.states(
            x_BLD, valid_BL, document_BL, cache, last_only, modality=modality_BL, token_ids=tokens_BL
        )
        heads = {name: head(states_BLD) for name, head in self.heads.items()}
        return Output(self.language.logits(states_BLD if wanted_BL is None else states_BLD[wanted_BL]), routing, heads)

    def dummy_inputs(self, batch_size: int = 2, words: int = 6) -> dict[str, Tensor]:
        length = self.image_tokens + words
        modality_BL = torch.full((batch_size, length), TEXT)
        modality_BL[:, : self.image_tokens] = IMAGE
        height, width = self.config.image_size
        return {
            "tokens_BL": torch.randint(self.vocab_size, (batch_size, length)),
            "modality_BL": modality_BL,
            "pixels_BNHWC": torch.randint(256, (batch_size, 1, height, width, 3), dtype=torch.uint8),
        }
