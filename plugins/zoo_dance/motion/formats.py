"""Motion files of all kinds: BVH, DeepMimic JSON, AMP ``.npy``, AIST++ and SMPL pickles, FineDance ``.npy``.

Shapes: T frames, J joints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_dance.motion import rotations
from zoo_dance.motion.bvh import read_bvh
from zoo_dance.motion.pickles import read_pickle
from zoo_dance.motion.skeleton import BODY, Motion, Skeleton

SUFFIXES = (".bvh", ".json", ".txt", ".npy", ".npz", ".pkl")
MOST = 1e4
"""Metres: a root further away is no person's."""


def read_motion(path: str | Path) -> Motion:
    """A motion file as it is, its skeleton its own (see `zoo_dance.motion.retarget.canonical`).

    Raises:
        ZooError: a file that is missing, broken, of no known kind, or hostile; one line that says what to do.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ZooError(f"motion file '{path}' does not exist; check the path")
    suffix = path.suffix.lower()
    if suffix == ".bvh":
        motion = read_bvh(path)
    elif suffix in (".json", ".txt"):
        motion = _deepmimic(path)
    elif suffix in (".npy", ".npz", ".pkl", ".pickle"):
        motion = _arrays(path, read_pickle(path))
    else:
        raise ZooError(f"'{path}': motion comes as {', '.join(SUFFIXES)}; export it as BVH")
    if len(motion) == 0:
        raise ZooError(f"'{path}' has 0 frames; leave it out")
    if not 0 < motion.fps < 1e5:
        raise ZooError(f"'{path}' says {motion.fps:g} frames a second; mend its rate")
    if not (motion.root_T3.isfinite().all() and motion.rotation_TJ33.isfinite().all()):
        raise ZooError(f"'{path}' holds numbers that are not finite; mend or leave it out")
    return motion


# -- DeepMimic -------------------------------------------------------------------------------------------------------

_SIDES = ("right", "left")
# Name, parent, offset (x ahead, y up, z to the right), numbers in a frame; a hinge has one, about z.
_MIMIC: tuple[tuple[str, int, tuple[float, float, float], int], ...] = (
    ("root", -1, (0.0, 0.0, 0.0), 4),
    ("chest", 0, (0.0, 0.236151, 0.0), 4),
    ("neck", 1, (0.0, 0.223894, 0.0), 4),
    ("right_hip", 0, (0.0, 0.0, 0.084887), 4),
    ("right_knee", 3, (0.0, -0.421546, 0.0), 1),
    ("right_ankle", 4, (0.0, -0.40987, 0.0), 4),
    ("right_shoulder", 1, (-0.02405, 0.2435, 0.18311), 4),
    ("right_elbow", 6, (0.0, -0.274788, 0.0), 1),
    ("left_hip", 0, (0.0, 0.0, -0.084887), 4),
    ("left_knee", 8, (0.0, -0.421546, 0.0), 1),
    ("left_ankle", 9, (0.0, -0.40987, 0.0), 4),
    ("left_shoulder", 1, (-0.02405, 0.2435, -0.18311), 4),
    ("left_elbow", 11, (0.0, -0.274788, 0.0), 1),
)
_HANDS = (("right_wrist", 7, (0.0, -0.258947, 0.0)), ("left_wrist", 12, (0.0, -0.258947, 0.0)))
_MIMIC_WIDTH = 4 + sum(numbers for _, _, _, numbers in _MIMIC)
_MIMIC_SKELETON = Skeleton(
    tuple(row[0] for row in (*_MIMIC, *_HANDS)),
    tuple(row[1] for row in (*_MIMIC, *_HANDS)),
    torch.tensor([row[2] for row in (*_MIMIC, *_HANDS)], dtype=torch.float64),
)
# x ahead, z to the right: the left is -z, which is the canonical x; ahead is the canonical z.
_MIMIC_WORLD = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def _deepmimic(path: Path) -> Motion:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        frames = np.asarray(document["Frames"], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        cause = "it has no 'Frames'" if isinstance(error, KeyError | TypeError) else str(error).partition("\n")[0]
        raise ZooError(f"'{path}' is no motion of DeepMimic: {cause}; give BVH instead") from error
    if frames.ndim != 2 or frames.shape[1] != _MIMIC_WIDTH or not len(frames):
        raise ZooError(
            f"'{path}' holds frames of shape {frames.shape}, where DeepMimic's humanoid has (frames, {_MIMIC_WIDTH}); "
            "give BVH instead"
        )
    values = torch.from_numpy(frames)
    turns, at = [], 4
    for _, _, _, numbers in _MIMIC:
        part = values[:, at : at + numbers]
        turns.append(rotations.from_quaternion(part) if numbers == 4 else rotations.about(2, part[:, 0]))
        at += numbers
    turns += [torch.eye(3, dtype=torch.float64).expand(len(frames), 3, 3)] * len(_HANDS)
    seconds = float(np.median(frames[:, 0]))
    loop = isinstance(document, dict) and document.get("Loop") == "wrap"
    fps = 1 / seconds if seconds > 0 else 0.0
    return Motion(_MIMIC_SKELETON, values[:, 1:4], torch.stack(turns, 1), fps, loop=loop, world=_MIMIC_WORLD)


# -- arrays and pickles ----------------------------------------------------------------------------------------------

# AMP: x ahead, y to the left, z up.
_AMP_WORLD = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def _arrays(path: Path, content: Any) -> Motion:
    if isinstance(content, Mapping) and "skeleton_tree" in content:
        return _amp(path, content)
    if isinstance(content, Mapping):
        return _smpl(path, content)
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu" and content.ndim == 2:
        return _finedance(path, content)
    raise ZooError(
        f"'{path}' holds {_kind(content)}, and no motion of AMP, AIST++, SMPL or FineDance; export it as BVH"
    )


def _kind(content: Any) -> str:
    if isinstance(content, np.ndarray):
        return f"an array {content.shape} of {content.dtype}"
    return f"a {type(content).__name__}"


def _tensor(path: Path, content: Mapping[Any, Any], key: str, *width: int) -> Tensor:
    value = content.get(key)
    value = value.get("arr") if isinstance(value, Mapping) else value
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != len(width) + 1 or any(w not in (-1, n) for w, n in zip(width, array.shape[1:], strict=True)):
        shape = ", ".join("n" if w < 0 else str(w) for w in width)
        raise ZooError(f"'{path}': '{key}' is {_kind(value)}, not numbers of shape (frames, {shape}); export it again")
    return torch.from_numpy(array)


def _rate(path: Path, content: Mapping[Any, Any], keys: tuple[str, ...], usual: float) -> float:
    for key in keys:
        if key in content:
            try:
                return float(np.asarray(content[key], dtype=np.float64).reshape(-1)[0])
            except (TypeError, ValueError, IndexError) as error:
                raise ZooError(f"'{path}': '{key}' is no rate; mend the file") from error
    return usual


def _amp(path: Path, content: Mapping[Any, Any]) -> Motion:
    tree = content["skeleton_tree"]
    if not isinstance(tree, Mapping) or not isinstance(tree.get("node_names"), list):
        raise ZooError(f"'{path}' has no names of joints in its skeleton_tree; export it again")
    names = tuple(str(name) for name in tree["node_names"])
    offset_J3 = _tensor(path, tree, "local_translation", 3)
    quaternion = _tensor(path, content, "rotation", len(names), 4)
    root_T3 = _tensor(path, content, "root_translation", 3)
    parents = tuple(int(v) for v in _tensor(path, tree, "parent_indices"))
    fits = len(parents) == len(names) == len(offset_J3) and len(root_T3) == len(quaternion)
    if not fits or any(not (-1 if n == 0 else 0) <= p < max(n, 0) for n, p in enumerate(parents)):
        raise ZooError(f"'{path}': names, parents, offsets and frames do not go together; export it again")
    turns = rotations.from_quaternion(quaternion[..., [3, 0, 1, 2]])  # x, y, z, w in the file
    if not content.get("is_local", True):
        world = turns
        turns = torch.stack([world[:, j] if p < 0 else world[:, p].mT @ world[:, j] for j, p in enumerate(parents)], 1)
    fps = _rate(path, content, ("fps",), 30.0)
    return Motion(Skeleton(names, parents, offset_J3), root_T3, turns, fps, world=_AMP_WORLD)


def _smpl(path: Path, content: Mapping[Any, Any]) -> Motion:
    """AIST++ (``smpl_poses``, ``smpl_trans``, ``smpl_scaling``; 60 frames a second), and the ``poses`` and ``trans`` of
    SMPL and AMASS, hands left out."""
    aist = "smpl_poses" in content
    poses_key, trans_key = ("smpl_poses", "smpl_trans") if aist else ("poses", "trans")
    if poses_key not in content or trans_key not in content:
        keys = ", ".join(str(key) for key in list(content)[:6])
        raise ZooError(
            f"'{path}' has {keys or 'nothing'}, where AIST++ has smpl_poses and smpl_trans, and SMPL poses and trans; "
            "export it as BVH"
        )
    poses = _tensor(path, content, poses_key, -1)
    root_T3 = _tensor(path, content, trans_key, 3)
    if aist and "smpl_scaling" in content:
        root_T3 = root_T3 / float(np.asarray(content["smpl_scaling"], dtype=np.float64).reshape(-1)[0])
    if len(poses) != len(root_T3) or poses.shape[1] % 3 or poses.shape[1] < 66:
        raise ZooError(
            f"'{path}': {tuple(poses.shape)} angles and {tuple(root_T3.shape)} places are no poses of SMPL, which are "
            "(frames, 72) and (frames, 3); export it again"
        )
    hands = poses.shape[1] == 72
    turns = rotations.from_axis_angle(poses[:, : 72 if hands else 66].unflatten(1, (-1, 3)))
    fps = _rate(path, content, ("mocap_framerate", "mocap_frame_rate", "fps"), 60.0 if aist else 30.0)
    return Motion(BODY, root_T3, _with_hands(turns), fps, () if hands else ("hands are held still",))


def _finedance(path: Path, content: np.ndarray) -> Motion:
    """FineDance: 3 numbers of the root and 52 joints of SMPL-H in 6-D (315), or with 4 foot contacts before (319)."""
    values = torch.from_numpy(content.astype(np.float64))
    if values.shape[1] == 319:
        values = values[:, 4:]
    if values.shape[1] != 315:
        raise ZooError(f"'{path}' is {tuple(content.shape)}, where FineDance has (frames, 315) or (frames, 319)")
    turns = rotations.from_6d(values[:, 3 : 3 + 22 * 6].unflatten(1, (22, 6)))
    return Motion(BODY, values[:, :3], _with_hands(turns), 30.0, ("fingers are left out",))


def _with_hands(turns: Tensor) -> Tensor:
    missing = len(BODY.names) - turns.shape[1]
    still = torch.eye(3, dtype=turns.dtype).expand(len(turns), missing, 3, 3)
    return torch.cat([turns, still], 1)
