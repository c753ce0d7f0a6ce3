"""``zoo info``: how large a model is, what can be set, how it is used, and what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, Overrides, print_json


def info_command(
    name: Annotated[str, typer.Argument(help="plugin/model, plugin/model.tag, or a run folder.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show size (built on the meta device, so any size will do), settings with their defaults, inputs and card."""
    from zoo import config as zc
    from zoo import hub, registry
    from zoo.eval.card import read_results
    from zoo.nn.size import measure, parameters_by_part

    tree = zc.from_dotlist(overrides or [])
    if isinstance(section := tree.get("model"), dict):  # as `zoo train` has it: model.stack.num_layers=4
        tree = zc.merge({key: value for key, value in tree.items() if key != "model"}, section)
    if Path(name).is_dir() or name.startswith((".", "/", "~")):
        saved = hub.folder.read(Path(name).expanduser())
        model_name, tree = saved.name or "", zc.merge(saved.model, tree)
    else:
        model_name = name
    entry, tag = registry.find_model(model_name)
    node = zc.resolve_part("model", zc.merge({"name": entry.name}, tree), "model")
    assert node is not None
    settings = {key: value for key, value in node.items() if key != "name"}
    model = hub.create_model(entry.name, device="meta", **settings)
    size = measure(model)
    task = registry.find("task", registry.full_task(entry))
    document: dict[str, Any] = {
        "name": f"{entry.name}.{tag}" if tag else entry.name,
        "doc": entry.spec.doc,
        "paper": entry.spec.paper,
        "task": task.name,
        "parameters": size.parameters,
        "active_parameters": size.active,
        "flops_per_token": size.flops,
        "bytes_fp32": size.bytes_fp32,
        "bytes_bf16": size.bytes_bf16,
        "parts": parameters_by_part(model),
        "config": settings,
        "inputs": [{"name": i.name, "doc": i.doc, "required": i.required} for i in task.spec.inputs],
        "results": read_results(entry, tag),
    }
    if as_json:
        print_json(document)
        return
    _print(document)


def _print(document: dict[str, Any]) -> None:
    from zoo.report import number, table

    typer.echo(f"{document['name']}: {document['doc']} ({document['paper'] or document['task']})")
    rows = [
        ("parameters", f"{document['parameters']:,}"),
        ("active per token", f"{document['active_parameters']:,}"),
        ("FLOPs per token, forward", f"{number(float(document['flops_per_token']))} and attention over the context"),
        ("memory of the weights", f"{_size(document['bytes_fp32'])} in fp32, {_size(document['bytes_bf16'])} in bf16"),
        *((f"  {part}", f"{count:,}") for part, count in document["parts"].items()),
    ]
    table("size", ("", ""), rows)
    table("settings", ("key", "value"), list(_flat(document["config"])))
    inputs = [(i["name"], i["doc"] + (" (required)" if i["required"] else "")) for i in document["inputs"]]
    if inputs:
        table("inputs of zoo predict", ("key", ""), inputs)
    if document["results"]:
        rows = [
            (*list(r.values())[:3], " ".join(f"{k}={v}" for k, v in r["settings"].items())) for r in document["results"]
        ]
        table("measured (model card)", ("data", "metric", "value", ""), rows)


def _flat(tree: dict[str, Any], path: str = "") -> Any:
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield from _flat(value, where)
        else:
            yield where, "null" if value is None else str(value)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
