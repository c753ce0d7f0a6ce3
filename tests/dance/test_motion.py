"""Motion: rotations, files, the canonical skeleton, drawing; exact round trips and files that are broken or hostile."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.spec import ZooError
from zoo_dance.motion import rotations
from zoo_dance.motion.beats import contacts, motion_beats, step_beats
from zoo_dance.motion.bvh import read_bvh, write_bvh
from zoo_dance.motion.draw import write_gif
from zoo_dance.motion.formats import read_motion
from zoo_dance.motion.retarget import canonical, parts
from zoo_dance.motion.skeleton import (
    BODY,
    STREAMS,
    WIDTH,
    Motion,
    Skeleton,
    facing,
    forward_kinematics,
    from_features,
    grounded,
    mirror,
    resample,
    to_features,
)


def turns(*shape: int, size: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return rotations.from_axis_angle(size * torch.randn(*shape, 3, generator=generator, dtype=torch.float64))


def some_motion(frames: int = 40, fps: float = 30.0) -> Motion:
    time = torch.arange(frames, dtype=torch.float64) / fps
    vector = 0.4 * torch.sin(time[:, None, None] * 6 + torch.arange(24 * 3).view(1, 24, 3).double())
    vector[:, 0] *= 0.3
    root = torch.stack([0.2 * time, 0.95 + 0.02 * torch.sin(9 * time), time], -1)
    return Motion(BODY, root, rotations.from_axis_angle(vector), fps)


# -- rotations -------------------------------------------------------------------------------------------------------


def test_notations_of_a_rotation_are_one() -> None:
    matrix = torch.cat([turns(500), turns(50, size=3.0), torch.eye(3).double()[None]])
    close = dict[str, float](rtol=0, atol=1e-10)
    torch.testing.assert_close(rotations.from_6d(rotations.to_6d(matrix)), matrix, **close)
    torch.testing.assert_close(rotations.from_quaternion(rotations.to_quaternion(matrix)), matrix, **close)
    torch.testing.assert_close(rotations.from_axis_angle(rotations.to_axis_angle(matrix)), matrix, **close)
    for order in ("XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"):
        torch.testing.assert_close(rotations.from_euler(rotations.to_euler(matrix, order), order), matrix, **close)


@pytest.mark.parametrize("order", ["XYZ", "ZXY", "YXZ"])
def test_gimbal_lock_and_half_turns(order: str) -> None:
    for degrees in (90.0, -90.0):
        locked = rotations.from_euler(torch.tensor([[30.0, degrees, -50.0]]).double().deg2rad(), order)
        again = rotations.from_euler(rotations.to_euler(locked, order), order)
        torch.testing.assert_close(again, locked, rtol=0, atol=1e-7)
    half = rotations.from_axis_angle(torch.pi * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rotations.from_quaternion(rotations.to_quaternion(half)), half, rtol=0, atol=1e-10)


def test_a_quarter_turn_by_hand() -> None:
    quarter = rotations.about(2, torch.tensor(torch.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 1.0, 0]).double())
    one, two = torch.tensor([1.0, 2, 3]).double(), torch.tensor([-2.0, 0.5, 1]).double()
    assert torch.allclose(rotations.between(one, two) @ (one / one.norm()), two / two.norm())
    assert torch.allclose(rotations.between(one, -one) @ one, -one)
    middle = rotations.slerp(torch.eye(3).double(), quarter, torch.tensor(0.5).double())
    torch.testing.assert_close(middle, rotations.about(2, torch.tensor(torch.pi / 4, dtype=torch.float64)))


def test_six_numbers_have_gradients_and_need_no_length() -> None:
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    matrix = rotations.from_6d(3 * x)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).double().expand(7, 3, 3))
    matrix.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


# -- forward kinematics, features ------------------------------------------------------------------------------------


def test_forward_kinematics_by_hand() -> None:
    arm = Skeleton(("a", "b", "c"), (-1, 0, 1), torch.tensor([[0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]]).double())
    turn = torch.eye(3).double().repeat(1, 3, 1, 1)
    turn[:, 1] = rotations.about(2, torch.tensor([torch.pi / 2]).double())
    places, world = forward_kinematics(arm, torch.tensor([[0, 1.0, 0]]).double(), turn)
    torch.testing.assert_close(places[0], torch.tensor([[0, 1.0, 0], [1, 1, 0], [1, 2, 0]]).double())
    torch.testing.assert_close(world[:, 2], turn[:, 1])


def test_features_and_back_are_the_motion() -> None:
    motion = some_motion()
    x = to_features(motion)
    assert x.shape == (40, WIDTH) and sum(STREAMS) == WIDTH and STREAMS == (90, 57)
    again = from_features(x, motion.root_T3[0])
    torch.testing.assert_close(again.positions(), motion.positions(), rtol=0, atol=1e-5)


def test_a_mirror_swaps_sides_and_twice_is_nothing() -> None:
    motion = some_motion()
    x = to_features(motion)
    torch.testing.assert_close(mirror(mirror(x)), x, rtol=0, atol=1e-5)
    flipped = from_features(mirror(x), motion.root_T3[0] * torch.tensor([-1.0, 1, 1]))
    left, right = BODY.names.index("left_wrist"), BODY.names.index("right_wrist")
    wanted = motion.positions()[:, left] * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(flipped.positions()[:, right], wanted, rtol=0, atol=1e-5)


def test_facing_and_ground() -> None:
    motion = some_motion()
    turn = rotations.about(1, torch.tensor(1.1).double())
    turned = motion.rotation_TJ33.clone()
    turned[:, 0] = turn @ turned[:, 0]
    away = replace(motion, root_T3=motion.root_T3 @ turn.T + torch.tensor([3.0, 0, -2]), rotation_TJ33=turned)
    torch.testing.assert_close(facing(away).positions(), facing(motion).positions(), rtol=0, atol=1e-8)
    drift = replace(motion, root_T3=motion.root_T3 + torch.linspace(0, 1, 40).double()[:, None])
    assert grounded(drift, 0.2).positions()[..., 1].min(1).values.abs().max() < 0.2


# -- files -----------------------------------------------------------------------------------------------------------


def test_bvh_round_trip_is_exact(tmp_path: Path) -> None:
    motion = some_motion()
    motion = replace(motion, rotation_TJ33=turns(40, 24, size=2.0))
    again = read_bvh(write_bvh(motion, tmp_path / "a.bvh", scale=1.0))
    order = [again.skeleton.names.index(name) for name in BODY.names]
    torch.testing.assert_close(again.positions()[:, order], motion.positions(), rtol=0, atol=1e-5)
    torch.testing.assert_close(again.rotation_TJ33[:, order], motion.rotation_TJ33, rtol=0, atol=1e-5)
    assert again.fps == pytest.approx(30.0, abs=1e-6)


def test_our_bvh_comes_back_onto_the_canonical_skeleton(tmp_path: Path) -> None:
    motion = canonical(some_motion())
    again = canonical(read_motion(write_bvh(motion, tmp_path / "a.bvh")))
    torch.testing.assert_close(again.positions(), motion.positions(), rtol=0, atol=1e-3)


def bvh_text(tmp_path: Path) -> str:
    return write_bvh(some_motion(3), tmp_path / "whole.bvh").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("HIERARCHY", "HIERARCH", "line 1: 'HIERARCH' where 'HIERARCHY' belongs"),
        ("OFFSET 8.00000000", "OFFSET eight", "'eight' is no number"),
        ("Frames: 3", "Frames: 30", "announces 30 frames and holds 3"),
        ("Frames: 3", "Frames: 0", "0 frames"),
        ("Frames: 3", "Frames: -2", "-2 is no count"),
        ("Frame Time: 0.0333333333", "Frame Time: 0", "a frame time of 0 s"),
        ("Zrotation", "Wrotation", "no channel 'Wrotation'"),
        ("JOINT left_knee", "left_knee", "not expected"),
        ("MOTION", "", "not expected"),
    ],
)
def test_a_broken_bvh_is_refused_with_one_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "broken.bvh"
    path.write_text(bvh_text(tmp_path).replace(old, new, 1))
    with pytest.raises(ZooError, match="cannot be read as BVH") as error:
        read_motion(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    text = bvh_text(tmp_path)
    for content, told in ((text[: len(text) // 3], "ends early"), (text[:-200], "numbers where"), ("", "ends early")):
        (tmp_path / "cut.bvh").write_text(content)
        with pytest.raises(ZooError, match=told):
            read_motion(tmp_path / "cut.bvh")
    lines = text.splitlines()
    lines[-1] = lines[-1].replace(lines[-1].split()[0], "nan", 1)
    (tmp_path / "nan.bvh").write_text("\n".join(lines))
    with pytest.raises(ZooError, match="not finite"):
        read_motion(tmp_path / "nan.bvh")
    (tmp_path / "a.fbx").write_bytes(b"x")
    for name, told in (("a.fbx", "export it as BVH"), ("none.bvh", "does not exist")):
        with pytest.raises(ZooError, match=told):
            read_motion(tmp_path / name)


def test_missing_joints_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "hand.bvh"
    path.write_text(bvh_text(tmp_path).replace("left_knee", "tail").replace("right_elbow", "fin"))
    with pytest.raises(ZooError, match="left_knee, right_elbow"):
        canonical(read_motion(path), "hand.bvh")


def test_names_of_many_tools() -> None:
    mixamo = ("Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "LeftArm", "LeftForeArm", "LeftHand", "LeftShoulder")
    biped = ("Pelvis", "L Thigh", "L Calf", "L Foot", "L UpperArm", "L Forearm", "L Hand", "L Clavicle")
    tools = {
        "mixamo": [f"mixamorig:{name}" for name in mixamo],
        "bandai": ["Hips", "UpperLeg_L", "LowerLeg_L", "Foot_L", "UpperArm_L", "LowerArm_L", "Hand_L", "Shoulder_L"],
        "smpl": ["Pelvis", "L_Hip", "L_Knee", "L_Ankle", "L_Shoulder", "L_Elbow", "L_Wrist", "L_Collar"],
        "biped": [f"Bip01 {name}" for name in biped],
        "daz": ["hip", "lThigh", "lShin", "lFoot", "lUpArm", "lForeArm", "lHand", "lCollar"],
    }
    wanted = [
        "pelvis", "left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow", "left_wrist", "left_collar"
    ]  # fmt: skip
    for tool, names in tools.items():
        assert parts(tuple(names)) == {part: place for place, part in enumerate(wanted)}, tool


def mimic_frames(count: int, seconds: float = 1 / 30) -> list[list[float]]:
    still = [1.0, 0.0, 0.0, 0.0]
    frame = [seconds, 0.0, 0.9, 0.0, *still * 4, 0.0, *still * 2, 0.0, *still, 0.0, *still * 2, 0.0]
    return [[*frame[:1], 0.1 * n, *frame[2:]] for n in range(count)]


def write_mimic(path: Path, count: int = 5, seconds: float = 1 / 30) -> Path:
    path.write_text(json.dumps({"Loop": "wrap", "Frames": mimic_frames(count, seconds)}))
    return path


def test_deepmimic_stands_and_walks_ahead(tmp_path: Path) -> None:
    motion = canonical(read_motion(write_mimic(tmp_path / "a.txt")))
    places = motion.positions()[0]
    by_name = dict(zip(BODY.names, places, strict=True))
    assert by_name["head"][1] > 1.4 and by_name["left_hip"][0] > 0 > by_name["right_hip"][0]
    assert by_name["left_wrist"][1] < by_name["left_shoulder"][1] - 0.4, "arms hang"
    step = motion.root_T3[1] - motion.root_T3[0]
    assert step[2] > 0.08 and step[:2].abs().max() < 1e-9, "ahead is z"
    assert motion.loop


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"Frames": []}', '{"Frames": [[1, 2], [3]]}', '{"Frames": "x"}'])
def test_a_broken_deepmimic_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ZooError, match="DeepMimic"):
        read_motion(tmp_path / "a.json")


def amp(frames: int = 4) -> OrderedDict:  # type: ignore[type-arg]
    names = ["pelvis", "torso", "head"] + [
        f"{side}_{part}" for side in ("right", "left") for part in ("upper_arm", "lower_arm", "hand")
    ]
    names += [f"{side}_{part}" for side in ("right", "left") for part in ("thigh", "shin", "foot")]
    parents = np.array([-1, 0, 1, 1, 3, 4, 1, 6, 7, 0, 9, 10, 0, 12, 13])
    sides = {"right": -1, "left": 1}
    offsets = np.array(
        [[0, 0, 1], [0, 0, 0.24], [0, 0, 0.22]]
        + [[0, sides[s] * 0.18, 0.24] if n == 0 else [0, 0, -0.27] for s in sides for n in range(3)]
        + [[0, sides[s] * 0.08, 0] if n == 0 else [0, 0, -0.42] for s in sides for n in range(3)]
    )
    still = np.tile(np.array([0.0, 0, 0, 1]), (frames, 15, 1))
    root = np.stack([np.arange(frames) * 0.1, np.zeros(frames), np.full(frames, 0.9)], -1)
    return OrderedDict(
        rotation={"arr": still, "context": {"dtype": "float64"}},
        root_translation={"arr": root, "context": {}},
        skeleton_tree=OrderedDict(
            node_names=names,
            parent_indices={"arr": parents, "context": {}},
            local_translation={"arr": offsets, "context": {}},
        ),
        is_local=True,
        fps=np.array(60, dtype=np.int32),
        __name__="SkeletonMotion",
    )


def test_amp_stands_and_walks_ahead(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", amp(), allow_pickle=True)  # type: ignore[arg-type]
    motion = canonical(read_motion(tmp_path / "a.npy"))
    by_name = dict(zip(BODY.names, motion.positions()[0], strict=True))
    assert by_name["head"][1] > 1.4 and by_name["left_wrist"][0] > 0.1 > -0.1 > by_name["right_wrist"][0]
    assert motion.root_T3[1, 2] > motion.root_T3[0, 2] and motion.fps == 60


def test_smpl_aist_and_finedance_are_taken_as_they_are(tmp_path: Path) -> None:
    wanted = some_motion()
    vectors = rotations.to_axis_angle(wanted.rotation_TJ33).flatten(1).numpy()
    root = wanted.root_T3.numpy()
    aist = {"smpl_poses": vectors, "smpl_trans": root * 90.0, "smpl_scaling": np.array([90.0])}
    (tmp_path / "aist.pkl").write_bytes(pickle.dumps(aist))
    np.savez(tmp_path / "amass.npz", poses=vectors[:, :66], trans=root, mocap_framerate=np.array(120.0))
    six = rotations.to_6d(wanted.rotation_TJ33[:, :22]).flatten(1).numpy()
    np.save(tmp_path / "fine.npy", np.concatenate([root, six, np.zeros((40, 180))], 1))
    np.save(tmp_path / "fine4.npy", np.concatenate([np.zeros((40, 4)), root, six, np.zeros((40, 180))], 1))
    for name, fps in (("aist.pkl", 60), ("amass.npz", 120), ("fine.npy", 30), ("fine4.npy", 30)):
        found = read_motion(tmp_path / name)
        torch.testing.assert_close(found.positions()[:, :22], wanted.positions()[:, :22], rtol=0, atol=1e-6)
        assert found.fps == fps, name


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-was-here",)


class Odd:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("hostile", [Bomb(), Odd(), {"smpl_poses": Bomb()}, [Path("x")], np.array([Bomb()])])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: object) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(hostile))
    np.save(tmp_path / "a.npy", np.array(hostile, dtype=object), allow_pickle=True)  # type: ignore[arg-type]
    for name in ("a.pkl", "a.npy"):
        with pytest.raises(ZooError, match="nothing in it was run") as error:
            read_motion(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_honest_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {"poses": np.zeros((3, 72)), "trans": np.zeros((3, 3), np.float32), "mocap_framerate": np.float64(30)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    assert len(read_motion(tmp_path / "a.pkl")) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "has nothing"),
        ({"poses": np.zeros((3, 72))}, "smpl_trans"),
        ({"poses": np.zeros((3, 72)), "trans": np.zeros((2, 3))}, "no poses of SMPL"),
        ({"poses": np.zeros((3, 7)), "trans": np.zeros((3, 3))}, "no poses of SMPL"),
        ({"poses": "x", "trans": np.zeros((3, 3))}, "not numbers of shape"),
        ({"poses": np.zeros((0, 72)), "trans": np.zeros((0, 3))}, "0 frames"),
        ({"poses": np.full((3, 72), np.nan), "trans": np.zeros((3, 3))}, "not finite"),
        ({"poses": np.zeros((3, 72)), "trans": np.zeros((3, 3)), "fps": 0}, "0 frames a second"),
        (5, "no motion of AMP"),
        (np.zeros((3, 17)), "FineDance has"),
    ],
)
def test_arrays_that_are_no_motion_are_refused(tmp_path: Path, content: object, told: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ZooError, match=told):
        read_motion(tmp_path / "a.pkl")


# -- rates, beats, drawing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1.0, 15.0, 60.0, 240.0])
def test_any_rate_becomes_thirty_and_says_so(tmp_path: Path, fps: float) -> None:
    seconds = 3
    motion = canonical(read_motion(write_mimic(tmp_path / "a.txt", round(seconds * fps) + 1, 1 / fps)), fps=30.0)
    assert len(motion) == 91 and motion.fps == 30.0
    assert any("frames a second became 30" in note for note in motion.notes)
    speed = motion.root_T3[1:, 2] - motion.root_T3[:-1, 2]
    torch.testing.assert_close(speed, speed[:1].expand(90), rtol=0, atol=1e-6)


def test_resampling_keeps_what_lies_on_both_grids() -> None:
    motion = some_motion(61, 60.0)
    again = resample(motion, 30.0)
    assert len(again) == 31
    torch.testing.assert_close(again.positions(), motion.positions()[::2], rtol=0, atol=1e-6)
    with pytest.raises(ZooError, match="0 frames"):
        resample(replace(motion, root_T3=motion.root_T3[:0], rotation_TJ33=motion.rotation_TJ33[:0]))
    assert len(resample(some_motion(1, 60.0))) == 1


def test_beats_and_contacts_of_a_step_each_half_second() -> None:
    frames = 120
    time = torch.arange(frames, dtype=torch.float64) / 30
    lift = torch.clamp(torch.sin(2 * torch.pi * time), min=0) * 0.8
    vector = torch.zeros(frames, 24, 3, dtype=torch.float64)
    for side, phase in (("left", lift), ("right", torch.clamp(-torch.sin(2 * torch.pi * time), min=0) * 0.8)):
        vector[:, BODY.names.index(f"{side}_hip"), 0] = -phase
        vector[:, BODY.names.index(f"{side}_knee"), 0] = 2 * phase
    root = torch.tensor([0.0, 0.95, 0.0]).double().expand(frames, 3)
    places = Motion(BODY, root, rotations.from_axis_angle(vector), 30.0).positions()
    found = step_beats(places, 30.0)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert len(found) >= 6 and all(13 <= gap <= 17 for gap in gaps), found
    assert 0.3 < contacts(places, 30.0).float().mean() < 1
    assert len(motion_beats(places, 30.0)) >= 6
    assert motion_beats(places[:2], 30.0) == []


def test_the_picture_shows_somebody_who_moves(tmp_path: Path) -> None:
    from PIL import Image

    path = write_gif(canonical(some_motion(60)), tmp_path / "a.gif", [0.5, 1.0], [(0.0, "walk")])
    with Image.open(path) as image:
        assert image.n_frames == 30 and image.size == (240, 240)
        pictures = []
        for frame in (0, 10, 20):
            image.seek(frame)
            pictures.append(np.asarray(image.convert("RGB"), dtype=np.int64))
    assert all((picture.sum(-1) < 500).sum() > 400 for picture in pictures), "limbs are drawn"
    assert np.abs(pictures[0] - pictures[1]).max() > 100, "they move"
    assert write_gif(canonical(some_motion(1)), tmp_path / "one.gif").is_file()
