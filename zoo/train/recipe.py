"""The schema of a recipe, and how one is read. Imports no torch until a part is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

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
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ZooError(f"betas={list(self.betas)} must be at least 0 and below 1")


@dataclass
class Training:
    """How long and in what pieces. ``val_every`` and ``save_every`` count optimiser steps; ``val_batches`` limits a
    validation pass (null: all of it). With ``ema``, a decay per step such as 0.999, the exponential moving average of
    the weights is what is validated and saved; it forgets its first steps sooner."""

    steps: int = 1000
    batch_size: int = 32
    eval_batch_size: int = 256
    accumulate: int = 1
    val_every: int = 200
    val_batches: int | None = None
    save_every: int = 200
    log_every: int = 10
    ema: float | None = None
    workers: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    logger: Literal["csv", "tensorboard"] = "csv"

    def __post_init__(self) -> None:
        zc.at_least(1, self, "steps", "batch_size", "eval_batch_size", "accumulate", "val_every", "val_batches")
        zc.at_least(1, self, "save_every", "log_every", "devices", "nodes")
        zc.at_least(0, self, "workers", "ema")
        if self.ema is not None and self.ema >= 1:
            raise ZooError(f"train.ema={self.ema} must be below 1; 0.999 remembers about a thousand steps")


@dataclass
class RouterMode:
    """Who chooses the experts: the router (``learned``), nobody (``only``: every token goes to ``expert``, or to all of
    ``experts``, so that the layer is the dense one that this expert is, or these are slices of), or what a token is
    tagged with (``label``, ``domain``, ``modality``: its number is the expert's, as in teacher forcing)."""

    mode: Literal["learned", "only", "label", "domain", "modality"] = "learned"
    expert: int = 0
    experts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        zc.at_least(0, self, "expert")
        if min(self.experts, default=0) < 0 or len(set(self.experts)) < len(self.experts):
            raise ZooError(f"router.experts={self.experts} must be different numbers of at least 0")


@dataclass
class Stage:
    """One stage of a training: what is trained, on what, with which losses, and from where.

    Args:
        steps: optimiser steps; warm-up, schedules of the optimiser and of the balancers are the stage's own.
        trainable: wildcards on names of parameters that are trained; the recipe's ``freeze`` is taken out of them.
        lr: learning rate; null: the recipe's.
        groups: wildcard to factor on the learning rate; the factors of all that match a name multiply.
        losses: name of a loss (of the task's ``terms``, or a balancer) to factor; 0 switches it off.
        data: laid over the recipe's data section: another mix, another domain; null: the recipe's data.
        router: who chooses the experts.
        start: the weights to begin from: ``previous``, ``initial``, or the name of an earlier stage.
        init: what is done to the weights first: clone an FFN into experts, merge specialists.
    """

    steps: int = MISSING
    trainable: list[str] = field(default_factory=lambda: ["*"])
    lr: float | None = None
    groups: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    data: Any = None
    router: RouterMode = field(default_factory=RouterMode)
    start: str = "previous"
    init: Any = zc.part("init action")

    def __post_init__(self) -> None:
        zc.at_least(1, self, "steps")
        zc.at_least(0, self, "lr")


@dataclass
class Recipe:
    """A recipe. ``init`` names trained weights to start from (a tag or a folder); ``freeze`` are wildcards on names of
    parameters that stay as they are; ``stages`` are trained one after the other, and say how long; ``resume`` is
    ``last`` or a run folder; ``out`` is where run folders go."""

    model: Any = zc.part("model")
    task: Any = zc.part("task")
    data: Any = zc.part("data set")
    optim: Optim = field(default_factory=Optim)
    train: Training = field(default_factory=Training)
    stages: dict[str, Stage] = field(default_factory=dict)
    init: str | None = None
    freeze: list[str] = field(default_factory=list)
    seed: int = 0
    deterministic: bool = True
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: str | None = None
    out: str = "runs"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ZooError(f"seed={self.seed} must lie between 0 and {2**32 - 1}")


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> zc.Tree:
    """The resolved recipe as plain data. ``recipe`` is ``plugin/name`` or the path of a YAML file."""
    path, root = zc.recipe_path(recipe)
    return resolve_recipe(zc.merge(zc.read_with_defaults(path, root), zc.from_dotlist(overrides)), recipe)


def resolve_recipe(tree: zc.Tree, where: str) -> zc.Tree:
    """Check a recipe tree; the task defaults to the one that the model's spec names, and settings of the model that
    its task says follow the data's do, unless the recipe sets them."""
    model = tree.get("model")
    name = model if isinstance(model, str) else model.get("name") if isinstance(model, dict) else None
    if not isinstance(name, str):
        raise ZooError(f"recipe '{where}' names no model; set model.name=...")
    task = registry.full_task(registry.find_model(name)[0])
    tree = {**tree, "task": zc.merge({"name": task}, tree.get("task") or {})}
    data = tree.get("data")
    if data is None:
        known = registry.list_datasets(f"{name.partition('/')[0]}/*")
        raise ZooError(f"recipe '{where}' names no data set; set data.name=..., {registry.suggest('', known)}")
    data = in_plugin_of(name, data)
    tree["model"] = _following(model, task, zc.resolve_part("data set", data, "data"))
    resolved = zc.resolve(Recipe, {**tree, "data": data})
    _resolve_stages(resolved, name, data, (tree.get("train") or {}).get("steps"))
    return resolved


def _following(model: Any, task: str, data: zc.Tree | None) -> Any:
    """The model section with what follows the data, where the model has such a setting and the recipe none."""
    node = {"name": model} if isinstance(model, str) else model
    own = registry.find_model(node["name"])[0].load().Config.__dataclass_fields__
    follows = getattr(registry.find("task", task).spec, "follows", ())
    return {**{key: data[key] for key in follows if data and key in data and key in own}, **node}


def _resolve_stages(tree: zc.Tree, model: str, data: Any, steps: int | None) -> None:
    """Give every stage its whole data section, and the run the sum of the stages' steps."""
    earlier = ["previous", "initial"]
    for name, stage in tree["stages"].items():
        if not name.isidentifier() or name in earlier:
            raise ZooError(
                f"stages: '{name}' cannot be the name of a stage; use letters, digits and _, and not 'initial'"
            )
        if stage["start"] not in earlier:
            raise ZooError(f"stages.{name}.start='{stage['start']}' is no earlier stage; choose one of {earlier}")
        earlier.append(name)
        if stage["data"] is not None:
            own = in_plugin_of(model, zc.merge(data, stage["data"]))
            stage["data"] = zc.resolve_part("data set", own, f"stages.{name}.data")
    total = sum(stage["steps"] for stage in tree["stages"].values())
    if tree["stages"] and steps not in (None, total):
        names = ", ".join(tree["stages"])
        raise ZooError(f"train.steps={steps}, but the stages {names} take {total}: set theirs, or train.steps={total}")
    tree["train"]["steps"] = total or tree["train"]["steps"]


def in_plugin_of(model: str, data: Any) -> Any:
    """A data section whose bare name (``csv``) is that of the model's own plugin (``time_series/csv``)."""
    named = {"name": data} if isinstance(data, str) else data
    bare = isinstance(named, dict) and isinstance(named.get("name"), str) and "/" not in named["name"]
    return {**named, "name": f"{model.partition('/')[0]}/{named['name']}"} if bare else data


def run_name(recipe: str) -> str:
    """``plugin/name`` as it is, a file by its stem."""
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
