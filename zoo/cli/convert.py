"""``zoo convert``: public or pickled checkpoints into folders that the zoo loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Overrides


def convert_command(
    source: Annotated[str, typer.Argument(help="File or folder of weights, or hf-hub:ORG/NAME@REVISION.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write: config.json and model.safetensors.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="plugin/model that the weights are of.")] = "",
    importer: Annotated[str, typer.Option(help="Which of the model's importers reads their layout.")] = "",
) -> None:
    """Turn a checkpoint into a model of the zoo. Pickles (.pt, .bin, .ckpt) are read without running them.

    Settings that differ from the model's defaults are written key=value when no config.json lies beside the weights.
    """
    from zoo import config as zc
    from zoo.hub.convert import convert
    from zoo.report import console

    with console(stderr=True).status("converting"):
        converted = convert(source, to, model, importer, zc.from_dotlist(overrides or []))
    count = sum(parameter.numel() for parameter in converted.parameters())
    typer.echo(f"wrote {to}: {converted.zoo_name}, {count:,} parameters")
