"""Suites: sections, means and geometric means by hand, and one from the command line to its table."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo import cli, create_model, hub
from zoo import config as zc
from zoo.eval import card
from zoo.eval.evaluate import Report
from zoo.eval.suite import Suite, read_suite, run_suite, sections, summary
from zoo.spec import ZooError


def report(rivals: dict[str, dict[str, float]], **metrics: float) -> Report:
    return Report("m", "test", {}, 1, metrics, rivals, 0.0)


def test_sections_are_combinations() -> None:
    suite = Suite(
        data=[
            {"name": "a/one", "set": "X", "each": {"size": [1, 2], "kind": ["p", "q"]}},
            {"name": "a/two", "context": 5, "horizon": 7},
        ],
        from_model=["context", "absent"],
    )
    found = dict(sections(suite, {"context": 9, "mean": 3}))
    assert list(found) == ["one X 1 p", "one X 1 q", "one X 2 p", "one X 2 q", "two 7"]
    assert found["one X 2 p"] == {"context": 9, "name": "a/one", "set": "X", "size": 2, "kind": "p"}
    assert found["two 7"]["context"] == 5, "what a section says itself counts"


def test_means_by_hand() -> None:
    suite = Suite(metrics=["mse", "mase"], baseline="base", relative=["mase"])
    reports = {
        "a": report({"base": {"mse": 4.0, "mase": 2.0}}, mse=1.0, mase=1.0),
        "b": report({"base": {"mse": 1.0, "mase": 1.0}}, mse=3.0, mase=8.0),
    }
    mean, relative = summary(suite, reports)
    assert mean == {"": {"mse": 2.0, "mase": 4.5}, "base": {"mse": 2.5, "mase": 1.5}}
    assert relative[""]["mase"] == pytest.approx(2.0) and relative["base"]["mase"] == pytest.approx(1.0)
    for wrong, message in (
        (Suite(metrics=["msa"]), "the suite's metric 'msa' is not there; did you mean mse"),
        (Suite(metrics=["mse"], baseline="bas"), "the suite's baseline 'bas' is not there; did you mean base"),
    ):
        with pytest.raises(ZooError, match=message):
            summary(wrong, reports)


def test_what_a_rival_does_not_say_stays_empty() -> None:
    """As a control that gives answers and no odds has no loss."""
    short = report({"base": {"mse": 4.0}}, mse=1.0, loss=0.5)
    short.data = {"name": "a/one"}
    lines = card._table("a/m.t", short).splitlines()
    assert lines[2:4] == ["| a/m.t | 1.0000 | 0.5000 |", "| base | 4.0000 |  |"]
    mean, _ = summary(Suite(metrics=["mse", "loss"]), {"a": short})
    assert mean[""] == {"mse": 1.0, "loss": 0.5} and math.isnan(mean["base"]["loss"])


def saved(folder: Path) -> hub.Predictor:
    model = create_model("time_series/ridge", context=24, horizon=6)
    preprocessing: dict[str, Any] = {"context": 24, "horizon": 6, "season": 12, "frequency": "M", "columns": []}
    hub.save(folder, model, preprocessing={**preprocessing, "mean": [], "std": []})
    return hub.load(folder)


SUITE = """
metrics: [mase, crps]
baseline: seasonal_naive
relative: [mase]
from_model: [context]
data:
  - {name: time_series/statsmodels, horizon: 12, score_every: 12, each: {series: [elnino, sunspots]}}
  - {name: time_series/long_horizon, set: weather}
"""


def test_a_suite_leaves_out_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(SUITE)
    found = run_suite(saved(tmp_path / "ridge"), str(tmp_path / "mine.yaml"), quiet=True)
    assert list(found.reports) == ["statsmodels 12 elnino", "statsmodels 12 sunspots"]
    assert found.reports["statsmodels 12 elnino"].data["context"] == 24
    assert "cannot download 'time_series/weather/weather.csv'" in found.left_out["long_horizon weather"]
    assert found.relative["seasonal_naive"] == {"mase": pytest.approx(1.0)} and found.relative[""]["mase"] > 1
    assert json.loads(found.to_json())["reports"]["statsmodels 12 elnino"]["items"] > 5
    with pytest.raises(ZooError, match=r"nothing of suite .* could be scored: .*weather"):
        run_suite(saved(tmp_path / "ridge"), str(tmp_path / "mine.yaml"), only="weather", quiet=True)


@pytest.mark.parametrize("name", zc.suites())
def test_shipped_suites_are_sound(name: str) -> None:
    suite = read_suite(name)
    labels = [label for label, _ in sections(suite, {"context": 96})]
    assert len(set(labels)) == len(labels) > 1
    for label, tree in sections(suite, {"context": 96}):
        zc.resolve_part("data set", tree, label)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", "eval", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "ridge")
    (tmp_path / "mine.yaml").write_text(SUITE)
    code, out, _ = run("./ridge", "suite=mine.yaml", "only=sunspots")
    assert not code and "statsmodels 12 sunspots" in out and "geometric mean over seasonal_naive's" in out
    assert json.loads((tmp_path / "ridge" / "eval" / "mine.json").read_text())["left_out"] == {}
    code, out, err = run("./ridge", "suite=time_series/gif")
    assert code == 2 and "unknown suite 'time_series/gif'; did you mean time_series/gift" in err
    code, out, err = run("./ridge", "suite=mine.yaml", "data.horizon=3")
    assert code == 2 and "unknown setting 'data' beside suite" in err
