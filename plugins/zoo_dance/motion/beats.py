"""Contacts of the feet with the ground, and beats of a motion.

Shapes: T frames, J joints, F feet (left and right ankle and ball).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_dance.motion.skeleton import FEET

SLOW, NEAR = 0.6, 0.08
"""A foot that moves slower than so many metres a second, and is not higher than so many metres, stands."""
SIGMA = 5.0


def contacts(places_TJ3: Tensor, fps: float) -> Tensor:
    """(T, F): whether each foot stands."""
    feet_TF3 = places_TJ3[:, FEET]
    if len(feet_TF3) < 2:
        return torch.ones(feet_TF3.shape[:2], dtype=torch.bool)
    speed = (feet_TF3[1:] - feet_TF3[:-1]).norm(dim=-1) * fps
    speed_TF = torch.cat([speed[:1], speed])
    # Ankles and balls rest at different heights.
    height_TF = feet_TF3[..., 1] - feet_TF3[..., 1].min(0).values
    return (speed_TF < SLOW) & (height_TF < NEAR)


def motion_beats(places_TJ3: Tensor, fps: float) -> list[int]:
    """Frames where the mean speed of all joints, smoothed (Gaussian, sigma 5 frames at 30 a second), is at a local
    minimum (Bailando, arXiv:2203.13055)."""
    if len(places_TJ3) < 4:
        return []
    speed_T = (places_TJ3[1:] - places_TJ3[:-1]).norm(dim=-1).mean(-1) * fps
    smooth = gaussian(speed_T, SIGMA * fps / 30.0)
    low = (smooth[1:-1] < smooth[:-2]) & (smooth[1:-1] <= smooth[2:])
    return [int(n) + 2 for n in low.nonzero()[:, 0]]


def step_beats(places_TJ3: Tensor, fps: float, apart: float = 0.25) -> list[int]:
    """Frames where a foot comes to stand, at least ``apart`` seconds from each other; where feet hardly leave the
    ground, the beats of the whole body."""
    stands_TF = contacts(places_TJ3, fps)
    sides_T2 = torch.stack([stands_TF[:, :2].any(1), stands_TF[:, 2:].any(1)], 1)
    lands = (sides_T2[1:] & ~sides_T2[:-1]).any(1).nonzero()[:, 0] + 1
    found: list[int] = []
    for frame in lands.tolist():
        if not found or frame - found[-1] >= apart * fps:
            found.append(frame)
    return found if len(found) >= 2 else motion_beats(places_TJ3, fps)


def gaussian(x_T: Tensor, sigma: float) -> Tensor:
    """The series smoothed by a Gaussian, its ends repeated."""
    reach = max(1, int(4 * sigma + 0.5))
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x_T.dtype) / sigma) ** 2)
    padded = torch.nn.functional.pad(x_T[None, None], (reach, reach), mode="replicate")
    return torch.nn.functional.conv1d(padded, (weight / weight.sum())[None, None])[0, 0]
