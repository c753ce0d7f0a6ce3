"""Configs: a dataclass schema, YAML recipes and ``key=value`` on the command line, merged in one order.

    schema defaults < the model's own YAML < the recipe's ``defaults:`` < the recipe < ``key=value``

A *part* is a node ``{name: REGISTERED, ...settings}`` whose schema is the ``Config`` of what is registered under that
name. Naming another part discards the settings of the old one, so nothing stale survives. A config names registered
things only, and interpolation is refused: a config that came with somebody's checkpoint cannot run code or read the
environment.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from zoo import registry, resources
from zoo.spec import ZooError

T = TypeVar("T")
Tree = dict[str, Any]


# -- declaring -------------------------------------------------------------------------------------------------------


def part(kind: str, name: str | None = None, **settings: Any) -> Any:
    """A dataclass field that chooses a registered part of ``kind``; ``None`` as name means that it may be absent."""
    default = {"name": name, **settings} if name else None
    return dataclasses.field(default_factory=lambda: default and dict(default), metadata={"part": kind})


def parts(kind: str, **chosen: Mapping[str, Any]) -> Any:
    """A dataclass field that chooses any number of parts of ``kind``, keyed by name: ``{switch: {coef: 0.01}}``."""
    return dataclasses.field(default_factory=lambda: {k: dict(v) for k, v in chosen.items()}, metadata={"parts": kind})


# -- reading and merging ---------------------------------------------------------------------------------------------


def merge(base: Any, over: Any) -> Any:
    """``over`` laid on ``base``. Another ``name`` discards its siblings; a bare string chooses a part by name."""
    if isinstance(base, Mapping) and "name" in base and isinstance(over, str):
        over = {"name": over}
    if isinstance(base, str) and isinstance(over, Mapping):
        base = {"name": base}
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    if "name" in over and over["name"] != base.get("name"):
        return dict(over)
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}


def read_yaml(path: Path) -> Tree:
    """A YAML file as a plain tree. Raises `ZooError` for what is missing, malformed or interpolated."""
    try:
        node = OmegaConf.load(path)
    except FileNotFoundError:
        raise ZooError(f"config '{path}' does not exist; check the path, or see `zoo list` for recipes") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        cause = f"line {mark.line + 1}: {error.problem}" if mark else _first_line(error)  # type: ignore[attr-defined]
        raise ZooError(f"config '{path}' cannot be read as YAML: {cause}") from error
    tree = OmegaConf.to_container(node, resolve=False)
    if not isinstance(tree, dict):
        raise ZooError(f"config '{path}' must be a mapping of sections, not a {type(tree).__name__}")
    return refuse_interpolation(tree, str(path))


def read_with_defaults(path: Path, root: Path, _chain: tuple[Path, ...] = ()) -> Tree:
    """A recipe with its ``defaults:`` merged below it, in order: other YAML files, relative to ``root``, or installed
    recipes by ``plugin/name``."""
    if path in _chain:
        raise ZooError(f"config '{path}' includes itself through its defaults; remove one of them")
    tree = read_yaml(path)
    names = tree.pop("defaults", [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ZooError(f"config '{path}': defaults must be a list of file names")
    below: Tree = {}
    for name in names:
        file, its_root = (root / name).with_suffix(".yaml"), root
        if not file.is_file() and name in (known := recipes()):
            file, its_root = known[name], known[name].parent
        below = merge(below, read_with_defaults(file, its_root, (*_chain, path)))
    return merge(below, tree)


def from_dotlist(overrides: Sequence[str]) -> Tree:
    """``["a.b=1", "c=x"]`` as a tree; values are read as YAML. Parts are named before their settings, in any order."""
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key.strip():
            raise ZooError(f"'{item}' is not an override; write key=value, for example train.steps=100")
    tree: Tree = {}
    for item in sorted(overrides, key=_naming_first):
        try:
            tree = merge(tree, OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ZooError(f"cannot read the override {item}: {_first_line(error)}") from error
    return typing.cast(Tree, refuse_interpolation(tree, "the command line"))


def _naming_first(item: str) -> tuple[int, bool]:
    keys = item.partition("=")[0].split(".")
    return len(keys), keys[-1] != "name"


def refuse_interpolation(tree: Any, where: str) -> Any:
    """The tree itself, when no string in it asks OmegaConf to resolve something."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, str) and "${" in node:
            raise ZooError(f"{where}: '{node}' is an interpolation, which configs may not use; write the value")
        stack.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return tree


def model_defaults(name: str) -> Tree:
    """The model's own YAML, ``models/<name>.yaml`` among its plugin's configs, with its name; else the name alone."""
    entry = registry.find("model", name)
    root = resources.plugin_configs(entry.plugin.name, entry.plugin.package)
    path = root / "models" / f"{entry.spec.name}.yaml"
    return {"name": name, **(read_with_defaults(path, root) if path.is_file() else {})}


def recipe_path(recipe: str) -> tuple[Path, Path]:
    """A recipe's file and the folder its ``defaults`` are relative to, from ``plugin/name`` or the path of a file."""
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe), Path(recipe).parent
    plugin = recipe.partition("/")[0]
    known = recipes()
    if recipe not in known:
        if plugin in (broken := registry.broken_plugins()):
            raise ZooError(
                f"unknown recipe '{recipe}': plugin {broken[plugin].owner} is broken: {broken[plugin].cause}"
            )
        here = next((f"{recipe}{end}" for end in (".yaml", ".yml") if Path(f"{recipe}{end}").is_file()), None)
        raise ZooError(
            f"unknown recipe '{recipe}'; {f'did you mean {here}?' if here else registry.suggest(recipe, known)}"
        )
    return known[recipe], known[recipe].parent


def recipes() -> dict[str, Path]:
    """Every recipe that the installed plugins ship, by ``plugin/name``. A name that starts with ``_`` is a fragment."""
    return _shipped("*.yaml")


def suites() -> dict[str, Path]:
    """Every suite of evaluations that the installed plugins ship, by ``plugin/name``."""
    return _shipped("suites/*.yaml")


def _shipped(pattern: str) -> dict[str, Path]:
    return {
        f"{plugin.name}/{path.stem}": path
        for plugin in registry.list_plugins().values()
        for path in sorted(resources.plugin_configs(plugin.name, plugin.package).glob(pattern))
        if not path.stem.startswith("_")
    }


# -- checking and building -------------------------------------------------------------------------------------------


def resolve(schema: type, tree: Mapping[str, Any], path: str = "") -> Tree:
    """The whole tree, checked against the schema and filled with its defaults, as plain data.

    Raises `ZooError` that names the dotted key and the near miss: unknown keys, wrong types, missing values, parts
    that nobody registered.
    """
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in tree:
        if key not in fields:
            near = registry.suggest(str(key), fields) if fields else f"{path or 'it'} has no settings"
            raise ZooError(f"unknown config key '{_join(path, key)}'; {near}")
    resolved: Tree = {}
    for name, field in fields.items():
        where, given = _join(path, name), name in tree
        value = tree[name] if given else _default(field)
        if "part" in field.metadata:
            base = _default(field)
            value = merge(base, value) if base is not None and value is not None else value
            resolved[name] = resolve_part(field.metadata["part"], value, where)
        elif kind := field.metadata.get("parts"):
            value = merge(_default(field), value) if given else value
            if not isinstance(value, Mapping):
                raise ZooError(f"config key '{where}' must map names of parts to their settings, not {value!r}")
            resolved[name] = {  # a default part that was switched off stays as null, so that it is not filled in again
                key: None if node is None else _settings(_chosen(kind, key, node, _join(where, key)))
                for key, node in value.items()
            }
        elif dataclasses.is_dataclass(hints[name]):
            resolved[name] = resolve(typing.cast(type, hints[name]), _section(value, where), where)
        elif (each := _sections_of(hints[name])) is not None:
            resolved[name] = {
                key: resolve(each, _section(node, _join(where, key)), _join(where, key))
                for key, node in _section(value, where).items()
            }
        else:
            resolved[name] = _leaf(name, hints[name], value, where)
    return resolved


def resolve_part(kind: str, node: Any, path: str) -> Tree | None:
    """``{name, ...settings}`` checked against the ``Config`` of the part of that name; ``None`` stays ``None``."""
    if node is None:
        return None
    if isinstance(node, str):
        node = {"name": node}
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        raise ZooError(f"config key '{path}' must name a {kind}, for example {path}.name={_an_example(kind)}")
    name = node["name"]
    if kind == "model":
        if registry.find_model(name)[1]:
            raise ZooError(f"config key '{path}.name': '{name}' means weights, and a config names the model alone")
        node = merge(model_defaults(name), {**node, "name": name})
    try:
        target = registry.find(kind, name).load()
    except ZooError as error:
        raise ZooError(f"config key '{path}': {error}") from error
    return {"name": name, **resolve(target.Config, _settings(node), path)}


def _chosen(kind: str, name: str, node: Any, path: str) -> Tree:
    if not isinstance(node, Mapping):
        raise ZooError(f"config key '{path}' is a section; set its keys, not {node!r}, or null to leave it out")
    return typing.cast(Tree, resolve_part(kind, {**node, "name": name}, path))


def to_object(schema: type[T], tree: Mapping[str, Any]) -> T:
    """A resolved tree as an instance of its dataclass; parts stay plain trees for `build`."""
    hints = typing.get_type_hints(schema)
    values = {}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        value, hint = tree[field.name], hints[field.name]
        if (each := _sections_of(hint)) is not None:
            value = {key: to_object(each, node) for key, node in value.items()}
        elif dataclasses.is_dataclass(hint) and not field.metadata:
            value = to_object(typing.cast(type, hint), value)
        values[field.name] = value
    return schema(**values)


def build(kind: str, node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What a resolved part node describes: ``target(config, *args, **kwargs)``, the config a ``Config``."""
    if node is None:
        raise ZooError(f"'{kind}' is null where a name is needed, for example {_an_example(kind)}")
    target = registry.find(kind, node["name"]).load()
    settings = resolve(target.Config, _settings(node), node["name"])
    return target(to_object(target.Config, settings), *args, **kwargs)


def make(schema: type[T], **values: Any) -> T:
    """An instance of a schema from keyword values, checked and filled like any config. For code and tests."""
    return to_object(schema, resolve(schema, values))


def at_least(least: float, config: Any, *names: str) -> None:
    """Raise `ZooError` for a field below ``least``, or NaN; None passes. For ``__post_init__`` of a schema."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ZooError(f"{name}={value} must be at least {least}")


def _section(value: Any, path: str) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        raise ZooError(f"config key '{path}' is a section; set its keys, not {value!r}")
    return value


def _sections_of(hint: Any) -> type | None:
    """The dataclass in ``dict[str, dataclass]``: named sections, in the order in which they are written."""
    if typing.get_origin(hint) is not dict or not dataclasses.is_dataclass(each := typing.get_args(hint)[1]):
        return None
    return typing.cast(type, each)


def _settings(node: Mapping[str, Any]) -> Tree:
    return {key: value for key, value in node.items() if key != "name"}


def _leaf(name: str, hint: Any, value: Any, path: str) -> Any:
    if value == MISSING:
        raise ZooError(f"config key '{path}' has no default; set it: {path}=...")
    if isinstance(value, tuple):
        value = list(value)
    plain = value is None or isinstance(value, str | int | float)
    try:
        return _scalar(name, hint, value) if plain else _convert(name, hint, value)
    except OmegaConfBaseException as error:
        wanted = getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
        wanted = wanted if typing.get_origin(hint) is None else str(hint).replace("typing.", "")
        raise ZooError(f"config key '{path}': {value!r} is not a {wanted} ({_first_line(error)})") from error


def _convert(name: str, hint: Any, value: Any) -> Any:
    one = dataclasses.make_dataclass("Leaf", [(name, hint)])
    merged = OmegaConf.merge(OmegaConf.structured(one), {name: value})
    return OmegaConf.to_container(merged, resolve=False)[name]  # type: ignore[call-overload,index]


# The layers of a deep model ask for the same few values again and again; typed, since 1 is no 1.0 and no True.
_scalar = functools.lru_cache(maxsize=4096, typed=True)(_convert)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _an_example(kind: str) -> str:
    return next(iter(registry.entries(kind)), "NAME")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
