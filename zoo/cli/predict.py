"""``zoo predict``: a trained model on a user's input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, Overrides, may_be_folder, out_folder, pop, print_json


def predict_command(
    name: Annotated[str, typer.Argument(help="plugin/model.tag, a run folder, or a saved model.")],
    inputs: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("out"),
    as_json: Json = False,
) -> None:
    """Use a model: input=FILE horizon=96 for forecasters, prompt="..." for language models; `zoo info NAME` lists any
    model's inputs. Also device=."""
    from zoo import config as zc
    from zoo import hub
    from zoo.report import console

    given = inputs or []
    device = pop(zc.from_dotlist([item for item in given if item.startswith("device=")]), "device", "cpu")
    predictor = hub.load(name, device=device)
    # A prompt such as "ROMEO:" is a text, though YAML reads a mapping.
    pairs = [item.partition("=") for item in given if not item.startswith("device=")]
    texts = {key: value for key, _, value in pairs if key in predictor.inputs and predictor.inputs[key].text}
    tree = texts | zc.from_dotlist(["".join(pair) for pair in pairs if pair[0] not in texts])
    may_be_folder(out)
    if not as_json and (pieces := predictor.stream(**tree)) is not None:
        result = _show(pieces)
    else:
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


def _show(pieces: Iterator[str]) -> Any:
    """Print a text as it comes; returns the generator's value."""
    while True:
        try:
            typer.echo(next(pieces), nl=False)
        except StopIteration as end:
            typer.echo()
            return end.value
