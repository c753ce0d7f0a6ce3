"""``zoo upcycle``: a mixture-of-experts model from a dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Overrides


def upcycle_command(
    source: Annotated[str, typer.Argument(help="Dense model: plugin/model.tag, a folder, or hf-hub:ORG/NAME.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write: config.json and model.safetensors.")],
    overrides: Overrides = None,
    method: Annotated[
        str, typer.Option(help="clone: each expert is the MLP; split: k experts together are.")
    ] = "clone",
    experts: Annotated[int, typer.Option(help="Experts of each mixture.")] = 8,
    k: Annotated[int, typer.Option("-k", "--k", help="Experts that a token takes.")] = 2,
    every: Annotated[int, typer.Option(help="A mixture in every so many-th layer; dense ones between.")] = 1,
    noise: Annotated[float, typer.Option(help="Of clones, in standard deviations of each matrix.")] = 0.0,
    model: Annotated[str, typer.Option(help="plugin/model that a public checkpoint is of, if it does not say.")] = "",
) -> None:
    """Turn the MLPs of a dense model into mixtures. Without noise the result computes what the dense model does, and
    training goes on from there. Settings of the new model are written key=value."""
    from zoo import config as zc
    from zoo import hub
    from zoo.hub import folder
    from zoo.hub.convert import is_foreign, opened
    from zoo.report import console
    from zoo.spec import ZooError
    from zoo.surgery.upcycle import upcycle

    if source.endswith("/") and not Path(source).is_dir():
        raise ZooError(f"folder '{source}' does not exist; name one, plugin/model.tag or hf-hub:ORG/NAME")
    if folder.same(Path(source), to):
        raise ZooError(f"--to {to} is where the weights come from; name another folder")
    with console(stderr=True).status("upcycling"):
        dense = opened(source, model) if model or is_foreign(source) else hub.load(source).model
        new = upcycle(
            dense,
            experts,
            k,
            method,
            every=every,
            noise=noise,
            overrides=zc.from_dotlist(overrides or []),  # type: ignore[arg-type]
        )
        hub.save(to, new, extra={"upcycled_from": source, "method": method})
    counts = [f"{sum(p.numel() for p in each.parameters()):,}" for each in (dense, new)]
    typer.echo(f"wrote {to}: {experts} experts a layer by {method}, {counts[0]} parameters became {counts[1]}")
