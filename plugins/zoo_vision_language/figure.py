"""Which experts the patches of an image and the words around it chose: watched in a forward pass, drawn as a figure.

Shapes: L places, K slots, E experts, N images, P tokens of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.moe import MoE, RouterOutput
from zoo.report import figure, plots_available, save_figure

WORDS = 24
"""Words that a figure shows at most, the last ones."""


@dataclass
class Layer:
    """Of a mixture layer the share of the weight that each place gives to each expert, (L, E)."""

    name: str
    share_LE: NDArray[np.float32]


@dataclass
class Choices:
    """``words`` and ``modality`` of the L places; ``grid``, rows and columns of an image's tokens."""

    layers: list[Layer]
    words: list[str]
    modality: list[int]
    grid: tuple[int, int]


@dataclass
class Watched:
    """What the routers of one sequence decided, pass by pass."""

    parts: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)

    def see(self, name: str, out: RouterOutput) -> None:
        share_TE = np.zeros(tuple(out.logits_TE.shape), np.float32)
        index_TK, used_TK = out.index_TK.cpu().numpy(), out.used_TK.cpu().numpy()
        weight_TK = np.where(used_TK, out.weight_TK.detach().float().cpu().numpy(), 0)
        np.add.at(share_TE, (np.arange(len(share_TE))[:, None], index_TK), weight_TK)
        self.parts.setdefault(name, []).append(share_TE)

    def choices(self, words: Sequence[str], modality: Sequence[int], grid: tuple[int, int]) -> Choices | None:
        """The choices at the places of the prompt; None without mixtures, or where other units than tokens choose."""
        layers = [Layer(name, np.concatenate(parts)[: len(words)]) for name, parts in self.parts.items()]
        layers = [layer for layer in layers if len(layer.share_LE) == len(words)]
        return Choices(layers, list(words), list(modality), grid) if layers else None


@contextmanager
def watch(model: Any) -> Iterator[Watched]:
    """Inside the block every decision of the model's mixtures is noted."""
    seen = Watched()
    handles = [
        module.router.register_forward_hook(lambda _m, _a, out, name=name: seen.see(name, out))
        for name, module in model.named_modules()
        if isinstance(module, MoE)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def draw(answer: Any, path: Path) -> list[Path]:
    """A row a mixture layer: over each image the expert that each patch weighs most, and beside it the shares of the
    words. Nothing without mixtures or matplotlib."""
    choices: Choices | None = answer.choices
    if choices is None or not plots_available():
        return []
    images = len(answer.pixels_NHWC)
    is_word_L = np.array(choices.modality) == 1
    shown = np.nonzero(is_word_L)[0][-WORDS:]
    patches = np.nonzero(~is_word_L)[0].reshape(images, -1) if images else np.zeros((0, 0), np.int64)
    experts = max(layer.share_LE.shape[1] for layer in choices.layers)
    fig, axes = figure(len(choices.layers), images + 1, width=3.0 * images + 0.34 * len(shown) + 2.2, height=2.7)
    grid = axes.reshape(len(choices.layers), images + 1)
    for row, layer in zip(grid, choices.layers, strict=True):
        for axis, pixels_HWC, places_P in zip(row, answer.pixels_NHWC, patches, strict=False):
            best_P = layer.share_LE[places_P].argmax(1)
            height, width = pixels_HWC.shape[:2]
            axis.imshow(pixels_HWC, extent=(0, width, height, 0))
            drawn = axis.imshow(
                best_P.reshape(choices.grid), extent=(0, width, height, 0), alpha=0.45, cmap="tab10", vmin=0, vmax=9
            )
            axis.set(xticks=[], yticks=[])
            axis.set_title(layer.name.rpartition("layers.")[2] or layer.name, loc="left", fontsize=8)
            if experts <= 10:
                cells = zip(best_P, np.ndindex(*choices.grid), strict=True)
                cell = (height / choices.grid[0], width / choices.grid[1])
                if best_P.size <= 100:
                    for expert, (r, c) in cells:
                        axis.text(
                            (c + 0.5) * cell[1], (r + 0.5) * cell[0], str(expert), ha="center", va="center", fontsize=6
                        )
            del drawn
        axis = row[-1]
        image = axis.imshow(layer.share_LE[shown].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axis.set(ylabel="expert", yticks=range(layer.share_LE.shape[1]))
        axis.set_xticks(
            range(len(shown)), [choices.words[i] or "|" for i in shown], rotation=60, ha="right", fontsize=7
        )
        fig.colorbar(image, ax=axis)
    return save_figure(fig, path)
