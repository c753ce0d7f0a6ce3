"""A run that is killed and resumed ends exactly where an uninterrupted one does."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.train import run
from zoo.train.checkpoints import newest_checkpoint
from zoo.train.recipe import resolve_recipe

STEPS = 100  # long enough to be killed five times on a fast machine
MODEL = {
    "name": "time_series/time_moe_tiny",
    "stack": {
        "hidden_size": 16,
        "num_layers": 2,
        "mixer": {"num_heads": 2},
        "moe": {"num_experts": 4, "experts": {"intermediate_size": 16}, "shared": {"intermediate_size": 16}},
    },
    "horizons": [1, 8],
}


def recipe(**train: Any) -> dict[str, Any]:
    small = {"steps": STEPS, "batch_size": 4, "accumulate": 2, "val_every": 5, "val_batches": 1, "eval_batch_size": 64}
    return resolve_recipe(
        {
            "model": MODEL,
            "data": {"name": "time_series/statsmodels", "series": "sunspots", "context": 16, "horizon": 8},
            "optim": {"lr": 3e-3, "warmup": 4},
            "train": {**small, "save_every": 3, "log_every": 4, **train},
            "device": "cpu",
        },
        "test",
    )


@pytest.fixture(scope="module")
def start() -> Callable[[dict[str, Any], Path], Any]:
    """Starts a training process, forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    modules = ["zoo.train.run", "zoo_time_series.models.time_moe", "zoo_time_series.data.statsmodels"]
    context.set_forkserver_preload(modules)

    def begin(tree: dict[str, Any], folder: Path) -> Any:
        process = context.Process(target=run.train, args=(tree, folder), kwargs={"quiet": True})
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def uninterrupted(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(recipe(), folder)
    process.join(120)
    assert process.exitcode == 0
    return folder


def starts(folder: Path) -> int:
    return len(json.loads((folder / "run.json").read_text())["starts"]) if (folder / "run.json").is_file() else 0


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.002)


def checkpoint(path: Path) -> dict[str, Any]:
    saved = torch.load(path, weights_only=True)
    return {key: saved[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def assert_equal(one: Any, other: Any) -> None:
    ones, others = dict(leaves(one)), dict(leaves(other))
    assert ones.keys() == others.keys()
    for key, value in ones.items():
        same = torch.equal(value, others[key]) if isinstance(value, torch.Tensor) else value == others[key]
        assert same, f"{key} differs"


def assert_same_run(folder: Path, other: Path) -> None:
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (other / weights).read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        assert_equal(checkpoint(folder / "checkpoints" / name), checkpoint(other / "checkpoints" / name))


def test_killed_five_times(start: Any, uninterrupted: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(7)
    last, killed = folder / "checkpoints" / "last.ckpt", 0
    for attempt in range(5):
        process = start(recipe(), folder)
        wait_for(lambda n=attempt: starts(folder) > n, process)
        if attempt == 2:  # in the middle of writing a checkpoint
            wait_for(last.with_name("last.ckpt.new").exists, process)
        else:  # at any moment after it has got somewhere new
            before = last.stat().st_mtime_ns if last.exists() else 0
            wait_for(lambda t=before: last.exists() and last.stat().st_mtime_ns > t, process)
            time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed >= 4, "the runs were over before they could be killed"
    process = start(recipe(), folder)
    process.join(120)
    assert process.exitcode == 0
    assert_same_run(folder, uninterrupted)


def resumed(start: Any, folder: Path, **train: Any) -> None:
    process = start(recipe(**train), folder)
    process.join(120)
    assert process.exitcode == 0


def test_a_spoilt_checkpoint_is_passed_over(
    start: Any, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    whole = last.read_bytes()
    for rest in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"not a checkpoint", b"\x80\x04N."):
        last.write_bytes(rest)
        found = newest_checkpoint(folder / "checkpoints")
        assert found is not None and found[1] == best
        told = capsys.readouterr().err
        assert told.startswith(f"checkpoint {last} cannot be read and is passed over: ") and told.count("\n") == 1
    resumed(start, folder)
    assert_same_run(folder, uninterrupted)
    for path in (last, best):
        path.write_bytes(b"")
    assert newest_checkpoint(folder / "checkpoints") is None


def test_a_finished_run(start: Any, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    run.train(recipe(), folder, quiet=True)
    assert_same_run(folder, uninterrupted)
    assert f"{folder} has done its {STEPS} steps already; raise train.steps" in capsys.readouterr().err
    resumed(start, folder, steps=STEPS + 3)
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == STEPS + 3
