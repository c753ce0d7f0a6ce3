"""Somebody who walks on the spot, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from zoo_dance.motion import rotations
from zoo_dance.motion.skeleton import BODY, Motion


def step(seconds: float, rate: float) -> Motion:
    """Somebody who lifts one foot after the other, ``rate`` steps a second."""
    time = torch.arange(round(seconds * 30), dtype=torch.float64) / 30
    vector = torch.zeros(len(time), 24, 3, dtype=torch.float64)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        lift = torch.clamp(sign * torch.sin(torch.pi * rate * time), min=0) * 0.8
        vector[:, BODY.names.index(f"{side}_hip"), 0] = -lift
        vector[:, BODY.names.index(f"{side}_knee"), 0] = 2 * lift
    root = torch.tensor([0.0, 0.95, 0.0]).double().expand(len(time), 3)
    return Motion(BODY, root, rotations.from_axis_angle(vector), 30.0)


@pytest.fixture
def walker() -> Callable[[float, float], Motion]:
    return step
