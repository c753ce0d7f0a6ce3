"""All metrics of a trace at once, as plain data, as JSON and as pictures."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from zoo.trace import locality, metrics, plots
from zoo.trace.congestion import congestion
from zoo.trace.trace import RoutingTrace

METRICS: dict[str, metrics.Metric] = {
    "load": metrics.load,
    "domain": partial(metrics.information, by="domain"),
    "modality": partial(metrics.information, by="modality"),
    "label": partial(metrics.information, by="label"),
    "divergence": metrics.divergence,
    "coactivation": metrics.coactivation,
    "transition": metrics.transition,
    "srp": locality.srp,
    "cache": locality.cache,
    "congestion": congestion,
}
"""Every metric of a trace by name. One that needs what a trace does not have is left out of a report."""


def analyse(trace: RoutingTrace) -> dict[str, dict[str, Any]]:
    """Every metric that the trace has what it takes for: its name to plain data, mostly a list with a value a layer."""
    fields = set.intersection(*(set(stream) for stream in trace.streams)) if trace.streams else set()
    left_out = {"domain", "modality", "label"} - fields
    if "domain" not in fields:
        left_out.add("divergence")
    sequences = {int(s) for stream in trace.streams for s in (stream["seq_id"].min(), stream["seq_id"].max())}
    if len(sequences) < 2 or any(layer.logits_NE is None for layer in trace.layers):
        left_out.add("congestion")
    return {name: metric(trace) for name, metric in METRICS.items() if name not in left_out}


def write_report(trace: RoutingTrace, report: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """``metrics.json`` and the pictures, into a folder; returns the files."""
    document = {
        "trace": dict(trace.info),
        "tokens": trace.tokens,
        "layers": [{"name": layer.name, "num_experts": layer.num_experts} for layer in trace.layers],
        "metrics": report,
    }
    new, file = out / ".metrics.json.new", out / "metrics.json"
    new.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(new, file)
    return [file, *plots.plot_report(trace, report, out)]


def tables(trace: RoutingTrace, report: dict[str, dict[str, Any]]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Tables with a line a layer, by title: columns and rows."""
    load = [("load", "entropy", "entropy"), ("load", "dead", "dead"), ("load", "max_vio", "max violation")]
    load += [(name, "nmi", f"NMI {name}") for name in ("domain", "modality", "label")]
    load += [("congestion", "gamma", "gamma")]
    local = [("srp", key, f"SRP {key[3:]}") for key in report["srp"]]
    local += [("cache", "size", "cache"), *(("cache", key, key) for key in ("lru", "sch", "belady"))]
    return {
        "load and specialisation": _table(trace, report, load),
        "local routing consistency": _table(trace, report, local),
    }


def _table(
    trace: RoutingTrace, report: dict[str, dict[str, Any]], wanted: list[tuple[str, str, str]]
) -> tuple[list[str], list[list[Any]]]:
    there = [w for w in wanted if w[0] in report and any(value is not None for value in report[w[0]][w[1]])]
    rows = [[n, *(report[metric][key][n] for metric, key, _ in there)] for n in range(len(trace.layers))]
    return ["MoE layer", *(title for *_, title in there)], rows
