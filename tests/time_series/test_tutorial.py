"""docs/time_series.md, line by line; and tables that nobody has seen, from the command line alone."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from zoo import cli

PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", list(arguments))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, arguments


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert [kind for kind, _ in blocks] == ["python", "sh", "python"]
    for kind, text in blocks:
        if kind == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            run(monkeypatch, *shlex.split(line))
    assert "4 missing values" in capsys.readouterr().err
    report = json.loads(Path("runs/time_series/mole/eval/eval.json").read_text())
    assert report["metrics"]["mase"] < 0.85 * report["rivals"]["seasonal_naive"]["mase"]
    assert 0.7 < report["metrics"]["coverage80"] < 0.9
    written = pd.read_csv("forecast/forecast.csv")
    assert list(written.columns) == ["unique_id", "ds", "y", "0.1", "0.5", "0.9"] and len(written) == 52
    np.testing.assert_allclose(names["forecast"][["y", "0.1"]], written[["y", "0.1"]], rtol=1e-4)
    assert names["backtest"].scores["model"]["mase"] < names["backtest"].scores["seasonal_naive"]["mase"]
    for word in re.findall(r"data=(\w+)", PAGE.read_text(encoding="utf-8")):
        assert word in ("csv", "ett", "m4", "long_horizon", "statsmodels")


NAMES = ["Ventas (EUR) ñ", "% Δ price", "Qty/Store #3", "x.y[z]", "平均", "  spaced out ", "col;7"]


def odd_weekly(path: Path) -> None:
    """1,000 weeks of 7 series under names that no program would choose, with gaps, texts and dates day first."""
    rng, time = np.random.default_rng(7), np.arange(1000)
    frame = pd.DataFrame({"Wk. commencing": pd.date_range("2005-01-03", periods=1000, freq="7D").strftime("%d/%m/%Y")})
    for i, name in enumerate(
        ["Ventas (EUR) ñ", "% Δ price", "Qty/Store #3", "x.y[z]", "平均", "  spaced out ", "col;7"]
    ):
        frame[name] = 50 * (i + 1) + 10 * np.sin(2 * np.pi * (time + 7 * i) / 52.18) + 3 * rng.normal(size=1000)
    frame.loc[rng.choice(1000, 40, replace=False), "Qty/Store #3"] = np.nan
    frame.drop(index=[400, 401, 777]).to_csv(path, index=False)


def long_daily(path: Path) -> None:
    """200 daily series of 60 to 300 days that start when they like, 2% of the days without a row."""
    rng, parts = np.random.default_rng(1), []
    for s in range(200):
        days = int(rng.integers(60, 300))
        ds = pd.date_range("2020-01-01", periods=days, freq="D") + pd.Timedelta(days=int(rng.integers(0, 400)))
        week = rng.normal(size=7)[ds.day_of_week]
        y = rng.uniform(20, 500) * (1 + 0.1 * week + 0.02 * rng.normal(size=days))
        keep = rng.random(days) > 0.02
        parts.append(pd.DataFrame({"unique_id": f"shop {s:03d}", "ds": ds[keep], "y": y[keep].round(2)}))
    pd.concat(parts).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("make", "series", "season", "context", "horizon"),
    [(odd_weekly, 7, 52, 104, 13), (long_daily, 200, 7, 28, 14)],
    ids=["wide", "long"],
)
def test_tables_that_nobody_has_seen(
    make: Any, series: int, season: int, context: int, horizon: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "table.csv")
    sizes = [f"{part}.{key}" for part in ("data", "model") for key in (f"context={context}", f"horizon={horizon}")]
    run(monkeypatch, "zoo", "train", "time_series/mole", "data=csv", "data.path=table.csv", *sizes, "train.steps=200")
    run(monkeypatch, "zoo", "eval", "runs/time_series/mole", "batch_size=2048")
    run(monkeypatch, "zoo", "predict", "runs/time_series/mole", "input=table.csv", "quantiles=0.1,0.9", "--out", "out")
    report = json.loads(Path("runs/time_series/mole/eval/eval.json").read_text())
    assert report["metrics"]["mase"] < min(rival["mase"] for rival in report["rivals"].values())
    written = pd.read_csv("out/forecast.csv")
    assert written.unique_id.nunique() == series and len(written) == series * horizon
    assert written["y"].notna().all() and (written["0.1"] <= written["0.9"]).all()
    saved = json.loads(Path("runs/time_series/mole/model/config.json").read_text())["preprocessing"]
    assert saved["season"] == season


def test_a_fast_run_of_such_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd_weekly(tmp_path / "table.csv")
    settings = ("data=csv", "data.path=table.csv", "data.context=104", "data.horizon=13")
    run(monkeypatch, "zoo", "train", "time_series/time_moe_tiny", *settings, "--fast-dev-run")
    run(monkeypatch, "zoo", "predict", "runs/time_series/time_moe_tiny", "input=table.csv", "quantiles=0.5")
