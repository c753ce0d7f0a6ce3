"""Windows over a stream of tokens, packed: a window may hold the end of one document and the start of the next, and
says so in ``document``.

Shapes: N tokens of the stream, L = context + 1 of a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Item: a slice (L,) of every column, int64.

    Args:
        columns: arrays of length N: ``tokens``, ``bytes`` (of the text, that each stands for), and where they mean
            something ``document`` and ``domain``.
        starts: where the windows begin. Two that follow each other share a token: the last target of one is the first
            input of the next, so windows ``context`` apart predict each token of the stream once, but the first.
        padded: windows may reach beyond the end of the stream; ``valid`` (L,) marks what lies inside.
    """

    def __init__(
        self, columns: dict[str, NDArray[Any]], starts: NDArray[Any] | range, context: int, padded: bool = False
    ) -> None:
        self.columns, self.starts, self.context, self.padded = columns, starts, context, padded

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        start = int(self.starts[item])
        length = self.context + 1
        found = {}
        for name, column in self.columns.items():
            piece = torch.from_numpy(column[start : start + length].astype(np.int64))
            found[name] = torch.nn.functional.pad(piece, (0, length - len(piece)))
        if self.padded:
            found["valid"] = torch.arange(length) < len(self.columns["tokens"]) - start
        return found


def pack(columns: dict[str, NDArray[Any]], context: int, every: bool) -> Windows:
    """Windows over a whole stream: from every position (to train on, each drawn once an epoch), or one after the other
    and padded, so that each token is predicted exactly once (to score)."""
    length = len(columns["tokens"])
    if every:
        return Windows(columns, range(max(0, length - context)), context)
    return Windows(columns, range(0, max(0, length - 1), context), context, padded=True)
