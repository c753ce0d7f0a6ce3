"""Which data an evaluation uses: what the user says, on top of the run's or the tag's own recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from zoo import config as zc
from zoo import hub, registry
from zoo.spec import ZooError
from zoo.train.recipe import in_plugin_of, read_recipe


def data_section(name: str, overrides: zc.Tree, command: str = "eval", more: Sequence[str] = ()) -> zc.Tree:
    """The resolved ``data`` section for ``zoo eval NAME`` and its like. Raises `ZooError` without data, and for other
    keys: ``more`` are further ones of the command, or ``task``: settings of the model's task, which may be there."""
    if name.startswith((".", "/", "~")):
        hub.folder.saved_folder(Path(name).expanduser())
    unknown, known = set(overrides) - {"data"}, ["data", "device", "split", "batch_size", "limit", *more]
    if unknown and "task" in more:
        settings = task_settings(name)
        unknown, known = unknown - set(settings), [*known, *settings]
    if unknown:
        raise ZooError(f"unknown setting '{min(unknown)}' of zoo {command}; {registry.suggest(min(unknown), known)}")
    base, chosen = _own_data(name), overrides.get("data")
    if base is None and chosen is None:
        known = registry.list_datasets(f"{_model_of(name).partition('/')[0]}/*")
        raise ZooError(f"'{name}' brings no data of its own; name some with data=..., {registry.suggest('', known)}")
    tree = chosen if base is None else zc.merge(base, chosen) if chosen is not None else base
    tree = in_plugin_of(_model_of(name), tree)
    section = zc.resolve_part("data set", tree, "data")
    assert section is not None
    return section


def task_settings(name: str) -> list[str]:
    """What can be set of the task of a model, given as for `data_section`."""
    entry, _ = registry.find_model(_model_of(name))
    task = registry.find("task", registry.full_task(entry)).load()
    return [field.name for field in dataclasses.fields(task.Config)]


def _model_of(name: str) -> str:
    """Registered name of the model behind a name or folder."""
    return hub.folder.read(Path(name)).name or name if Path(name).is_dir() else name


def _own_data(name: str) -> zc.Tree | None:
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.yaml"
        data = zc.read_yaml(config).get("data") if config.is_file() else None
        return data if isinstance(data, dict) else None
    if ":" in name:
        return None
    entry, tag = registry.find_model(name)
    recipe = entry.spec.pretrained[tag].recipe if tag else ""
    data = read_recipe(recipe)["data"] if recipe else None
    return data if isinstance(data, dict) else None
