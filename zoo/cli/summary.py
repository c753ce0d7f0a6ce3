"""What `zoo train` shows when it is done: curves, expert load, and the lines to type next."""

from __future__ import annotations

from pathlib import Path

import torch
import typer

from zoo.report import plot_curves, plot_expert_load, table
from zoo.train.logs import read_logs


def after_training(folder: Path) -> None:
    """Write ``plots/`` from the run's logs and print where to go from here."""
    logs = read_logs(folder)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    files = plot_curves({k: v for k, v in logs.items() if not k.startswith("moe/")}, plots / "curves.png")
    shares, rows = last_load(logs)
    files += plot_expert_load(shares, plots / "expert_load.png", "expert load at the end of training")
    if rows:
        table("expert load at the end of training", ("MoE layer", "entropy", "dead", "max violation"), rows)
    for file in files:
        typer.echo(f"wrote {file}")
    typer.echo(f"wrote {folder / 'model'}\n\nNext:\n  zoo eval {folder}\n  zoo info {folder}")


def last_load(
    logs: dict[str, tuple[list[float], list[float]]],
) -> tuple[list[torch.Tensor], list[tuple[int, float, int, float]]]:
    """Shares and statistics of each layer at the last step they were logged."""
    shares, rows = [], []
    while f"moe/layer{len(rows)}/entropy" in logs:
        prefix = f"moe/layer{len(rows)}"
        last = {name: logs[f"{prefix}/{name}"][1][-1] for name in ("entropy", "dead", "max_vio")}
        loads = []
        while (key := f"{prefix}/load{len(loads)}") in logs:
            loads.append(logs[key][1][-1])
        shares.append(torch.tensor(loads))
        rows.append((len(rows), last["entropy"], int(last["dead"]), last["max_vio"]))
    return shares, rows
