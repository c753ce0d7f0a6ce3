"""Manifests: the plain data with which a plugin says what it offers.

Nothing here imports torch. A *target* is an import string, ``"package.module:Name"``, followed only when the thing is
built, so listing and help stay instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

API = 1
"""Version of this contract. A plugin written for another number is listed as broken, with both numbers."""


class ZooError(Exception):
    """A mistake that the user can mend: one line with the thing, the cause and the remedy. The CLI exits with 2."""


@dataclass(frozen=True)
class Weights:
    """Where the weights of a pretrained tag lie.

    ``source`` is ``"bundled:FOLDER"`` (inside the plugin's package), ``"local-dir:FOLDER"`` or
    ``"hf-hub:ORG/NAME@REVISION"``. A foreign checkpoint names the importer that reads it (see `Importer`). ``recipe``
    is the one that trained it; its data are what `zoo eval` uses unless told otherwise.
    """

    source: str
    recipe: str = ""
    data: str = ""
    licence: str = ""
    importer: str = ""


@dataclass(frozen=True)
class Importer:
    """How a public checkpoint becomes ours, and ours a public one: plain data, no code.

    ``config`` maps a dotted key of our model config (a number is a place in a list) to what the foreign
    ``config.json`` says: a dotted key of it, a literal in JSON, a quotient ``"a // b"`` or product ``"a * b"`` of whole
    numbers, or alternatives ``"a | b | 10000.0"``, of which the first that is there and not null counts. ``fixed`` sets
    what the foreign config does not say; ``expect`` are foreign settings that must hold (a tuple: one of them), or the
    checkpoint is refused. ``preprocessing`` is what a model of ours is saved with; ``files`` maps a dotted key of it to
    a text file beside the weights, without which the section that the key is in is left out.

    ``keys`` maps a foreign key pattern to ours, with named fields: ``"model.layers.{n}.mlp.gate.weight"``. A pattern of
    ours that ends in ``[{e}]`` stacks the foreign tensors along a new first dimension (``[0]``: one place of it);
    ``[{e}, :half]`` and ``[{e}, half:]`` write the two halves of a gated matrix; in ``[{n - first}]`` row 0 belongs to
    the number that the foreign setting ``first`` gives, in ``[{n - a - b}]`` to the sum of two. A foreign pattern that
    ends in ``[{n}]`` or ``[0]`` takes the rows of a foreign tensor apart, one that ends in ``[0/3]`` takes the first of
    three equal blocks. A layout without ``config`` and ``expect`` says all: its checkpoints need no ``config.json``.
    ``dialects`` are other complete key maps of the same layout; a checkpoint is read by the one that fits it best.
    Foreign keys that start with an entry of ``ignore``, in which ``{setting}`` is a foreign setting, are left out.

    ``fused`` maps a foreign pattern to how the rows of one tensor hold several: the number of groups, an expression as
    in ``config``, and the parts of each group in their order, by name and number of equal blocks (expressions, too).
    The key map names a part as ``KEY:part``. Queries, keys and values of grouped attention may be
    ``("num_kv_heads", {"q": "num_heads // num_kv_heads", "k": "1", "v": "1"})``.

    Written out again, a config has what ``export`` holds besides, ``"=a"`` being what its key ``a`` says; ``training``
    are dotted keys of ours that only matter in training, which a foreign config cannot say.
    """

    config: Mapping[str, str]
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    dialects: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    export: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A model. Its architecture is ``models/<name>.yaml`` in the plugin's ``configs``, else the schema's defaults."""

    name: str
    target: str
    task: str
    doc: str = ""
    paper: str = ""
    pretrained: Mapping[str, Weights] = field(default_factory=dict)
    importers: Mapping[str, Importer] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFile:
    """A file under ``ZOO_DATA``: its path there, the places to fetch it from, and what its bytes must hash to.

    ``git_blob`` is git's own id of the content (SHA-1 over its size and bytes), for a file of a repository of which
    only the listing was at hand; it may stand in for ``sha256``.
    """

    path: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    git_blob: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    name: str
    target: str
    doc: str = ""
    licence: str = ""
    files: tuple[DataFile, ...] = ()
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One ``key=value`` of ``zoo predict``. ``default=None`` with ``required=False`` means it may be left out; ``text``
    is taken as it was typed, where other values are read as YAML."""

    name: str
    doc: str
    required: bool = False
    default: Any = None
    text: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """``follows`` are settings of a model that a recipe may leave out: they are those of its data, of the same name."""

    name: str
    target: str
    doc: str = ""
    inputs: tuple[Input, ...] = ()
    follows: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartSpec:
    """A named part of a model: ``kind`` is ``router``, ``experts``, ``shared``, ``balancer`` and the like.

    ``doc`` is its formula in a line and ``systems`` who uses it, both for the table of parts in ``docs/moe.md``.
    """

    kind: str
    name: str
    target: str
    doc: str = ""
    paper: str = ""
    systems: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plugin:
    """All that a distribution adds to the zoo. ``requires`` are modules without which the whole plugin is of no use."""

    api: int
    models: tuple[ModelSpec, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    parts: tuple[PartSpec, ...] = ()
    requires: tuple[str, ...] = ()
    doc: str = ""
