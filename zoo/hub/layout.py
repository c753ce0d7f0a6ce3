"""The small language of an `Importer`: dotted keys, values of a foreign config, and where a foreign tensor lies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.hub import folder as fmt

FACTOR = re.compile(r" (//|\*) ")
_FIELD = re.compile(r"\{(\w+)\}")
_PLACE = re.compile(
    r"(?P<key>[^\[]+)(?:\[(?:\{(?P<index>\w+)(?: - (?P<first>[\w.]+(?: - [\w.]+)*))?\}|(?P<row>\d+))"
    r"(?:, (?P<half>:half|half:))?\])?"
)


def get(tree: Any, dotted: str) -> Any:
    """What lies under a dotted key; a number is a place in a list. Raises `KeyError` with the key that is absent."""
    for step in dotted.split("."):
        if isinstance(tree, list) and step.isdigit() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, Mapping) and step in tree:
            tree = tree[step]
        else:
            raise KeyError(dotted)
    return tree


def put(tree: zc.Tree, dotted: str, value: Any) -> None:
    """Set a dotted key, making the sections and lists above it."""
    steps = dotted.split(".")
    node: Any = tree
    for step, below in pairwise(steps):
        empty: Any = [] if below.isdigit() else {}
        if isinstance(node, list):
            node += [empty] if int(step) == len(node) else []
            node = node[int(step)]
        else:
            node = node.setdefault(step, empty)
    if isinstance(node, list):
        node.insert(int(steps[-1]), value)
    else:
        node[steps[-1]] = value


def value(expression: str, foreign: Mapping[str, Any]) -> Any:
    """What a foreign config says by an expression of `Importer.config`. Raises `KeyError` with the first absent key,
    and `ValueError` for factors that are no whole numbers or do not divide."""
    alternatives, absent = expression.split(" | "), None
    for place, alternative in enumerate(alternatives):
        try:
            found = _product(alternative, foreign)
        except KeyError as error:
            absent = absent or error
            continue
        if found is not None or place + 1 == len(alternatives):
            return found
    assert absent is not None
    raise absent


def _product(text: str, foreign: Mapping[str, Any]) -> Any:
    first, *rest = FACTOR.split(text)
    result = _term(first, foreign)
    for operator, factor in zip(rest[::2], rest[1::2], strict=True):
        other = _term(factor, foreign)
        whole = all(isinstance(v, int) for v in (result, other))
        if not whole or (operator == "//" and (not other or result % other)):
            raise ValueError(f"{text} is {result!r} {operator} {other!r}")
        result = result // other if operator == "//" else result * other
    return result


def _term(text: str, foreign: Mapping[str, Any]) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return get(foreign, text)


def places(keys: Mapping[str, str], model: nn.Module, foreign: Mapping[str, Any]) -> dict[str, tuple[str, Tensor]]:
    """Every foreign key that the model needs, with our name and the place in it that the key fills.

    The model says what is needed, so a checkpoint with a layer or an expert too few or too many cannot pass. A buffer
    of ours that no key fills is left out as long as it is zero: what a balancer has not learned.

    Raises:
        ValueError: values of the model that no key fills.
    """
    wanted: dict[str, tuple[str, Tensor]] = {}
    starts = {ours: re.split(r"[\[{]", ours, maxsplit=1)[0] for ours in keys.values()}
    for key, parameter in fmt.unique_state(model).items():
        covered = 0
        for theirs, ours in keys.items():
            if not key.startswith(starts[ours]):
                continue
            for foreign_key, mine, target in _targets(theirs, ours, key, parameter.detach(), foreign):
                wanted[foreign_key] = (mine, target)
                covered += target.numel()
        unlearned = not covered and not isinstance(parameter, nn.Parameter) and not parameter.any()
        if covered != parameter.numel() and not unlearned:
            raise ValueError(f"its keys fill {covered} of the {parameter.numel()} values of '{key}'")
    return wanted


def _targets(
    theirs: str, ours: str, key: str, tensor: Tensor, foreign: Mapping[str, Any]
) -> Iterator[tuple[str, str, Tensor]]:
    place = _PLACE.fullmatch(ours)
    if place is None:
        raise ValueError(
            f"'{ours}' is not KEY, KEY[{{e}}], KEY[0], KEY[{{n - first}}], or one with :half or half: in it"
        )
    if not (match := _pattern(place["key"]).fullmatch(key)):
        return
    index, half = place["index"], place["half"]
    only = [None] if place["row"] is None else [int(place["row"])]
    for row in range(tensor.shape[0]) if index else only:
        target = tensor if row is None else tensor[row]
        middle = target.shape[0] // 2 if half else 0
        target = {None: target, ":half": target[:middle], "half:": target[middle:]}[half] if half else target
        fields: dict[str, Any] = match.groupdict()
        label = "" if row is None else f"[{row}{f', {half}' if half else ''}]"
        if index and row is not None:
            first = place["first"].split(" - ") if place["first"] else []
            fields[index] = row + sum(get(foreign, key) for key in first)
        yield theirs.format(**fields), key + label, target


class Rows(Mapping[str, Tensor]):
    """Foreign tensors, those that an importer names with ``[{n}]`` or ``[0]`` row by row: ``centroid[0]``, ..., and
    those with ``[0/3]`` in equal blocks of rows: ``qkv[0/3]``, ..."""

    def __init__(self, tensors: Mapping[str, Tensor], patterns: Iterable[str]) -> None:
        cut = [(_pattern(p.rpartition("[")[0]), p.rpartition("/")[2][:-1]) for p in patterns if p.endswith("]")]
        self.tensors, self.home = tensors, dict[str, tuple[str, int | slice | None]]()
        for key in tensors:
            blocks = next((blocks for pattern, blocks in cut if pattern.fullmatch(key)), None)
            length = len(tensors[key]) if blocks is not None and tensors[key].dim() else 0
            if blocks and blocks.isdigit() and length % int(blocks) == 0:
                size = length // int(blocks)
                places = {f"[{n}/{blocks}]": slice(n * size, (n + 1) * size) for n in range(int(blocks))}
                self.home |= {key + label: (key, place) for label, place in places.items()}
            elif length and not (blocks and blocks.isdigit()):
                self.home |= {f"{key}[{row}]": (key, row) for row in range(length)}
            else:
                self.home[key] = (key, None)

    def __getitem__(self, key: str) -> Tensor:
        home, row = self.home[key]
        return self.tensors[home] if row is None else self.tensors[home][row]

    def __iter__(self) -> Iterator[str]:
        return iter(self.home)

    def __len__(self) -> int:
        return len(self.home)


Fused = Mapping[str, tuple[str, Mapping[str, str]]]


class Parted(Mapping[str, Tensor]):
    """Foreign tensors, those that `Importer.fused` names in their parts: ``KEY:part``."""

    def __init__(self, tensors: Mapping[str, Tensor], fused: Fused, foreign: Mapping[str, Any]) -> None:
        self.tensors, self.home = tensors, dict[str, tuple[str, slice, int, int] | None]()
        for key in tensors:
            shape = _fused_shape(key, fused, foreign)
            if shape is None or len(tensors[key]) % (shape[0] * sum(shape[1].values())):
                self.home[key] = None
                continue
            start = 0
            for part, blocks in shape[1].items():
                place = slice(start, start + blocks)
                self.home[f"{key}:{part}"] = (key, place, shape[0], sum(shape[1].values()))
                start += blocks

    def __getitem__(self, key: str) -> Tensor:
        home = self.home[key]
        if home is None:
            return self.tensors[key]
        whole, place, groups, blocks = home
        return self.tensors[whole].unflatten(0, (groups, blocks, -1))[:, place].flatten(0, 2)

    def __iter__(self) -> Iterator[str]:
        return iter(self.home)

    def __len__(self) -> int:
        return len(self.home)


def joined(tensors: Mapping[str, Tensor], fused: Fused, foreign: Mapping[str, Any]) -> dict[str, Tensor]:
    """`Parted` undone."""
    whole, parts = dict(tensors), dict[str, dict[str, Tensor]]()
    for key in tensors:
        base, colon, part = key.rpartition(":")
        if colon and _fused_shape(base, fused, foreign) is not None:
            parts.setdefault(base, {})[part] = whole.pop(key)
    for base, found in parts.items():
        groups, blocks = _fused_shape(base, fused, foreign) or (1, {})
        pieces = [found[part].unflatten(0, (groups, count, -1)) for part, count in blocks.items()]
        whole[base] = torch.cat(pieces, 1).flatten(0, 2)
    return whole


def _fused_shape(key: str, fused: Fused, foreign: Mapping[str, Any]) -> tuple[int, dict[str, int]] | None:
    """The groups of a fused tensor, and the blocks of each part of a group."""
    for pattern, (groups, parts) in fused.items():
        if _pattern(pattern).fullmatch(key):
            return int(value(groups, foreign)), {part: int(value(count, foreign)) for part, count in parts.items()}
    return None


def speaks(patterns: Iterable[str], keys: Iterable[str]) -> bool:
    """Whether any of these keys is one that a foreign pattern names."""
    known = [_pattern(p.rpartition("[")[0] if p.endswith("]") else p) for p in patterns]
    return any(pattern.fullmatch(key) for key in keys for pattern in known)


def _pattern(key: str) -> re.Pattern[str]:
    pieces = _FIELD.split(key)  # text, field, text, field, ..., text
    return re.compile("".join(f"(?P<{p}>[^.]+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))
