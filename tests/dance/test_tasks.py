"""Data sets, losses, the evaluator, and what a user asks for, with files of the user's own."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import config as zc
from zoo import create_model, hub
from zoo.spec import ZooError
from zoo_dance.motion import rotations
from zoo_dance.motion.bvh import write_bvh
from zoo_dance.motion.formats import read_motion
from zoo_dance.motion.skeleton import BODY, to_features
from zoo_dance.music.synth import steady, synthesise, write_song
from zoo_dance.tasks.dancing import Danced, Dancing, genres_over_time
from zoo_dance.tasks.evaluator import accuracy, alignment, frechet, geometric, halves, judged, kinetic, train_judge
from zoo_dance.tasks.reconstruction import ReconstructionConfig, Scale, reconstruction_loss


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walker: Any) -> Path:
    """Two genres, walkers of different speed, one of them with a song, and a file that is broken."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "motions"
    for genre, rates in (("slow", (1.0, 1.3, 1.6)), ("quick", (2.5, 2.8, 3.0))):
        (folder / genre).mkdir(parents=True)
        for n, rate in enumerate(rates):
            write_bvh(walker(4.0, rate), folder / genre / f"{n}.bvh")
    write_song(synthesise("march", 4, steady(4, 120.0)), folder / "slow" / "0.wav")
    (folder / "slow" / "broken.bvh").write_text("HIERARCHY")
    return folder


def own_data(folder: Path, **settings: Any) -> Any:
    node = {"name": "dance/own", "path": str(folder), "frames": 32, "by": "time", **settings}
    return zc.build("data set", zc.resolve_part("data set", node, "data"))


def test_own_files_are_read_reported_and_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = own_data(own)
    p = data.preprocessing
    assert p["genres"] == ["quick", "slow"] and p["contents"] == []
    told = "\n".join(data.notes)
    assert "broken.bvh is left out" in told and "music was made for the steps (5 clips, such as 0.bvh)" in told
    item = data.split("val")[0]
    assert item["motion"].shape == (32, 147) and item["music"].shape == (32, 35)
    train = torch.cat([torch.from_numpy(clip.motion_TC) for clip in data.clips["train"]])
    torch.testing.assert_close((train - data.mean_C).mean(0), torch.zeros(147), rtol=0, atol=1e-4)
    monkeypatch.setattr("zoo_dance.data.motions.read_motion", lambda *_: pytest.fail("it is in the cache"))
    again = own_data(own)
    assert again.notes == data.notes and torch.equal(again.split("val")[0]["motion"], item["motion"])


def test_short_clips_are_padded_and_held_out_pairs_kept_apart(own: Path) -> None:
    data = own_data(own, frames=64)
    item = data.split("test")[0]
    assert item["valid"].sum() < 64 and torch.equal(item["valid"], item["valid"].sort(descending=True).values)
    apart = own_data(own, by="clip", held_out=[":slow"])
    assert {clip.genre for clip in apart.clips["train"] + apart.clips["val"]} == {"quick"}
    assert {clip.genre for clip in apart.clips["test"] if clip.held_out} == {"slow"}
    assert [bool(item["held_out"]) for item in apart.split("test")] == [
        clip.held_out for clip in apart.clips["test"] for _ in range((120 - 32) // 16 + 1)
    ]
    with pytest.raises(ZooError, match="no clip is walk:slow"):
        own_data(own, held_out=["walk:slow"])


def test_what_is_in_a_folder_is_accounted_for(own: Path, walker: Any) -> None:
    for n in range(7):
        (own / f"broken{n}.bvh").touch()
    (own / "slow" / "x.fbx").touch()
    (own / "slow" / "song.wav").touch()
    write_bvh(replace(walker(4.0, 1.0), fps=60.0), own / "slow" / "faster.bvh")
    told = own_data(own).notes
    assert "3 more are left out: broken5.bvh, broken6.bvh, broken.bvh" in told
    assert "1 songs lie beside no motion of their name, such as song.wav: not used" in told
    assert "passed over: 1 .fbx" in told and "60 frames a second became 30 (faster.bvh)" in told


def test_folders_that_hold_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    for path, told in (("none", "does not exist"), ("empty", "holds no motion")):
        with pytest.raises(ZooError, match=told):
            own_data(tmp_path / path)
    (tmp_path / "empty" / "a.bvh").write_text("no")
    with pytest.raises(ZooError, match="cannot be read as BVH"):
        own_data(tmp_path / "empty")


def test_downloads_are_read_as_they_come(walker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    motion = walker(4.0, 2.0)
    vectors = rotations.to_axis_angle(motion.rotation_TJ33).flatten(1).numpy()
    root = motion.root_T3.numpy()
    aist = tmp_path / "aist"
    for folder in (aist / "motions", aist / "music", tmp_path / "fine" / "motion", tmp_path / "fine" / "label_json"):
        folder.mkdir(parents=True)
    for n, code in enumerate(("gBR", "gPO", "gBR", "gPO")):
        content = {"smpl_poses": vectors, "smpl_trans": root, "smpl_scaling": np.array([1.0])}
        (aist / "motions" / f"{code}_sBM_cAll_d0{n}_mBR{n}_ch01.pkl").write_bytes(pickle.dumps(content))
        six = rotations.to_6d(motion.rotation_TJ33[:, :22]).flatten(1).numpy()
        values = np.concatenate([root, six, np.zeros((len(root), 180))], 1)
        np.save(tmp_path / "fine" / "motion" / f"00{n}.npy", values)
        (tmp_path / "fine" / "label_json" / f"00{n}.json").write_text(
            json.dumps({"style1": "x", "style2": f"s{n % 2}"})
        )
    write_song(synthesise("march", 2, steady(2, 120.0)), aist / "music" / "mBR0.wav")
    made = {"path": str(aist), "frames": 16, "by": "clip"}
    data = zc.build("data set", zc.resolve_part("data set", {"name": "dance/aist", **made}, "data"))
    assert data.preprocessing["genres"] == ["break", "pop"] and len(data.split("train")) > 0
    made["path"] = str(tmp_path / "fine")
    fine = zc.build("data set", zc.resolve_part("data set", {"name": "dance/finedance", **made}, "data"))
    assert fine.preprocessing["genres"] == ["s0", "s1"]
    bandai = tmp_path / "bandai"
    bandai.mkdir()
    for n, name in enumerate(("walk_happy", "run_happy", "walk_sad", "run_sad")):
        write_bvh(walker(3.0, 1.0 + n), bandai / f"dataset-2_{name}_001.bvh")
    made = {"path": str(bandai), "frames": 16, "held_out": ["run:sad"]}
    styles = zc.build("data set", zc.resolve_part("data set", {"name": "dance/bandai_namco", **made}, "data"))
    assert styles.preprocessing["contents"] == ["run", "walk"]
    assert [clip.name for clip in styles.clips["test"] if clip.held_out] == ["dataset-2_run_sad_001"]


# -- losses and the evaluator ----------------------------------------------------------------------------------------


def test_the_loss_counts_values_velocities_accelerations_and_joints(walker: Any) -> None:
    scale = Scale({"motion": {"mean": [0.0] * 147, "std": [1.0] * 147}})
    given = to_features(walker(1.0, 2.0))[None, :12]
    found = given + 0.1 * torch.linspace(0, 1, 12)[None, :, None]
    valid = torch.ones(1, 12, dtype=torch.bool)
    plain = ReconstructionConfig(velocity=0.5, acceleration=0.25, joints=0.0)
    wanted = 0.05 + 0.5 * 0.1 / 11
    loss = float(reconstruction_loss(given, found, valid, scale, plain))
    assert loss == pytest.approx(wanted, rel=1e-3)
    assert float(reconstruction_loss(given, found, valid, scale, ReconstructionConfig())) > loss
    half = valid.clone()
    half[:, 6:] = False
    cut = float(reconstruction_loss(given[:, :6], found[:, :6], valid[:, :6], scale, ReconstructionConfig()))
    masked = float(reconstruction_loss(given, found, half, scale, ReconstructionConfig()))
    assert masked == pytest.approx(cut, rel=1e-5)


def test_frechet_by_hand_and_its_floor() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + torch.tensor([3.0, 0, 4.0])) == pytest.approx(25.0, rel=1e-6)
    assert frechet(one, 2 * one) == pytest.approx(float(one.T.cov().trace() + one.mean(0).square().sum()), rel=1e-6)
    assert 0 < halves(one, one) < 0.05


def test_alignment_is_one_on_the_beat_and_falls_off(walker: Any) -> None:
    places = walker(6.0, 2.0).positions()
    from zoo_dance.motion.beats import motion_beats

    beats = motion_beats(places, 30.0)
    assert alignment(beats, places) == pytest.approx(1.0)
    off = alignment([beat + 3 for beat in beats[1:-1]], places)
    assert off == pytest.approx(np.exp(-0.5), abs=0.1)
    assert alignment([], places) is None
    assert alignment([5], places[:2]) == 0.0


def test_the_evaluator_tells_good_from_bad(walker: Any) -> None:
    slow = [walker(2.0, 1.0 + 0.02 * n).positions() for n in range(12)]
    quick = [walker(2.0, 2.6 + 0.02 * n).positions() for n in range(12)]
    real, genre = slow + quick, torch.tensor([0] * 12 + [1] * 12)
    judge = train_judge(real, genre, 2)
    assert accuracy(judge, real, genre) > 0.95 and accuracy(judge, quick + slow, genre) < 0.05
    beats = [[15 * n for n in range(4)]] * 24
    same = judged(real, real, beats, genre, judge)
    shaken = [each + 0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in real]
    bad = judged(shaken, real, beats, genre, judge)
    held_out = torch.arange(24) < 4
    assert judged(real, real, beats, genre, judge, held_out)["genre_acc_held_out"] > 0.95
    assert same["fid_k"] == pytest.approx(same["fid_k_floor"]) and bad["fid_k"] > 10 * same["fid_k"]
    assert bad["jitter"] > 5 * bad["jitter_real"] and bad["slide"] > bad["slide_real"]
    assert kinetic(real[0]).shape == (72,) and geometric(real[0]).shape == (26,)


# -- what a user asks for --------------------------------------------------------------------------------------------


@pytest.fixture
def saved(own: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    data = own_data(own)
    model = create_model("dance/megadance_tiny")
    task = zc.resolve_part("task", "dance/dancing", "task")
    hub.save(tmp_path / "model", model, task=task, preprocessing=data.preprocessing)
    return tmp_path / "model"


def test_a_dance_to_a_song_with_two_genres(saved: Path, tmp_path: Path) -> None:
    song = write_song(synthesise("house", 5, steady(5, 120.0)), tmp_path / "song.wav")
    predictor = hub.load(saved)
    result = predictor.predict(music=str(song), genre="slow,quick@2", gif=1)
    assert isinstance(result, Danced) and len(result.motion) == 150 and result.genres == [(0.0, "slow"), (2.0, "quick")]
    files = {file.name for file in predictor.write(result, tmp_path / "out")}
    assert files == {"dance.bvh", "dance.gif", "dance.json"}
    again = read_motion(tmp_path / "out" / "dance.bvh")
    assert len(again) == 150 and set(again.skeleton.names) == set(BODY.names)
    assert len(json.loads((tmp_path / "out" / "dance.json").read_text())["beats"]) > 5
    repeated = predictor.predict(music=str(song), genre="slow,quick@2")
    assert torch.equal(repeated.motion.rotation_TJ33, result.motion.rotation_TJ33)
    other = predictor.predict(music=str(song), genre="slow,quick@2", seed=1)
    assert not torch.equal(other.motion.rotation_TJ33, result.motion.rotation_TJ33)
    assert len(predictor.predict(music=str(song), seconds=1.5).motion) == 45


def test_the_band_plays_where_there_is_no_song(saved: Path, tmp_path: Path) -> None:
    predictor = hub.load(saved)
    result = predictor.predict(music="house@110", genre="slow", seconds=2, gif=0)
    assert len(result.motion) == 60 and len(result.beats) >= 3
    assert {file.name for file in predictor.write(result, tmp_path / "out")} == {"dance.bvh", "dance.json", "music.wav"}
    for music, told in (("house@9000", "40 to 240"), ("hause", "does not exist")):
        with pytest.raises(ZooError, match=told):
            predictor.predict(music=music, genre="slow")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"genre": "slwo"}, "did you mean slow"),
        ({"genre": "slow,quick"}, "NAME,OTHER@SECONDS"),
        ({"genre": "slow,quick@3,slow@2"}, "must rise"),
        ({"genre": "slow,quick@60"}, "quick is to start at 60 s, and the music lasts"),
        ({"seed": -1}, "seed=-1"),
        ({"start": "a.bvh"}, "has a start token of its own; leave it out"),
        ({"content": "walk"}, "knows no contents; leave it out"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 2}, "top_p=2"),
        ({"seconds": -3}, "seconds=-3"),
    ],
)
def test_wishes_that_cannot_be_met(saved: Path, tmp_path: Path, inputs: dict[str, Any], told: str) -> None:
    song = write_song(synthesise("house", 1, steady(1.5, 120.0)), tmp_path / "song.wav")
    with pytest.raises(ZooError, match=told) as error:
        hub.load(saved).predict(music=str(song), **inputs)
    assert "\n" not in str(error.value)


def test_genres_over_time() -> None:
    notes: list[str] = []
    assert genres_over_time(None, ["a", "b"], notes) == [(0.0, "a")] and "a, b" in notes[0]
    assert genres_over_time(" b , a@2.5 ", ["a", "b"], notes) == [(0.0, "b"), (2.5, "a")]


def test_other_genres_and_windows_are_refused(own: Path) -> None:
    data, task = own_data(own), Dancing(zc.make(Dancing.Config))
    model = create_model("dance/megadance_tiny", genres=1)
    with pytest.raises(ZooError, match=r"set model.genres=2"):
        task.match(model, data, {})
    with pytest.raises(ZooError, match=r"lower data.frames to 64"):
        task.match(create_model("dance/megadance_tiny"), own_data(own, frames=128), {})
    with pytest.raises(ZooError, match="no multiple of a token's 4"):
        task.match(create_model("dance/megadance_tiny"), own_data(own, frames=30), {})
    known = {**data.preprocessing, "genres": ["quick", "waltz"]}
    with pytest.raises(ZooError, match=r"genres that the model does not know .slow."):
        own_data(own).normalise_as(known)


def test_a_stage_learns_what_it_trains(own: Path) -> None:
    data, task = own_data(own), Dancing(zc.make(Dancing.Config))
    model = create_model("dance/megadance_tiny")
    task.match(model, data, {})
    batch = torch.utils.data.default_collate([data.split("val")[n] for n in range(4)])
    for codec in (True, False):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("codec.") == codec)
            parameter.grad = None
        loss = task.loss(model, batch)
        assert set(loss.logs) == {"codec" if codec else "token"}
        loss.loss.backward()
        got = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert got == {"codec"} if codec else "codec" not in got


def test_a_motion_through_the_codes(saved: Path, own: Path, tmp_path: Path) -> None:
    model = create_model("dance/fsq_tiny")
    task = zc.resolve_part("task", "dance/coding", "task")
    hub.save(tmp_path / "codec", model, task=task, preprocessing=own_data(own).preprocessing)
    predictor = hub.load(tmp_path / "codec")
    result = predictor.predict(motion=str(own / "slow" / "1.bvh"))
    assert len(result.motion) == 120 and [len(row) for row in result.codes] == [30, 30]
    assert max(map(max, result.codes)) < 240
    assert {file.name for file in predictor.write(result, tmp_path / "out")} == {
        "codes.txt",
        "motion.bvh",
        "motion.gif",
    }
