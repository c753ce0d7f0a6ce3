"""Pictures in memory with what is known of them: what all data sets of this plugin share.

Shapes: N pictures, H height, W width, C channels; in captions W places for pieces.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zoo.config import at_least
from zoo.spec import ZooError

SPLITS = ("train", "val", "test")
PARTS = (3, 4)
"""Lengths of the parts of words that stand beside the words."""


class Known(NamedTuple):
    """What is known of N pictures: ``labels_N`` and the names of the ``classes``, or ``captions``."""

    labels_N: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    def take(self, rows: NDArray[np.int64]) -> Known:
        if self.labels_N is not None:
            return self._replace(labels_N=self.labels_N[rows])
        return self._replace(captions=tuple(self.captions[row] for row in rows))


@dataclass
class TextSettings:
    """How captions become pieces; those of the model's ``condition``."""

    buckets: int = 2048
    length: int = 64

    def __post_init__(self) -> None:
        at_least(2, self, "buckets")
        at_least(1, self, "length")


def pieces(caption: str, buckets: int, length: int) -> list[int]:
    """A caption as ``length`` numbers: its words and their parts, hashed to 1 ... ``buckets`` - 1, then zeros. Words
    come before parts, so that a long caption loses parts first."""
    words = re.findall(r"\w+", caption.lower())
    parts = [f"<{word}>"[n : n + size] for word in words for size in PARTS for n in range(len(word) + 3 - size)]
    hashed = [1 + zlib.crc32(piece.encode()) % (buckets - 1) for piece in dict.fromkeys([*words, *parts])][:length]
    return hashed + [0] * (length - len(hashed))


class PictureDataset(Dataset[dict[str, Tensor]]):
    """``image`` (C, H, W) from -1 to 1, ``label`` () or ``text`` (W,), and ``index``, its place in the split."""

    def __init__(self, pixels_NHWC: NDArray[np.uint8], name: str, known_N: NDArray[np.int64], flip: bool) -> None:
        self.pixels_NHWC, self.name, self.known_N, self.flip = pixels_NHWC, name, known_N, flip

    def __len__(self) -> int:
        return len(self.pixels_NHWC)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        image = torch.from_numpy(self.pixels_NHWC[place]).permute(2, 0, 1).float() / 127.5 - 1
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return {"image": image, self.name: torch.as_tensor(self.known_N[place]), "index": torch.tensor(place)}


class PictureData:
    """A data set of pictures.

    Args:
        pixels: (N, H, W, C) in 8 bits, of each split.
        known: labels or captions of each split.
        text: how captions become pieces; needed with captions.
        flip: half of the training pictures are mirrored.

    Attributes:
        preprocessing: size, channels, and ``classes`` or ``text`` (buckets, length) with some captions as ``examples``.
        captions: of each split, where there are any.
    """

    def __init__(
        self,
        pixels: Mapping[str, NDArray[np.uint8]],
        known: Mapping[str, Known],
        notes: list[str],
        text: TextSettings | None = None,
        flip: bool = False,
    ) -> None:
        _, height, width, channels = pixels["train"].shape
        assert height == width
        self.pixels, self.known, self.flip, self.notes = pixels, known, flip, notes
        self.preprocessing: dict[str, Any] = {"size": height, "channels": channels}
        self.captions = {split: each.captions for split, each in known.items()}
        if text is None:
            self.preprocessing["classes"] = list(known["train"].classes)
        else:
            self.preprocessing["text"] = {"buckets": text.buckets, "length": text.length}
            some = sorted(set(known["train"].captions), key=lambda caption: zlib.crc32(caption.encode()))
            self.preprocessing["examples"] = some[:16]
        counts = ", ".join(f"{len(pixels[split]):,} {split}" for split in SPLITS)
        notes.append(f"{counts} pictures of {height} x {width}, {channels} channel{'s' if channels > 1 else ''}")

    def split(self, name: str) -> PictureDataset:
        known, text = self.known[name], self.preprocessing.get("text")
        if text is None:
            assert known.labels_N is not None
            return PictureDataset(self.pixels[name], "label", known.labels_N, self.flip and name == "train")
        rows = np.array([pieces(caption, **text) for caption in known.captions], np.int64)
        return PictureDataset(self.pixels[name], "text", rows, self.flip and name == "train")


def divide(count: int, fractions: Sequence[float], seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Which of ``count`` items are in which split: a fixed shuffle, cut at the fractions; each split gets one at least.

    Raises:
        ZooError: fractions that are none, or fewer than three items.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ZooError(f"split={list(fractions)} must be three positive fractions that sum to 1")
    if count < 3:
        raise ZooError(
            f"{count} picture{'s' if count != 1 else ''} cannot be split into train, val and test; give more"
        )
    order = np.random.default_rng(seed).permutation(count)
    val, test = (max(1, round(fraction * count)) for fraction in fractions[1:])
    train = max(1, count - val - test)
    cuts = np.split(order, [train, min(count - 1, train + val)])
    return {split: np.sort(rows) for split, rows in zip(SPLITS, cuts, strict=True)}


def divided(
    pixels_NHWC: NDArray[np.uint8], known: Known, fractions: Sequence[float]
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Known]]:
    """Pictures and what is known of them, split by `divide`."""
    rows = divide(len(pixels_NHWC), fractions)
    return {s: pixels_NHWC[r] for s, r in rows.items()}, {s: known.take(r) for s, r in rows.items()}
