"""Public checkpoints through an `Importer`: plain data that says which foreign key fills which place of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.spec import Importer, ModelSpec, ZooError

INDEX = "model.safetensors.index.json"
_FIELD = re.compile(r"\{(\w+)\}")
_PLACE = re.compile(r"(?P<key>[^\[]+)(?:\[\{(?P<index>\w+)\}(?:, (?P<half>:half|half:))?\])?")


def read(folder: Path, entry: registry.Entry, name: str) -> fmt.Saved:
    """A checkpoint in a public layout: ``config.json`` beside ``*.safetensors``, one file or shards with an index.

    Raises:
        ZooError: a setting that the model cannot have, or keys that are missing, left over or of another shape.
    """
    chosen = find(entry, name)
    tree = settings(chosen, fmt.read_json(folder / fmt.CONFIG), str(folder))
    return imported(entry, chosen, tree, lambda: fmt.Tensors(shards(folder)), str(folder))


def find(entry: registry.Entry, name: str) -> Importer:
    """The model's importer of that name."""
    spec = entry.spec
    assert isinstance(spec, ModelSpec)
    if name not in spec.importers:
        raise ZooError(f"model '{entry.name}' has no importer '{name}'; {registry.suggest(name, spec.importers)}")
    return spec.importers[name]


def imported(entry: registry.Entry, chosen: Importer, tree: zc.Tree, tensors: Any, where: str) -> fmt.Saved:
    """What was read, as if it had been saved by us. ``tensors()`` opens the foreign tensors when they are needed."""
    node = zc.resolve_part("model", {**tree, "name": entry.name}, "model")
    assert node is not None

    def fill(model: nn.Module) -> None:
        fmt.copy_all(places(chosen, model), Rows(tensors(), chosen.keys), where)

    tree = {key: value for key, value in node.items() if key != "name"}
    return fmt.Saved(entry.name, tree, fill, preprocessing=dict(chosen.preprocessing))


def settings(chosen: Importer, foreign: Mapping[str, Any], where: str) -> zc.Tree:
    """Our model settings from a foreign config. Raises `ZooError` naming the foreign key that is absent or unfit."""
    for key, wanted in chosen.expect.items():
        if foreign.get(key) != wanted:
            raise ZooError(f"'{where}': its config says {key}={foreign.get(key)!r}; only {key}={wanted!r} can be read")
    flat = dict(chosen.fixed)
    for ours, theirs in chosen.config.items():
        factors = []
        for key in theirs.split(" // "):
            if key not in foreign:
                raise ZooError(f"'{where}': its config lacks '{key}', which sets {ours}")
            factors.append(foreign[key])
        flat[ours] = factors[0]
        for divisor in factors[1:]:
            if not all(isinstance(v, int) for v in (flat[ours], divisor)) or not divisor or flat[ours] % divisor:
                raise ZooError(f"'{where}': {theirs} is {flat[ours]!r} // {divisor!r}, not a whole number for {ours}")
            flat[ours] //= divisor
    tree: zc.Tree = {}
    for key, value in flat.items():
        node = tree
        *above, last = key.split(".")
        for step in above:
            node = node.setdefault(step, {})
        node[last] = value
    return zc.refuse_interpolation(tree, where)  # type: ignore[no-any-return]


def places(chosen: Importer, model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every foreign key that the model needs, with the place in it that the key fills.

    The model says what is needed, so a checkpoint with a layer or an expert too few or too many cannot pass.
    """
    wanted: dict[str, tuple[str, Tensor]] = {}
    for key, parameter in fmt.unique_state(model).items():
        covered = 0
        for theirs, ours in chosen.keys.items():
            place = _PLACE.fullmatch(ours)
            if place is None:
                raise ValueError(f"importer: '{ours}' is not KEY, KEY[{{e}}], KEY[{{e}}, :half] or KEY[{{e}}, half:]")
            if not (match := _pattern(place["key"]).fullmatch(key)):
                continue
            rows = range(parameter.shape[0]) if place["index"] else [None]
            for row in rows:
                target = parameter.detach() if row is None else parameter.detach()[row]
                half = target.shape[0] // 2
                target = {None: target, ":half": target[:half], "half:": target[half:]}[place["half"]]
                fields = {**match.groupdict(), **({place["index"]: row} if place["index"] else {})}
                wanted[theirs.format(**fields)] = (ours.format(**fields), target)
                covered += target.numel()
        if covered != parameter.numel():
            raise ValueError(f"importer: its keys fill {covered} of the {parameter.numel()} values of '{key}'")
    return wanted


class Rows(Mapping[str, Tensor]):
    """Foreign tensors, those that an importer names with ``[{n}]`` or ``[0]`` row by row: ``centroid[0]``, ..."""

    def __init__(self, tensors: Mapping[str, Tensor], patterns: Iterable[str]) -> None:
        cut = [_pattern(p.rpartition("[")[0]) for p in patterns if p.endswith("]")]
        self.tensors, self.home = tensors, dict[str, tuple[str, int | None]]()
        for key in tensors:
            if any(p.fullmatch(key) for p in cut) and tensors[key].dim():
                self.home |= {f"{key}[{row}]": (key, row) for row in range(len(tensors[key]))}
            else:
                self.home[key] = (key, None)

    def __getitem__(self, key: str) -> Tensor:
        home, row = self.home[key]
        return self.tensors[home] if row is None else self.tensors[home][row]

    def __iter__(self) -> Iterator[str]:
        return iter(self.home)

    def __len__(self) -> int:
        return len(self.home)


def _pattern(key: str) -> re.Pattern[str]:
    pieces = _FIELD.split(key)  # text, field, text, field, ..., text
    return re.compile("".join(f"(?P<{p}>[^.]+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


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
