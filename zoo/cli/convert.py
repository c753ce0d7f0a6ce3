"""``zoo convert``: public or pickled checkpoints into folders that the zoo loads, and back into public layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Overrides
from zoo.spec import ZooError


def convert_command(
    source: Annotated[str, typer.Argument(help="File or folder of weights, or hf-hub:ORG/NAME@REVISION.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write: config.json and model.safetensors.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="plugin/model that the weights are of.")] = "",
    importer: Annotated[str, typer.Option(help="Which of the model's importers reads their layout.")] = "",
    export: Annotated[str, typer.Option(help="Write a model of the zoo in this public layout, such as mixtral.")] = "",
    dialect: Annotated[str, typer.Option(help="With --export: other names of the keys, such as fused.")] = "",
) -> None:
    """Turn a checkpoint into a model of the zoo. Pickles (.pt, .bin, .ckpt) are read without running them.

    Settings that differ from the model's defaults are written key=value when no config.json lies beside the weights.
    With --export it is the other way round: SOURCE is a model of the zoo, and other libraries read what is written.
    """
    if export or dialect:
        _export(source, to, export, dialect, {"--model": model, "--importer": importer, "key=value": overrides})
        return
    from zoo import config as zc
    from zoo.hub.convert import convert
    from zoo.report import console

    with console(stderr=True).status("converting"):
        converted = convert(source, to, model, importer, zc.from_dotlist(overrides or []))
    count = sum(parameter.numel() for parameter in converted.parameters())
    typer.echo(f"wrote {to}: {converted.zoo_name}, {count:,} parameters")


def _export(source: str, to: Path, layout: str, dialect: str, others: Mapping[str, object]) -> None:
    import zoo
    from zoo.hub import folder
    from zoo.hub.export import export

    if unfit := [name for name, value in others.items() if value]:
        raise ZooError(f"--export takes a model of the zoo as it is, without {unfit[0]}; convert it first")
    if not layout:
        raise ZooError("--dialect is one of a layout's; name the layout with --export")
    if folder.same(Path(source), to):
        raise ZooError(f"--to {to} is where the weights come from; name another folder")
    export(zoo.load(source).model, to, layout, dialect)
    typer.echo(f"wrote {to} in the layout {layout}")
