"""A talk with a model about images, from Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.hub import Predictor
from zoo.spec import ZooError
from zoo_vision_language.data.layout import Turn
from zoo_vision_language.tasks.answering import Answer, look, reply


class Chat:
    """Keeps what was said::

        chat = Chat(zoo.load("vision_language/moe_llava_tiny.easy_vqa"))
        chat.ask("what shape is it?", image="shape.png")
        chat.ask("is it red?")

    Args:
        max_tokens, temperature, seed: as `zoo predict`'s, for every answer.
    """

    def __init__(self, predictor: Predictor, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0) -> None:
        self.predictor = predictor
        self.settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.images: list[NDArray[np.uint8]] = []
        self.turns: list[Turn] = []

    def stream(self, prompt: str, image: Any = None) -> Iterator[str]:
        """The answer in pieces. Raises `ZooError` for an empty prompt, or a talk that has become too long."""
        if not prompt.strip():
            raise ZooError("prompt is empty; ask something")
        p = self.predictor
        images, notes = list(self.images), list[str]()
        if image is not None:
            picture, notes = look(image, p.model.config.image_size, p.preprocessing)
            images.append(picture)
        turns = [*self.turns, Turn(prompt, "")]
        answer: Answer = yield from reply(p.model, p.preprocessing, images, turns, notes=notes, **self.settings)  # type: ignore[assignment]
        self.images, self.turns = images, [*self.turns, Turn(prompt, answer.text)]
        self.last = answer

    def ask(self, prompt: str, image: Any = None) -> str:
        """The answer to a question, about a further image if one is given."""
        return "".join(self.stream(prompt, image)).strip()

    def clear(self) -> None:
        """Forget images and words."""
        self.images, self.turns = [], []
