"""Pictures of a trace: load, who goes with whom, what follows what, and how local the routing is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.report import figure, plot_expert_load, plots_available, save_figure
from zoo.trace.trace import Array, RoutingTrace


def plot_report(trace: RoutingTrace, report: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """``load.png``, ``groups.png``, ``coactivation.png``, ``transition.png`` and ``locality.png``, those that there is
    something to show for. Nothing, said once, without matplotlib."""
    if not plots_available():
        return []
    files = plot_expert_load(report["load"]["share"], out / "load.png")
    if "domain" in report:
        names = trace.info.get("names", {}).get("domain", [])
        shares = [counts / np.maximum(1, counts.sum(1, keepdims=True)) for counts in trace.counts("domain")]
        files += _heat_maps(shares, out / "groups.png", "domain", "expert", names)
    together = [_of_first(joint) for joint in trace.coactivation()]
    if any((joint - np.diag(joint.diagonal())).any() for joint in together):
        files += _heat_maps(together, out / "coactivation.png", "expert", "used with")
    followed = [_of_first(joint) for joint in trace.transition() if joint is not None]
    files += _heat_maps(followed, out / "transition.png", "expert", "in the next layer")
    return files + _plot_locality(report, out / "locality.png")


def _of_first(joint_EF: Array) -> Array:
    """Rows to shares."""
    share: Array = joint_EF / np.maximum(1, joint_EF.sum(1, keepdims=True))
    return share


def _heat_maps(grids: Sequence[Array], path: Path, rows: str, columns: str, names: Sequence[str] = ()) -> list[Path]:
    if not grids:
        return []
    fig, axes = figure((len(grids) + 3) // 4, 4, width=12, height=2.8)
    for n, (axis, grid) in enumerate(zip(axes, grids, strict=False)):
        image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
        axis.set_title(f"MoE layer {n}", loc="left", fontsize=9)
        axis.set(xlabel=columns, ylabel=rows)
        if names:
            axis.set_yticks(range(len(names)), names)
        fig.colorbar(image, ax=axis)
    for axis in axes[len(grids) :]:
        axis.set_visible(False)
    return save_figure(fig, path)


def _plot_locality(report: dict[str, dict[str, Any]], path: Path) -> list[Path]:
    fig, (left, right) = figure(1, 2, width=9, height=2.8)
    for axis, curves, title in (
        (left, report["srp"], "routing consistency (SRP) by window"),
        (right, {k: v for k, v in report["cache"].items() if k != "size"}, "hit rate of an expert cache"),
    ):
        for name, values in curves.items():
            axis.plot([np.nan if v is None else v for v in values], marker="o", markersize=3, label=name)
        axis.set(xlabel="MoE layer", ylim=(0, 1.02))
        axis.set_title(title, loc="left", fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    return save_figure(fig, path)
