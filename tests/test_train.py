"""Training beyond one process and one start: schedules, accumulation, starting from weights, several processes."""

import itertools
import os
import subprocess
import sys

import pandas as pd
import pytest

from zoo import config as zc
from zoo import hub
from zoo.eval.evaluate import evaluate
from zoo.spec import ZooError
from zoo.train.git import git_commit
from zoo.train.module import learning_rate
from zoo.train.recipe import Optim, read_recipe
from zoo.train.run import RUN, run_folder, train

SMALL = (
    "model.stack.num_layers=1",
    "model.stack.hidden_size=16",
    "data.series=elnino",  # nothing missing: every batch weighs the same
    "data.context=24",
    "data.horizon=8",
    "train.steps=4",
    "train.val_every=4",
    "train.val_batches=1",
    "train.save_every=4",
    "optim.lr=1e-2",
    "optim.warmup=0",
    "device=cpu",
)


def run(folder, *overrides):
    train(read_recipe("time_series/time_moe_tiny", [*SMALL, *overrides]), folder, quiet=True)
    return hub.load(folder).model.state_dict()


def distance(a, b):
    """Mean difference of weights. Single ones may differ by a step where Adam divides rounding by rounding."""
    return sum((a[key] - b[key]).abs().sum() for key in a).item() / sum(value.numel() for value in a.values())


def test_schedule_warms_up_and_ends_where_it_says():
    optim = Optim(warmup=10, schedule="cosine", final=0.1)
    factors = [learning_rate(step, optim, 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5) and factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate(99, Optim(schedule="constant"), 100) == 1.0


def test_accumulated_batches_equal_one_large_one(tmp_path):
    # A balance loss is not linear in the batch; without it the two runs see the same gradient.
    whole = run(tmp_path / "a", "train.batch_size=8", "model.stack.moe.balance.switch=null")
    parts = run(tmp_path / "b", "train.batch_size=4", "train.accumulate=2", "model.stack.moe.balance.switch=null")
    other = run(tmp_path / "c", "train.batch_size=4", "model.stack.moe.balance.switch=null")
    assert distance(whole, parts) < 1e-5 < 1e-3 < distance(whole, other)


def test_training_can_start_from_trained_weights(tmp_path):
    start = run(tmp_path / "a")
    still = run(tmp_path / "b", f"init={tmp_path / 'a'}", "optim.lr=0.0")
    assert distance(start, still) == 0
    with pytest.raises(ZooError, match="do not fit"):
        run(tmp_path / "c", f"init={tmp_path / 'a'}", "model.stack.hidden_size=32")


def test_the_last_step_is_validated_wherever_it_falls(tmp_path):
    run(tmp_path, "train.steps=5", "train.val_every=2")
    log = pd.read_csv(tmp_path / "logs" / "version_0" / "metrics.csv")
    assert log["step"][log["val/mse"].notna()].tolist() == [1, 3, 4], "counted from 0"


def test_a_task_may_show_and_assess(monkeypatch, tmp_path):
    from zoo_time_series.tasks.forecasting import Forecasting

    def show(self, model, data, out):
        (out / "learned.txt").write_text(type(model).__name__)
        return [out / "learned.txt"]

    monkeypatch.setattr(Forecasting, "show", show)
    monkeypatch.setattr(Forecasting, "assess", lambda self, model, data, split, most: {"drawn": float(most or -1)})
    run(tmp_path / "a")
    assert (tmp_path / "a" / "plots" / "learned.txt").read_text() == "TimeMoE"
    section = zc.read_yaml(tmp_path / "a" / "config.yaml")["data"]
    report = evaluate(hub.load(tmp_path / "a"), section, limit=3, quiet=True)
    assert report.metrics["drawn"] == 3 and all(rival["drawn"] == 3 for rival in report.rivals.values())


def test_a_launched_process_without_a_run_folder_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(RUN, raising=False)
    with pytest.raises(ZooError, match=f"set {RUN}=FOLDER"):
        run_folder(str(tmp_path), "x", None)


def test_two_processes_train_like_one(tmp_path):
    both = ["train.batch_size=4", "train.devices=2", "train.strategy=ddp", f"out={tmp_path}"]
    both.append("model.stack.moe.balance.switch=null")
    command = [sys.executable, "-m", "zoo.cli", "train", "time_series/time_moe_tiny", *SMALL, *both]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "time_series").iterdir()] == ["time_moe_tiny"]
    two = hub.load(tmp_path / "time_series" / "time_moe_tiny").model.state_dict()
    one = run(tmp_path / "one", "train.batch_size=8", "model.stack.moe.balance.switch=null")
    assert distance(one, two) < 1e-5


def test_the_commit_is_that_of_a_checkout_and_of_no_repository_around(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    (tmp_path / "site" / "zoo").mkdir(parents=True)
    (tmp_path / "site" / "zoo" / "git.py").write_text("")
    (tmp_path / ".gitignore").write_text("site\n")
    monkeypatch.setattr("zoo.train.git.__file__", str(tmp_path / "site" / "zoo" / "git.py"))
    for line in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *line], check=True)
    assert git_commit() is None, "an environment inside a repository is not of it"
    for line in (["add", "-f", "."], ["commit", "-qm", "y"]):
        subprocess.run([*git, *line], check=True)
    assert len(git_commit() or "") == 40
