"""Public checkpoints through an `Importer`: plain data that says which foreign key fills which place of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.hub import layout
from zoo.spec import Importer, ModelSpec, ZooError

INDEX = "model.safetensors.index.json"


def read(folder: Path, entry: registry.Entry, name: str) -> fmt.Saved:
    """A checkpoint in a public layout: ``config.json`` beside ``*.safetensors``, one file or shards with an index.

    Raises:
        ZooError: a setting that the model cannot have, or keys that are missing, left over or of another shape.
    """
    return imported(
        entry,
        find(entry, name),
        fmt.read_json(folder / fmt.CONFIG),
        lambda: fmt.Tensors(shards(folder)),
        folder,
    )


def find(entry: registry.Entry, name: str) -> Importer:
    """The model's importer of that name."""
    spec = entry.spec
    assert isinstance(spec, ModelSpec)
    if name not in spec.importers:
        raise ZooError(f"model '{entry.name}' has no importer '{name}'; {registry.suggest(name, spec.importers)}")
    return spec.importers[name]


def imported(
    entry: registry.Entry,
    chosen: Importer,
    foreign: Mapping[str, Any],
    tensors: Callable[[], Mapping[str, Tensor]],
    folder: Path,
    overrides: Mapping[str, Any] | None = None,
) -> fmt.Saved:
    """What was read, as if it had been saved by us. ``tensors()`` opens the foreign tensors when they are needed."""
    where = str(folder)
    tree = zc.merge(settings(chosen, foreign, where), overrides or {})
    node = zc.resolve_part("model", {**tree, "name": entry.name}, "model")
    assert node is not None

    def fill(model: nn.Module) -> None:
        layouts = (chosen.keys, *chosen.dialects.values())
        parted = layout.Parted(tensors(), chosen.fused, foreign)
        given: Mapping[str, Tensor] = layout.Rows(parted, {key for keys in layouts for key in keys})
        ignored = tuple(prefix.format(**foreign) for prefix in chosen.ignore)
        given = {key: given[key] for key in given if not key.startswith(ignored)} if ignored else given
        maps = [layout.places(keys, model, foreign) for keys in layouts]
        fmt.copy_all(min(maps, key=lambda wanted: len(wanted.keys() ^ set(given))), given, where)

    tree = {key: value for key, value in node.items() if key != "name"}
    return fmt.Saved(entry.name, tree, fill, preprocessing=preprocessing(chosen, folder))


def preprocessing(chosen: Importer, folder: Path) -> zc.Tree:
    """What a model of ours is saved with, files beside the weights read into it."""
    tree = copy.deepcopy(dict(chosen.preprocessing))
    for key, name in chosen.files.items():
        if not (folder / name).is_file():
            tree.pop(key.partition(".")[0], None)
            continue
        try:
            layout.put(tree, key, (folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"'{folder / name}' cannot be read: {error}; download it again") from error
    return tree


def fits(chosen: Importer, foreign: Mapping[str, Any]) -> str | None:
    """None when a foreign config has all that is expected, else the first key that differs."""
    for key, wanted in chosen.expect.items():
        if _said(foreign, key) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            return key
    return None


def _said(foreign: Mapping[str, Any], key: str) -> Any:
    try:
        return layout.get(foreign, key)
    except KeyError:
        return None


def settings(chosen: Importer, foreign: Mapping[str, Any], where: str) -> zc.Tree:
    """Our model settings from a foreign config. Raises `ZooError` naming the foreign key that is absent or unfit."""
    if key := fits(chosen, foreign):
        wanted = chosen.expect[key]
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        raise ZooError(f"'{where}': its config says {key}={_said(foreign, key)!r}; only {key}={wanted!r} can be read")
    flat = dict(chosen.fixed)
    for ours, theirs in chosen.config.items():
        try:
            flat[ours] = layout.value(theirs, foreign)
        except KeyError as error:
            raise ZooError(f"'{where}': its config lacks '{error.args[0]}', which sets {ours}") from error
        except ValueError as error:
            raise ZooError(f"'{where}': {error}, not a whole number for {ours}") from error
    tree: zc.Tree = {}
    for key, value in flat.items():
        layout.put(tree, key, value)
    return zc.refuse_interpolation(tree, where)  # type: ignore[no-any-return]


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, or else all there are."""
    if (folder / INDEX).is_file():
        names = set(fmt.read_json(folder / INDEX).get("weight_map", {}).values())
        if outside := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
            raise ZooError(f"'{folder / INDEX}' names '{outside[0]}', which is not a file beside it; download it again")
        return sorted(folder / n for n in names)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ZooError(
            f"'{folder}' holds no *.safetensors, and pickles are not loaded: zoo convert FILE --to FOLDER --model NAME"
        )
    return files
