"""Skeletons, motions, and the one skeleton that all models of this plugin know.

Shapes: T frames, J joints; the axes of the canonical world: x to the left of a person who looks along z, y up. Metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_dance.motion import rotations


@dataclass(frozen=True)
class Skeleton:
    """Joints in an order in which parents come first; ``offset_J3`` is where a joint is in its parent's axes."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offset_J3: Tensor

    def rest(self) -> Tensor:
        """Positions (J, 3) with all rotations at rest, the root at the origin."""
        places: list[Tensor] = []
        for joint, parent in enumerate(self.parents):
            places.append(self.offset_J3[joint] * 0 if parent < 0 else places[parent] + self.offset_J3[joint])
        return torch.stack(places)


@dataclass(frozen=True)
class Motion:
    """A moving skeleton: where its root is, (T, 3), and how its joints are turned in their parents' axes,
    (T, J, 3, 3). ``notes`` say what was converted; ``loop`` that the end goes on at the start."""

    skeleton: Skeleton
    root_T3: Tensor
    rotation_TJ33: Tensor
    fps: float
    notes: tuple[str, ...] = ()
    loop: bool = False
    genre: str = ""
    world: Tensor = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))
    """Turns the file's world into the canonical one, where the file's format says how."""

    def __len__(self) -> int:
        return len(self.root_T3)

    def positions(self) -> Tensor:
        """(T, J, 3) in the world."""
        return forward_kinematics(self.skeleton, self.root_T3, self.rotation_TJ33)[0]


def forward_kinematics(skeleton: Skeleton, root: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (..., J, 3) and turns in the world (..., J, 3, 3) of all joints.

    Args:
        root: (..., 3); rotation: (..., J, 3, 3), in the parents' axes.
    """
    offset = skeleton.offset_J3.to(rotation)
    places, turns = [root], [rotation[..., 0, :, :]]
    for joint in range(1, len(skeleton.parents)):
        parent = skeleton.parents[joint]
        places.append(places[parent] + (turns[parent] @ offset[joint][:, None])[..., 0])
        turns.append(turns[parent] @ rotation[..., joint, :, :])
    return torch.stack(places, -2), torch.stack(turns, -3)


# Name, parent, offset in metres: the joints of SMPL (24), on a body of our own of 1.70 m, arms to the sides.
_BODY = (
    ("pelvis", -1, (0.0, 0.0, 0.0)),
    ("left_hip", 0, (0.08, -0.08, 0.0)),
    ("right_hip", 0, (-0.08, -0.08, 0.0)),
    ("spine1", 0, (0.0, 0.12, 0.0)),
    ("left_knee", 1, (0.0, -0.40, 0.0)),
    ("right_knee", 2, (0.0, -0.40, 0.0)),
    ("spine2", 3, (0.0, 0.13, 0.0)),
    ("left_ankle", 4, (0.0, -0.41, 0.0)),
    ("right_ankle", 5, (0.0, -0.41, 0.0)),
    ("spine3", 6, (0.0, 0.06, 0.0)),
    ("left_foot", 7, (0.0, -0.06, 0.13)),
    ("right_foot", 8, (0.0, -0.06, 0.13)),
    ("neck", 9, (0.0, 0.20, 0.0)),
    ("left_collar", 9, (0.07, 0.11, 0.0)),
    ("right_collar", 9, (-0.07, 0.11, 0.0)),
    ("head", 12, (0.0, 0.12, 0.02)),
    ("left_shoulder", 13, (0.11, 0.03, 0.0)),
    ("right_shoulder", 14, (-0.11, 0.03, 0.0)),
    ("left_elbow", 16, (0.27, 0.0, 0.0)),
    ("right_elbow", 17, (-0.27, 0.0, 0.0)),
    ("left_wrist", 18, (0.25, 0.0, 0.0)),
    ("right_wrist", 19, (-0.25, 0.0, 0.0)),
    ("left_hand", 20, (0.08, 0.0, 0.0)),
    ("right_hand", 21, (-0.08, 0.0, 0.0)),
)
BODY = Skeleton(
    tuple(name for name, _, _ in _BODY),
    tuple(parent for _, parent, _ in _BODY),
    torch.tensor([offset for _, _, offset in _BODY], dtype=torch.float64),
)
"""The canonical skeleton."""
LOWER = (0, 1, 2, 4, 5, 7, 8, 10, 11)
"""Joints of the lower stream, to which the root's velocity belongs."""
UPPER = tuple(joint for joint in range(len(BODY.names)) if joint not in LOWER)
FEET = tuple(BODY.names.index(f"{side}_{part}") for side in ("left", "right") for part in ("ankle", "foot"))
MIRRORED = tuple(
    BODY.names.index(name.replace("left", "?").replace("right", "left").replace("?", "right")) for name in BODY.names
)
FPS = 30.0
WIDTH = 6 * len(BODY.names) + 3
STREAMS = (6 * len(UPPER), 6 * len(LOWER) + 3)
ORDER = [6 * joint + part for joint in UPPER for part in range(6)] + [WIDTH - 3, WIDTH - 2, WIDTH - 1]
ORDER += [6 * joint + part for joint in LOWER for part in range(6)]
"""Where each feature is among the joints in turn, in 6-D, and then the velocity."""


def to_features(motion: Motion) -> Tensor:
    """(T, 147) of a canonical motion, the upper stream (90), then the lower one (57): joints in 6-D, and before those
    of the lower body the root's velocity in metres a second; that of the first frame is that of the second."""
    velocity_T3 = torch.zeros_like(motion.root_T3)
    if len(motion) > 1:
        velocity_T3[1:] = (motion.root_T3[1:] - motion.root_T3[:-1]) * motion.fps
        velocity_T3[0] = velocity_T3[1]
    six_TC = rotations.to_6d(motion.rotation_TJ33).flatten(1)
    return torch.cat([six_TC, velocity_T3], -1)[:, ORDER].float()


def split_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (..., J, 3, 3) and the root's velocity (..., 3) of features (..., 147)."""
    plain = torch.empty_like(x)
    plain[..., ORDER] = x
    return rotations.from_6d(plain[..., :-3].unflatten(-1, (-1, 6))), plain[..., -3:]


def from_features(x_TC: Tensor, start_3: Tensor | None = None, fps: float = FPS) -> Motion:
    """The motion of features, the velocity summed up from ``start_3`` (default: feet on the ground at the start)."""
    rotation, velocity_T3 = split_features(x_TC.double())
    path_T3 = torch.cat([torch.zeros(1, 3, dtype=torch.float64), velocity_T3[1:].cumsum(0) / fps])
    motion = Motion(BODY, path_T3, rotation, fps)
    if start_3 is None:
        start_3 = torch.stack([torch.zeros(()), -motion.positions()[0, :, 1].min(), torch.zeros(())]).double()
    return replace(motion, root_T3=path_T3 + start_3)


def mirror(x: Tensor) -> Tensor:
    """Features (..., 147) of the motion in a mirror: left is right."""
    rotation, velocity = split_features(x)
    flip = torch.tensor([-1.0, 1.0, 1.0]).to(x)
    turned = (rotation * flip[:, None] * flip)[..., MIRRORED, :, :]
    return torch.cat([rotations.to_6d(turned).flatten(-2), velocity * flip], -1)[..., ORDER]


def facing(motion: Motion) -> Motion:
    """The motion moved and turned about the vertical so that it starts at the origin, looking along z."""
    forward_3 = motion.rotation_TJ33[0, 0] @ torch.tensor([0.0, 0.0, 1.0], dtype=motion.rotation_TJ33.dtype)
    turn = rotations.about(1, -torch.atan2(forward_3[0], forward_3[2]))
    first_3 = motion.root_T3[:1] * torch.tensor([1.0, 0.0, 1.0], dtype=motion.root_T3.dtype)
    rotation = motion.rotation_TJ33.clone()
    rotation[:, 0] = turn @ rotation[:, 0]
    return replace(motion, root_T3=(motion.root_T3 - first_3) @ turn.T, rotation_TJ33=rotation)


def grounded(motion: Motion, seconds: float = 3.0) -> Motion:
    """The motion moved up or down so that its lowest joint of every ``seconds`` stands on the ground: a velocity that
    is summed up drifts. Shorter leaps stay."""
    low_T = motion.positions()[..., 1].min(1).values
    reach = max(1, round(seconds * motion.fps / 2))
    lowest = -torch.nn.functional.max_pool1d(-low_T[None], 2 * reach + 1, 1, reach)
    padded = torch.nn.functional.pad(lowest, (reach, reach), mode="replicate")
    floor_T = torch.nn.functional.avg_pool1d(padded, 2 * reach + 1, 1)[0]
    root_T3 = motion.root_T3.clone()
    root_T3[:, 1] -= floor_T
    return replace(motion, root_T3=root_T3)


def resample(motion: Motion, fps: float = FPS) -> Motion:
    """The motion at another rate: positions on straight lines, rotations along the shorter arc.

    Raises:
        ZooError: no frame at all, or a rate that is none.
    """
    if len(motion) == 0:
        raise ZooError("a motion of 0 frames holds nothing; leave the file out")
    if not 0 < motion.fps < 1e5:
        raise ZooError(f"{motion.fps:g} frames a second is no rate; mend the file")
    if abs(motion.fps - fps) < 1e-3 * fps:
        return replace(motion, fps=fps)
    last = len(motion) - 1
    count = int(last / motion.fps * fps + 1e-6) + 1
    at_T = (torch.arange(count, dtype=torch.float64) * motion.fps / fps).clamp(max=last)
    low_T = at_T.floor().long().clamp(max=max(0, last - 1))
    high_T, share_T = (low_T + 1).clamp(max=last), at_T - low_T
    root_T3 = torch.lerp(motion.root_T3[low_T], motion.root_T3[high_T], share_T[:, None])
    rotation = rotations.slerp(motion.rotation_TJ33[low_T], motion.rotation_TJ33[high_T], share_T[:, None])
    note = f"{motion.fps:.4g} frames a second became {fps:.4g}"
    return replace(motion, root_T3=root_T3, rotation_TJ33=rotation, fps=fps, notes=(*motion.notes, note))
