"""Connectors: from a tower's tokens to the language model's. ``connector(x_NTC) -> (N, P, D)``, P = ``tokens``, in
``places`` rows and columns.

Shapes: N images, T tokens of the tower, P tokens of an image, C tower width, D width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.config import at_least
from zoo.spec import ZooError


class MLP(nn.Module):
    """``depth`` linear layers with GELUs between them: two in LLaVA-1.5 (arXiv:2310.03744) and MoE-LLaVA, one in LLaVA.

    ``shuffle`` first lays so many rows and columns of tokens side by side, a quarter of the tokens with four times the
    width for 2 (pixel shuffle of InternVL, arXiv:2404.16821). ``norm`` is a layer norm before all, ``out_norm`` one
    behind all: it brings image tokens to the size that embeddings of 1 have.
    """

    @dataclass
    class Config:
        depth: int = 2
        shuffle: int = 1
        norm: bool = False
        out_norm: bool = False
        hidden: int | None = None

        def __post_init__(self) -> None:
            at_least(1, self, "depth", "shuffle", "hidden")

    def __init__(self, config: Config, grid: tuple[int, int], width: int, hidden_size: int) -> None:
        super().__init__()
        self.grid, self.step = grid, config.shuffle
        if any(side % self.step for side in grid):
            raise ZooError(f"the tower's {grid[0]} x {grid[1]} tokens do not divide by connector.shuffle={self.step}")
        self.places = (grid[0] // self.step, grid[1] // self.step)
        self.tokens = self.places[0] * self.places[1]
        size = width * self.step**2
        layers: list[nn.Module] = [nn.LayerNorm(size)] if config.norm else []
        inner = config.hidden or hidden_size
        for place in range(config.depth):
            after = hidden_size if place == config.depth - 1 else inner
            layers += [nn.GELU()] if place else []
            layers.append(nn.Linear(size, after))
            size = after
        self.layers = nn.Sequential(*layers, *([nn.LayerNorm(hidden_size)] if config.out_norm else []))

    def forward(self, x_NTC: Tensor) -> Tensor:
        if self.step > 1:
            x_NTC = shuffled(x_NTC, self.grid, self.step)
        y: Tensor = self.layers(x_NTC)
        return y


def shuffled(x_NTC: Tensor, grid: tuple[int, int], step: int) -> Tensor:
    """Blocks of ``step`` rows and columns side by side, row by row: (N, T / step^2, step^2 C)."""
    rows, columns = grid[0] // step, grid[1] // step
    return x_NTC.unflatten(1, (rows, step, columns, step)).transpose(2, 3).flatten(3).flatten(1, 2)
