"""Tables on the terminal and plots on disk. Imports rich and matplotlib only when they are used."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers are right-aligned, floats shown to four significant digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=box.SIMPLE_HEAD)
    shown.show_header = any(columns)
    for i, name in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        shown.add_row(*(number(value) for value in row))
    # Where the terminal is too narrow, lines wrap: a number that is cut off would be a wrong one.
    wide = console().measure(shown, options=console().options.update(max_width=1000)).maximum
    if wide <= console().width:
        console().print(shown)
    else:
        Console(width=wide, soft_wrap=True).print(shown, crop=False)


def number(value: Any) -> str:
    """A float to four significant digits, an integer with separators, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@cache
def plots_available() -> bool:
    """Whether matplotlib is here; says once that plots are left out when it is not."""
    if _pyplot() is None:
        print("plots are left out: matplotlib is not installed; run: pip install 'moe-zoo[plots]'", file=sys.stderr)
        return False
    return True


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its small axes in one flat array. Ask `plots_available` first."""
    pyplot = _pyplot()
    fig, axes = pyplot.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return fig, axes.ravel()


def save_figure(fig: Any, path: Path) -> list[Path]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in scripts of any kind
        fig.savefig(path, dpi=110)
    _pyplot().close(fig)
    return [path]


def plot_expert_load(shares: Sequence[Any], path: Path, title: str = "expert load") -> list[Path]:
    """Heat map of load over the mean, a row a layer: 1 is balanced, 0 a dead expert."""
    if not shares or not plots_available():
        return []
    experts = max(len(share) for share in shares)
    fig, (axis,) = figure(1, 1, width=max(4.0, 0.5 * experts + 2), height=0.4 * len(shares) + 1.4)
    grid = [[float(v) * len(share) for v in share] + [float("nan")] * (experts - len(share)) for share in shares]
    image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=max(2.0, *(max(row) for row in grid)))
    if experts <= 16:
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 1 else "k")
    axis.set(xlabel="expert", ylabel="MoE layer", yticks=range(len(grid)))
    axis.set_title(f"{title}, over the mean", loc="left", fontsize=9)
    fig.colorbar(image, ax=axis)
    return save_figure(fig, path)


def plot_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> list[Path]:
    """One small axis a curve, over optimiser steps."""
    if not curves or not plots_available():
        return []
    fig, axes = figure((len(curves) + 2) // 3, 3, width=11, height=2.2)
    for axis, (name, (steps, values)) in zip(axes, curves.items(), strict=False):
        axis.plot(steps, values, linewidth=1)
        axis.set_title(name, loc="left", fontsize=9)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    return save_figure(fig, path)
