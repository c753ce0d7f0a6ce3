"""How dialogues are written down as text. Plain data; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zoo.registry import suggest
from zoo.spec import ZooError


@dataclass(frozen=True)
class Template:
    """How a dialogue is written: ``system`` once, then for each turn ``user`` question ``assistant`` answer ``end``.

    With ``images_first`` the images stand before all, and several dialogues about them share one row; else each stands
    where the question says ``<image>``, or before the first question, between ``image_start`` and ``image_end``.
    """

    user: str = "<|user|>"
    assistant: str = "<|assistant|>"
    end: str = "<|end|>"
    system: str = ""
    images_first: bool = True
    image_start: str = ""
    image_end: str = ""


_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TEMPLATES = {
    "plain": Template(),
    "chatml": Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "vicuna": Template("USER: ", " ASSISTANT:", "</s>", _CURIOUS, images_first=False),
    "llama3": Template("USER: ", "ASSISTANT:", "<|end_of_text|>", _CURIOUS.rstrip(), images_first=False),
    "stablelm": Template("USER: ", " ASSISTANT:", "<|endoftext|>", _CURIOUS, images_first=False),
    "internlm2": Template(
        "<|im_start|>user\n",
        "<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
        images_first=False,
        image_start="<img>",
        image_end="</img>",
    ),
}


def template_of(value: str | Mapping[str, Any]) -> Template:
    """A template by its name, or from what `saved_template` wrote. Raises `ZooError` for another name."""
    if not isinstance(value, str):
        return Template(**value)
    if value not in TEMPLATES:
        raise ZooError(f"unknown template '{value}'; {suggest(value, TEMPLATES)}")
    return TEMPLATES[value]


def saved_template(template: Template) -> dict[str, Any]:
    """A template as plain data."""
    return asdict(template)
