"""The result of a claim: as JSON beside the claim, as Markdown and a plot in the system's card.

``<!-- claim: NAME -->`` to ``<!-- end -->`` in the card is written by the harness and by nobody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.claims.claim import Claim, File, samples, tokens
from zoo.claims.verdict import compare, overall, spread
from zoo.report import number
from zoo.spec import ZooError

if TYPE_CHECKING:
    from zoo.claims.runs import Values
    from zoo.nn.size import Size

Result = dict[str, Any]
NOT_RUN = "not run yet"


def result(
    file: File,
    claim: Claim,
    trees: Mapping[str, Any],
    sizes: Mapping[str, Size],
    values: Values,
    origins: Mapping[str, Sequence[str]],
) -> Result:
    """Everything about a claim that was run, as plain data."""
    compared = [compare(statement, values[statement.metric]) for statement in claim.statements()]
    contestants = {
        name: {
            "settings": claim.contestants[name].set,
            "parameters": sizes[name].parameters,
            "flops": sizes[name].flops,
            "values": {metric: values[metric][name] for metric in values},
        }
        for name in trees
    }
    trained = next(iter(trees.values()))
    return {
        "claim": claim.claim,
        "paper": claim.paper,
        "digest": file.digest(),
        "verdict": overall([c.verdict for c in compared]),
        "statements": [asdict(c) for c in compared],
        "seeds": len(next(iter(next(iter(values.values())).values()))),
        "steps": trained["train"]["steps"],
        "samples": samples(trained),
        "tokens": tokens(trained),
        "split": claim.split,
        "flops": claim.flops if claim.flops == "equal" else f"free: {claim.reason}",
        "contestants": contestants,
        "command": f"zoo reproduce {file.name}",
        **origins,
    }


def read(file: File) -> Result | None:
    """The committed result of a claim; None when it was not run, or when the claim has changed since."""
    if not file.results.is_file():
        return None
    try:
        found: Result = json.loads(file.results.read_text())
        return found if found["digest"] == file.digest() else None
    except (ValueError, KeyError) as error:
        raise ZooError(f"the results '{file.results}' cannot be read: {error}; reproduce the claim again") from error


def state(found: Result | None) -> str:
    """The verdict in words."""
    return NOT_RUN if found is None else found["verdict"] or "no verdict: fewer than five seeds"


def statement_rows(found: Result) -> list[tuple[str, ...]]:
    """Metric, expectation, mean paired difference, its interval and the verdict, a row a statement."""
    return [
        (s["metric"], s["statement"], _difference(s), _interval(s), s["verdict"] or "no verdict")
        for s in found["statements"]
    ]


def contestant_rows(found: Result) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and a row a contestant: size, then mean and spread of each metric."""
    metrics = list(next(iter(found["contestants"].values()))["values"])
    rows = []
    for name, c in found["contestants"].items():
        cells = [_mean_and_spread(c["values"][metric]) for metric in metrics]
        rows.append((name, f"{c['parameters']:,}", f"{c['flops']:,}", *cells))
    return ["contestant", "parameters", "FLOPs/token", *metrics], rows


def _mean_and_spread(values: Sequence[float]) -> str:
    deviation = spread(values)
    mean = f"{sum(values) / len(values):.4g}"
    return mean if deviation is None else f"{mean} +- {deviation:.2g}"


def _difference(s: Mapping[str, Any]) -> str:
    relative = "" if s["relative"] is None else f" ({s['relative']:+.2%})"
    return f"{s['mean']:+.4g}{relative}"


def _interval(s: Mapping[str, Any]) -> str:
    return "" if s["low"] is None else f"[{s['low']:+.4g}, {s['high']:+.4g}]"


def brief(found: Result) -> str:
    """The statement that decided, with its interval: the first that does not hold, or the first."""
    worst = [s for s in found["statements"] if s["verdict"] == found["verdict"]] or found["statements"]
    return f"{worst[0]['metric']}: {worst[0]['statement']}, difference {_interval(worst[0])}"


def markdown(file: File, claim: Claim, found: Result | None, picture: str | None = None) -> str:
    """The section of the card."""
    lines = [f"Claim: {claim.claim}{f' ({claim.paper})' if claim.paper else ''}", "", f"Verdict: **{state(found)}**."]
    if found is None:
        return "\n".join([*lines, "", f"`zoo reproduce {file.name}` runs it."]) + "\n"
    columns, rows = contestant_rows(found)
    lines += ["", *_table(columns, rows, 1), ""]
    columns = ["metric", "expected", "mean difference", "95% interval", "verdict"]
    lines += [*_table(columns, statement_rows(found), 2), ""]
    if picture:
        lines += [f"![values by seed]({picture})", ""]
    lines.append(
        f"`{found['command']}`: {found['seeds']} seeds, {found['steps']:,} steps, {number(found['tokens'])} tokens or "
        f"points each, split {found['split']}, active FLOPs {found['flops']}; mean +- standard deviation, paired "
        "Student intervals over seeds (left minus right). "
        f"Commit {', '.join(c if ' ' in c else c[:12] for c in found['commits'])}."
    )
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    align = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(cells)} |" for cells in (columns, align, *rows)]


def plot(found: Result, path: Path) -> list[Path]:
    """The values of every seed, a small axis a metric, contestants below each other."""
    from zoo.report import figure, plots_available, save_figure

    contestants = found["contestants"]
    metrics = list(next(iter(contestants.values()))["values"])
    if not plots_available():
        return []
    fig, axes = figure(1, len(metrics), width=1.2 + 2.6 * len(metrics), height=0.9 + 0.28 * len(contestants))
    for axis, metric in zip(axes, metrics, strict=True):
        for y, c in enumerate(contestants.values()):
            values = c["values"][metric]
            axis.plot(values, [y] * len(values), "o", markersize=3, alpha=0.6, color="C0")
            axis.plot(sum(values) / len(values), y, "|", markersize=12, color="k")
        axis.set_yticks(range(len(contestants)), list(contestants) if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.set_title(metric, loc="left", fontsize=9)
    return save_figure(fig, path)


def commit(file: File, claim: Claim, found: Result | None) -> list[Path]:
    """Write the result where it ships: JSON beside the claim, section and picture in the card, which is made when
    there is none. With no result the card says that it was not run yet."""
    files: list[Path] = []
    picture = None
    if found is not None:
        file.results.parent.mkdir(parents=True, exist_ok=True)
        file.results.write_text(json.dumps(found, indent=1) + "\n")
        drawn = plot(found, file.card.with_suffix(".png"))
        picture, files = (drawn[0].name if drawn else None), [file.results, *drawn]
    start, end = f"<!-- claim: {file.name} -->\n", "<!-- end -->"
    section = start + markdown(file, claim, found, picture) + end
    text = file.card.read_text() if file.card.is_file() else f"# {file.name}\n"
    if start in text:
        text = re.sub(f"{re.escape(start)}.*?{end}", lambda _: section, text, count=1, flags=re.S)
    else:
        text = f"{text.rstrip()}\n\n## Claim\n\n{section}\n"
    file.card.parent.mkdir(parents=True, exist_ok=True)
    file.card.write_text(text)
    return [*files, file.card]
