"""Model cards: the numbers in them are written by ``zoo eval --update-card`` and read by ``zoo info`` and by a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard

from zoo import registry, resources
from zoo.spec import ZooError
from zoo.train.git import git_commit

if TYPE_CHECKING:
    from zoo.eval.evaluate import Report


def card_file(entry: registry.Entry) -> Path:
    return resources.card_path(entry.plugin.name, entry.plugin.package, entry.spec.name)


def read_results(entry: registry.Entry, tag: str = "") -> list[dict[str, Any]]:
    """The results of a model's card, of one tag or of all: ``data``, ``metric``, ``value``, and ``settings`` of the
    task where they were other than those saved with the model."""
    path = card_file(entry)
    if not path.is_file():
        return []
    results = ModelCard.load(path).data.eval_results or []
    return [
        {
            "data": r.dataset_name,
            "metric": r.metric_name or r.metric_type,
            "value": r.metric_value,
            "settings": r.dataset_args or {},
        }
        for r in results
        if not tag or r.dataset_config == tag
    ]


def place(name: str) -> tuple[registry.Entry, str, Path]:
    """The model, the tag and the card of a name. Raises `ZooError` when it is no tag, or has no card with a place for
    its results."""
    entry, tag = registry.find_model(name)
    path = card_file(entry)
    if not tag:
        raise ZooError(f"'{name}' names no tag, and a card is kept for tags; write it as {name}.TAG")
    if not path.is_file():
        raise ZooError(f"there is no card '{path}'; write one with the markers <!-- results: {tag} --> <!-- end -->")
    if not re.search(_between(tag), path.read_text(encoding="utf-8"), flags=re.S):
        raise ZooError(f"card '{path}' has no place for the numbers; add <!-- results: {tag} --> <!-- end -->")
    return entry, tag, path


def _between(tag: str) -> str:
    return rf"(<!-- results: {re.escape(tag)} -->\n).*?(<!-- end -->)"


def update(name: str, report: Report) -> Path:
    """Write a report into the card of a pretrained tag: metadata and the table between the tag's markers. Raises as
    `place`."""
    entry, tag, path = place(name)
    card = ModelCard.load(path)
    card.text = re.sub(
        _between(tag), lambda match: match[1] + _table(name, report) + match[2], card.text, count=1, flags=re.S
    )
    data = f"{report.data['name']} {report.split}"
    others = [r for r in card.data.eval_results or [] if r.dataset_config != tag]
    new = [
        EvalResult(
            task_type=registry.full_task(entry).rpartition("/")[2],
            dataset_type=str(report.data["name"]),
            dataset_name=data,
            dataset_config=tag,
            dataset_split=report.split,
            dataset_args=report.settings or None,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in report.metrics.items()
    ]
    card.data.model_name = card.data.model_name or entry.spec.name
    card.data.eval_results = [*others, *new]
    card.save(path)
    return path


def _table(name: str, report: Report) -> str:
    columns = list(report.metrics)
    lines = [f"| model | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for label, values in {name: report.metrics, **report.rivals}.items():
        lines.append(f"| {label} | {' | '.join(f'{values[c]:.4f}' if c in values else '' for c in columns)} |")
    command = " ".join([name, *(f"{k}={v}" for k, v in report.settings.items())])
    settings = ", ".join(f"{k}={v}" for k, v in report.data.items() if k != "name" and v is not None)
    lines.append("")
    lines.append(
        f"`zoo eval {command}` on {report.data['name']} ({settings}), split {report.split}, {report.items:,} items, "
        f"zoo {report.zoo}, {f'commit {commit[:12]}' if (commit := git_commit()) else 'an installed release'}."
    )
    return "\n".join(lines) + "\n"
