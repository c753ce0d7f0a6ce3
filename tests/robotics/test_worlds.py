"""Worlds, their scripts and phases, and what happens where there is no simulator or nothing to draw with."""

from __future__ import annotations

import sys
from ctypes.util import find_library
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from zoo.spec import ZooError
from zoo_robotics.data.record import Recording, record, record_one
from zoo_robotics.sim import render
from zoo_robotics.sim.scripts import Branches, phase_names
from zoo_robotics.sim.world import PHASES, check_action, make_world


@pytest.fixture(scope="module")
def meta_world() -> Any:
    if find_spec("metaworld") is None:  # not imported: ours chooses first by what to draw
        pytest.skip("needs metaworld: pip install 'moe-zoo[robotics]'")
    return lambda task: make_world("meta_world", task)


def several(x: int) -> int:
    """Four returns, one of them inside another branch, the last behind all conditions."""
    if x < 0:
        return -1
    elif x < 10:
        if x == 5:
            return 5
        return (
            x
            + 1
        )  # fmt: skip
    return x


def single(x: int) -> int:
    y = 0
    if x < 0:
        y = -1
    elif x > 10:
        y = 1
        y += 0
    return y


def test_a_branch_is_numbered_as_in_the_source() -> None:
    before = sys.gettrace()
    branches = Branches(several)
    assert [branches.found(lambda x=x: several(x)) for x in (-3, 5, 6, 20)] == [(-1, 0), (5, 1), (7, 2), (20, 3)]
    branches = Branches(single)
    assert [branches.found(lambda x=x: single(x)) for x in (-3, 20, 5)] == [(-1, 0), (1, 1), (0, 2)]
    assert sys.gettrace() is before
    assert phase_names("pick-place", 4, PHASES)[:4] == [0, 1, 2, 3]
    assert phase_names("assembly", 5, PHASES)[:5] == [0, 4, 1, 3, 3]
    assert phase_names("unheard-of", 6, PHASES) == [0, 1, 2, 3, 4, 4, 4]
    assert phase_names("reach", 0, PHASES) == [0]


@pytest.mark.parametrize("task", ["carry", "plug"])
def test_the_point_is_solved_by_its_script(task: str) -> None:
    world = make_world("synthetic", task)
    phases = set()
    for seed in range(20):
        demonstration = record_one(world, seed, Recording(noise=0.0))
        assert demonstration is not None and len(demonstration) < 40
        phases |= {PHASES[p] for p in demonstration.phase_T}
    assert phases == set(PHASES) - (set() if task == "plug" else {"insert"})
    assert world.picture(64).shape == (64, 64, 3)


def test_noise_is_done_and_the_script_is_recorded() -> None:
    world = make_world("synthetic", "carry")
    plain, pushed = (record_one(world, 3, Recording(noise=noise, noise_scale=1.0)) for noise in (0.0, 0.5))
    assert plain is not None and pushed is not None and len(pushed) > len(plain)
    for demonstration in (plain, pushed):
        for observation, action in zip(demonstration.observation_TS, demonstration.action_TA, strict=True):
            said = world.advise(observation.astype(np.float64)).action_A
            np.testing.assert_allclose(action, said, atol=1e-5)
    again = record_one(world, 3, Recording(noise=0.5, noise_scale=1.0))
    assert again is not None and np.array_equal(again.observation_TS, pushed.observation_TS)


def test_a_script_that_fails_too_often_is_told() -> None:
    world = make_world("synthetic", "plug")
    with pytest.raises(
        ZooError, match=r"the script of plug solves it in 0 of 15 tries; lower data\.recording\.noise or"
    ):
        record(world, 1, 0, Recording(steps=3))


@pytest.mark.parametrize(
    ("world", "task", "message"),
    [
        ("synthetic", "carri", "no task 'carri' in synthetic; did you mean carry"),
        ("metaworld", "push", "no world 'metaworld'; did you mean meta_world"),
    ],
)
def test_unknown_worlds(world: str, task: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        make_world(world, task)


def test_actions_are_checked() -> None:
    assert check_action(np.array([2.0, -3.0]), 2).tolist() == [1.0, -1.0]
    with pytest.raises(ZooError, match=r"an action of shape \(3,\) where the world takes \(4,\)"):
        check_action(np.zeros(3), 4)
    with pytest.raises(ZooError, match="the policy's action is not finite"):
        check_action(np.array([0.0, np.nan]), 2)


def test_without_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ZooError, match=r"Meta-World is not here \(.*\), so nothing can be simulated; run: pip install"):
        make_world("meta_world", "never-made")


# -- Meta-World itself -------------------------------------------------------------------------------------------------


def test_meta_world_knows_its_tasks(meta_world: Any) -> None:
    with pytest.raises(ZooError, match="no task 'pick-plaze' in Meta-World; did you mean pick-place"):
        meta_world("pick-plaze")


def test_an_episode_depends_on_its_seed_alone(meta_world: Any) -> None:
    world = meta_world("peg-insert-side")
    first = world.reset(7).copy()
    ahead = [world.step(np.array([0.3, 0.2, -0.5, 1.0]))[0] for _ in range(30)]
    other = world.reset(8)
    assert not np.array_equal(first[-3:], other[-3:]), "another layout"
    for _ in range(60):
        world.step(np.array([1.0, 1.0, -1.0, 1.0]))
    assert np.array_equal(world.reset(7), first)
    again = [world.step(np.array([0.3, 0.2, -0.5, 1.0]))[0] for _ in range(30)]
    assert np.array_equal(np.stack(ahead), np.stack(again)), "to the last bit, whatever went before"


def test_phases_are_the_branches_of_the_script(meta_world: Any) -> None:
    world = meta_world("pick-place")
    demonstration = record_one(world, 0, Recording(noise=0.0))
    assert demonstration is not None and demonstration.action_TA.shape[1] == 4
    assert demonstration.observation_TS.shape == (len(demonstration), 39)
    for observation, phase in zip(demonstration.observation_TS, demonstration.phase_T, strict=True):
        hand, puck, opening = observation[:3], observation[4:7] - [0.005, 0, 0], observation[3]
        if np.hypot(*(hand - puck)[:2]) > 0.02:
            expected = "reach"
        elif abs(hand[2] - puck[2]) > 0.05 and puck[2] < 0.04:
            expected = "descend"
        else:
            expected = "grasp" if opening > 0.73 else "transport"
        assert PHASES[phase] == expected
    assert {PHASES[p] for p in demonstration.phase_T} == {"reach", "descend", "grasp", "transport"}


def test_pictures_or_none(meta_world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = meta_world("pick-place")
    world.reset(0)
    picture = world.picture(48)
    assert picture is not None or not any(find_library(name) for _, name in render.OFFSCREEN), "it can be drawn here"
    if picture is not None:
        assert picture.shape == (48, 48, 3) and picture.std() > 10
        assert picture[0].std(0).max() < 2 < picture[-1].std(0).max(), "the wall is above, the floor below"
    import mujoco

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("no display\nand more")

    capsys.readouterr()
    monkeypatch.setattr(mujoco, "Renderer", refuse)
    monkeypatch.setattr(render, "_said", False)
    assert world.picture(16) is None and world.picture(17) is None
    told = capsys.readouterr().err
    assert told.startswith("no pictures: MuJoCo cannot draw here (no display), so all is done by states alone; install")
    assert told.count("no pictures") == 1, "said once"
    world.camera.renderers.pop(16), world.camera.renderers.pop(17)
