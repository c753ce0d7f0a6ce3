"""Pictures of one colour, and dialogues about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zoo import config as zc
from zoo.images import write_image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def pictures(folder: Path, count: int = 30) -> list[tuple[str, str]]:
    """Files of one colour each, and the colours."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for n in range(count):
        colour = list(COLOURS)[n % 3]
        write_image(np.full((20, 30, 3), COLOURS[colour], np.uint8), folder / f"{n:03}.png")
        found.append((f"{n:03}.png", colour))
    return found


def dialogues(folder: Path, count: int = 30) -> Path:
    """A file in LLaVA's format beside a folder of pictures."""
    path = folder / "talk.jsonl"
    lines = []
    for name, colour in pictures(folder / "pictures", count):
        talk = [("human", "<image>\nWhat colour is it?"), ("gpt", colour), ("human", "Is it red?")]
        talk.append(("gpt", "yes" if colour == "red" else "no"))
        record = {"image": name, "conversations": [{"from": who, "value": text} for who, text in talk]}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines))
    return path


def build_data(name: str, **settings: Any) -> Any:
    return zc.build("data set", zc.resolve_part("data set", {"name": f"vision_language/{name}", **settings}, "data"))
