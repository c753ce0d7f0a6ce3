"""Sequences of text and frames of codes: what a model of speech and music learns from.

A data set gives `Piece`s of each split. Here their prompts become symbols: what kind of sound it is, who speaks, and
the text letter by letter.

Shapes: B sequences, P symbols, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_audio.data.recordings import SPLITS
from zoo_audio.music import transposed

DOMAINS = ("speech", "music")
UNKNOWN, ANYONE = "<unknown>", "<anyone>"


class Piece(NamedTuple):
    """A sound as codes: ``codes_TC``, and what it is of: ``domain``, ``speaker`` and ``text`` (empty for none)."""

    domain: str
    speaker: str
    text: str
    codes_TC: Tensor


Pieces = dict[str, list[Piece]]


def prompt(domain: str, speaker: str, text: str) -> list[str]:
    """The symbols of a prompt."""
    return [f"<{domain}>", f"<{speaker}>" if speaker else ANYONE, *text]


def symbols_of(pieces: Sequence[Piece]) -> list[str]:
    """All symbols of some pieces, in order, those that are always there first."""
    fixed = [UNKNOWN, ANYONE, *(f"<{domain}>" for domain in DOMAINS)]
    found = {s for piece in pieces for s in prompt(piece.domain, piece.speaker, piece.text)}
    return fixed + sorted(found - set(fixed))


class Sequences(torch.utils.data.Dataset[dict[str, Any]]):
    """Item: ``text`` (P,), ``codes`` (T, C), ``domain``. With ``shift`` music is transposed by up to so many semitones,
    another one each time; with ``context`` a longer piece is cut there, at random in training."""

    def __init__(self, pieces: Sequence[Piece], symbols: Sequence[str], shift: int, context: int, train: bool) -> None:
        self.place = {symbol: i for i, symbol in enumerate(symbols)}
        self.shift, self.context, self.train = shift, context, train
        self.pieces = list(pieces) if train else [part for piece in pieces for part in self._cut(piece)]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> dict[str, Any]:
        piece = self.pieces[item]
        codes = piece.codes_TC
        if self.train and len(codes) > self.context:
            start = int(torch.randint(len(codes) - self.context + 1, ()))
            codes = codes[start : start + self.context]
        if self.train and self.shift and piece.domain == "music":
            codes = transposed(codes, int(torch.randint(-self.shift, self.shift + 1, ())))
        ids = [self.place.get(symbol, 0) for symbol in prompt(piece.domain, piece.speaker, piece.text)]
        return {"text": torch.tensor(ids), "codes": codes.long(), "domain": DOMAINS.index(piece.domain)}

    def _cut(self, piece: Piece) -> list[Piece]:
        return [piece._replace(codes_TC=part) for part in piece.codes_TC.split(self.context)]


class Tokens:
    """A data set of pieces.

    Attributes:
        preprocessing: ``symbols`` of prompts, ``channels``, and the ``speech`` and ``music`` sections: how sounds of
            each kind become codes and codes become sounds.
    """

    def __init__(
        self,
        pieces: Pieces,
        sections: Mapping[str, Any],
        notes: list[str],
        shift: int = 0,
        context: int = 512,
        mix: Mapping[str, int] | None = None,
    ) -> None:
        self.pieces, self.sections, self.shift, self.notes = pieces, dict(sections), shift, notes
        self.context, self.mix = context, mix
        widths = {int(piece.codes_TC.shape[1]) for split in SPLITS for piece in pieces[split]}
        if len(widths) != 1:
            raise ZooError(
                f"the sounds have {sorted(widths)} channels, and one model wants one number; set data.channels"
            )
        self.use(symbols_of(pieces["train"]), widths.pop())
        for split in SPLITS:
            frames = {d: sum(len(p.codes_TC) for p in pieces[split] if p.domain == d) for d in DOMAINS}
            told = ", ".join(f"{frames[d]:,} frames of {d}" for d in DOMAINS if frames[d])
            self.notes.append(f"{split}: {len(pieces[split]):,} pieces, {told}")

    def use(self, symbols: list[str], channels: int) -> None:
        """Encode prompts with these symbols, such as those of a trained model."""
        self.symbols = symbols
        self.preprocessing = {"symbols": symbols, "channels": channels, **self.sections}

    def split(self, name: str) -> Sequences:
        pieces = self.pieces[name]
        if self.mix is not None:
            pieces = [piece for piece in pieces for _ in range(self.mix[piece.domain] if name == "train" else 1)]
            pieces = [piece for piece in pieces if self.mix[piece.domain]]
        return Sequences(pieces, self.symbols, self.shift, self.context, name == "train")

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Prompts padded on their left, frames on their right."""
        most = max(len(item["text"]) for item in items)
        frames_B = torch.tensor([len(item["codes"]) for item in items])
        text_BP = torch.stack([torch.nn.functional.pad(item["text"], (most - len(item["text"]), 0)) for item in items])
        valid_BP = torch.stack([torch.arange(most) >= most - len(item["text"]) for item in items])
        codes_BTC = torch.nn.utils.rnn.pad_sequence([item["codes"] for item in items], batch_first=True)
        domain_B = torch.tensor([item["domain"] for item in items])
        return {"text": text_BP, "text_valid": valid_BP, "codes": codes_BTC, "frames": frames_B, "domain": domain_B}
