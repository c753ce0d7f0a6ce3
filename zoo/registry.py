"""Which plugins are installed and what they offer, found through the entry points ``zoo.plugins`` without torch.

A plugin that cannot be loaded is kept with its owner and the cause, and is raised only when one of its names is asked
for. The core's own parts come from `zoo.core`, a manifest of the same form; their names carry no prefix.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zoo.spec import API, DatasetSpec, ModelSpec, PartSpec, Plugin, TaskSpec, ZooError

GROUP = "zoo.plugins"
CORE = "zoo.core:plugin"
Spec = ModelSpec | DatasetSpec | TaskSpec | PartSpec


@dataclass(frozen=True)
class Loaded:
    """An installed plugin that works: ``package`` is the importable package that holds its manifest."""

    name: str
    package: str
    owner: str
    manifest: Plugin


@dataclass(frozen=True)
class Broken:
    """An installed plugin that does not: who ships it, and why it was refused."""

    name: str
    owner: str
    cause: str


@dataclass(frozen=True)
class Entry:
    """A registered thing under its full name, for example ``time_series/time_moe_tiny``."""

    name: str
    kind: str
    spec: Spec
    plugin: Loaded

    def load(self) -> Any:
        """Import the target. Raises `ZooError` when a package it wants is missing, its module does not import, or it
        has no settings."""
        if missing := _missing(self.spec.requires):
            raise ZooError(
                f"{self.kind} '{self.name}' needs {missing}, which is not installed; "
                f"run: pip install '{_extra(self.plugin)}'"
            )
        module, _, attribute = self.spec.target.partition(":")
        try:
            target = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise ZooError(
                f"{self.kind} '{self.name}' of {self.plugin.owner} cannot be imported from {self.spec.target}: "
                f"{_cause(error)}"
            ) from error
        if not dataclasses.is_dataclass(getattr(target, "Config", None)):
            raise ZooError(
                f"{self.kind} '{self.name}' of {self.plugin.owner} has no settings; give {self.spec.target} "
                "a dataclass Config, which may be empty"
            )
        return target


def _cause(error: BaseException) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _missing(modules: Iterable[str]) -> str:
    return ", ".join(m for m in modules if not _importable(m))


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def _extra(plugin: Loaded) -> str:
    distribution = plugin.owner.partition(" ")[0]
    return f"{distribution}[{plugin.name.replace('_', '-')}]" if distribution == "moe-zoo" else distribution


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"


def _load(entry: EntryPoint) -> Loaded | Broken:
    owner = f"{_owner(entry)} ({entry.value})"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it greets with is no part of anybody's JSON
            manifest = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way (exit, a panic of Rust); none may stop the others
        return Broken(entry.name, owner, _cause(error))
    if not isinstance(manifest, Plugin):
        return Broken(entry.name, owner, f"{entry.value} is a {type(manifest).__name__}, not a zoo.spec.Plugin")
    if manifest.api != API:
        return Broken(entry.name, owner, f"written for plugin API {manifest.api!r}, this zoo speaks {API}")
    for field in ("models", "datasets", "tasks", "parts", "requires"):
        if not isinstance(given := getattr(manifest, field), tuple | list):
            return Broken(entry.name, owner, f"{field} is a {type(given).__name__}, not a tuple; (x,) is one of one")
    if missing := _missing(manifest.requires):
        return Broken(entry.name, owner, f"needs {missing}, which is not installed")
    seen: set[tuple[str, str]] = set()
    for kind, spec in _specs(manifest):
        if not isinstance(spec, Spec):
            return Broken(entry.name, owner, f"lists {spec!r} as a {kind}, which is no spec")
        if not re.fullmatch(r"\w+", spec.name):
            return Broken(entry.name, owner, f"names a {kind} '{spec.name}'; use letters, digits and _")
        if not isinstance(spec.requires, tuple | list):
            return Broken(entry.name, owner, f"'{spec.name}' requires a {type(spec.requires).__name__}, not a tuple")
        if (kind, spec.name) in seen:
            return Broken(entry.name, owner, f"names the {kind} '{spec.name}' twice")
        seen.add((kind, spec.name))
    return Loaded(entry.name, entry.value.partition(":")[0].partition(".")[0], _owner(entry), manifest)


@cache
def _installed() -> tuple[dict[str, Loaded], dict[str, Broken]]:
    wanted = {name.strip() for name in os.environ.get("ZOO_PLUGINS", "").split(",") if name.strip()}
    by_name: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if not wanted or entry.name in wanted:
            # The same distribution may be seen twice (a checkout on sys.path beside its installed metadata).
            owner = entry.dist.name if entry.dist else ""
            by_name.setdefault(entry.name, {}).setdefault((owner, entry.value), entry)
    working: dict[str, Loaded] = {}
    broken: dict[str, Broken] = {}
    for name, entries in sorted(by_name.items()):
        if len(entries) > 1:
            owners = " and ".join(sorted(f"{_owner(e)} ({e.value})" for e in entries.values()))
            broken[name] = Broken(name, owners, f"two plugins want the name '{name}'; uninstall one of them")
            continue
        plugin = _load(next(iter(entries.values())))
        (working if isinstance(plugin, Loaded) else broken)[name] = plugin
    for name in wanted - by_name.keys():
        broken[name] = Broken(name, "nobody", "named in ZOO_PLUGINS but not installed")
    core = _load(EntryPoint("", CORE, GROUP))
    if isinstance(core, Broken):
        raise ImportError(core.cause)
    return {"": Loaded("", "zoo", "moe-zoo", core.manifest), **working}, broken


def _specs(manifest: Plugin) -> Iterator[tuple[str, Spec]]:
    for kind, specs in (("model", manifest.models), ("data set", manifest.datasets), ("task", manifest.tasks)):
        for spec in specs:
            yield kind, spec
    for part in manifest.parts:
        yield getattr(part, "kind", "part"), part


def list_plugins() -> dict[str, Loaded]:
    """Working plugins by name (the core, which has no prefix, is not among them)."""
    return {name: plugin for name, plugin in _installed()[0].items() if name}


def broken_plugins() -> dict[str, Broken]:
    """Installed plugins that could not be used, with owner and cause."""
    return dict(_installed()[1])


@cache
def entries(kind: str) -> dict[str, Entry]:
    """All registered things of one kind (``model``, ``data set``, ``task``, or a part's kind) by full name."""
    found = {}
    for plugin in _installed()[0].values():
        for its_kind, spec in _specs(plugin.manifest):
            if its_kind == kind:
                name = f"{plugin.name}/{spec.name}" if plugin.name else spec.name
                found[name] = Entry(name, kind, spec, plugin)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def kinds() -> list[str]:
    """Every kind that somebody registered something of."""
    return sorted({kind for plugin in _installed()[0].values() for kind, _ in _specs(plugin.manifest)})


def refresh() -> None:
    """Forget what was found: the next look-up reads the installed distributions again."""
    _installed.cache_clear()
    entries.cache_clear()


def find(kind: str, name: str) -> Entry:
    """The entry of that name. Raises `ZooError` with close matches, or with the cause when its plugin is broken."""
    known = entries(kind)
    if name in known:
        return known[name]
    prefix = name.partition("/")[0] if "/" in name else ""
    if prefix in (broken := broken_plugins()):
        culprit = broken[prefix]
        raise ZooError(f"unknown {kind} '{name}': its plugin is broken ({culprit.owner}): {culprit.cause}")
    if other := next((k for k in kinds() if name in entries(k)), None):
        raise ZooError(f"unknown {kind} '{name}': that is a {other}; {suggest(name, known)}")
    raise ZooError(f"unknown {kind} '{name}'; {suggest(name, known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """``did you mean a, b?``, or the list of what there is when nothing comes close."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [k for k in known if k.rpartition("/")[2] == name and k not in near]
    if near:
        return f"did you mean {', '.join(near[:3])}?"
    return f"known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}" if known else "none is installed"


def split_tag(name: str) -> tuple[str, str]:
    """``plugin/model.tag`` to (``plugin/model``, ``tag``); the tag is empty when none is given."""
    model, _, tag = name.partition(".")
    return model, tag


def find_model(name: str) -> tuple[Entry, str]:
    """The model's entry and the tag in its name, checked. Raises `ZooError` naming the tags there are."""
    model, tag = split_tag(name)
    entry = find("model", model)
    assert isinstance(entry.spec, ModelSpec)
    if tag and tag not in entry.spec.pretrained:
        raise ZooError(f"model '{model}' has no pretrained tag '{tag}'; {suggest(tag, entry.spec.pretrained)}")
    return entry, tag


def list_models(pattern: str = "*", *, task: str | None = None, pretrained: bool = False) -> list[str]:
    """Names of models that match a wildcard, in natural order. With ``pretrained``, the names with their tags.

    Args:
        pattern: a wildcard such as ``"time_series/*"`` or ``"*moe*"``.
        task: only models of this task, for example ``"time_series/forecasting"`` or ``"forecasting"``.
    """
    names = []
    for name, entry in entries("model").items():
        spec = entry.spec
        assert isinstance(spec, ModelSpec)
        if task and task not in (spec.task, full_task(entry)):
            continue
        candidates = [f"{name}.{tag}" for tag in spec.pretrained] if pretrained else [name]
        names += [c for c in candidates if fnmatch.fnmatch(c, pattern) or fnmatch.fnmatch(c, f"*/{pattern}")]
    return names


def list_datasets(pattern: str = "*") -> list[str]:
    """Names of data sets that match a wildcard."""
    return [name for name in entries("data set") if fnmatch.fnmatch(name, pattern)]


def full_task(entry: Entry) -> str:
    """Full name of a model's task: a bare name is one of the model's own plugin."""
    task = entry.spec.task
    return task if "/" in task or not entry.plugin.name else f"{entry.plugin.name}/{task}"


def _natural(name: str) -> list[Any]:
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", name)]
