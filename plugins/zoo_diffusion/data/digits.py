"""Handwritten digits that ship with scikit-learn: 1,797 pictures of 8 x 8 in 17 grey values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zoo_diffusion.data.pictures import Known, PictureData, divided


class Digits(PictureData):
    """The test part of the UCI set "Optical Recognition of Handwritten Digits", as scikit-learn has it; light strokes
    on black, 16 of the original being white. Split by a fixed shuffle."""

    @dataclass
    class Config:
        split: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])

    def __init__(self, config: Config) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        pixels_NHWC = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
        known = Known(found.target.astype(np.int64), tuple("0123456789"))
        super().__init__(*divided(pixels_NHWC, known, config.split), [])
