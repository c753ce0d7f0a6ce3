"""Carrying out chunks, against hand-computed cases."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zoo import create_model
from zoo.spec import ZooError
from zoo_robotics.execution import Executor
from zoo_robotics.models.policy import Chunk

LENGTH = 3


class Scripted:
    """Says at its n-th call ``10 n, 10 n + 1, 10 n + 2``, and gates of which expert n % 2 has all."""

    chunk, device, zoo_name = LENGTH, torch.device("cpu"), None

    def __init__(self, execute: int = 2, ensemble: float | None = None) -> None:
        self.config = SimpleNamespace(execute=execute, ensemble=ensemble)
        self.calls = 0

    def act(self, batch: Any, generator: Any = None) -> Chunk:
        actions = 10.0 * self.calls + torch.arange(float(LENGTH)).view(1, LENGTH, 1)
        gate = torch.eye(2)[self.calls % 2].expand(1, LENGTH, 2)
        self.calls += 1
        return Chunk(actions, gate)


def steps(executor: Executor, count: int) -> tuple[list[float], list[bool], list[list[float]]]:
    actions, fresh, gates = [], [], []
    for _ in range(count):
        action, gate = executor.step(torch.zeros(39), 0)
        actions.append(action.item())
        fresh.append(executor.fresh)
        gates.append(gate.tolist())
    return actions, fresh, gates


def test_two_of_three_actions_are_carried_out() -> None:
    executor = Executor(Scripted(execute=2))  # type: ignore[arg-type]
    actions, fresh, gates = steps(executor, 5)
    assert actions == [0.0, 1.0, 10.0, 11.0, 20.0]
    assert fresh == [True, False, True, False, True]
    assert gates == [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]
    executor.reset()
    assert steps(executor, 2)[0] == [30.0, 31.0], "a new episode begins with a new chunk"


def test_temporal_ensembling_by_hand() -> None:
    """Weights 1 and 1/2 for two chunks, 1, 1/2 and 1/4 for three, the oldest first; a chunk speaks for three steps."""
    executor = Executor(Scripted(execute=1, ensemble=math.log(2)))  # type: ignore[arg-type]
    wanted = [
        0.0,
        (1 * 1 + 0.5 * 10) / 1.5,
        (1 * 2 + 0.5 * 11 + 0.25 * 20) / 1.75,
        (1 * 12 + 0.5 * 21 + 0.25 * 30) / 1.75,
    ]
    actions, fresh, gates = steps(executor, 4)
    assert actions == pytest.approx(wanted)
    assert all(fresh)
    assert gates[1] == pytest.approx([2 / 3, 1 / 3]) and gates[2] == pytest.approx([1.25 / 1.75, 0.5 / 1.75])
    executor.reset()
    assert steps(executor, 1)[0] == [40.0], "nothing of the last episode is averaged in"


def test_settings_may_be_others_than_the_policys() -> None:
    assert steps(Executor(Scripted(execute=2), execute=3), 4)[0] == [0.0, 1.0, 2.0, 10.0]  # type: ignore[arg-type]
    every = Executor(Scripted(execute=2), ensemble=0.0)  # type: ignore[arg-type]
    assert steps(every, 2)[0] == [0.0, 5.5]


def test_what_cannot_be_carried_out() -> None:
    model = create_model("robotics/mlp").eval()
    with pytest.raises(ZooError, match="an observation has 7 numbers, but this policy takes state=39"):
        Executor(model).step(torch.zeros(7), 0)
    with pytest.raises(ZooError, match="policy robotics/mlp says NaN at step 0"):
        Executor(model).step(torch.full((39,), torch.nan), 0)


def test_an_episode_does_not_depend_on_the_one_before() -> None:
    model = create_model("robotics/moe_act").eval()
    executor, seen = Executor(model), torch.randn(7, 39)
    first = [executor.step(x, 1) for x in seen]
    executor.reset()
    again = [executor.step(x, 1) for x in seen]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert all(action.abs().max() <= 1 and gate.sum() == pytest.approx(1) for action, gate in first)


def test_the_loop_in_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    model = create_model("robotics/mlp", state=3, actions=1, tasks=["lift"])
    trained = SimpleNamespace(model=model, preprocessing={"action_range": [[-2.0], [2.0]]})
    monkeypatch.setattr("zoo.load", lambda name: trained)
    page = (Path(__file__).parents[2] / "docs" / "robotics.md").read_text(encoding="utf-8")
    code = textwrap.dedent(page.partition("one of gymnasium's:\n\n")[2].partition("\n\n`")[0])
    names: dict[str, Any] = {}
    seen: list[Any] = []
    make = gymnasium.make

    def noted(name: str) -> Any:
        world = make(name)
        step = world.step
        monkeypatch.setattr(world, "step", lambda action: seen.append(action) or step(action))
        return world

    monkeypatch.setattr(gymnasium, "make", noted)
    exec(code, names)
    assert len(seen) == 200 and names["cut"] and seen[0].shape == (1,)
