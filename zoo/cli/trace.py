"""``zoo trace``: what the routers of a model do on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Json, Overrides, may_be_folder, pop, pop_count, pop_split, print_json

if TYPE_CHECKING:
    from zoo import config as zc
    from zoo.trace import RoutingTrace


def trace_command(
    name: Annotated[str, typer.Argument(help="plugin/model.tag, a run folder, a saved model, or hf:FOLDER.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the trace, metrics.json and plots.")] = None,
    as_json: Json = False,
) -> None:
    """Trace the routing of a model: load, specialisation, co-activation, transitions, locality, congestion.

    Data are those of its recipe unless data=... names others. Also: device=cpu|cuda split=test batch_size=32 limit=N
    logits=true. A model of transformers is hf:FOLDER or hf:ORG/NAME, its data text files, data=FILE or data=[A,B] (one
    domain a file), cut into pieces of length=256 tokens.
    """
    from zoo import config as zc
    from zoo.trace import analyse, write_report
    from zoo.trace.analyse import tables

    tree = zc.from_dotlist(overrides or [])
    folder = out or (Path(name) / "trace" if Path(name).is_dir() else Path("runs") / "trace" / name.removeprefix("hf:"))
    traced = (_trace_hf if name.startswith("hf:") else _trace)(name, tree, may_be_folder(folder) / "routing")
    report = analyse(traced)
    files = write_report(traced, report, folder)
    if as_json:
        print_json(report)
        return
    from zoo.report import table

    typer.echo(f"routing of {name}: {traced.tokens:,} tokens")
    for title, (columns, rows) in tables(traced, report).items():
        table(title, columns, rows)
    for file in (folder / "routing", *files):
        typer.echo(f"wrote {file}")


def _trace(name: str, tree: zc.Tree, folder: Path) -> RoutingTrace:
    from torch.utils.data import DataLoader, Subset

    from zoo import config as zc
    from zoo import hub
    from zoo.eval.data import data_section
    from zoo.trace import record
    from zoo.train.sampling import spread
    from zoo.train.task import match

    device, split, logits = pop(tree, "device", "cpu"), pop_split(tree), pop(tree, "logits", True)
    batch_size, limit = pop_count(tree, "batch_size", 32), pop_count(tree, "limit", None)
    section = data_section(name, tree, "trace", ("logits",))
    predictor = hub.load(name, device=device)
    data: Any = zc.build("data set", section)
    match(predictor.task, predictor.model, data, predictor.preprocessing)
    for note in data.notes:
        typer.echo(f"data: {note}", err=True)
    dataset = data.split(split)
    if limit is not None:
        dataset = Subset(dataset, spread(len(dataset), limit))
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=getattr(data, "collate", None))
    batches = ({key: value.to(device) for key, value in batch.items()} for batch in loader)
    info = {"name": predictor.name, "data": section, "split": split}
    return record(predictor.model, batches, predictor.task.loss, folder, logits=logits, info=info)


def _trace_hf(name: str, tree: zc.Tree, folder: Path) -> RoutingTrace:
    from zoo import registry
    from zoo.integrations import text
    from zoo.integrations.adapter import Adapter
    from zoo.spec import ZooError

    device, length, logits = pop(tree, "device", "cpu"), pop_count(tree, "length", 256), pop(tree, "logits", True)
    batch_size, limit, data = pop_count(tree, "batch_size", 8), pop_count(tree, "limit", None), pop(tree, "data", None)
    if tree:
        known = ("data", "device", "length", "batch_size", "limit", "logits")
        raise ZooError(f"unknown setting '{min(tree)}' of zoo trace {name}; {registry.suggest(min(tree), known)}")
    if not data:
        raise ZooError(f"'{name}' brings no data of its own; name text files: data=FILE or data=[A,B]")
    files = [Path(str(file)) for file in (data if isinstance(data, list) else [data])]
    model, tokenizer = text.load(name.removeprefix("hf:"), device)
    info = {"name": name, "data": [str(file) for file in files], "names": {"domain": [file.stem for file in files]}}
    pieces = text.batches(tokenizer, files, length, batch_size, limit, device)
    return Adapter(model).trace(pieces, folder, logits=logits, info=info)
