"""Tables and bar plots of bench documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import report


def show(document: dict[str, Any], peer: str) -> None:
    """A table a pass; milliseconds are medians, with half the distance between the quartiles behind them."""
    saved, minimum = document.get("saved_bytes", {}), document.get("minimum_bytes")
    shape = ", ".join(f"{key} {value}" for key, value in document["shape"].items())
    columns = ["contender", "wall ms", "CPU ms", f"vs {peer}", "by CPU", "of GEMM limit", "saved MB"]
    for kind in dict.fromkeys(row["pass"] for row in document["results"]):
        rows = []
        for row in (row for row in document["results"] if row["pass"] == kind):
            name = row["contender"]
            if "limit_ms" in row:
                limits = [f"{row['limit_ms'][clock]:.1f}" for clock in ("wall_ms", "cpu_ms")]
                rows.append([name, *limits, "", "", "", ""])
                continue
            kept, share = saved.get(name) if kind != "forward" else None, row.get("limit_share")
            times = [_spread(row[clock]) for clock in ("wall_ms", "cpu_ms")]
            ratios = [f"{row['speedup'][clock]:.2f}x" for clock in ("wall_ms", "cpu_ms")]
            limit, bytes_kept = f"{share['wall_ms']:.0%}" if share else "", f"{kept / 1e6:.1f}" if kept else ""
            rows.append([name, *times, *ratios, limit, bytes_kept])
        report.table(f"{document['name']}: {shape}; {document.get('dtype', 'float32')}; {kind}", columns, rows)
    out = report.console()
    if minimum:
        out.print(f"least that must be saved: {minimum / 1e6:.1f} MB")
    for left_out in document["skipped"]:
        out.print(f"left out: {left_out['contender']} ({left_out['pass']}): {left_out['why']}")
    out.print(contention_line(document["contention"]))


def contention_line(seen: dict[str, Any]) -> str:
    load = " -> ".join(f"{value:.1f}" for value in seen["load_average"])
    shares = "".join(f", {key} {seen[key]:.0%} of all cores" for key in ("others", "steal") if key in seen)
    busy = seen.get("others", 0) + seen.get("steal", 0) > 0.05
    return f"load average {load}{shares}" + ("; a busy machine: trust CPU time, not wall time" if busy else "")


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.1f} ± {(values['q3'] - values['q1']) / 2:.1f}"


def plot(documents: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Horizontal bars of the median wall time, quartiles as whiskers, the GEMM limit as a line; a panel a pass."""
    panels = [(d, kind) for d in documents for kind in dict.fromkeys(row["pass"] for row in d["results"])]
    if not panels or not report.plots_available():
        return []
    fig, axes = report.figure((len(panels) + 1) // 2, 2, width=11, height=2.6)
    for axis, (document, kind) in zip(axes, panels, strict=False):
        rows = [row for row in document["results"] if row["pass"] == kind]
        timed = [row for row in rows if "wall_ms" in row][::-1]
        middle = [row["wall_ms"]["median"] for row in timed]
        spread = [
            [row["wall_ms"]["median"] - row["wall_ms"]["q1"] for row in timed],
            [row["wall_ms"]["q3"] - row["wall_ms"]["median"] for row in timed],
        ]
        colours = ["C0" if row["contender"].startswith("zoo") else "0.7" for row in timed]
        axis.barh([row["contender"] for row in timed], middle, xerr=spread, color=colours, error_kw={"linewidth": 0.8})
        for row in rows:
            if "limit_ms" in row:
                axis.axvline(row["limit_ms"]["wall_ms"], color="C3", linewidth=1)
        axis.set_xscale("log" if max(middle) > 20 * min(middle) else "linear")
        axis.set_title(f"{document['name']}: {kind}, ms", loc="left", fontsize=9)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return report.save_figure(fig, path)
