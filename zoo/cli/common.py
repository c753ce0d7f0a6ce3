"""What several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo import config as zc
from zoo.spec import ZooError

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.", metavar="[KEY=VALUE]...")]
SPLITS = ("train", "val", "test")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def pop(tree: zc.Tree, key: str, default: Any) -> Any:
    """Take a setting that belongs to the command itself out of the overrides; it must have the default's type."""
    value = tree.pop(key, default)
    if default is not None and not isinstance(value, type(default)):
        raise ZooError(f"{key}={value!r} is not a {type(default).__name__}")
    return value


def pop_count(tree: zc.Tree, key: str, default: int | None) -> Any:
    """Like `pop`, for a number of things, at least 1."""
    value = pop(tree, key, default)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ZooError(f"{key}={value!r} must be at least 1")
    return value


def pop_split(tree: zc.Tree) -> str:
    """Take ``split`` out of the overrides."""
    if (split := pop(tree, "split", "test")) not in SPLITS:
        raise ZooError(f"split='{split}' is no split of the data; choose one of {', '.join(SPLITS)}")
    return str(split)


def out_folder(out: Path) -> Path:
    """The folder ``--out`` names, made if need be. Raises `ZooError` when a file is in the way."""
    may_be_folder(out).mkdir(parents=True, exist_ok=True)
    return out


def may_be_folder(out: Path) -> Path:
    """The same before anything is made, so that what is refused later leaves no folder behind."""
    if not next(path for path in (out, *out.absolute().parents) if path.exists()).is_dir():
        raise ZooError(f"--out {out} is a file; name a folder")
    return out
