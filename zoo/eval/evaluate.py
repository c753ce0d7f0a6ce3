"""`zoo eval`: one pass over a split, the model and its rivals side by side."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from zoo import __version__
from zoo import config as zc
from zoo.hub import Predictor
from zoo.moe.stats import ExpertLoad
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Data, match


@dataclass
class Report:
    """Numbers of an evaluation: ``metrics`` of the model, ``rivals`` by name, without what one has nothing to say to;
    expert load by layer, their origin; ``settings`` of the task that were other than those saved with the model."""

    name: str
    split: str
    data: dict[str, Any]
    items: int
    metrics: dict[str, float]
    rivals: dict[str, dict[str, float]]
    seconds: float
    load: list[dict[str, float]] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    zoo: str = __version__

    def to_json(self) -> str:
        return json.dumps(self.__dict__, indent=2)


def set_task(predictor: Predictor, settings: zc.Tree) -> None:
    """Lay settings over those of the task that a model was saved with, ``{"episodes": 50}``.

    Raises:
        ZooError: the task has no such setting, or refuses the value.
    """
    if not settings:
        return
    task = predictor.task
    tree = zc.resolve(type(task).Config, zc.merge(dataclasses.asdict(task.config), settings))
    predictor.task = type(task)(zc.to_object(type(task).Config, tree))


def evaluate(
    predictor: Predictor,
    data_config: dict[str, Any],
    *,
    split: str = "test",
    batch_size: int = 256,
    limit: int | None = None,
    data: Data | None = None,
    rivals: bool = True,
    quiet: bool = False,
) -> Report:
    """Score a model on a split of a data set.

    Args:
        data_config: resolved ``data`` section of a recipe; ``data`` is the set itself where it is already built.
        rivals: score the task's rivals too.
        limit: score this many items, spread over the split, instead of all. The report says how many there were.
    """
    if data is None:
        data = zc.build("data set", data_config)
    match(predictor.task, predictor.model, data, predictor.preprocessing)
    if not quiet:
        for note in data.notes:
            print(f"data: {note}", file=sys.stderr)
    dataset: Any = data.split(split)
    if limit is not None:
        if limit < 1:
            raise ZooError(f"limit={limit} must be at least 1 item")
        dataset = torch.utils.data.Subset(dataset, spread(len(dataset), limit))
    task, device = predictor.task, predictor.model.device
    models = {"": predictor.model, **(task.rivals(data.preprocessing) if rivals else {})}
    for rival in models.values():
        if rival is not predictor.model and callable(fit := getattr(rival, "fit", None)):
            fit(data.split("train"), data.split("val"))
    metrics = {name: task.metrics().to(device) for name in models}
    load, start = ExpertLoad(), time.perf_counter()
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=getattr(data, "collate", None))
    with torch.inference_mode(), load.watching(predictor.model):
        for model in models.values():
            model.to(device).eval()
        for batch in _track(loader, quiet):
            batch = {key: value.to(device) for key, value in batch.items()}
            for name, model in models.items():
                task.update(metrics[name], model, batch)
    found = {name: {k: float(v) for k, v in m.compute().items()} for name, m in metrics.items()}
    with torch.inference_mode():
        for name, model in models.items():
            found[name] |= task.assess(model, data, split, limit)
    results = task.conclude(found, data.preprocessing, split)
    return Report(
        name=predictor.name,
        split=split,
        data=dict(data_config),
        items=len(dataset),
        metrics=results.pop(""),
        rivals=results,
        seconds=round(time.perf_counter() - start, 2),
        load=load.summary(),
        shares=[share.tolist() for share in load.shares()],
    )


def write(report: Report, predictor: Predictor, data: Data, out: Path, plots: bool = True) -> list[Path]:
    """``eval.json``, and with ``plots`` the task's pictures and the heat map of expert load."""
    from zoo.report import plot_expert_load

    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(report.to_json())
    if not plots:
        return [out / "eval.json"]
    files = [out / "eval.json", *predictor.task.plot(predictor.model, data, out)]
    return files + plot_expert_load([torch.tensor(s) for s in report.shares], out / "expert_load.png")


def _track(loader: DataLoader[Any], quiet: bool) -> Iterator[Any]:
    if quiet:
        yield from loader
        return
    from rich.progress import track

    from zoo.report import console

    yield from track(loader, "evaluating", console=console(stderr=True), transient=True)
