"""``zoo predict``: a trained model on a user's input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Json, Overrides, out_folder, pop, print_json


def predict_command(
    name: Annotated[str, typer.Argument(help="plugin/model.tag, a run folder, or a saved model.")],
    inputs: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("out"),
    as_json: Json = False,
) -> None:
    """Use a model: input=FILE horizon=96 for forecasters; `zoo info NAME` lists any model's inputs. Also device=."""
    from zoo import config as zc
    from zoo import hub
    from zoo.report import console

    tree = zc.from_dotlist(inputs or [])
    device = pop(tree, "device", "cpu")
    predictor = hub.load(name, device=device)
    with console(stderr=True).status("predicting"):
        result = predictor.predict(**tree)
    for note in getattr(result, "notes", ()):
        typer.echo(f"data: {note}", err=True)
    files = predictor.write(result, out_folder(out))
    if as_json:
        print_json({"name": name, "inputs": tree, "files": [str(file) for file in files]})
        return
    for file in files:
        typer.echo(f"wrote {file}")
