"""Suites: one model over many data sets and horizons, and the table that a benchmark reports.

A suite is a YAML file, ``suites/<name>.yaml`` among a plugin's configs: data sections, the metrics to show, and the
baseline that some of them are divided by before their geometric mean is taken.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import config as zc
from zoo import registry
from zoo.eval.evaluate import Report, evaluate
from zoo.hub import Predictor
from zoo.spec import ZooError


@dataclass
class Suite:
    """``data``: sections as in a recipe; ``each: {key: [values]}`` in one stands for a section a combination.
    ``from_model``: settings that every section takes from what was saved with the model, where it says nothing of its
    own. ``relative``: metrics that are divided by the ``baseline``'s, one of the task's rivals."""

    data: list[Any] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    baseline: str | None = None
    relative: list[str] = field(default_factory=list)
    from_model: list[str] = field(default_factory=list)


@dataclass
class SuiteReport:
    """``reports`` of the sections that were scored, by label; ``left_out`` why the others were not; by model and metric
    the ``mean`` over sections, and the ``relative`` geometric mean of the ratios to the baseline."""

    name: str
    suite: str
    reports: dict[str, Report]
    left_out: dict[str, str]
    mean: dict[str, dict[str, float]]
    relative: dict[str, dict[str, float]]

    def to_json(self) -> str:
        return json.dumps({**self.__dict__, "reports": {k: r.__dict__ for k, r in self.reports.items()}}, indent=2)


def read_suite(name: str) -> Suite:
    """A suite by ``plugin/name`` or the path of a YAML file. Raises `ZooError` for what is unknown or malformed."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name in (known := zc.suites()):
        path = known[name]
    else:
        raise ZooError(f"unknown suite '{name}'; {registry.suggest(name, known)}")
    suite = zc.to_object(Suite, zc.resolve(Suite, zc.read_yaml(path), name))
    if not suite.data or not all(isinstance(node, dict) and "name" in node for node in suite.data):
        raise ZooError(f"suite '{name}' must list data sections, each with its name")
    return suite


def sections(suite: Suite, preprocessing: Mapping[str, Any]) -> Iterator[tuple[str, zc.Tree]]:
    """(label, data section) of every combination."""
    taken = {key: preprocessing[key] for key in suite.from_model if key in preprocessing}
    for node in suite.data:
        each = node.get("each", {})
        for values in itertools.product(*each.values()):
            own = {key: value for key, value in node.items() if key != "each"} | dict(zip(each, values, strict=True))
            shown = [key for key, value in own.items() if key in each or key == "horizon" or isinstance(value, str)]
            label = " ".join(str(own[key]).rpartition("/")[2] for key in shown)
            yield label, {**taken, **own}


def run_suite(
    predictor: Predictor,
    name: str,
    *,
    only: str = "",
    batch_size: int = 256,
    limit: int | None = None,
    quiet: bool = False,
) -> SuiteReport:
    """Score a model on the test part of every section whose label contains ``only``.

    A section whose data are not here is left out, and the report says why. Raises `ZooError` when none is left.
    """
    suite = read_suite(name)
    reports: dict[str, Report] = {}
    left_out: dict[str, str] = {}
    for label, tree in sections(suite, predictor.preprocessing):
        if only not in label:
            continue
        section = zc.resolve_part("data set", tree, label)
        assert section is not None
        try:
            data = zc.build("data set", section)
        except ZooError as error:
            left_out[label] = str(error)
            print(f"{label} is left out: {error}", file=sys.stderr)
            continue
        reports[label] = evaluate(predictor, section, batch_size=batch_size, limit=limit, data=data, quiet=quiet)
    if not reports:
        why = next(iter(left_out.values()), f"no section of it contains '{only}'")
        raise ZooError(f"nothing of suite '{name}' could be scored: {why}")
    mean, relative = summary(suite, reports)
    return SuiteReport(predictor.name, name, reports, left_out, mean, relative)


def summary(
    suite: Suite, reports: Mapping[str, Report]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """By model, ours under the empty name: the mean of every metric over sections, and the geometric mean of the
    relative ones over the baseline's. Raises `ZooError` for a metric or baseline that the reports do not have."""
    by_model: dict[str, list[dict[str, float]]] = {}
    for report in reports.values():
        for model, values in {"": report.metrics, **report.rivals}.items():
            by_model.setdefault(model, []).append(values)
    for kind, wanted, known in (
        ("baseline", [suite.baseline] if suite.baseline else [], by_model),
        ("metric", [*suite.metrics, *suite.relative], by_model[""][0]),
    ):
        if missing := [name for name in wanted if name not in known]:
            raise ZooError(f"the suite's {kind} '{missing[0]}' is not there; {registry.suggest(missing[0], known)}")
    count = len(reports)
    mean = {
        model: {m: sum(v.get(m, math.nan) for v in rows) / count for m in suite.metrics}
        for model, rows in by_model.items()
    }
    if suite.baseline is None:
        return mean, {}
    base = by_model[suite.baseline]
    relative = {
        model: {
            m: math.exp(sum(math.log(v[m] / b[m]) for v, b in zip(rows, base, strict=True)) / count)
            for m in suite.relative
        }
        for model, rows in by_model.items()
    }
    return mean, relative


def show(report: SuiteReport, suite: Suite) -> None:
    """The table on the terminal: a row a section, then the means."""
    from zoo.report import table

    rows = [(label, r.items, *(r.metrics[m] for m in suite.metrics)) for label, r in report.reports.items()]
    rows.append(("mean", None, *report.mean[""].values()))
    table(f"{report.name} on {report.suite}", ("test part", "items", *suite.metrics), rows)
    others = [(model or report.name, *values.values()) for model, values in report.mean.items()]
    table("mean over test parts", ("model", *suite.metrics), others)
    if report.relative:
        ratios = [(model or report.name, *values.values()) for model, values in report.relative.items()]
        table(f"geometric mean over {suite.baseline}'s", ("model", *suite.relative), ratios)
