"""Routing as a congestion game: what a router gives up of what it prefers for the sake of balance (arXiv:2604.04230).

The symmetric equilibrium of experts of quality q under congestion is ``f_i = softmax(q - gamma f)_i``, f the share of
assignments. The fitted gamma is the effective congestion coefficient: 0 means that the load is the softmax of the
quality, a large one that it is even whatever the quality. The paper's abstract gives the game and the fit by L1 on
held-out load; the scale (share of load, inverse temperature 1) is ours. One type of token; q from the logits alone.

Shapes: S sequences, E experts, B bootstrap samples.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from zoo.spec import ZooError
from zoo.trace.trace import CHUNK, Array, LayerTrace, RoutingTrace

Quality = Literal["mean", "selected"]
GRID = np.concatenate([[0.0], np.geomspace(0.1, 1000.0, 25)])


def equilibrium(quality_BE: Array, gamma_B: Array) -> Array:
    """(B, E): the shares f with ``f = softmax(q - gamma f)``, for gamma >= 0."""
    gamma_B1 = np.asarray(gamma_B, float)[:, None]
    top_B1 = quality_BE.max(1, keepdims=True)
    # log f + gamma f = q - c: at this c the f sum to at least 1, and the sum falls and is convex in c: Newton from here
    c_B1 = top_B1 + np.log(np.exp(quality_BE - top_B1).sum(1, keepdims=True)) - gamma_B1
    for _ in range(100):
        a_BE = quality_BE - c_B1
        log_BE = np.where(a_BE > 1, np.log(np.maximum(a_BE, 1) / np.maximum(gamma_B1, 1)), a_BE)
        for _ in range(12):
            f_BE = np.exp(log_BE)
            log_BE = log_BE - (log_BE + gamma_B1 * f_BE - a_BE) / (1 + gamma_B1 * f_BE)
        f_BE = np.exp(log_BE)
        step_B1 = (f_BE.sum(1, keepdims=True) - 1) / (f_BE / (1 + gamma_B1 * f_BE)).sum(1, keepdims=True)
        c_B1 = c_B1 + step_B1
        if np.abs(step_B1).max() < 1e-9:
            break
    return f_BE / f_BE.sum(1, keepdims=True)


def fit(quality_BE: Array, share_BE: Array) -> tuple[Array, Array]:
    """The gamma of least L1 between equilibrium and observed share, and that L1, (B,) each; gamma up to 1000."""
    rows = np.arange(len(share_BE))

    def errors(gammas: Array) -> Array:  # (points, B) to (points, B)
        return np.stack([np.abs(equilibrium(quality_BE, g) - share_BE).sum(1) for g in gammas])

    points = np.repeat(GRID[:, None], len(rows), 1)
    for _ in range(4):
        error = errors(points)
        best_B = error.argmin(0)
        low = points[np.maximum(best_B - 1, 0), rows]
        high = points[np.minimum(best_B + 1, len(points) - 1), rows]
        gamma_B, error_B = points[best_B, rows], error[best_B, rows]
        points = low + (high - low) * np.linspace(0, 1, 9)[:, None]
    return gamma_B, error_B


def congestion(
    trace: RoutingTrace, quality: Quality = "mean", samples: int = 200, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Per layer ``gamma``, its bootstrap interval ``low`` to ``high`` over sequences, and ``l1`` of the held-out load
    beside ``l1_softmax`` at gamma 0.

    The quality comes from one half of the sequences, the load from the other; ``mean`` is the mean logit of an expert,
    ``selected`` the mean over the tokens that chose it. Raises `ZooError` when the trace has no logits.
    """
    if quality not in get_args(Quality):
        raise ZooError(f"quality={quality!r} must be one of {', '.join(get_args(Quality))}")
    seen, held_out = trace.split(0.5, seed)
    result: dict[str, list[float]]
    draws, result = np.random.default_rng(seed), {}
    for one, two in zip(seen.layers, held_out.layers, strict=True):
        if one.logits_NE is None:
            raise ZooError("congestion needs the router's logits; trace with logits kept")
        logit_SE, number_SE = _quality_sums(one, seen.of(one, "seq_id"), quality)
        _, row_N = np.unique(held_out.of(two, "seq_id"), return_inverse=True)
        count_SE = two.counts(row_N, int(row_N.max(initial=-1)) + 1)
        quality_BE = _resampled(logit_SE, samples, draws, number_SE)
        share_BE = _resampled(count_SE, samples, draws)
        gamma_B, l1_B = fit(quality_BE, share_BE)
        low, high = np.quantile(gamma_B[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
        softmax = np.abs(equilibrium(quality_BE[:1], np.zeros(1)) - share_BE[:1]).sum()
        values = {"gamma": gamma_B[0], "low": low, "high": high, "l1": l1_B[0], "l1_softmax": softmax}
        for name, value in values.items():
            result.setdefault(name, []).append(float(value))
    return result


def _quality_sums(layer: LayerTrace, seq_N: Array, quality: Quality) -> tuple[Array, Array]:
    """Sum of an expert's logits and how many there are, (S, E) each; masked logits (-inf) are left out."""
    assert layer.logits_NE is not None
    names, row_N = np.unique(seq_N, return_inverse=True)
    sum_SE, number_SE = (np.zeros((len(names), layer.num_experts)) for _ in range(2))
    for start in range(0, len(seq_N), CHUNK):
        rows = slice(start, start + CHUNK)
        logits_NE = np.asarray(layer.logits_NE[rows], np.float64)
        counted_NE = np.isfinite(logits_NE)
        if quality == "selected":
            counted_NE &= layer.chosen(rows)
        np.add.at(sum_SE, row_N[rows], np.where(counted_NE, logits_NE, 0))
        np.add.at(number_SE, row_N[rows], counted_NE)
    return sum_SE, number_SE


def _resampled(value_SE: Array, samples: int, draws: np.random.Generator, number_SE: Array | None = None) -> Array:
    """(1 + samples, E): means, or shares, over the sequences as they are and as drawn with replacement. An expert with
    no number at all gets the lowest mean there is."""
    size = len(value_SE)
    weight_BS = np.vstack([np.ones(size), draws.multinomial(size, np.full(size, 1 / size), samples)])
    total_BE = weight_BS @ value_SE
    if number_SE is None:
        return total_BE / np.maximum(1, total_BE.sum(1, keepdims=True))
    number_BE = weight_BS @ number_SE
    mean_BE = total_BE / np.maximum(1, number_BE)
    lowest_B1 = np.where(number_BE > 0, mean_BE, np.inf).min(1, keepdims=True)
    return np.where(number_BE > 0, mean_BE, lowest_B1)
