"""``zoo eval``: a pretrained tag, a run folder or a saved model over every item of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, Overrides, out_folder, pop, pop_count, pop_split, print_json
from zoo.spec import ZooError


def eval_command(
    name: Annotated[str, typer.Argument(help="plugin/model.tag, a run folder, or a saved model.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for eval.json and plots.")] = None,
    update_card: Annotated[bool, typer.Option("--update-card", help="Write the numbers into the model card.")] = False,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Write the task's pictures.")] = True,
    as_json: Json = False,
) -> None:
    """Evaluate a model beside its rivals. Data are those of its recipe unless data=... names others.

    Also: device=cpu|cuda split=test batch_size=256 limit=N (that many items, spread over the split), and settings of
    the model's task (episodes=50, say); suite=plugin/name over many data sets (only=TEXT: those whose label has it).
    """
    from zoo import config as zc
    from zoo import hub
    from zoo.eval.data import data_section
    from zoo.eval.evaluate import evaluate, set_task, write

    tree = zc.from_dotlist(overrides or [])
    device, split = pop(tree, "device", "cpu"), pop_split(tree)
    batch_size, limit = pop_count(tree, "batch_size", 256), pop_count(tree, "limit", None)
    if update_card:
        from zoo.eval.card import place

        place(name)
        if limit is not None:
            raise ZooError(f"a card tells of whole splits; leave out limit={limit}, or --update-card")
    if "suite" in tree:
        from zoo.cli.suite import suite_command

        files = suite_command(name, tree, device, batch_size, limit, out, as_json)
        for file in files:
            typer.echo(f"wrote {file}")
        return
    section = data_section(name, tree, more=("task",))
    tree.pop("data", None)
    predictor = hub.load(name, device=device)
    set_task(predictor, tree)
    data: Any = zc.build("data set", section)
    report = evaluate(predictor, section, split=split, batch_size=batch_size, limit=limit, data=data)
    report.settings = tree
    folder = out or (Path(name) / "eval" if Path(name).is_dir() else Path("runs") / "eval" / name)
    files = write(report, predictor, data, out_folder(folder), plots=plot)
    if update_card:
        from zoo.eval.card import update

        files.append(update(name, report))
    if as_json:
        print_json(report.__dict__)
        return
    from zoo.report import table

    columns = list(report.metrics)
    rows = [(n, *(values.get(c) for c in columns)) for n, values in {name: report.metrics, **report.rivals}.items()]
    table(f"{section['name']} {split}: {report.items:,} items in {report.seconds:.3g} s", ("model", *columns), rows)
    if report.load:
        load = [(i, row["entropy"], row["dead"], row["max_vio"]) for i, row in enumerate(report.load)]
        table("expert load", ("MoE layer", "entropy", "dead", "max violation"), load)
    for file in files:
        typer.echo(f"wrote {file}")
    wanted = "".join(f" {key}=..." for key, known in predictor.inputs.items() if known.required)
    typer.echo(f"\nNext:\n  zoo predict {name}{wanted} --out predictions\n  zoo info {name}")
