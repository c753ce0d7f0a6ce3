"""What a run logged, read back from its CSV files. Imports no torch."""

from __future__ import annotations

import csv
from pathlib import Path


def log_files(folder: Path) -> list[Path]:
    """The CSV logs of a run, oldest first."""
    return sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.rpartition("_")[2]))


def read_logs(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Every logged curve of a run over its starts: name to (steps from 0, values)."""
    curves: dict[str, dict[float, float]] = {}
    for path in log_files(folder):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        # A resumed run logs the steps after its checkpoint again: the later line counts.
                        curves.setdefault(name, {})[float(row["step"])] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in sorted(curves.items())}
