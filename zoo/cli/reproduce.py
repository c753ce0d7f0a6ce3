"""``zoo reproduce``: a paper's claim in miniature, with its rivals, an interval and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Json, Overrides, pop_count, print_json
from zoo.spec import ZooError

if TYPE_CHECKING:
    from zoo.claims.claim import File


def reproduce_command(
    name: Annotated[str | None, typer.Argument(help="plugin/system (see --list), or the path of a claim.")] = None,
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="All claims and how they ended.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check the contestants and show their sizes; run nothing.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of every contestant; no verdict.")] = False,
    update_card: Annotated[bool, typer.Option("--update-card", help="Write the result into claim and card.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run a claim: every contestant and seed, one after the other. Started again, it goes on where it stopped.

    Also: seeds=N (a verdict takes five) device=cpu|cuda. With --plan, --update-card writes what is known by now.
    """
    from zoo import config as zc
    from zoo.claims import claim as claims

    if show:
        _list(as_json)
        return
    if name is None:
        raise ZooError("name a claim: zoo reproduce plugin/system; zoo reproduce --list shows them")
    file = claims.find(name)
    claim = claims.read(file)
    tree = zc.from_dotlist(overrides or [])
    seeds = pop_count(tree, "seeds", claim.seeds)
    seeds = 1 if smoke else seeds
    device = str(tree.pop("device", "cpu"))
    if tree:
        raise ZooError(f"'{min(tree)}' is no setting of zoo reproduce, which knows seeds and device; edit {file.path}")
    trees = {contestant: {**t, "device": device} for contestant, t in claims.recipes(claim).items()}
    from zoo.claims.controls import check

    sizes = check(claim, trees)
    if plan:
        _plan(file, claim, trees, sizes, seeds, as_json)
        if update_card:
            _commit(file, claim)
        return
    import tempfile

    from zoo.claims import result
    from zoo.claims.runs import run_all

    with tempfile.TemporaryDirectory() as temporary:
        values, origins = run_all(
            claim,
            trees,
            Path(temporary) if smoke else out / "claims" / "runs",
            seeds,
            lambda line: typer.echo(line, err=True),
            smoke=smoke,
        )
    found = result.result(file, claim, trees, sizes, values, origins)
    if smoke:
        found["command"] += " --smoke"
    _print(found, smoke, as_json)
    if smoke:
        return
    report = out / "claims" / f"{file.name}.md"
    report.parent.mkdir(parents=True, exist_ok=True)
    files = result.plot(found, report.with_suffix(".png"))
    report.write_text(result.markdown(file, claim, found, report.with_suffix(".png").name))
    if update_card:
        files += result.commit(file, claim, found)
    for path in [*files, report]:
        typer.echo(f"wrote {path}", err=True)


def _commit(file: File, claim: Any) -> None:
    from zoo.claims import result

    for path in result.commit(file, claim, result.read(file)):
        typer.echo(f"wrote {path}", err=True)


def _list(as_json: bool) -> None:
    from zoo.claims import claim as claims
    from zoo.claims import result
    from zoo.report import table

    rows: list[dict[str, str]] = []
    for file in claims.claims().values():
        try:
            found, said = result.read(file), claims.read(file).claim
            row = {"name": file.name, "verdict": result.state(found), "by": result.brief(found) if found else ""}
        except ZooError as error:  # one plugin's mistake hides nobody else's claims
            row, said = {"name": file.name, "verdict": "broken", "by": str(error)}, ""
        rows.append(row | {"claim": said})
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("no installed plugin brings a claim")
    else:
        columns = ("name", "verdict", "by")
        table("claims (zoo reproduce NAME)", columns, [[row[c] for c in columns] for row in rows])


def _plan(file: File, claim: Any, trees: Any, sizes: Any, seeds: int, as_json: bool) -> None:
    from zoo.claims.claim import samples, tokens
    from zoo.report import table

    columns = ("contestant", "parameters", "FLOPs/token", "steps", "samples", "tokens")
    rows = [
        (name, sizes[name].parameters, sizes[name].flops, t["train"]["steps"], samples(t), tokens(t))
        for name, t in trees.items()
    ]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    typer.echo(f"{file.name}: {claim.claim}")
    table(f"{len(trees)} contestants, {seeds} seeds, {len(trees) * seeds} runs", columns, rows)


def _print(found: Any, smoke: bool, as_json: bool) -> None:
    from zoo.claims import result
    from zoo.report import table

    if as_json:
        print_json(found)
        return
    columns, rows = result.contestant_rows(found)
    table(f"{found['claim']}", columns, rows)
    table("paired differences", ("metric", "expected", "mean", "95%", ""), result.statement_rows(found))
    typer.echo("smoke test: every contestant runs; no verdict" if smoke else f"verdict: {result.state(found)}")
