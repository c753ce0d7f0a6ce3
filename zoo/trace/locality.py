"""Local routing consistency (arXiv:2505.16056): how well neighbouring tokens agree on experts, and what a cache of
experts gains from it. All of it per layer, within sequences, tokens in the order of their positions.

Shapes: S sequences, T positions, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.spec import ZooError
from zoo.trace.trace import Array, LayerTrace, RoutingTrace

CELLS = 2**23
"""Cells of an (S, T, E) table that is held in memory at once."""


def sequences(trace: RoutingTrace, layer: LayerTrace) -> Iterator[Array]:
    """Which experts are used, (S, T, E), for some sequences of about the same length at a time, no token behind a
    sequence's end."""
    seq_N, position_N = trace.of(layer, "seq_id"), trace.of(layer, "position")
    order_N = np.lexsort((position_N, seq_N))
    _, start_S, length_S = np.unique(seq_N[order_N], return_index=True, return_counts=True)
    by_length = np.argsort(length_S, kind="stable")
    while len(by_length):
        longest = length_S[by_length[-1]]
        size = max(1, CELLS // (longest * layer.num_experts))
        some, by_length = by_length[-size:], by_length[:-size]
        used_STE = np.zeros((len(some), longest, layer.num_experts), bool)
        for row, s in enumerate(some):
            used_STE[row, : length_S[s]] = layer.chosen(order_N[start_S[s] : start_S[s] + length_S[s]])
        yield used_STE


def srp(trace: RoutingTrace, windows: Sequence[int] = (4, 16, 64)) -> dict[str, Any]:
    """Segment routing best performance: for every window of m tokens one group of experts is foretold, those used at
    least c times in it; F1 between group and real use over all windows, for the best c. 1 when all tokens of a window
    use the same experts; None where no sequence is as long."""
    result: dict[str, list[float | None]] = {f"srp{m}": [] for m in windows}
    for layer in trace.layers:
        histograms = {m: np.zeros(m + 1, np.int64) for m in windows}
        for used_STE in sequences(trace, layer):
            ends_STE = np.pad(used_STE.cumsum(1, dtype=np.int32), ((0, 0), (1, 0), (0, 0)))
            length_S = last_use(used_STE)
            for m, histogram in histograms.items():
                inside_SW = np.arange(used_STE.shape[1] - m + 1) <= (length_S - m)[:, None]
                counts = (ends_STE[:, m:] - ends_STE[:, :-m])[inside_SW] if inside_SW.shape[1] else np.zeros(0, int)
                histogram += np.bincount(counts.ravel(), minlength=m + 1)
        for m, histogram in histograms.items():
            result[f"srp{m}"].append(_best_f1(histogram))
    return result


def last_use(used_STE: Array) -> Array:
    """Length of each sequence: 1 + the last position at which any expert is used."""
    any_ST = used_STE.any(-1)
    return np.where(any_ST.any(1), any_ST.shape[1] - any_ST[:, ::-1].argmax(1), 0)


def _best_f1(windows_C: Array) -> float | None:
    """``windows_C[c]``: how many pairs of window and expert have c uses."""
    size = len(windows_C) - 1
    uses_C = windows_C * np.arange(size + 1)
    match_C = uses_C[::-1].cumsum()[::-1]
    foretold_C = size * windows_C[::-1].cumsum()[::-1]
    return float((2 * match_C / (foretold_C + uses_C.sum()))[1:].max()) if uses_C.sum() else None


def cache(trace: RoutingTrace, size: int | None = None, ahead: int = 16) -> dict[str, Any]:
    """Hit rates of a cache of ``size`` experts per layer (default: twice what a token uses at most), empty at the start
    of a sequence, by what it evicts: ``lru`` the least recently used; ``belady`` the one needed last, which no cache
    beats; and ``sch``, the segment cache best hit rate, what a cache can do that looks ``ahead`` tokens ahead: of the
    experts not needed there the least recently used, then the one needed last.

    ``lru <= sch <= belady`` on every trace. The authors' code evicts by the number of uses ahead instead, which can
    fall below LRU. Raises `ZooError` when a token uses more experts than there is room for.
    """
    if ahead < 1:
        raise ZooError(f"ahead={ahead} must be at least 1 token")
    result: dict[str, list[Any]] = {"size": [], "lru": [], "sch": [], "belady": []}
    for layer in trace.layers:
        most = int(layer.used_NK.sum(1).max(initial=1))
        room = min(layer.num_experts, 2 * most) if size is None else size
        if most > room:
            raise ZooError(
                f"a token uses {most} experts of {layer.name}, more than a cache of {room} holds; raise size"
            )
        hits, uses = np.zeros(3, np.int64), 0
        for used_STE in sequences(trace, layer):
            hits += [simulate(used_STE, room, a).sum() for a in (0, ahead, used_STE.shape[1])]
            uses += int(used_STE.sum())
        result["size"].append(room)
        for name, hit in zip(("lru", "sch", "belady"), hits, strict=True):
            result[name].append(float(hit / uses) if uses else None)
    return result


def simulate(used_STE: Array, size: int, ahead: int) -> Array:
    """Hits in each sequence, (S,), of a cache that sees ``ahead`` tokens ahead: 0 is LRU, the whole length Belady."""
    rows, length, experts = used_STE.shape
    # the position of the next use after t, for every t; `length` when there is none
    next_STE = np.full(used_STE.shape, length, np.int32)
    coming_SE = np.full((rows, experts), length, np.int32)
    for t in range(length - 1, -1, -1):
        next_STE[:, t] = coming_SE
        coming_SE = np.where(used_STE[:, t], t, coming_SE)
    held_SE = np.zeros((rows, experts), bool)
    last_SE = np.full((rows, experts), -1, np.int64)
    hits_S, tie_E = np.zeros(rows, np.int64), np.arange(experts)
    for t in range(length):
        now_SE = used_STE[:, t]
        hits_S += (now_SE & held_SE).sum(1)
        last_SE = np.where(now_SE, t, last_SE)
        # what to keep, best last: needed now, needed soon (the sooner the better), used of late
        soon_SE = next_STE[:, t] <= t + ahead
        soon_SE &= next_STE[:, t] < length
        worth_SE = np.where(soon_SE, 2 * length - next_STE[:, t] + t, last_SE) * experts + tie_E
        worth_SE = np.where(now_SE, 4 * length * experts, np.where(held_SE, worth_SE, -experts))
        if size < experts:
            bound_S1 = np.partition(worth_SE, experts - size, axis=1)[:, experts - size, None]
            held_SE = (held_SE | now_SE) & ((worth_SE >= bound_S1) | now_SE)
        else:
            held_SE = held_SE | now_SE
    return hits_S
