"""The weights between the stages of a training: where one begins, what of it is trained, and where it ended."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo import config as zc
from zoo import hub
from zoo.moe import give
from zoo.spec import ZooError
from zoo.train.recipe import RouterMode, Stage

# An *init action* is a part ``target(config)`` that is called with the model and `States`, and changes the weights.


class States(Mapping[str, dict[str, Tensor]]):
    """The weights after the earlier stages by name, and the ``initial`` ones, each read when it is asked for."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self.names:
            raise ZooError(f"'{name}' is no earlier stage; choose one of {list(self.names)}")
        return load_file(self.folder / name / hub.folder.WEIGHTS)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class StageWeights:
    """Moves one model through its stages. A stage is done when its folder is whole; a resumed run passes over it.

    Raises:
        ZooError: a stage has a wildcard that matches nothing, trains nothing, or gives experts that are not there.
    """

    def __init__(self, model: nn.Module, folder: Path, stages: Mapping[str, Stage], freeze: Sequence[str]) -> None:
        self.model, self.folder = model, folder
        could = {name for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name for pattern in freeze for name in matching(model, pattern, "freeze")}
        self.trained: dict[str, set[str]] = {}
        for name, stage in stages.items():
            where = f"stages.{name}" if name else "the recipe"
            asked = {key for p in stage.trainable for key in matching(model, p, f"{where}.trainable")}
            if not (could & asked) - frozen:
                raise ZooError(f"{where} leaves nothing to train; widen trainable or freeze less")
            self.trained[name] = (could & asked) - frozen
            for pattern in stage.groups:
                matching(model, pattern, f"{where}.groups")
            give(model, given(stage.router))
        self.names: list[str] = []

    def done(self, name: str) -> bool:
        """Whether the stage was finished before, so that its weights are there."""
        done = bool(name) and (self.folder / name / hub.folder.CONFIG).is_file()
        if done:
            self.names.append(name)
        return done

    def begin(self, name: str, stage: Stage) -> None:
        """Put the model where the stage starts, and let it train what the stage trains."""
        states = States(self.folder, self.names)
        if self.names:
            start = self.names[-1] if stage.start == "previous" else stage.start
            hub.folder.fill(self.model, states[start], f"stage {start}")
        if stage.init is not None:
            with torch.no_grad():
                zc.build("init action", stage.init)(self.model, states)
        give(self.model, given(stage.router))
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(key in self.trained[name])
            parameter.grad = None

    def end(self, name: str, task: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> None:
        """Keep what a stage came to. All processes wait until it is there."""
        if not name:  # a training in one piece
            return
        if rank() == 0:
            hub.save(self.folder / name, self.model, task=task, preprocessing=preprocessing)  # type: ignore[arg-type]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        self.names.append(name)

    def finish(self) -> None:
        """The model as the last stage left it, choosing its own experts."""
        if self.names:
            last = self.names[-1]
            hub.folder.fill(self.model, States(self.folder, self.names)[last], f"stage {last}")
        give(self.model, None)


def keep_statistics(model: nn.Module) -> None:
    """Frozen batch norms keep the mean and variance that they have, in training too."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def given(mode: RouterMode) -> int | str | list[int] | None:
    """What `zoo.moe.give` takes for a router mode."""
    if mode.mode == "only":
        return mode.experts or mode.expert
    return None if mode.mode == "learned" else mode.mode


def matching(model: nn.Module, pattern: str, where: str) -> list[str]:
    """Names of the parameters that a wildcard matches. Raises `ZooError` when there are none."""
    names = [name for name, _ in model.named_parameters()]
    if not (found := [name for name in names if fnmatch.fnmatchcase(name, pattern)]):
        raise ZooError(f"{where}: no parameter's name matches '{pattern}'; the model has {', '.join(names[:4])}, ...")
    return found


def rank() -> int:
    """Which process of a distributed run this is; 0 when it is the only one."""
    return int(rank_zero_only.rank or 0)
