"""Models of ours in a public layout: an `Importer` read backwards."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.hub import importer, layout
from zoo.hub.model import Model
from zoo.spec import Importer, ModelSpec, ZooError

_ROW = re.compile(r"(.*)\[(\d+)(/\d+)?\]")


def export(model: Model, to: Path, name: str, dialect: str = "", dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` as other libraries read them.

    Args:
        name: the layout: an importer of a registered model of the same class.
        dialect: another key map of the layout; the one of the public checkpoints by default.
        dtype: of the weights; theirs by default.

    Raises:
        ZooError: no such layout, or a model that the layout cannot say: its settings would not come back.
    """
    entry, chosen = _find(model, name)
    if dialect and dialect not in chosen.dialects:
        raise ZooError(f"layout '{name}' has no dialect '{dialect}'; {registry.suggest(dialect, chosen.dialects)}")
    ours = dataclasses.asdict(model.config)
    foreign = settings(chosen, ours)  # and with it ours, where None stands for another setting
    _comes_back(chosen, entry, ours, foreign, name)
    try:
        places = layout.places(chosen.dialects[dialect] if dialect else chosen.keys, model, foreign)
    except ValueError as error:
        raise ZooError(f"layout '{name}' cannot say this model: {error}") from error
    tensors = layout.joined(_whole({key: place for key, (_, place) in places.items()}), chosen.fused, foreign)
    tensors = {key: value.to("cpu", dtype).contiguous().clone() for key, value in tensors.items()}
    written = next(iter(tensors.values())).dtype
    besides = {key: _besides(value, foreign) for key, value in chosen.export.items()}
    document = {**besides, **foreign, "dtype": str(written).removeprefix("torch.")}
    try:
        to.mkdir(parents=True, exist_ok=True)
        save_file(tensors, to / fmt.WEIGHTS, metadata={"format": "pt"})
        (to / fmt.CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for file, text in _files(chosen, model).items():
            (to / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ZooError(f"cannot export to '{to}': {error}; choose another folder") from error


def _besides(value: Any, foreign: Mapping[str, Any]) -> Any:
    return layout.value(value[1:], foreign) if isinstance(value, str) and value.startswith("=") else value


def _files(chosen: Importer, model: Model) -> dict[str, str]:
    """The text files of the layout that came with the model, such as its tokenizer."""
    found: dict[str, str] = {}
    for key, name in chosen.files.items():
        try:
            text = layout.get(model.saved_with.get("preprocessing") or {}, key)
        except KeyError:
            continue
        if isinstance(text, str):
            found[name] = text
    return found


def _find(model: Model, name: str) -> tuple[registry.Entry, Importer]:
    target = f"{type(model).__module__}:{type(model).__qualname__}"
    found = {
        layout_name: (entry, each)
        for entry in registry.entries("model").values()
        if isinstance(entry.spec, ModelSpec) and entry.spec.target == target
        for layout_name, each in entry.spec.importers.items()
    }
    if name not in found:
        raise ZooError(f"no layout '{name}' for a {type(model).__name__}; {registry.suggest(name, found)}")
    return found[name]


def settings(chosen: Importer, ours: zc.Tree) -> zc.Tree:
    """A foreign config that says what ours does, as far as it can. A None of ours becomes what the key's second
    alternative says, in ours too."""
    foreign: zc.Tree = {}
    for key, wanted in chosen.expect.items():
        said = wanted[0] if isinstance(wanted, tuple) else wanted
        if said is not None:
            layout.put(foreign, key, said)
    products, nones = [], {}
    for key, expression in chosen.config.items():
        try:
            value = layout.get(ours, key)
        except KeyError:
            continue
        alternatives = expression.split(" | ")
        first, *rest = layout.FACTOR.split(alternatives[0])
        if rest:
            products.append((value, first, *rest))
        elif value is not None or "null" in alternatives:
            layout.put(foreign, first, value)
        elif len(alternatives) > 1:
            nones[key] = alternatives
    for value, a, operator, b, *_ in products:
        known = {key: layout.value(f"{key} | null", foreign) for key in (a, b)}
        if known[a] is None and known[b] is not None:
            layout.put(foreign, a, value * known[b] if operator == "//" else value // known[b])
        elif known[b] is None and known[a] is not None and value:
            layout.put(foreign, b, known[a] // value if operator == "//" else value // known[a])
    for key, (first, *others) in nones.items():
        value = layout.value(" | ".join([*others, "null"]), foreign)
        layout.put(foreign, first, value)
        layout.put(ours, key, value)
    return foreign


def _comes_back(chosen: Importer, entry: registry.Entry, ours: Any, foreign: Mapping[str, Any], name: str) -> None:
    """Raises `ZooError` unless the foreign config would be read as our own."""
    try:
        tree = importer.settings(chosen, foreign, name)
        read: Any = zc.resolve_part("model", {**tree, "name": entry.name}, "model")
    except ZooError as error:
        raise ZooError(f"layout '{name}' cannot say this model: {error}") from error
    mine = _flat(ours)
    for key, value in _flat({k: v for k, v in read.items() if k != "name"}).items():
        if key.startswith(chosen.training):
            mine.pop(key, None)
        elif (said := mine.pop(key, None)) != value:
            raise ZooError(f"layout '{name}' cannot say this model: {key}={said!r} would come back as {value!r}")
    if rest := [key for key, value in mine.items() if value is not None and not key.startswith(chosen.training)]:
        raise ZooError(f"layout '{name}' cannot say this model: it has no place for {rest[0]}={mine[rest[0]]!r}")


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= _flat(value, f"{path}.{key}" if path else str(key))
    return found


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows, and blocks of rows, that a layout takes apart, put together again."""
    rows: dict[str, dict[int, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := _ROW.fullmatch(key):
            rows.setdefault(match[1], {})[int(match[2])] = tensor if match[3] else tensor[None]
        else:
            whole[key] = tensor
    return whole | {key: torch.cat([each[row] for row in sorted(each)]) for key, each in rows.items()}
