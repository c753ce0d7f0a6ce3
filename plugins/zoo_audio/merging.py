"""The step between specialists and one mixture (UniMoE-Audio, arXiv:2510.13344, stage 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.moe import MoE
from zoo.spec import ZooError


class MergeSpecialists:
    """Each stage of ``stages`` trained a dense model: the experts of numbers ``slices`` together, halves of one MLP.
    They become the experts of one mixture, the first specialist's first; the gate and the shared experts begin anew;
    all else is the specialists' average.

    A token that passed all slices with weight 1 will pass them with weights that sum to at most 1: ``scale`` times what
    each says (None: as many as there are slices) keeps the size.
    """

    @dataclass
    class Config:
        stages: list[str] = field(default_factory=lambda: ["speech", "music"])
        slices: list[int] = field(default_factory=lambda: [0, 1])
        scale: float | None = None

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, model: Any, states: Mapping[str, dict[str, Tensor]]) -> None:
        c = self.config
        given, initial = [states[name] for name in c.stages], states["initial"]
        layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
        needed = len(given) * len(c.slices)
        for name, moe in layers.items():
            true = getattr(moe.bank, "banks", [moe.bank])[0].num_experts
            if true != needed:
                raise ZooError(
                    f"{len(given)} specialists in {len(c.slices)} parts are {needed} experts, '{name}' has {true}"
                )
        scale = float(len(c.slices)) if c.scale is None else c.scale
        own = tuple(f"{name}.{part}." for name in layers for part in ("router", "shared"))
        banks = tuple(f"{name}.experts." for name in layers)
        for key, place in model.state_dict().items():
            if key.startswith(own) or not place.is_floating_point():
                place.copy_(initial[key])
            elif key.startswith(banks):
                parts = torch.cat([state[key][c.slices] for state in given])
                place.copy_(parts * scale if key.endswith("down_proj") else parts)
            else:
                place.copy_(torch.stack([state[key] for state in given]).mean(0))
