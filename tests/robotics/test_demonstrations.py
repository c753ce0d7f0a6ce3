"""Demonstrations: windows by hand, LeRobotDatasets of two versions, one's own files, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import config as zc
from zoo.spec import ZooError
from zoo_robotics.data import lerobot, record, sets
from zoo_robotics.data.demonstrations import Chunks, Demonstration
from zoo_robotics.data.sets import Own, Synthetic, read_npz, read_own, write_npz
from zoo_robotics.execution import in_own_units
from zoo_robotics.sim.world import make_world

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'moe-zoo[robotics]'")
pq = pytest.importorskip("pyarrow.parquet")


def some(
    count: int = 4, steps: int = 6, task: str = "lift", scale: float = 1.0, images: bool = False
) -> list[Demonstration]:
    rng = np.random.default_rng(0)
    found = []
    for n in range(count):
        length = steps + n
        found.append(
            Demonstration(
                task,
                rng.normal(size=(length, 3)).astype(np.float32),
                (scale * rng.uniform(-1, 1, (length, 2))).astype(np.float32),
                rng.integers(0, 5, length),
                rng.integers(0, 256, (length, 1, 5, 7, 3), dtype=np.uint8) if images else None,
                n,
            )
        )
    return found


def same(one: Demonstration, other: Demonstration) -> bool:
    pictures = (one.image_TVHWC is None) == (other.image_TVHWC is None)
    if one.image_TVHWC is not None and other.image_TVHWC is not None:
        pictures = np.array_equal(one.image_TVHWC, other.image_TVHWC)
    arrays = ("observation_TS", "action_TA", "phase_T")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return pictures and equal and (one.task, one.seed) == (other.task, other.seed)


def test_windows_by_hand() -> None:
    demonstrations = some(2, 3)  # 3 and 4 steps
    windows = Chunks(demonstrations, ["drop", "lift"], chunk=3, stride=1)
    assert len(windows) == 7
    last = windows[2]
    assert last["valid"].tolist() == [True, False, False] and last["task"] == 1
    assert torch.equal(last["actions"][0], torch.from_numpy(demonstrations[0].action_TA[2]))
    assert last["phase"].tolist() == [demonstrations[0].phase_T[2], -1, -1], "nothing of the next episode"
    first = windows[3]
    assert torch.equal(first["observation"], torch.from_numpy(demonstrations[1].observation_TS[0]))
    assert torch.equal(first["actions"], torch.from_numpy(demonstrations[1].action_TA[:3]))
    many = windows.__getitems__([2, 3])
    assert all(torch.equal(many[name][0], last[name]) and torch.equal(many[name][1], first[name]) for name in last)
    assert len(Chunks(demonstrations, ["lift"], chunk=3, stride=2)) == 2 + 2


def test_a_set_of_scripts_is_the_same_again() -> None:
    config = zc.make(Synthetic.Config, demos=2, held_out=1)
    one, two = Synthetic(config), Synthetic(config)
    for split in ("train", "test"):
        assert all(same(a, b) for a, b in zip(one.demos(split), two.demos(split), strict=True))
    assert not same(one.demos("train")[0], one.demos("test")[0])
    other = Synthetic(zc.make(Synthetic.Config, demos=2, held_out=1, seed=1))
    assert not same(one.demos("train")[0], other.demos("train")[0])
    statistics = one.statistics()["observation"]
    observation_NS = np.concatenate([d.observation_TS for d in one.demos("train")])
    np.testing.assert_allclose(statistics["mean"], observation_NS.mean(0), atol=1e-5)
    assert statistics["std"][7] == 1.0, "a number that is always 0"


@pytest.mark.parametrize("images", [False, True])
def test_a_lerobot_data_set_comes_back(tmp_path: Path, images: bool) -> None:
    given = some(3, images=images) + some(2, task="drop", images=images)
    folder = lerobot.write(tmp_path / "set", given, fps=80, robot="sawyer")
    notes: list[str] = []
    assert all(same(a, b) for a, b in zip(given, lerobot.read(folder, notes, images), strict=True)) and not notes
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_tasks"]) == ("v3.0", 5, 2)
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [3], "names": None}
    table = pq.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    assert table.num_rows == info["total_frames"] == sum(len(d) for d in given)
    assert table.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert table.column("timestamp").to_pylist()[:2] == [0.0, pytest.approx(1 / 80)]
    assert table.column("index").to_pylist() == list(range(table.num_rows))
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes][:2] == [(0, 6), (6, 13)]
    tasks = pytest.importorskip("pandas").read_parquet(folder / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["drop", "lift"] and tasks["task_index"].tolist() == [0, 1]
    assert json.loads((folder / "meta/stats.json").read_text())["action"]["count"] == [table.num_rows]
    with pytest.raises(ZooError, match="is there already; choose another folder"):
        lerobot.write(folder, given, 80, "sawyer")


def version_2(folder: Path, given: list[Demonstration]) -> Path:
    """As LeRobot wrote them before: a file for each episode, and JSON lines."""
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    for n, d in enumerate(given):
        columns = {
            "observation.state": d.observation_TS.tolist(),
            "action": d.action_TA.tolist(),
            "episode_index": [n] * len(d),
            "task_index": [0] * len(d),
        }
        pq.write_table(pa.table(columns), folder / f"data/chunk-000/episode_{n:06d}.parquet")
    info = {
        "codebase_version": "v2.1",
        "total_episodes": len(given),
        "chunks_size": 1000,
        "fps": 30,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {name: {"dtype": "float32"} for name in ("observation.state", "action")}
        | {"observation.images.top": {"dtype": "video"}},
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": n, "length": len(d)}) for n, d in enumerate(given)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "Lift the cube."}) + "\n")
    return folder


def test_version_2_is_read(tmp_path: Path) -> None:
    given, notes = some(3), list[str]()
    found = read_own(version_2(tmp_path / "set", given), notes)
    assert [np.array_equal(a.action_TA, b.action_TA) for a, b in zip(given, found, strict=True)] == [True] * 3
    assert {d.task for d in found} == {"Lift the cube."} and all((d.phase_T == -1).all() for d in found)
    assert notes == ["videos are not read: observation.images.top"]


def test_interrupted_recording_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".set.killed").mkdir()  # of a writer that had no time to clean up
    (tmp_path / ".set.killed/half").write_text("x")
    write = pq.write_table
    calls = []

    def interrupted(*arguments: Any, **settings: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments, **settings)

    monkeypatch.setattr(pq, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lerobot.write(tmp_path / "set", some(), 80, "sawyer")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(pq, "write_table", write)
    assert lerobot.write(tmp_path / "set", some(), 80, "sawyer").is_dir()


def test_a_script_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(sets, "make_world", lambda world, task: make_world("synthetic", "carry"))
    data = sets.MetaWorldData(zc.make(sets.MetaWorldData.Config, tasks=["carry"], demos=3, held_out=1))
    one, calls = record.record_one, list[int]()

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return one(*arguments)

    monkeypatch.setattr(record, "record_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.demos("train")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    first = data.demos("train")
    again = sets.MetaWorldData(data.config)
    count = len(calls)
    assert all(same(a, b) for a, b in zip(first, again.demos("train"), strict=True)) and len(calls) == count
    assert len(first) == 3 and "recorded 3 of carry for train" in data.notes[0]
    data.few()
    assert data.config.demos == 1


def test_broken_lerobot_data_sets(tmp_path: Path) -> None:
    def broken(name: str) -> tuple[Path, Path]:
        folder = lerobot.write(tmp_path / name, some(), 80, "sawyer")
        return folder, folder / "data/chunk-000/file-000.parquet"

    def told(folder: Path) -> str:
        with pytest.raises(ZooError) as error:
            read_own(folder, [])
        return str(error.value)

    folder, file = broken("cut")
    file.write_bytes(file.read_bytes()[:-200])
    assert f"episode file '{file}' is cut off or damaged (" in told(folder)
    folder, file = broken("short")
    pq.write_table(pq.read_table(file).slice(0, 10), file)
    assert "episode 1 of" in told(folder) and "has 4 frames, its meta data say 7: a file is cut off" in told(folder)
    folder, file = broken("gone")
    file.unlink()
    assert "episode 0 of" in told(folder)
    folder, file = broken("nan")
    table = pq.read_table(file).to_pydict()
    table["action"][3] = [float("nan"), 0.0]
    pq.write_table(pa.table(table), file)
    assert "episode 0 of" in told(folder) and "has numbers that are not finite" in told(folder)
    folder, file = broken("column")
    pq.write_table(pq.read_table(file).drop_columns(["action"]), file)
    assert "has no column 'action' (it has observation.state" in told(folder)
    folder, file = broken("dotted")
    pq.write_table(pq.read_table(file).drop_columns(["observation.state"]), file)
    assert "has no column 'observation.state' (it has action" in told(folder)
    folder, file = broken("ragged")
    table = pq.read_table(file).to_pydict()
    table["observation.state"][3] = [1.0]
    pq.write_table(pa.table(table), file)
    assert "column 'observation.state' of" in told(folder) and "is no table of numbers" in told(folder)
    folder, _ = broken("version")
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    assert "is a LeRobotDataset v1.6; v2.0 to v3.0 are read" in told(folder)
    (folder / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 9}))
    assert "lists 4 episodes and its info.json says 9" in told(folder)
    del info["features"]["action"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    assert "has no feature 'action'" in told(folder)
    (folder / "meta/info.json").write_text("{")
    assert "cannot be read" in told(folder)
    folder = version_2(tmp_path / "two", some())
    (folder / "data/chunk-000/episode_000002.parquet").write_bytes(b"PAR1")
    assert "episode_000002.parquet' is cut off or damaged" in told(folder)
    assert "does not exist; set data.path" in told(tmp_path / "nowhere")


def test_own_files(tmp_path: Path) -> None:
    files = write_npz(tmp_path / "mine", some(6))
    data = Own(zc.make(Own.Config, path=str(tmp_path), chunk=2))
    assert data.preprocessing | {"phases": 0} == {
        "tasks": ["lift"], "phases": 0, "chunk": 2, "world": None, "pictures": None, "state": 3, "actions": 2
    }  # fmt: skip
    assert [len(data.demos(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    assert "6 episodes (4 train, 1 val, 1 test)" in data.notes[-1] and "100% of the steps" in data.notes[-1]
    with np.load(files[0]) as stored:
        arrays = dict(stored)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"observation": arrays["observation"][:-1]}, "has 5 observations and 6 actions; give as many of each"),
        ({"action": arrays["action"][:, 0]}, r"needs action \(T, numbers\) and holds"),
        ({"action": arrays["action"] * np.nan}, "has numbers that are not finite"),
        ({"observation": np.zeros((0, 3)), "action": np.zeros((0, 2))}, "holds no step; leave it out"),
        ({"phase": arrays["phase"] + 5}, "must be 6 of reach, descend, grasp"),
        ({"phase": arrays["phase"] - 9}, "must be 6 of reach, descend, grasp"),
        ({"phase": np.full(6, 0.5)}, "must be 6 of reach, descend, grasp"),
        ({"phase": np.full(6, "raech")}, "must be 6 of reach, descend, grasp"),
        ({"task": np.array(["lift", "drop"])}, r"must be one name, and is \['drop', 'lift'\]"),
        ({"action": np.zeros((6, 3))}, r"1 have \(3, 3\), such as 'lift-000\.npz', others \(3, 2\); keep one kind"),
    ]
    for changed, message in cases:
        np.savez(files[0], **(arrays | changed))
        with pytest.raises(ZooError, match=message):
            read_own(tmp_path, [])
    named = {"phase": np.array(["reach", "", "insert", "reach", "grasp", "reach"]), "task": np.full(6, "lift")}
    np.savez(files[0], **(arrays | named))
    assert read_npz(files[0]).phase_T.tolist() == [0, -1, 4, 0, 2, 0] and read_npz(files[0]).task == "lift"
    (tmp_path / "mine" / "more.hdf5").touch()
    notes: list[str] = []
    assert len(read_own(tmp_path, notes)) == 6 and notes == ["passed over: 1 .hdf5"]
    with pytest.raises(ZooError, match=r"more\.hdf5' is no \.npz file; save every episode as one"):
        read_own(tmp_path / "mine" / "more.hdf5", [])
    (tmp_path / "mine" / "more.hdf5").unlink()
    files[0].write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(ZooError, match=r"episode file '.*lift-000.npz' is cut off or damaged"):
        read_own(tmp_path, [])
    for file in files[2:]:
        file.unlink()
    np.savez(files[0], **arrays)
    with pytest.raises(ZooError, match="2 episodes are too few to keep some for val and test"):
        Own(zc.make(Own.Config, path=str(tmp_path)))
    write_npz(tmp_path / "more", some(4, task="drop, then lift"))
    data = Own(zc.make(Own.Config, path=str(tmp_path)))
    assert data.notes[0] == "too few episodes for val and test, all are trained on: lift"
    assert [len(data.demos(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match=r"holds neither meta/info\.json"):
        read_own(tmp_path / "empty", [])


def test_own_actions_are_scaled_and_the_scale_travels(tmp_path: Path) -> None:
    write_npz(tmp_path / "far", some(6, scale=40.0))
    data = Own(zc.make(Own.Config, path=str(tmp_path / "far")))
    _, high = data.preprocessing["action_range"]
    actions = np.concatenate([d.action_TA for d in data.demos("train")])
    assert actions.min() == -1 and actions.max() == 1 and high[0] > 30
    given = {tuple(d.observation_TS[0]): d.action_TA for d in read_own(tmp_path / "far", [])}
    for d in data.demos("train"):
        found = in_own_units(d.action_TA, data.preprocessing)
        np.testing.assert_allclose(found, given[tuple(d.observation_TS[0])], atol=1e-4)
    np.testing.assert_array_equal(in_own_units(d.action_TA, {}), d.action_TA)
    write_npz(tmp_path / "near", some(6))
    near = Own(zc.make(Own.Config, path=str(tmp_path / "near")))
    near.normalise_as(data.preprocessing)
    assert np.abs(near.demos("train")[0].action_TA).max() < 0.2, "as the model was trained"
    with pytest.raises(ZooError, match=r"the model was not trained on task 'lift'"):
        near.normalise_as(data.preprocessing | {"tasks": ["push"]})
