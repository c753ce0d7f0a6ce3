"""Losses and scores of tokenisers.

Shapes: B clips, T frames, C features, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.config import at_least
from zoo_dance.motion.skeleton import BODY, forward_kinematics, split_features


@dataclass
class ReconstructionConfig:
    """Factors: of velocity and acceleration beside the values themselves, and of all three of the joints' places beside
    those of the features (MEGADance: 0.5, 0.25, 1)."""

    velocity: float = 0.5
    acceleration: float = 0.25
    joints: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, self, "velocity", "acceleration", "joints")


class Scale:
    """Means and spreads of features, from the preprocessing."""

    def __init__(self, preprocessing: Mapping[str, Any], key: str = "motion") -> None:
        self.mean, self.std = (torch.tensor(preprocessing[key][name]) for name in ("mean", "std"))

    def undo(self, x: Tensor) -> Tensor:
        return x * self.std.to(x) + self.mean.to(x)

    def do(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x)) / self.std.to(x)


def joints(features: Tensor) -> Tensor:
    """Places (..., J, 3) of joints, the root at the origin, of features as they are."""
    rotation, velocity = split_features(features)
    return forward_kinematics(BODY, torch.zeros_like(velocity), rotation)[0]


def reconstruction_loss(
    given_BTC: Tensor, found_BTC: Tensor, valid_BT: Tensor, scale: Scale, config: ReconstructionConfig
) -> Tensor:
    """L1 of features, their velocity and acceleration (differences of frames), and of the joints that they place."""
    loss = _three(given_BTC, found_BTC, valid_BT, config)
    if config.joints:
        one, two = (joints(scale.undo(x)).flatten(2) for x in (given_BTC, found_BTC))
        loss = loss + config.joints * _three(one, two, valid_BT, config)
    return loss


def _three(given: Tensor, found: Tensor, valid_BT: Tensor, config: ReconstructionConfig) -> Tensor:
    total, gap, valid = given.new_zeros(()), given - found, valid_BT
    for factor in (1.0, config.velocity, config.acceleration):
        if gap.shape[1]:
            total = total + factor * (gap.abs().mean(-1) * valid).sum() / valid.sum().clamp(min=1)
        gap, valid = gap[:, 1:] - gap[:, :-1], valid[:, 1:] & valid[:, :-1]
    return total


def joint_errors(given_BTC: Tensor, found_BTC: Tensor, scale: Scale) -> Tensor:
    """(B, T): mean distance of a joint from where it should be, in metres, the root at the origin."""
    one, two = joints(scale.undo(given_BTC)), joints(scale.undo(found_BTC))
    return (one - two).norm(dim=-1).mean(-1)
