"""Which experts a model uses at which level of noise.

Shapes: N layers, G bins of noise, E experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from zoo.report import figure, plots_available, save_figure
from zoo.train.sampling import spread

BINS = 10
"""Bins that the level of noise, 0 to 1, is cut into."""
LOOKED_AT, ROUNDS = 64, 4


def routing_by_noise(task: Any, model: Any, data: Any) -> list[NDArray[np.int64]]:
    """Assignments of each MoE layer, (G, E): validation pictures at each level of noise. Nothing for a dense model."""
    dataset = data.split("val")
    batch = default_collate([dataset[row] for row in spread(len(dataset), LOOKED_AT)])
    batch = {key: value.to(model.device) for key, value in batch.items()}
    counts: list[NDArray[np.int64]] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(ROUNDS):
            for layer, out in enumerate(task.loss(model, batch).routing):
                if len(counts) == layer:
                    counts.append(np.zeros((BINS, out.num_experts), np.int64))
                slots = out.index_TK.shape[1]
                bin_N = out.tags.domain.reshape(-1).repeat_interleave(slots)
                pair_N = (bin_N * out.num_experts + out.index_TK.flatten())[out.used_TK.flatten()]
                found = torch.bincount(pair_N.cpu(), minlength=counts[layer].size).numpy()
                counts[layer] += found.reshape(counts[layer].shape)
    return counts


def information(counts_GE: NDArray[np.int64]) -> float:
    """``I(expert; bin)`` in bits: what one assignment tells of the noise."""
    joint = counts_GE / max(1, counts_GE.sum())
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / apart[there])).sum())


def plot_routing(counts: list[NDArray[np.int64]], path: Path) -> list[Path]:
    """A small map a layer: the share of each expert at each level of noise."""
    if not counts or not plots_available():
        return []
    columns = min(4, len(counts))
    fig, axes = figure(-(-len(counts) // columns), columns, width=2.6 * columns, height=2.2)
    for layer, (axis, counts_GE) in enumerate(zip(axes, counts, strict=False)):
        share_GE = counts_GE / np.maximum(1, counts_GE.sum(1, keepdims=True))
        axis.imshow(share_GE.T, aspect="auto", origin="lower", extent=(0, 1, -0.5, counts_GE.shape[1] - 0.5), vmin=0)
        axis.set_title(f"layer {layer}: {information(counts_GE):.3f} bits", loc="left", fontsize=8)
        axis.set(xlabel="noise", ylabel="expert")
    for axis in axes[len(counts) :]:
        axis.set_visible(False)
    return save_figure(fig, path)
