"""``zoo eval NAME suite=plugin/name``: one model over the data sets of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import config as zc
from zoo import hub, registry
from zoo.cli.common import out_folder, pop, print_json
from zoo.eval.suite import read_suite, run_suite, show
from zoo.spec import ZooError


def suite_command(
    name: str, tree: zc.Tree, device: str, batch_size: int, limit: int | None, out: Path | None, as_json: bool
) -> list[Path]:
    """Score, print the table or the document, and write ``suite.json``."""
    chosen, only = pop(tree, "suite", ""), str(pop(tree, "only", None) or "")
    if tree:
        known = ("suite", "only", "device", "batch_size", "limit")
        raise ZooError(f"unknown setting '{min(tree)}' beside suite; {registry.suggest(min(tree), known)}")
    suite = read_suite(chosen)
    report = run_suite(hub.load(name, device=device), chosen, only=only, batch_size=batch_size, limit=limit)
    folder = out or (Path(name) / "eval" if Path(name).is_dir() else Path("runs") / "eval" / name)
    path = out_folder(folder) / f"{Path(chosen).stem}.json"
    path.write_text(report.to_json())
    if as_json:
        document: Any = json.loads(path.read_text())
        print_json(document)
        return []
    show(report, suite)
    return [path]
