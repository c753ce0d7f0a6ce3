"""The schema of a recipe, and how one is read. Imports no torch until a part is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo import config as zc
from zoo import registry
from zoo.spec import ZooError


@dataclass
class Optim:
    """AdamW; matrices decay, vectors do not. The learning rate warms up linearly, then follows the schedule to
    ``lr * final`` at the last step."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        zc.at_least(0, self, "lr", "weight_decay", "warmup", "final", "clip")


@dataclass
class Training:
    """How long and in what pieces. ``val_every`` and ``save_every`` count optimiser steps; ``val_batches`` limits a
    validation pass (null: all of it)."""

    steps: int = 1000
    batch_size: int = 32
    eval_batch_size: int = 256
    accumulate: int = 1
    val_every: int = 200
    val_batches: int | None = None
    save_every: int = 200
    log_every: int = 10
    workers: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    logger: Literal["csv", "tensorboard"] = "csv"

    def __post_init__(self) -> None:
        zc.at_least(1, self, "steps", "batch_size", "eval_batch_size", "accumulate", "val_every", "val_batches")
        zc.at_least(1, self, "save_every", "log_every", "devices", "nodes")
        zc.at_least(0, self, "workers")


@dataclass
class Recipe:
    """A recipe. ``init`` names trained weights to start from (a tag or a folder); ``freeze`` are wildcards on names of
    parameters that stay as they are; ``resume`` is ``last`` or a run folder; ``out`` is where run folders go."""

    model: Any = zc.part("model")
    task: Any = zc.part("task")
    data: Any = zc.part("data set")
    optim: Optim = field(default_factory=Optim)
    train: Training = field(default_factory=Training)
    init: str | None = None
    freeze: list[str] = field(default_factory=list)
    seed: int = 0
    deterministic: bool = True
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: str | None = None
    out: str = "runs"


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> zc.Tree:
    """The resolved recipe as plain data. ``recipe`` is ``plugin/name`` or the path of a YAML file."""
    path, root = zc.recipe_path(recipe)
    return resolve_recipe(zc.merge(zc.read_with_defaults(path, root), zc.from_dotlist(overrides)), recipe)


def resolve_recipe(tree: zc.Tree, where: str) -> zc.Tree:
    """Check a recipe tree; the task defaults to the one that the model's spec names."""
    model = tree.get("model")
    name = model if isinstance(model, str) else model.get("name") if isinstance(model, dict) else None
    if not isinstance(name, str):
        raise ZooError(f"recipe '{where}' names no model; set model.name=...")
    task = registry.full_task(registry.find_model(name)[0])
    tree = {**tree, "task": zc.merge({"name": task}, tree.get("task") or {})}
    data = tree.get("data")
    if data is None:
        raise ZooError(f"recipe '{where}' names no data set; set data.name=..., one of {registry.list_datasets()}")
    return zc.resolve(Recipe, {**tree, "data": in_plugin_of(name, data)})


def in_plugin_of(model: str, data: Any) -> Any:
    """A data section whose bare name (``csv``) is that of the model's own plugin (``time_series/csv``)."""
    named = {"name": data} if isinstance(data, str) else data
    bare = isinstance(named, dict) and isinstance(named.get("name"), str) and "/" not in named["name"]
    return {**named, "name": f"{model.partition('/')[0]}/{named['name']}"} if bare else data


def run_name(recipe: str) -> str:
    """``plugin/name`` as it is, a file by its stem."""
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
