"""Init actions: what a stage of a training does to the weights before it begins. ``action(model, states)``."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo import hub
from zoo.config import at_least
from zoo.moe import MoE, shared
from zoo.moe.init import clone
from zoo.spec import ZooError

States = Mapping[str, Mapping[str, Tensor]]


class Clone:
    """One expert of each mixture, or the shared one, becomes all of them: how a dense model, which expert 0 alone is
    with ``router.mode=only``, becomes a sparse one (sparse upcycling, arXiv:2212.05055; MoE-LLaVA, MoTE).

    Config:
        of: the number of an expert, or ``shared``.
        noise: normal noise on the clones, in standard deviations of each matrix.
    """

    @dataclass
    class Config:
        of: Any = 0
        noise: float = 0.0

        def __post_init__(self) -> None:
            at_least(0, self, "noise")
            if self.of != "shared" and (isinstance(self.of, bool) or not isinstance(self.of, int) or self.of < 0):
                raise ZooError(f"clone: of={self.of!r} must be the number of an expert, or shared")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, model: nn.Module, states: States) -> None:
        for moe in _mixtures(model):
            if self.config.of == "shared":
                view = _view(moe.shared)
            elif self.config.of >= moe.num_experts:
                raise ZooError(f"clone: of={self.config.of}, but a layer has {moe.num_experts} experts; count from 0")
            else:
                view = {name: tensor.clone() for name, tensor in moe.bank.view(self.config.of).items()}
            clone(moe, view, self.config.noise)


class Silence:
    """The experts, or the shared one, say 0 until they are trained or written: their last matrix is zero."""

    @dataclass
    class Config:
        what: Literal["experts", "shared"] = "experts"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, model: nn.Module, states: States) -> None:
        for moe in _mixtures(model):
            part = getattr(moe, self.config.what)
            last = getattr(part, "down_proj", None)
            if last is None:
                raise ZooError(f"silence: a layer's {self.config.what} have no down_proj; leave it out")
            with torch.no_grad():
                (last.weight if isinstance(last, nn.Linear) else last).zero_()


class Load:
    """Parts of another trained model, whose names and shapes are the same: a codec, a tower.

    Config:
        path: the name of trained weights, or a folder.
        what: wildcards on names of tensors; what matches none of them stays as it is.
    """

    @dataclass
    class Config:
        path: str = "???"
        what: list[str] = field(default_factory=lambda: ["*"])

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, model: nn.Module, states: States) -> None:
        c, own = self.config, model.state_dict()
        trained = hub.load(c.path).model.state_dict()
        for pattern in c.what:
            if not (found := fnmatch.filter(trained, pattern)):
                known = ", ".join(list(trained)[:4])
                raise ZooError(f"load: '{c.path}' has no tensor '{pattern}'; it has {known}, ...")
            for name in found:
                if name not in own or own[name].shape != trained[name].shape:
                    here = tuple(own[name].shape) if name in own else "missing"
                    raise ZooError(f"load: {name} is {tuple(trained[name].shape)} there and {here} in the model")
                own[name].copy_(trained[name])


def _mixtures(model: nn.Module) -> list[MoE]:
    found = [module for module in model.modules() if isinstance(module, MoE) and module.experts is not None]
    if not found:
        raise ZooError("the model has no mixture to write experts into; leave init out")
    return found


def _view(part: nn.Module | None) -> dict[str, Tensor]:
    """A shared SwiGLU as an expert's weights."""
    if not isinstance(part, shared.SwiGLU):
        raise ZooError("clone: of=shared needs moe.shared.name=swiglu")
    gate_up = torch.cat([part.gate_proj.weight.detach(), part.up_proj.weight.detach()])
    return {"gate_up_proj": gate_up, "down_proj": part.down_proj.weight.detach()}
