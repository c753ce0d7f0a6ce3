"""MEGADance: codes of motion, and a decoder that continues them to music, with whole blocks as genre experts (NeurIPS
2025; the released code differs from the paper in places, which ``configs/dance/models/megadance.yaml`` follows).

Every model of this plugin's task ``dancing`` is this class with another YAML.

Shapes: B sequences, t tokens, T frames, S streams (upper body, lower body, music), C features, F numbers of music, D
model width, N digits of a code, V all values of all digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.hub import Model
from zoo.moe import Routing
from zoo.nn import Cache, Transformer, TransformerConfig
from zoo.nn.wiring import MixtureOfBlocks
from zoo.spec import ZooError
from zoo_dance.models.codec import Codec, CodecConfig
from zoo_dance.models.mamba import Mamba
from zoo_dance.models.quantisers import code_of, digits_of

Digits = tuple[Tensor, ...]


class Output(NamedTuple):
    """``logits`` (B, t, V) of each stream of the body; ``motion_BTC`` as the codec gives it again, and its ``loss_B``;
    the codes ``digits`` (B, t, N) that the logits are to foretell."""

    logits: tuple[Tensor, ...]
    motion_BTC: Tensor
    loss_B: Tensor
    digits: Digits
    routing: Routing


class MEGADance(Model):
    """A codec and a decoder.

    Config:
        factored: each digit of a code has values and logits of its own, as in the released weights, or a code is one
            value of many, as in the paper.
        genres, contents: how many there are; contents are further labels, which are added (0: none). A mixture of
            blocks in ``stack.pattern`` that has no ``count`` of its own gets a block for every genre.
        genre_embedding: add a vector of the genre too, for decoders without genre experts.
        start_token: sequences begin with a learned vector and hear the music of the token that they foretell; without,
            they begin with a given pose, and hear that of the token before.
        music_frames: how many frames of music a token hears: its first, or all of its stride.
        max_length: tokens of a sequence in training; a dance that is longer goes on from its last half.
    """

    @dataclass
    class Config:
        codec: CodecConfig = field(default_factory=CodecConfig)
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        genres: int = 16
        contents: int = 0
        genre_embedding: bool = False
        factored: bool = True
        start_token: bool = True
        music_width: int = 35
        music_frames: int = 1
        music_hidden: int = 128
        head_hidden: int = 768
        max_length: int = 29

        def __post_init__(self) -> None:
            zc.at_least(1, self, "genres", "music_width", "music_frames", "music_hidden", "head_hidden")
            zc.at_least(0, self, "contents")
            zc.at_least(2, self, "max_length")
            if len(self.codec.streams) != 2:
                raise ZooError(f"codec.streams={self.codec.streams} must be two: upper and lower body")
            if self.music_frames > self.codec.stride:
                raise ZooError(f"music_frames={self.music_frames} is more than a token's {self.codec.stride} frames")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c, width = config, config.stack.hidden_size
        self.codec = Codec(c.codec)
        self.levels = self.codec.levels if c.factored else [self.codec.quantisers[0].size]
        streams = len(c.codec.streams)
        self.embed = nn.ModuleList(
            nn.ModuleList(nn.Embedding(level, width) for level in self.levels) for _ in range(streams)
        )
        self.start_SD = nn.Parameter(torch.empty(streams, width).normal_(std=0.02)) if c.start_token else None
        self.music_in = nn.Sequential(
            nn.Linear(c.music_width * c.music_frames, c.music_hidden), nn.Linear(c.music_hidden, width)
        )
        self.genre = nn.Embedding(c.genres, width) if c.genre_embedding else None
        self.content = nn.Embedding(c.contents, width) if c.contents else None
        self.stack = Transformer(replace(c.stack, pattern=[_counted(item, c.genres) for item in c.stack.pattern]))
        for layer in self.stack.layers:
            if isinstance(layer, MixtureOfBlocks) and layer.by_tag and len(layer.blocks) < c.genres:
                raise ZooError(
                    f"{c.genres} genres do not have {len(layer.blocks)} blocks; leave count out of stack.pattern"
                )
        self.head = nn.Sequential(nn.Linear(width, c.head_hidden), nn.Linear(c.head_hidden, sum(self.levels)))
        for module in self.modules():
            if isinstance(module, Mamba):
                module.reset()
            if isinstance(module, nn.Embedding) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=0.02)

    # -- the whole -----------------------------------------------------------------------------------------------------

    def forward(
        self, motion_BTC: Tensor, music_BTF: Tensor, genre_B: Tensor, content_B: Tensor | None = None
    ) -> Output:
        """Encode and decode the motion, and foretell its codes, which carry no gradient.

        Args:
            motion_BTC, music_BTF: normalised; frame for frame, T a multiple of the stride.
        """
        coded = self.codec(motion_BTC)
        digits = tuple(self.own_digits(each.detach()) for each in coded.digits)
        logits, routing = self.foretell(digits, self.music_of_tokens(music_BTF), genre_B, content_B)
        return Output(logits, coded.motion_BTC, coded.loss_B, digits, routing)

    def foretell(
        self, digits: Digits, music_BtF: Tensor, genre_B: Tensor, content_B: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Routing]:
        """Logits (B, t, V) of each token from those before it. Without a start token those of the first are zeros."""
        if self.start_SD is not None:
            return self.next(tuple(each[:, :-1] for each in digits), music_BtF, genre_B, content_B)
        before = tuple(each[:, :-1] for each in digits)
        logits, routing = self.next(before, music_BtF[:, :-1], genre_B, content_B)
        return tuple(torch.cat([torch.zeros_like(each[:, :1]), each], 1) for each in logits), routing

    def next(
        self,
        digits: Digits,
        music_BtF: Tensor,
        genre_B: Tensor,
        content_B: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[tuple[Tensor, ...], Routing]:
        """Logits of what follows each input. An input is a token and the music that goes with it; with a start token
        and nothing in the cache there is one token less than music, and the start stands before."""
        parts = [sum(table(each[..., n]) for n, table in enumerate(tables)) for each, tables in self._tables(digits)]
        if self.start_SD is not None and (cache is None or not cache.length):
            starts = self.start_SD[:, None, None].expand(-1, len(music_BtF), 1, -1)
            parts = [torch.cat([start, part], 1) for start, part in zip(starts, parts, strict=True)]
        known_B1D: Tensor | float = 0.0
        if self.genre is not None:
            known_B1D = known_B1D + self.genre(genre_B)[:, None]
        if self.content is not None:
            content_B = torch.zeros_like(genre_B) if content_B is None else content_B
            known_B1D = known_B1D + self.content(content_B)[:, None]
        x_BtSD = torch.stack([*parts, self.music_in(music_BtF)], 2)
        x_BtSD = x_BtSD if isinstance(known_B1D, float) else x_BtSD + known_B1D[:, :, None]
        streams = x_BtSD.shape[2]
        x_BLD = x_BtSD.flatten(1, 2)
        label_BL = genre_B[:, None].expand(-1, x_BLD.shape[1])
        states_BLD, routing = self.stack(x_BLD, cache=cache, label=label_BL)
        states_BtSD = states_BLD.unflatten(1, (-1, streams))
        return tuple(self.head(states_BtSD[:, :, s]) for s in range(streams - 1)), routing

    def _tables(self, digits: Digits) -> list[tuple[Tensor, nn.ModuleList]]:
        return list(zip(digits, self.embed, strict=True))  # type: ignore[arg-type]

    # -- codes ---------------------------------------------------------------------------------------------------------

    def own_digits(self, digits_BtN: Tensor) -> Tensor:
        """The codec's digits as the decoder has them: themselves, or one number for all."""
        return digits_BtN if self.config.factored else code_of(digits_BtN, self.codec.levels)[..., None]

    def codec_digits(self, digits_BtN: Tensor) -> Tensor:
        """`own_digits` undone."""
        return digits_BtN if self.config.factored else digits_of(digits_BtN[..., 0], self.codec.levels)

    def decode(self, digits: Digits) -> Tensor:
        """Normalised motion (B, T, C) of codes; long dances in blocks, which gives the same."""
        digits = tuple(self.codec_digits(each) for each in digits)
        stride, reach, block = self.codec.stride, self.codec.reach, 256
        total, parts = digits[0].shape[1], []
        for start in range(0, total, block):
            low, high = max(0, start - reach), min(total, start + block + (0 if self.config.codec.causal else reach))
            piece = self.codec.decode(tuple(each[:, low:high] for each in digits))
            parts.append(piece[:, (start - low) * stride : (min(start + block, total) - low) * stride])
        return torch.cat(parts, 1)

    def music_of_tokens(self, music_BTF: Tensor) -> Tensor:
        """What a token hears: (B, t, F times ``music_frames``)."""
        c = self.config
        length = music_BTF.shape[1] // c.codec.stride * c.codec.stride
        music = music_BTF[:, :length].unflatten(1, (-1, c.codec.stride))
        return music[:, :, : c.music_frames].flatten(2)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        c, frames = self.config, 4 * self.config.codec.stride
        return {
            "motion_BTC": torch.randn(batch_size, frames, sum(c.codec.streams)),
            "music_BTF": torch.randn(batch_size, frames, c.music_width),
            "genre_B": torch.arange(batch_size) % c.genres,
        }


def _counted(item: Any, genres: int) -> Any:
    """An item of a pattern, with a block for every genre where it says nothing else."""
    wiring = item.get("wiring") if isinstance(item, dict) else None
    if not isinstance(wiring, dict) or wiring.get("name") != "mixture_of_blocks" or "count" in wiring:
        return item
    return {**item, "wiring": {**wiring, "count": genres}}
