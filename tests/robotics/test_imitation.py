"""The task: losses and errors by hand, episodes that do not depend on who runs them, and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import config as zc
from zoo import create_model, hub
from zoo.spec import ZooError
from zoo_robotics.data.sets import Synthetic
from zoo_robotics.rollout import BINS, Episode, Manner, act, follow_script, rollouts, script_episodes, wilson
from zoo_robotics.sim.world import make_world
from zoo_robotics.tasks.imitation import ByPhase, Imitation, summary

TASKS = ["carry", "plug"]
RECIPE = "robotics/moe_act_point"


def policy(name: str = "robotics/moe_act", **settings: Any) -> Any:
    model = create_model(name, tasks=TASKS, **settings).eval()
    model.set_statistics(data().statistics())
    return model


def data(**settings: Any) -> Synthetic:
    return Synthetic(zc.make(Synthetic.Config, demos=2, held_out=1, **settings))


def task(**settings: Any) -> Imitation:
    return Imitation(zc.make(Imitation.Config, **settings))


def test_wilson_by_hand() -> None:
    """8 of 10: middle (0.8 + 3.8416 / 20) / 1.38416, half 1.96 sqrt(0.016 + 3.8416 / 400) / 1.38416."""
    low, high = wilson(8, 10, z=1.96)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 10 + 3.8416 / 400) / 1.38416
    assert low == pytest.approx((0.8 + 0.19208) / 1.38416 - half) and high == pytest.approx(low + 2 * half)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0, 1) and wilson(5, 5)[1] == 1 and wilson(0, 5)[0] == 0


def test_errors_by_phase_by_hand() -> None:
    metric = ByPhase()
    metric.update(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 3]), torch.eye(5)[[0, 1, 3]])
    metric.update(torch.tensor([6.0]), torch.tensor([-1]), torch.eye(5)[[4]])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {"l1": 3.0, "l1_reach": 2.0, "l1_transport": 2.0, "gate_acc": pytest.approx(2 / 3)}
    blind = ByPhase()
    blind.update(torch.tensor([1.0]), torch.tensor([-1]), None)
    assert {name: float(value) for name, value in blind.compute().items()} == {"l1": 1.0}


def test_a_summary_by_hand() -> None:
    episodes = [
        Episode("carry", 0, True, 10, seconds=0.1, agreed=5, gated=10),
        Episode("carry", 1, False, 30, seconds=0.1, agreed=10, gated=30),
        Episode("plug", 0, True, 10, seconds=0.3),
    ]
    found = summary(episodes, TASKS)
    assert found["success"] == 0.75 and (found["success_carry"], found["success_plug"]) == (0.5, 1.0)
    assert (found["success_low"], found["success_high"]) == wilson(2, 3)
    assert found["gate_acc_policy"] == 15 / 40 and found["latency_ms"] == pytest.approx(1000 * 0.5 / 50)


def test_padding_counts_nowhere() -> None:
    model, whole = policy(), data()
    batch = whole.split("test").__getitems__(list(range(len(whole.split("test")))))
    assert not batch["valid"].all()
    found = []
    for fill in (0.0, 5.0):
        changed = {**batch, "actions": torch.where(batch["valid"][..., None], batch["actions"], fill)}
        torch.manual_seed(0)
        loss = task().loss(model, changed)
        metrics = task().metrics()
        task().update(metrics, model, changed)
        found.append((loss.loss.item(), {k: float(v) for k, v in metrics.compute().items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == found[1][1]


def test_what_does_not_fit_is_refused() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"state": 40}, {}, r"the data have 39 numbers of an observation and the policy takes 40; set model\.state=39"),
        ({"actions": 5}, {}, r"the data have 4 numbers of an action and the policy takes 5; set model\.actions=4"),
        ({}, {"chunk": 6}, r"chunks of 6 actions and the policy says 8; set data\.chunk=8, or model\.chunk=6"),
        ({"phases": ["a b", "c"]}, {}, r"set 'model\.phases=\[reach,descend,grasp,transport,insert\]'"),
        ({"tasks": ["plug"]}, {}, r"the tasks carry, plug and the policy plug; set 'model\.tasks=\[carry,plug\]'"),
    ]
    for settings, of_data, message in cases:
        model = create_model("robotics/mlp", **({"tasks": TASKS} | settings))
        with pytest.raises(ZooError, match=message):
            task().match(model, data(**of_data), {})
    model, fitting = create_model("robotics/mlp", tasks=TASKS), data()
    task().match(model, fitting, {})
    mean_S = torch.tensor(fitting.statistics()["observation"]["mean"])
    assert torch.equal(model.mean_S, mean_S), "a new model gets the statistics of its data"
    other = data(seed=1)
    task().match(model, other, fitting.preprocessing)
    assert torch.equal(model.mean_S, mean_S), "a trained one keeps those it has"
    odd = data()
    odd.preprocessing["tasks"] = ["drop, then lift"]
    with pytest.raises(ZooError, match=r"""set 'model\.tasks=\["drop, then lift"\]'"""):
        task().match(create_model("robotics/mlp"), odd, {})


def test_a_policy_that_sees(tmp_path: Path) -> None:
    whole = data(recording={"size": 32})
    batch = whole.split("test").__getitems__([0, 1])
    assert batch["images"].shape == (2, 1, 3, 32, 32) and batch["images"].dtype == torch.uint8
    model = policy("robotics/act", eyes={"views": 1, "size": 32})
    task().match(model, whole, {})
    assert torch.isfinite(task().loss(model, batch).loss)
    assert act(model, make_world("synthetic", "plug"), 1, 0, Manner(4)).steps == 4
    for size, there in ((0, "none"), (24, "1 of 24 pixels")):
        with pytest.raises(ZooError, match=f"the policy sees 1 pictures of 32 pixels and the data have {there}; set"):
            task().match(model, data(recording={"size": size}), {})


def test_an_episode_by_the_policy_it_is_given() -> None:
    """A policy that says what the script says solves the task in the script's own time; its gate is the script's."""
    world = make_world("synthetic", "plug")

    class Script(torch.nn.Module):
        config = policy().config
        chunk, views, zoo_name, device, turn = 1, 0, "script", torch.device("cpu"), 0

        def act(self, batch: Any, generator: Any) -> Any:
            from zoo_robotics.models.policy import Chunk

            advice = world.advise(batch["observation"][0].double().numpy())
            gate = torch.zeros(1, 1, 5)
            gate[0, 0, (advice.phase + self.turn) % 5] = 1
            return Chunk(torch.from_numpy(advice.action_A).float()[None, None], gate)

    Script.config.execute, Script.config.ensemble = 1, None
    found, own = act(Script(), world, 1, 5), follow_script(world, 5)
    turned = Script()
    turned.turn = 1
    assert act(turned, world, 1, 5).agreed == 0
    assert (found.success, found.steps) == (own.success, own.steps) == (True, own.steps)
    assert found.agreed == found.gated == found.steps
    use_BP = np.array(found.use_BP)
    assert use_BP.shape == (BINS, 5) and np.allclose(use_BP.sum(1), 1) and use_BP[0, 0] == 1 and use_BP[-1, 4] == 1


def test_episodes_are_the_same_in_one_process_and_in_four() -> None:
    model = policy("robotics/adamoe_tiny", steps=2, execute=8)  # draws noise, too
    torch.set_num_threads(2)

    def found(workers: int, most: int = 20) -> list[dict[str, Any]]:
        episodes = rollouts(model, "synthetic", TASKS, most, manner=Manner(12), workers=workers)
        return [asdict(episode) | {"seconds": 0} for episode in episodes]

    alone = found(1)
    assert [(e["task"], e["seed"] - 500_000_000) for e in alone] == [(name, n) for name in TASKS for n in range(20)]
    assert found(4) == alone
    assert found(1, 5) == alone[:5] + alone[20:25], "an episode does not see the others"
    assert torch.get_num_threads() == 2
    few = act(model, make_world("synthetic", "carry"), 0, 500_000_003, Manner(12), film := [])
    other = act(model, make_world("synthetic", "carry"), 0, 500_000_004, Manner(12), [])
    assert len(film) == few.steps and few.seed != other.seed


def test_scripts_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    first = script_episodes("synthetic", "carry", [1, 2], 60)
    file = next((tmp_path / "robotics/scripts").iterdir())
    file.write_text(file.read_text().replace('"steps": ', '"steps": 1'))
    assert script_episodes("synthetic", "carry", [1], 60)[0].steps != first[0].steps, "read, not run"
    file.write_text(file.read_text()[:20])
    assert script_episodes("synthetic", "carry", [2, 1], 60) == first[::-1], "a file that was cut off is written anew"


def test_nan_from_a_policy_is_one_line() -> None:
    model = policy("robotics/mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(ZooError, match="says NaN at step 0 of an episode"):
        act(model, make_world("synthetic", "carry"), 0, 0)


def test_train_eval_and_predict(zoo: Callable[..., Any], tmp_path: Path) -> None:
    short = ("train.steps=20", "train.val_every=20", "data.demos=3", "data.held_out=2", "device=cpu", "task.episodes=1")
    done = zoo("train", RECIPE, *short)
    assert done.code == 0, done.err
    run = f"runs/{RECIPE}"
    done = zoo("eval", run, "episodes=2", "steps=30", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["settings"] == {"episodes": 2, "steps": 30}
    assert {"l1", "l1_grasp", "gate_acc", "success", "success_low", "success_plug", "relative"} <= set(
        report["metrics"]
    )
    assert report["metrics"]["script"] == 1.0
    episodes = json.loads((tmp_path / run / "eval/episodes.json").read_text())
    assert len(episodes) == 4 and (tmp_path / run / "eval/expert_use.png").is_file()
    assert zoo("eval", run, "episodes=0", "--json").out.count("success") == 0

    done = zoo("predict", run, "task=plug", "seed=3", "steps=24", "size=96", "--out", "film")
    assert done.code == 0 and "plug, seed 3:" in done.err
    from PIL import Image

    with Image.open(tmp_path / "film/episode.gif") as film:
        assert film.n_frames > 8 and film.size[0] == 96 and film.size[1] > 96
    document = json.loads((tmp_path / "film/episode.json").read_text())
    assert len(document["actions"]) == len(document["gates"]) == document["steps"] <= 24
    assert len(document["script_phases"]) == document["steps"] and document["phases"][0] == "reach"

    np.savez(tmp_path / "mine.npz", observation=np.zeros((3, 39)), task="plug")
    assert zoo("predict", run, "input=mine.npz", "--out", "answers").code == 0
    with np.load(tmp_path / "answers/actions.npz") as answers:
        assert answers["action"].shape == (3, 8, 4)
    np.savez(tmp_path / "wide.npz", observation=np.zeros((3, 40)))
    for line, message in {
        ("predict", run, "task=x"): "the policy does not know task 'x'; known: carry, plug\n",
        ("predict", run, "task=plugg"): "the policy does not know task 'plugg'; did you mean plug?",
        ("predict", run, "seed=-1"): "seed=-1 must be a whole number from 0",
        ("predict", run, "world=mars"): "no world 'mars'",
        ("predict", run, "input=none.npz"): "'none.npz' does not exist; give input=FILE.npz",
        ("predict", run, "input=wide.npz"): "an observation has 40 numbers, but this policy takes state=39",
        ("eval", run, "episodes=-1"): "episodes=-1 must be at least 0",
        ("eval", run, "execute=9"): "execute=9 is more than the 8 actions of a chunk; lower it",
        ("eval", run, "execute=2", "ensemble=0.1"): "execute=2 and ensemble=0.1 are two ways; set one of them",
        ("eval", run, "episode=3"): "unknown setting 'episode' of zoo eval; did you mean episodes?",
        ("eval", run, "data.tasks=[carry,fly]"): "the model was not trained on task 'fly'",
        ("train", RECIPE, "data.tasks=[]"): "data.tasks=[] must name tasks, each once",
        ("train", RECIPE, "data.recording.noise=2"): "recording.noise=2.0 is a share of the steps; set it to at most 1",
    }.items():
        done = zoo(*line)
        assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1, done.err


def test_a_set_of_other_tasks_is_evaluated_on_its_own(tmp_path: Path) -> None:
    """A model of two tasks on the data of one: numbered as it was trained."""
    model, whole = policy("robotics/mlp"), data()
    one = data(tasks=["plug"])
    task().match(model, one, whole.preprocessing)
    assert one.split("test")[0]["task"] == 1
    found = task(episodes=1, steps=5, script=False).assess(model, one, "test", None)
    assert "success_plug" in found and "success_carry" not in found


def test_saved_with_all_it_needs(tmp_path: Path) -> None:
    model = policy()
    hub.save(tmp_path / "saved", model, preprocessing=data().preprocessing)
    again = hub.load(tmp_path / "saved")
    assert torch.equal(again.model.mean_S, model.mean_S) and again.preprocessing["world"] == "synthetic"
    assert again.model.config.tasks == TASKS
