"""``zoo list``: models, recipes, data sets, parts and plugins. Imports no torch."""

from __future__ import annotations

import fnmatch
from typing import Annotated

import typer

from zoo.cli.common import Json, print_json
from zoo.spec import ZooError


def list_command(
    pattern: Annotated[str, typer.Argument(help="Wildcard on names, for example 'time_series/*'.")] = "*",
    task: Annotated[str | None, typer.Option(help="Only models of this task.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only pretrained tags.")] = False,
    as_json: Json = False,
) -> None:
    """List models with their tags, recipes, data sets, parts and plugins. The core's parts only with a pattern."""
    from zoo import config, registry

    if task:
        known = registry.entries("task")
        if task not in {*known, *(name.rpartition("/")[2] for name in known)}:
            raise ZooError(f"unknown task '{task}'; {registry.suggest(task, known)}")
    names = registry.list_models(pattern, task=task, pretrained=pretrained)
    only_models = bool(task or pretrained)
    recipes = [] if only_models else [name for name in config.recipes() if fnmatch.fnmatch(name, pattern)]
    suites = [] if only_models else [name for name in config.suites() if fnmatch.fnmatch(name, pattern)]
    datasets = [] if only_models else registry.list_datasets(pattern)
    parts = [
        {"name": name, "kind": kind, "doc": entry.spec.doc}
        for kind in ([] if only_models else registry.kinds())
        if kind not in ("model", "data set", "task")
        for name, entry in registry.entries(kind).items()
        if fnmatch.fnmatch(name, pattern) and (entry.plugin.name or pattern != "*")
    ]
    models = []
    for name in names:
        entry, tag = registry.find_model(name)
        tags = {tag: entry.spec.pretrained[tag]} if tag else entry.spec.pretrained
        models.append(
            {
                "name": name,
                "task": registry.full_task(entry),
                "doc": entry.spec.doc,
                "tags": {t: {"source": w.source, "data": w.data, "licence": w.licence} for t, w in tags.items()},
            }
        )
    broken = registry.broken_plugins().values()
    document = {
        "models": models,
        "recipes": recipes,
        "suites": suites,
        "datasets": [
            {
                "name": n,
                "doc": registry.find("data set", n).spec.doc,
                "licence": registry.find("data set", n).spec.licence,
            }
            for n in datasets
        ],
        "parts": parts,
        "plugins": [
            {"name": p.name, "owner": p.owner, "doc": p.manifest.doc} for p in registry.list_plugins().values()
        ],
        "broken": [{"name": b.name, "owner": b.owner, "cause": b.cause} for b in broken],
    }
    if as_json:
        print_json(document)
        return
    from zoo.report import table

    if models:
        rows = [(m["name"], ", ".join(m["tags"]), m["doc"]) for m in models]
        table("models", ("name", "tags", ""), rows)
    else:
        typer.echo(f"no model matches '{pattern}'")
    if recipes:
        table("recipes (zoo train NAME)", ("name",), [(name,) for name in recipes])
    if suites:
        table("suites (zoo eval MODEL suite=NAME)", ("name",), [(name,) for name in suites])
    if datasets:
        table("data sets", ("name", "", "licence"), [(d["name"], d["doc"], d["licence"]) for d in document["datasets"]])
    if parts:
        table("parts", ("name", "kind", ""), [(p["name"], p["kind"], p["doc"]) for p in parts])
    if not only_models:
        table("plugins", ("name", "from", ""), [(p["name"], p["owner"], p["doc"]) for p in document["plugins"]])
    if broken:
        table("broken plugins", ("name", "from", "cause"), [(b.name, b.owner, b.cause) for b in broken])
