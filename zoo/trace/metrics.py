"""What a trace says about load, specialisation and which experts go together: one small function a metric.

A metric takes a trace and returns plain data, a list with one entry a layer; None where the layer has no answer.
Raises `ZooError` when the trace lacks what it needs (logits, a field).

Shapes: N tokens, K slots, E experts, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zoo.moe.stats import ExpertLoad
from zoo.trace.trace import Array, RoutingTrace

Metric = Callable[..., dict[str, Any]]


def load(trace: RoutingTrace) -> dict[str, Any]:
    """``share`` of assignments per expert; ``entropy`` of it over its maximum; ``dead`` experts; ``max_vio``, the
    largest load over the mean, minus 1 (arXiv:2408.15664, eq. 4); ``slots``, experts used per token."""
    seen = ExpertLoad()
    for n, counts_E in enumerate(trace.counts()):
        seen.add(n, torch.from_numpy(counts_E))
    rows = seen.summary()
    return {
        "share": [share.tolist() for share in seen.shares()],
        **{name: [row[name] for row in rows] for name in ("entropy", "dead", "max_vio")},
        "slots": [float(layer.used_NK.sum() / max(1, len(layer.used_NK))) for layer in trace.layers],
    }


def information(trace: RoutingTrace, by: str = "domain") -> dict[str, Any]:
    """Normalised mutual information ``I(expert; group) / H(group)``: the part of what there is to know about the
    group (domain, modality, label) that one assignment tells. 1 when each expert serves one group, 0 when the two are
    independent; on few tokens it is biased upwards by about ``(E - 1)(G - 1) / 2n`` nats over H for n assignments."""
    return {"nmi": [_information(counts_GE) for counts_GE in trace.counts(by)]}


def _information(counts_GE: Array) -> float | None:
    total = counts_GE.sum()
    if total == 0:
        return None
    joint_GE = counts_GE / total
    group_G, expert_E = joint_GE.sum(1), joint_GE.sum(0)
    entropy = _entropy(group_G)
    mutual = entropy + _entropy(expert_E) - _entropy(joint_GE.ravel())
    return float(np.clip(mutual / entropy, 0, 1)) if entropy > 0 else None


def _entropy(share: Array) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def divergence(trace: RoutingTrace, by: str = "domain", reference: int = 0) -> dict[str, Any]:
    """Jensen-Shannon divergence of every group's expert distribution from that of a reference group, over its maximum
    ln 2: how differently a language (domain, modality) is routed from English, layer by layer (arXiv:2510.04694)."""
    rows = []
    for counts_GE in trace.counts(by):
        there_G = counts_GE.sum(1) > 0
        share_GE = counts_GE / np.maximum(1, counts_GE.sum(1, keepdims=True))
        base_E = share_GE[reference]
        js = [(_entropy((s + base_E) / 2) - (_entropy(s) + _entropy(base_E)) / 2) / np.log(2) for s in share_GE]
        rows.append([float(value) if there_G[g] and there_G[reference] else None for g, value in enumerate(js)])
    return {"js": rows}


def coactivation(trace: RoutingTrace, top: int = 3) -> dict[str, Any]:
    """The ``top`` pairs of experts that go together most beyond chance: (e, f, normalised pointwise mutual
    information), 1 when neither is used without the other. Empty where a token uses one expert only."""
    return {"pairs": [_strongest(c, c.diagonal(), c.diagonal(), len(layer.index_NK), top, symmetric=True)
                      for c, layer in zip(trace.coactivation(), trace.layers, strict=True)]}  # fmt: skip


def transition(trace: RoutingTrace, top: int = 3) -> dict[str, Any]:
    """From each layer to the next: ``predictability``, the mean probability that a token's expert is followed by that
    expert's most likely successor, beside ``popularity``, that of the most popular expert of the next layer, and the
    ``top`` pairs beyond chance as in `coactivation` (arXiv:2401.08383). None where the two layers saw other tokens."""
    result: dict[str, list[Any]] = {"predictability": [], "popularity": [], "pairs": []}
    for n, joint_EF in enumerate(trace.transition()):
        if joint_EF is None or joint_EF.sum() == 0:
            for values in result.values():
                values.append(None)
            continue
        one, two = trace.layers[n], trace.layers[n + 1]
        alone = [layer.counts() for layer in (one, two)]
        # each use of an expert, once: which of the later experts its token most likely uses
        best_E = joint_EF.max(1) / np.maximum(1, alone[0])
        result["predictability"].append(float((best_E * alone[0]).sum() / max(1, alone[0].sum())))
        result["popularity"].append(float(alone[1].max() / max(1, len(two.index_NK))))
        result["pairs"].append(_strongest(joint_EF, *alone, len(one.index_NK), top))
    return result


def _strongest(
    joint_EF: Array, one_E: Array, two_F: Array, tokens: int, top: int, symmetric: bool = False
) -> list[list[Any]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        p_EF = joint_EF / max(1, tokens)
        npmi_EF = np.log(p_EF * tokens * tokens / np.outer(one_E, two_F)) / -np.log(p_EF)
    npmi_EF = np.where((joint_EF > 0) & (joint_EF < tokens), npmi_EF, -np.inf)
    if symmetric:
        npmi_EF[np.tril_indices(len(npmi_EF))] = -np.inf
    order = np.argsort(-npmi_EF, axis=None)[:top]
    places = [divmod(int(flat), npmi_EF.shape[1]) for flat in order]
    return [[e, f, float(npmi_EF[e, f])] for e, f in places if npmi_EF[e, f] > 0]
