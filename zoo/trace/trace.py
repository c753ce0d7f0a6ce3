"""A routing trace: what every MoE layer decided for every token of a data set.

On disk it is a folder: ``trace.json`` and plain ``.npy`` arrays, opened memory-mapped. Padding is not in it. Layers
that saw the same tokens share a *stream* of side information (which sequence, which position, which domain); a layer
that decides for segments, or for another part of the model, has a stream of its own.

Shapes: N tokens (or units) of a layer, K slots, E experts, G groups, S streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.spec import ZooError

Array = NDArray[Any]
FORMAT = 1
HEADER = "trace.json"
ALL = slice(None)
CHUNK = 65536
FIELDS = ("seq_id", "position", "token_ids", "domain", "modality", "label")


@dataclass(frozen=True)
class LayerTrace:
    """The decisions of one MoE layer. An unused slot has weight 0, ``used`` False and any valid index."""

    name: str
    num_experts: int
    stream: int
    index_NK: Array
    weight_NK: Array
    used_NK: Array
    logits_NE: Array | None = None

    def counts(self, group_N: Array | None = None, groups: int = 1) -> Array:
        """Assignments per expert, (E,), or per group and expert, (G, E); tokens of a negative group are left out."""
        rows = np.zeros(len(self.index_NK), np.int64) if group_N is None else np.asarray(group_N, np.int64)
        counted_NK = self.used_NK & (rows >= 0)[:, None]
        pair = (rows[:, None] * self.num_experts + self.index_NK)[counted_NK]
        counts_GE = np.bincount(pair, minlength=groups * self.num_experts).reshape(groups, self.num_experts)
        return counts_GE[0] if group_N is None else counts_GE

    def coactivation(self) -> Array:
        """(E, E): tokens that use both experts; on the diagonal, tokens that use the one."""
        return self.transition(self)

    def transition(self, later: LayerTrace) -> Array:
        """(E, E'): tokens that use an expert here and one in a later layer of the same stream (ExFlow,
        arXiv:2401.08383)."""
        pairs_EF = np.zeros((self.num_experts, later.num_experts), np.int64)
        for start in range(0, len(self.index_NK), CHUNK):  # so many that their products are whole in fp32
            rows = slice(start, start + CHUNK)
            pairs_EF += (self.chosen(rows).T.astype(np.float32) @ later.chosen(rows)).astype(np.int64)
        return pairs_EF

    def chosen(self, rows: slice | Array = ALL) -> Array:
        """Which experts each of these tokens uses, (rows, E)."""
        used_NK, index_NK = self.used_NK[rows], self.index_NK[rows]
        chosen_NE = np.zeros((len(index_NK), self.num_experts), bool)
        token_M, slot_M = np.nonzero(used_NK)
        chosen_NE[token_M, index_NK[token_M, slot_M]] = True
        return chosen_NE

    def take(self, rows_N: Array) -> LayerTrace:
        """The decisions for some of the tokens."""
        logits = None if self.logits_NE is None else self.logits_NE[rows_N]
        return replace(
            self, index_NK=self.index_NK[rows_N], weight_NK=self.weight_NK[rows_N], used_NK=self.used_NK[rows_N],
            logits_NE=logits,
        )  # fmt: skip


@dataclass(frozen=True)
class RoutingTrace:
    """All layers in the order of the forward pass.

    Attributes:
        streams: per stream the side information of its tokens by name (of `FIELDS`), (N,) each; ``seq_id`` and
            ``position`` are always there, and a negative value stands for unknown.
        info: plain data: where it came from, and ``names``, what the values of a field are called.
    """

    layers: tuple[LayerTrace, ...]
    streams: tuple[Mapping[str, Array], ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the longest stream."""
        return max((len(stream["seq_id"]) for stream in self.streams), default=0)

    def of(self, layer: LayerTrace, name: str) -> Array:
        """A field for the tokens of a layer. Raises `ZooError` when the trace does not have it."""
        stream = self.streams[layer.stream]
        if name not in stream:
            raise ZooError(f"the trace of {layer.name} has no '{name}'; it has: {', '.join(stream)}")
        return stream[name]

    def groups(self, by: str) -> int:
        """How many values a field has: 1 + its largest."""
        return 1 + max((int(stream[by].max(initial=-1)) for stream in self.streams if by in stream), default=-1)

    def counts(self, by: str | None = None) -> list[Array]:
        """Assignments per layer: (E,), or (G, E) for the G values of a field. Padding is not in a trace."""
        if by is None:
            return [layer.counts() for layer in self.layers]
        groups = self.groups(by)
        return [layer.counts(self.of(layer, by), groups) for layer in self.layers]

    def coactivation(self) -> list[Array]:
        """(E, E) per layer: how many tokens use both experts."""
        return [layer.coactivation() for layer in self.layers]

    def transition(self) -> list[Array | None]:
        """(E, E') per pair of neighbouring layers; None where the two saw other tokens."""
        pairs = zip(self.layers[:-1], self.layers[1:], strict=True)
        return [one.transition(two) if one.stream == two.stream else None for one, two in pairs]

    def split(self, frac: float, seed: int = 0) -> tuple[RoutingTrace, RoutingTrace]:
        """Two traces, the first with about ``frac`` of the sequences, drawn at random: calibration and held out."""
        if not 0 < frac < 1:
            raise ZooError(f"frac={frac} must lie between 0 and 1")
        sequences = np.unique(np.concatenate([stream["seq_id"] for stream in self.streams]))
        first = min(max(1, round(frac * len(sequences))), len(sequences) - 1)
        if first < 1:
            raise ZooError("a trace of one sequence cannot be split; trace more of the data")
        chosen = np.random.default_rng(seed).permutation(sequences)[:first]
        inside = [np.isin(stream["seq_id"], chosen) for stream in self.streams]
        return self.take(inside), self.take([~rows for rows in inside])

    def take(self, rows: list[Array]) -> RoutingTrace:
        """The tokens that a mask, or indices, per stream name."""
        layers = tuple(layer.take(rows[layer.stream]) for layer in self.layers)
        streams = tuple(
            {name: value[rows[s]] for name, value in stream.items()} for s, stream in enumerate(self.streams)
        )
        return RoutingTrace(layers, streams, self.info)
