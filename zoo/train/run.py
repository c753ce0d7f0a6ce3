"""`zoo train`: from a resolved recipe to a run folder that holds everything needed to trust, resume and use it.

runs/<recipe>/            config.yaml  run.json (versions, commit, seed)  logs/  plots/
    checkpoints/          last.ckpt, best.ckpt; with stages, a folder of them for each
    stages/<stage>/       the model after each stage, like model/
    model/                config.json, model.safetensors: what `zoo.load` reads
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from zoo import config as zc
from zoo import hub
from zoo.hub.model import on_device
from zoo.spec import ZooError
from zoo.train.callbacks import ExpertLoadLogger, MovingAverage, RandomStates
from zoo.train.checkpoints import AtomicIO, Best, Last, newest_checkpoint, read_checkpoint
from zoo.train.data import DataModule
from zoo.train.git import git_commit
from zoo.train.module import Module
from zoo.train.recipe import Recipe, Stage, resolve_recipe
from zoo.train.stages import StageWeights, keep_statistics, rank
from zoo.train.task import Data, Task, match

__all__ = ["rank", "resume_tree", "run_folder", "train"]
RUN = "ZOO_RUN"
CALIBRATION, FEW = 1024, 8  # items of the validation split to calibrate a trained model on
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PACKAGES = ("moe-zoo", "torch", "triton", "lightning", "transformers", "omegaconf", "numpy", "safetensors")


# Lightning announces devices, and a product; the run folder says what was used.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# Our sampler goes on where a checkpoint stopped, and checkpoints of a run belong into one folder.
for _told in ("You're resuming from a checkpoint that ended before", "Checkpoint directory .* exists and is not empty"):
    warnings.filterwarnings("ignore", message=_told)
# It is what `keep_statistics` does.
warnings.filterwarnings("ignore", message="Found .* module.* in eval mode at the start of training")
# torch 2.14 deprecates what lightning 2.6.6 asks of every batch.
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)


def train(tree: zc.Tree, folder: Path, *, fast_dev_run: bool = False, quiet: bool = False) -> Path:
    """Train a resolved recipe into ``folder`` and return it. With a checkpoint in the folder, go on from there.

    Raises:
        ZooError: the loss is not finite, the disk is full, or a part of the recipe cannot be built.
    """
    recipe = zc.to_object(Recipe, tree)
    if recipe.device != "auto":
        on_device(recipe.device)  # refuses one that is not there
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    data: Data = zc.build("data set", recipe.data)
    if fast_dev_run and callable(few := getattr(data, "few", None)):
        few()
    task: Task = zc.build("task", recipe.task)
    model = hub.create_model(recipe.model["name"], **{k: v for k, v in recipe.model.items() if k != "name"})
    trained: dict[str, Any] = {}
    if recipe.init:
        start = hub.load(recipe.init)
        hub.folder.fill(model, hub.folder.unique_state(start.model), recipe.init)
        trained = start.preprocessing
    match(task, model, data, trained)
    for note in data.notes:
        print(f"data: {note}", file=sys.stderr)
    stages = recipe.stages or {"": zc.make(Stage, steps=recipe.train.steps)}
    if fast_dev_run:
        recipe.train.val_every, recipe.train.val_batches = 1, 1
        recipe.train.batch_size, recipe.train.eval_batch_size = min(2, recipe.train.batch_size), 2
        stages = {name: replace(stage, steps=1) for name, stage in stages.items()}
    if callable(fit := getattr(model, "fit", None)):
        if recipe.stages:
            raise ZooError(f"{recipe.model['name']} is fitted in closed form, in no stages; remove stages")
        write_folder(tree, folder)
        fit(data.split("train"), data.split("val"))
    else:
        _fit_stages(recipe, tree, folder, model, task, data, stages, quiet)
    if rank() == 0:
        more = task.calibrate(model.eval(), data, FEW if fast_dev_run else CALIBRATION)
        hub.save(folder / "model", model, task=recipe.task, preprocessing={**data.preprocessing, **more})
        (folder / "plots").mkdir(exist_ok=True)
        for path in task.show(model, data, folder / "plots"):
            print(f"wrote {path}", file=sys.stderr)
    return folder


def _fit_stages(
    recipe: Recipe,
    tree: zc.Tree,
    folder: Path,
    model: hub.Model,
    task: Task,
    data: Data,
    stages: Mapping[str, Stage],
    quiet: bool,
) -> None:
    """Train one stage after the other; a recipe without stages is a single one without a name."""
    weights, before, started = StageWeights(model, folder / "stages", stages, recipe.freeze), 0, False
    if recipe.stages:
        weights.done("initial")
    for number, (name, stage) in enumerate(stages.items()):
        if not weights.done(name):
            trainer, newest = _trainer(recipe, stage, task, folder, name, quiet)
            if not started and rank() == 0:
                write_folder(tree, folder)
            if name and not weights.names:
                weights.end("initial", recipe.task, data.preprocessing)
            started = True
            if number:  # a stage draws the same numbers whether or not the one before it was in this process
                L.seed_everything(recipe.seed + number, workers=True, verbose=False)
            weights.begin(name, stage)
            loaders = DataModule(
                data if stage.data is None else _stage_data(name, stage, model, task, data),
                replace(recipe.train, steps=stage.steps),
                recipe.seed + number,
            )
            _fit(trainer, Module(model, task, recipe.optim, stage, tree, before), loaders, newest, folder)
            weights.end(name, recipe.task, data.preprocessing)
        before += stage.steps
    weights.finish()


def _stage_data(name: str, stage: Stage, model: hub.Model, task: Task, data: Data) -> Data:
    own: Data = zc.build("data set", stage.data)
    match(task, model, own, data.preprocessing)
    for note in own.notes:
        print(f"data of stage {name}: {note}", file=sys.stderr)
    return own


def _trainer(
    recipe: Recipe, stage: Stage, task: Task, folder: Path, name: str, quiet: bool
) -> tuple[L.Trainer, Path | None]:
    """The trainer of a stage, and the checkpoint to go on from."""
    t = replace(recipe.train, steps=stage.steps)
    checkpoints = folder / "checkpoints" / name
    done, newest = newest_checkpoint(checkpoints) or (0, None)
    if done >= t.steps:
        print(f"{folder} has done its {done} steps already; raise train.steps to train on", file=sys.stderr)
    callbacks: list[Callback] = [
        RandomStates(),
        ExpertLoadLogger(),
        Best(checkpoints, "best", monitor=f"val/{task.monitor}", enable_version_counter=False),
        Last(checkpoints / "last.ckpt", t.save_every),
    ]
    if t.ema is not None:
        callbacks.append(MovingAverage(t.ema))
    if not quiet:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    kind, _, index = recipe.device.partition(":")
    options = dict[str, Any](
        default_root_dir=folder,
        accelerator=kind,
        devices=[int(index)] if index and kind != "cpu" else t.devices,
        num_nodes=t.nodes,
        strategy=t.strategy,
        precision=PRECISION[recipe.precision],
        deterministic=recipe.deterministic,
        max_steps=t.steps,
        # Steps decide; a run is one epoch of them, and one that was finished and goes on is in its next.
        max_epochs=1 if newest is None else read_checkpoint(newest)["epoch"] + 2,
        accumulate_grad_batches=t.accumulate,
        gradient_clip_val=recipe.optim.clip,
        val_check_interval=min(t.val_every, t.steps) * t.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=min(t.log_every, t.steps),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=not quiet,
        logger=_loggers(t.logger, folder),
        callbacks=callbacks,
        plugins=AtomicIO(),
    )
    try:
        return L.Trainer(**options), newest
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(
            f"device={recipe.device}, devices={t.devices} and strategy={t.strategy} do not work here: {reason}"
        ) from error


def _fit(trainer: L.Trainer, module: Module, loaders: DataModule, newest: Path | None, folder: Path) -> None:
    """Train, and leave the model with its best weights."""
    model = module.model
    os.environ[RUN] = str(folder)  # the processes that a strategy starts are to find it
    module.train()
    keep_statistics(model)
    try:
        trainer.fit(module, datamodule=loaders, ckpt_path=newest, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        print(f"interrupted; go on from the last checkpoint with resume={folder}", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        raise ZooError(
            f"writing to {folder} failed ({error.strerror or error}); free some space there, then go on with "
            f"resume={folder}"
        ) from error
    best = next(callback for callback in trainer.callbacks if isinstance(callback, Best))  # type: ignore[attr-defined]
    if best.best_model_path:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    model.eval()


def run_folder(out: str, name: str, resume: str | None) -> Path:
    """The folder of a run: a new one (``<out>/<name>``, ``<out>/<name>-2``, ...), or the one to resume.

    The further processes of a distributed run take the folder that the first one put into the environment; one that
    is launched from outside (torchrun) finds it there too, as all of them start at once.

    Raises `ZooError` when there is nothing to resume, or when the folder is no run.
    """
    if "LOCAL_RANK" in os.environ:
        if RUN not in os.environ:
            raise ZooError(f"processes launched together must share a run folder; set {RUN}=FOLDER for all of them")
        return Path(os.environ[RUN])
    base = Path(out) / name
    if resume is None:
        numbers = [n for n in _numbered(base)]
        return base if not numbers else base.with_name(f"{base.name}-{max(numbers) + 1}")
    if resume == "last":
        numbers = _numbered(base)
        if not numbers:
            raise ZooError(f"nothing to resume: there is no run in {base}; leave resume=last out to start one")
        folder = base if max(numbers) == 1 else base.with_name(f"{base.name}-{max(numbers)}")
    else:
        folder = Path(resume)
    if not (folder / "config.yaml").is_file():
        raise ZooError(f"'{folder}' is not a run folder: it holds no config.yaml; name one that `zoo train` made")
    return folder


def resume_tree(folder: Path, overrides: Sequence[str]) -> zc.Tree:
    """The config of a run that is resumed; only how far and where it trains may be changed on the way."""
    allowed = ("train.steps", "train.val_", "train.save_every", "train.log_every", "device", "resume", "out")
    before = zc.read_yaml(folder / "config.yaml")
    if before.get("stages"):  # they say how long
        allowed = allowed[1:]
    others = [item for item in overrides if not item.startswith(allowed)]
    try:
        asked = resolve_recipe(zc.merge(before, zc.from_dotlist(others)), str(folder)) if others else None
    except ZooError:
        asked = {}  # what cannot be at all is not what the run has
    if asked is not None and asked != zc.resolve(Recipe, before):
        raise ZooError(
            f"'{' '.join(others)}' cannot change in a resumed run, which would not be the same run; leave it out, "
            "or start anew"
        )
    return zc.resolve(Recipe, zc.merge(before, zc.from_dotlist(overrides)))


def _numbered(base: Path) -> list[int]:
    if not base.parent.is_dir():
        return []
    tails = {p.name[len(base.name) :] for p in base.parent.iterdir() if p.name.startswith(base.name) and p.is_dir()}
    return [1 if not t else int(t[1:]) for t in tails if not t or (t[0] == "-" and t[1:].isdigit())]


def write_folder(tree: zc.Tree, folder: Path) -> None:
    """``config.yaml`` and ``run.json``; a run that is resumed adds to the latter."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"cannot make the run folder '{folder}': {error.strerror}; choose another with --out") from error
    print(f"run folder: {folder}", file=sys.stderr)
    _replace(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(tree)))
    path = folder / "run.json"
    starts = json.loads(path.read_text())["starts"] if path.is_file() else []
    versions = {name: _version(name) for name in PACKAGES}
    start = {"commit": git_commit(), "python": platform.python_version(), "machine": platform.platform(), **versions}
    _replace(path, json.dumps({"seed": tree["seed"], "starts": [*starts, start]}, indent=2))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    os.replace(new, path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _loggers(kind: str, folder: Path) -> list[Logger]:
    """CSV always, as the summary of the run is made from it, and TensorBoard where it is asked for."""
    # Each start of a run logs into a version folder of its own: Lightning's CSV logger would delete an older file.
    loggers: list[Logger] = [CSVLogger(folder, name="logs")]
    if kind == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(folder, name="tensorboard"))
        except ModuleNotFoundError as error:
            remedy = "run: pip install 'moe-zoo[tensorboard]'"
            raise ZooError(f"train.logger=tensorboard needs tensorboard; {remedy}") from error
    return loggers
