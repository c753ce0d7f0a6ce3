"""The runs behind a claim: one for each contestant and seed, one after the other, each in a folder of its own.

    <out>/claims/runs/<plugin>/<model>-<digest>-s<seed>/     a run folder of `zoo train`, and
        eval.json                                            what `zoo eval --json` says of it
        trace.json                                           what `zoo trace --json` says, of the metrics asked for

The digest is that of the resolved config and of how it is evaluated: what is finished is skipped, by whichever claim it
was run; what was interrupted goes on from its last checkpoint; and a run of other settings never counts.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoo import config as zc
from zoo import hub
from zoo.claims.claim import Claim, Metric, digest
from zoo.eval.evaluate import evaluate
from zoo.spec import ZooError
from zoo.train.logs import read_logs
from zoo.train.run import train, write_folder
from zoo.train.task import match

Values = dict[str, dict[str, list[float]]]
SMOKE_STEPS, SMOKE_ITEMS = 3, 32


def smaller(tree: zc.Tree) -> zc.Tree:
    """A recipe cut down to a few steps."""
    few = {"steps": min(SMOKE_STEPS, tree["train"]["steps"]), "val_batches": 1, "log_every": 1}
    stages = {name: {**stage, "steps": min(SMOKE_STEPS, stage["steps"])} for name, stage in tree["stages"].items()}
    return {**tree, "train": {**tree["train"], **few}, "stages": stages}


def run_all(
    claim: Claim,
    trees: Mapping[str, zc.Tree],
    folder: Path,
    seeds: int,
    tell: Callable[[str], None],
    *,
    smoke: bool = False,
) -> tuple[Values, dict[str, list[str]]]:
    """Run what is missing; then the values, by metric and contestant in the order of the seeds, and where from: the
    commits and data that the runs name. One process at a time works in a folder; the next waits.

    Raises:
        ZooError: a run failed; its contestant and seed are named. Started again, it goes on from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tell(f"another zoo reproduce works in {folder}; waiting for it")
        lock.acquire()
    try:
        return _run_all(claim, trees, folder, seeds, tell, smoke)
    finally:
        lock.release()


def _run_all(
    claim: Claim, trees: Mapping[str, zc.Tree], folder: Path, seeds: int, tell: Callable[[str], None], smoke: bool
) -> tuple[Values, dict[str, list[str]]]:
    values: Values = {metric: {name: [] for name in trees} for metric in claim.metrics}
    origins: dict[str, list[str]] = {}
    limit = SMOKE_ITEMS if smoke else claim.limit
    done, total = 0, len(trees) * seeds
    for seed in range(seeds):
        folders: dict[str, Path] = {}
        shared: list[Path] = []
        if claim.share:
            first = next(iter(trees.values()))
            shared = _share(claim, smaller(first) if smoke else first, folder, seed, tell)
        for name, base in trees.items():
            tree = {**(smaller(base) if smoke else base), "seed": seed}
            settings = {k: v for k, v in tree.items() if k not in ("out", "resume", "device", "seed")}
            of = folders.get(claim.contestants[name].of or "")
            needed = [*([of] if of else []), *(path.parents[1] for path in shared)]
            before = [path.name.rpartition("-s")[0] for path in needed]
            mark = digest([settings, claim.split, limit, *(before or [None])])
            here = folders[name] = folder / f"{tree['model']['name']}-{mark}-s{seed}"
            done += 1
            finished = (here / "eval.json").is_file()
            tell(f"[{done}/{total}] {name}, seed {seed}{': finished before' if finished else ''}")
            try:
                if not finished:
                    _train(_after(tree, claim.share, shared), here, of)
                _assess(claim, tree, here, limit)
                for metric, definition in claim.metrics.items():
                    trained = of if of and definition.log else here
                    values[metric][name].append(read_metric(metric, definition, trained, any_step=smoke))
                _origins(origins, here)
            except ZooError as error:
                raise ZooError(f"contestant '{name}', seed {seed} ({here}): {error}") from error
    return values, origins


def _share(claim: Claim, base: zc.Tree, folder: Path, seed: int, tell: Callable[[str], None]) -> list[Path]:
    """The models after the stages that all contestants share; these are trained unless they were."""
    stages = {name: base["stages"][name] for name in claim.share}
    tree = {**base, "stages": stages, "seed": seed}
    settings = {k: v for k, v in tree.items() if k not in ("out", "resume", "device", "seed")}
    here = folder / f"{tree['model']['name']}-shared-{digest(settings)}-s{seed}"
    if not (here / "model" / hub.folder.CONFIG).is_file():
        tell(f"{', '.join(claim.share)} for all, seed {seed}")
        train(tree, here, quiet=True)
    return [here / "stages" / name for name in stages]


def _after(tree: zc.Tree, share: Sequence[str], shared: Sequence[Path]) -> zc.Tree:
    """The recipe without the stages that were trained for all; what these trained is loaded first."""
    if not shared:
        return tree
    what = [pattern for name in share for pattern in tree["stages"][name]["trainable"]]
    stages = {name: stage for name, stage in tree["stages"].items() if name not in share}
    first = next(iter(stages))
    if stages[first]["init"] is not None:
        raise ZooError(f"stages.{first} has an init, so that no stage before it can be shared; remove share")
    load = {"name": "load", "path": str(shared[-1]), "what": what}
    return {**tree, "stages": {**stages, first: {**stages[first], "init": load}}}


def _train(tree: zc.Tree, folder: Path, of: Path | None) -> None:
    """Train as `zoo train` does; or take another run's weights into a model of these settings."""
    if of is None:
        train(tree, folder, quiet=True)
        return
    settings = {key: value for key, value in tree["model"].items() if key != "name"}
    model, trained = hub.create_model(tree["model"]["name"], **settings), hub.load(of)
    hub.folder.fill(model, hub.folder.unique_state(trained.model), str(of))
    write_folder(tree, folder)
    hub.save(folder / "model", model, task=tree["task"], preprocessing=trained.preprocessing)


def _assess(claim: Claim, tree: zc.Tree, folder: Path, limit: int | None) -> None:
    """``eval.json``, and ``trace.json`` where a metric wants it, unless they are there."""
    wanted = {metric.trace.partition(".")[0] for metric in claim.metrics.values() if metric.trace}
    known = json.loads((folder / "trace.json").read_text()) if (folder / "trace.json").is_file() else {}
    if wanted - set(known):
        predictor, data = hub.load(folder), zc.build("data set", tree["data"])
        match(predictor.task, predictor.model, data, predictor.preprocessing)
        _write(folder / "trace.json", known | _trace(predictor, data, claim.split, limit, wanted - set(known)))
    if not (folder / "eval.json").is_file():
        batch = tree["train"]["eval_batch_size"]
        report = evaluate(
            hub.load(folder), tree["data"], split=claim.split, batch_size=batch, limit=limit, quiet=True, rivals=False
        )
        _write(folder / "eval.json", report.__dict__)


def _trace(predictor: hub.Predictor, data: Any, split: str, limit: int | None, wanted: set[str]) -> dict[str, Any]:
    from torch.utils.data import DataLoader, Subset

    from zoo.trace import METRICS, record
    from zoo.train.sampling import spread

    dataset = data.split(split)
    if limit is not None:
        dataset = Subset(dataset, spread(len(dataset), limit))
    if unknown := wanted - set(METRICS):
        raise ZooError(f"zoo trace has no metric '{min(unknown)}'; it has {', '.join(METRICS)}")
    loader = DataLoader(dataset, batch_size=32, collate_fn=getattr(data, "collate", None))
    with tempfile.TemporaryDirectory() as folder:
        trace = record(predictor.model, loader, predictor.task.loss, Path(folder) / "routing", logits=False)
        return {name: METRICS[name](trace) for name in sorted(wanted)}


def _write(path: Path, document: Any) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(document, indent=2))
    os.replace(new, path)


def _origins(origins: dict[str, list[str]], folder: Path) -> None:
    starts = json.loads((folder / "run.json").read_text())["starts"]
    preprocessing = json.loads((folder / "model" / "config.json").read_text())["preprocessing"]
    found = [("commits", start["commit"] or "an installed release") for start in starts]
    found += [("data", f"{key}={value}") for key, value in preprocessing.items() if isinstance(value, str | int)]
    for key, value in found:
        if value not in origins.setdefault(key, []):
            origins[key].append(value)


# -- one number of a run ---------------------------------------------------------------------------------------------


def read_metric(name: str, metric: Metric, folder: Path, any_step: bool = False) -> float:
    """A metric of a finished run. Raises `ZooError` that says what there is instead."""
    if metric.log is not None:
        return metric.times * _of_log(name, metric, folder, any_step)
    document = json.loads((folder / ("eval.json" if metric.eval else "trace.json")).read_text())
    path = str(metric.eval or metric.trace)
    numbers = _flat(name, metric, _at(document, path.split("."), f"metric '{name}': {path}"))
    return metric.times * sum(numbers) / len(numbers)


def _of_log(name: str, metric: Metric, folder: Path, any_step: bool) -> float:
    curves = read_logs(folder)
    first, last = metric.steps if metric.steps and not any_step else (1, sys.maxsize)
    columns = [curves[key] for key in curves if fnmatch.fnmatchcase(key, str(metric.log))]
    if metric.above is not None and columns:
        reached = [
            step + 1 for steps, values in columns for step, v in zip(steps, values, strict=True) if v >= metric.above
        ]
        end = max(step + 1 for steps, _ in curves.values() for step in steps)
        return float(min(reached, default=end + 1))
    found = [v for steps, values in columns for step, v in zip(steps, values, strict=True) if first <= step + 1 <= last]
    if not found:
        raise ZooError(f"metric '{name}': the log has no {metric.log} at these steps; it has {', '.join(curves)}")
    return sum(found) / len(found)


def _at(node: Any, keys: list[str], where: str) -> Any:
    """What a path leads to; a list is gone through entry by entry."""
    if not keys:
        return node
    if isinstance(node, list):
        return [_at(each, keys, where) for each in node]
    if not isinstance(node, dict) or keys[0] not in node:
        known = ", ".join(map(str, node)) if isinstance(node, dict) else "nothing below"
        raise ZooError(f"{where} is not in the document of the run: at '{keys[0]}' there is {known}")
    return _at(node[keys[0]], keys[1:], where)


def _flat(name: str, metric: Metric, found: Any) -> list[float]:
    rows = found if isinstance(found, list) else [found]
    if metric.layers is not None:
        if max(metric.layers, default=0) >= len(rows):
            raise ZooError(f"metric '{name}': layers={metric.layers}, but the run has {len(rows)} MoE layers")
        rows = [rows[layer] for layer in metric.layers]
    if metric.experts is not None:
        first, last = metric.experts
        rows = [sum(row[first : last + 1]) if isinstance(row, list) else row for row in rows]
    if not rows or not all(isinstance(row, int | float) for row in rows):
        raise ZooError(f"metric '{name}' leads to {str(rows)[:80]}, not to numbers; name one value, or set experts")
    return [float(row) for row in rows]
