"""`zoo new-plugin`: a complete third-party distribution to start from.

It is a copy of the example that the tests build, install and train (``tests/example_plugin``), under another name: one
plugin that is known to work, and no second version of it in a template language.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from zoo import registry
from zoo.spec import ZooError

_PACKAGE = Path(__file__).parents[1]
_TEXT = {".md", ".py", ".toml", ".yaml"}


def new_plugin(name: str, out: Path) -> list[Path]:
    """Write the distribution of a plugin called ``name`` into the new folder ``out``; returns the files.

    Raises `ZooError` when the name cannot be a package's, when an installed package has it, or when ``out`` exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ZooError(f"'{name}' cannot name a plugin; use lower-case letters, digits and _, for example my_models")
    taken = {**registry.broken_plugins(), **registry.list_plugins()}
    if name in taken:
        raise ZooError(f"a plugin '{name}' is installed already, from {taken[name].owner}; choose another name")
    if importlib.util.find_spec(f"zoo_{name}"):
        raise ZooError(f"a package zoo_{name} is installed already; choose another name than '{name}'")
    if out.exists():
        raise ZooError(f"'{out}' exists already; name a new folder with --out, or move the old one away")
    example = _example()
    written = []
    for source in sorted(p for p in example.rglob("*") if p.suffix in _TEXT and "__pycache__" not in p.parts):
        target = out / str(source.relative_to(example)).replace("birdsong", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8").replace("birdsong-for-zoo", f"{name.replace('_', '-')}-for-zoo")
        target.write_text(text.replace("birdsong", name), encoding="utf-8")
        written.append(target)
    return written


def new_plugin_command(
    name: Annotated[str, typer.Argument(help="Name of the plugin, the first half of its models' names.")],
    out: Annotated[Path | None, typer.Option(help="Folder to make.", show_default="NAME-for-zoo")] = None,
) -> None:
    """Write a working plugin of your own: model, data set, task, scorer, recipe, card and test."""
    folder = out or Path(f"{name.replace('_', '-')}-for-zoo")
    for file in new_plugin(name, folder):
        typer.echo(file)
    typer.echo(f"\nnext:\n  pip install --no-deps -e {folder}\n  zoo list '{name}/*'\n  zoo train {name}/patch_moe")


def _example() -> Path:
    installed = _PACKAGE / "example_plugin"
    return installed if installed.is_dir() else _PACKAGE.parent / "tests" / "example_plugin"
