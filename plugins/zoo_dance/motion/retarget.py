"""Any skeleton's motion on the canonical one.

A joint keeps its turns in the world, seen from a frame that is fixed to the bone: the frame is found at the source's
rest, where the canonical rest is turned until its bones lie along the source's. Lengths are scaled by the legs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.spec import ZooError
from zoo_dance.motion import rotations
from zoo_dance.motion.skeleton import BODY, Motion, forward_kinematics, resample

# What the parts of the body are called, sides and everything but letters left out; the first that is there counts.
_CALLED: Mapping[str, tuple[str, ...]] = {
    "pelvis": ("pelvis", "hips", "hip", "root", "lowertorso"),
    "spine1": ("spine1", "spine", "abdomen", "lowerback", "torso1"),
    "spine2": ("spine2",),
    "spine3": ("spine3", "chest", "upperchest", "torso", "thorax", "chest2"),
    "neck": ("neck", "neck1"),
    "head": ("head",),
    "hip": ("hip", "upleg", "upperleg", "thigh", "upperlegs", "femur"),
    "knee": ("knee", "leg", "lowerleg", "shin", "calf", "tibia"),
    "ankle": ("ankle", "foot"),
    "foot": ("toes", "toe", "toebase", "ball"),
    "collar": ("collar", "shoulder", "clavicle"),
    "shoulder": ("shoulder", "arm", "upperarm", "uparm", "humerus"),
    "elbow": ("elbow", "forearm", "lowerarm", "radius"),
    "wrist": ("wrist", "hand"),
}
NEEDED = ("pelvis", *(f"{side}_{part}" for part in ("hip", "knee", "shoulder", "elbow") for side in ("left", "right")))


def canonical(motion: Motion, where: str = "the motion", fps: float | None = None) -> Motion:
    """The motion on the canonical skeleton, its feet on the ground, at ``fps`` (None: as it is).

    Raises:
        ZooError: joints without which there is no person; all that are missing are named.
    """
    moved = motion if motion.skeleton is BODY else _retarget(motion, where)
    if fps is not None:
        moved = resample(moved, fps)
    root_T3 = moved.root_T3.clone()
    root_T3[:, 1] -= moved.positions()[..., 1].min(1).values.quantile(0.01)
    return replace(moved, root_T3=root_T3)


def parts(names: tuple[str, ...]) -> dict[str, int]:
    """Canonical joint to the number of the source's joint that is called so."""
    plain: dict[str, int] = {}
    for number, name in enumerate(names):
        plain.setdefault(_plain(name), number)
    found: dict[str, int] = {}
    for part, called in _CALLED.items():
        for side in ("",) if part in ("pelvis", "spine1", "spine2", "spine3", "neck", "head") else ("left", "right"):
            for name in called:
                number = plain.get(f"{side} {name}".strip())
                if number is not None and number not in found.values():
                    found[f"{side}_{part}" if side else part] = number
                    break
    for side in ("left", "right"):  # a single shoulder is the arm's, not the collar's
        if f"{side}_collar" in found and f"{side}_shoulder" not in found:
            found[f"{side}_shoulder"] = found.pop(f"{side}_collar")
    if "pelvis" not in found and names:
        found = {"pelvis": 0, **found} if 0 not in found.values() else found
    return found


def _plain(name: str) -> str:
    """``mixamorig:LeftUpLeg``, ``UpperLeg_L``, ``L_Hip``, ``lThigh`` as ``left upleg`` and the like."""
    name = name.rpartition(":")[2]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    if len(words) > 1 and words[0] in ("Bip", "mixamorig"):
        words = [word for word in words[1:] if not word.isdigit()]
    low = [word.lower() for word in words]
    side = ""
    for said, meant in (("left", "left"), ("right", "right"), ("l", "left"), ("r", "right")):
        if said in low:
            side = meant
            low.remove(said)
            break
    return f"{side} {''.join(low)}".strip()


def _retarget(motion: Motion, where: str) -> Motion:
    source = motion.skeleton
    found = parts(source.names)
    if missing := [name for name in NEEDED if name not in found]:
        raise ZooError(
            f"{where} lacks joints that a person needs: {', '.join(missing)}; its joints are "
            f"{', '.join(source.names[:30])}: rename them, or give another file"
        )
    notes = list(motion.notes)
    still = [name for name in BODY.names if name not in found]
    mapped = {BODY.names.index(name): joint for name, joint in found.items()}
    places_TJ3, turns_TJ33 = forward_kinematics(source, motion.root_T3, motion.rotation_TJ33)
    world = motion.world
    if torch.equal(world, torch.eye(3, dtype=world.dtype)):
        world, note = _upright(places_TJ3, mapped)
        notes += [note] if note else []
    frames = _frames(motion, mapped, turns_TJ33)
    world_turns: dict[int, Tensor] = {}
    for joint, parent in enumerate(BODY.parents):
        if joint in mapped:
            world_turns[joint] = world @ turns_TJ33[:, mapped[joint]] @ frames[joint]
        else:
            world_turns[joint] = world_turns[parent]
    local = [
        world_turns[joint] if parent < 0 else world_turns[parent].mT @ world_turns[joint]
        for joint, parent in enumerate(BODY.parents)
    ]
    scale = _leg(BODY.offset_J3, 4, 7) / _leg(source.offset_J3, mapped[4], mapped.get(7))
    if not torch.isfinite(scale) or scale <= 0:
        raise ZooError(f"{where} has legs of no length; export it again with its skeleton")
    root_T3 = (places_TJ3[:, mapped[0]] @ world.T) * scale
    if not 0.5 < scale < 2:
        notes.append(f"lengths are multiplied by {float(scale):.3g}")
    body_parts = [name for name in still if not name.endswith(("hand", "collar", "spine1", "spine2", "spine3"))]
    if body_parts:
        notes.append(f"no {', '.join(body_parts)}: held still")
    return replace(
        motion,
        skeleton=BODY,
        root_T3=root_T3,
        rotation_TJ33=torch.stack(local, 1),
        notes=tuple(notes),
        world=torch.eye(3, dtype=torch.float64),
    )


def _leg(offset_J3: Tensor, knee: int, ankle: int | None) -> Tensor:
    thigh = offset_J3[knee].norm()
    return thigh + (offset_J3[ankle].norm() if ankle is not None else thigh * 1.025)


def _upright(places_TJ3: Tensor, mapped: Mapping[int, int]) -> tuple[Tensor, str]:
    """Turns the world so that heads are mostly above knees; BVH does not say which way is up."""
    shoulders = (places_TJ3[:, mapped[16]] + places_TJ3[:, mapped[17]]) / 2
    knees = (places_TJ3[:, mapped[4]] + places_TJ3[:, mapped[5]]) / 2
    up = F.normalize(shoulders - knees, dim=-1).median(0).values
    axis = int(up.abs().argmax())
    if axis == 1 and up[1] > 0:
        return torch.eye(3, dtype=torch.float64), ""
    ahead = torch.zeros(3, dtype=torch.float64)
    ahead[axis] = up[axis].sign()
    turned = rotations.between(ahead, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    return turned, f"up is {'-' if up[axis] < 0 else ''}{'xyz'[axis]} in the file; it became y"


def _frames(motion: Motion, mapped: Mapping[int, int], turns_TJ33: Tensor) -> dict[int, Tensor]:
    """For each mapped joint the turn (3, 3) from the canonical axes to the source's at its rest."""
    rest_can, rest_src = BODY.rest(), motion.skeleton.rest()
    # BVH says nothing about its rest; the other formats rest as a person stands.
    guess_twist = bool(torch.equal(motion.world, torch.eye(3, dtype=torch.float64)))
    frames: dict[int, Tensor] = {}
    for joint in sorted(mapped):
        below = [c for c in sorted(mapped) if c != joint and _next_above(c, mapped) == joint]
        pairs = [
            (rest_can[c] - rest_can[joint], rest_src[mapped[c]] - rest_src[mapped[joint]])
            for c in below
            if (rest_src[mapped[c]] - rest_src[mapped[joint]]).norm() > 1e-6
        ]
        up = _next_above(joint, mapped)
        before = frames[up] if up is not None else torch.eye(3, dtype=torch.float64)
        if len(pairs) >= 2 and (turn := _kabsch(pairs)) is not None:
            frames[joint] = turn
        elif pairs:
            one, two = pairs[0]
            frame = rotations.between(before @ one, two) @ before
            if guess_twist and up is not None:
                seen = turns_TJ33[:, mapped[up]] @ frames[up]
                mean = (seen.mT @ turns_TJ33[:, mapped[joint]] @ frame).mean(0)
                frame = frame @ _quarter_twist(mean, F.normalize(one, dim=0))
            frames[joint] = frame
        else:
            frames[joint] = before
    return frames


def _next_above(joint: int, mapped: Mapping[int, int]) -> int | None:
    parent = BODY.parents[joint]
    while parent >= 0 and parent not in mapped:
        parent = BODY.parents[parent]
    return parent if parent >= 0 else None


def _kabsch(pairs: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The turn that takes the first of each pair of directions nearest to the second; None if all lie on a line."""
    one = torch.stack([F.normalize(a, dim=0) for a, _ in pairs])
    two = torch.stack([F.normalize(b, dim=0) for _, b in pairs])
    u, s, vh = torch.linalg.svd(two.T @ one)
    if s[1] < 1e-2:
        return None
    flip = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vh).sign())], dtype=one.dtype))
    turn: Tensor = u @ flip @ vh
    return turn


def _quarter_twist(mean: Tensor, axis: Tensor) -> Tensor:
    """The number of quarter turns about the bone that brings a joint's mean turn nearest to none. Quarters only, so
    that all clips of one skeleton get the same."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=mean.dtype)
    cos, sin = mean.trace() - axis @ mean @ axis, (mean @ cross).trace()
    quarters = torch.round(torch.atan2(sin, cos) / (torch.pi / 2))
    return rotations.from_axis_angle(axis * quarters * (torch.pi / 2))
