"""Omniglot's two small background sets: characters of eight alphabets, each drawn by 20 people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from zoo.config import at_least
from zoo.download import fetch, unpack
from zoo.images import find_images, read_images
from zoo_diffusion.data.files import OMNIGLOT
from zoo_diffusion.data.pictures import Known, PictureData, divided


class Omniglot(PictureData):
    """Strokes, white on black.

    Config:
        part: ``small1`` (2,720 drawings), ``small2`` (3,120) or ``both``, which share two
            alphabets: 4,840 in all.
        label: what a drawing is labelled with, its ``alphabet`` or its ``character``.
        size: side of the pictures, 105 in the files.
    """

    @dataclass
    class Config:
        part: Literal["small1", "small2", "both"] = "both"
        label: Literal["alphabet", "character"] = "alphabet"
        size: int = 28
        split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Config) -> None:
        chosen = tuple(OMNIGLOT) if config.part == "both" else (config.part,)
        found = [path for part in chosen for path in find_images(unpack(fetch(OMNIGLOT[part])))]
        paths = list({path.parts[-3:]: path for path in found}.values())
        names = [path.parts[-3] if config.label == "alphabet" else "/".join(path.parts[-3:-1]) for path in paths]
        read = read_images(paths, config.size)
        classes = tuple(sorted(set(names)))
        labels_N = np.array([classes.index(names[place]) for place in read.kept], np.int64)
        pixels_NHWC = 255 - read.pixels_NHWC[..., :1]
        super().__init__(*divided(pixels_NHWC, Known(labels_N, classes), config.split), read.notes)
