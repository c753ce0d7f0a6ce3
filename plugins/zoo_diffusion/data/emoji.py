"""Noto Emoji: 3,545 pictures with their names as captions."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from zoo.config import at_least
from zoo.download import fetch, unpack
from zoo.images import find_images, read_images
from zoo_diffusion.data.files import EMOJI
from zoo_diffusion.data.pictures import Known, PictureData, TextSettings, divided

JOINER, VARIANT, KEYCAP = "\u200d", "\ufe0f", "\u20e3"
# What Unicode's names of single characters do not say the way people do.
WORDS = {
    "heavy black heart": "red heart",
    "white heavy check mark": "check mark button",
    "black rightwards arrow": "facing right",
    "emoji modifier fitzpatrick type-1-2": "light skin tone",
    "emoji modifier fitzpatrick type-3": "medium-light skin tone",
    "emoji modifier fitzpatrick type-4": "medium skin tone",
    "emoji modifier fitzpatrick type-5": "medium-dark skin tone",
    "emoji modifier fitzpatrick type-6": "dark skin tone",
    "combining enclosing keycap": "keycap",
    "male sign": "man",
    "female sign": "woman",
}
FORMAL = re.compile(r"emoji component |regional indicator symbol |black (?=sun|heart suit|telephone|scissors)")


def name(characters: str) -> str | None:
    """What an emoji shows, ``"woman, medium skin tone, red hair"``; None where Unicode's table here has no name."""
    said = []
    for character in characters:
        if character in (JOINER, VARIANT):
            continue
        try:
            formal = unicodedata.name(character).lower()
        except ValueError:
            return None
        said.append(WORDS.get(formal, FORMAL.sub("", formal)))
    return ", ".join(said)


class Emoji(PictureData):
    """The 72 x 72 pictures of Noto Emoji on white, made smaller.

    Config:
        size: side of the pictures.
        split: a large part is held out, for judges that must not know what the generator has seen.
    """

    @dataclass
    class Config:
        size: int = 24
        split: list[float] = field(default_factory=lambda: [0.7, 0.2, 0.1])
        text: TextSettings = field(default_factory=TextSettings)
        flip: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Config) -> None:
        named, unnamed = [], 0
        for path in find_images(unpack(fetch(EMOJI))):
            codes = path.stem.removeprefix("emoji_u").split("_")
            caption = name("".join(chr(int(code, 16)) for code in codes))
            if caption is None:
                unnamed += 1
            else:
                named.append((path, caption))
        read = read_images([path for path, _ in named], config.size)
        notes = [note for note in read.notes if "transparency" not in note]
        if unnamed:
            notes.append(f"{unnamed} emoji are left out: Python's Unicode table has no name for them")
        known = Known(captions=tuple(named[place][1] for place in read.kept))
        super().__init__(*divided(read.pixels_NHWC, known, config.split), notes, config.text, config.flip)
