"""Rolling origins over a user's table, against forecasts from tables that are cut off by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from zoo import config as zc
from zoo import create_model
from zoo.spec import ZooError
from zoo_time_series.tasks.forecasting import Forecasting

PREPROCESSING = {
    "context": 28, "horizon": 7, "season": 7, "frequency": "D", "columns": [], "mean": [], "std": [],
}  # fmt: skip


def long_table() -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    for name, rows in (("a", 80), ("b", 60), ("short", 10)):
        ds = pd.date_range("2024-01-01", periods=rows, freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": rng.normal(size=rows).cumsum() + 50}))
    return pd.concat(parts, ignore_index=True)


def predict(frame: pd.DataFrame, **inputs: Any) -> Any:
    task = Forecasting(zc.make(Forecasting.Config))
    given = {"input": frame, "horizon": None, "time": None, "columns": None, **inputs}
    return task, task.predict(create_model("time_series/seasonal_naive"), PREPROCESSING, given)


@pytest.mark.parametrize("step", [None, 3])
def test_a_backtest_is_what_was_said_at_each_origin(step: int | None, tmp_path: Path) -> None:
    frame = long_table()
    task, found = predict(frame, windows=3, step=step, quantiles="0.1,0.9")
    assert list(found.columns) == ["unique_id", "cutoff", "ds", "y", "0.1", "0.9", "actual"]
    assert set(found.unique_id) == {"a", "b"}
    assert any("left out of the backtest" in note and "short" in note for note in found.notes)
    errors = []
    for back in (7 + 2 * (step or 7), 7 + (step or 7), 7):
        for name in ("a", "b"):
            own = frame[frame.unique_id == name]
            _, alone = predict(own[:-back], quantiles="0.1,0.9")
            cutoff = own.ds.iloc[-back - 1]
            rows = found[(found.unique_id == name) & (found.cutoff == cutoff)]
            assert rows.ds.tolist() == alone.ds.tolist() and rows.ds.iloc[0] == cutoff + pd.Timedelta(days=1)
            np.testing.assert_allclose(rows[["y", "0.1", "0.9"]], alone[["y", "0.1", "0.9"]], rtol=1e-5)
            truth = own.y.iloc[-back : len(own) - back + 7].to_numpy()
            np.testing.assert_allclose(rows.actual, truth)
            past = own.y.to_numpy()[:-back]
            errors.append(np.abs(rows.y - truth) / np.abs(past[7:] - past[:-7]).mean())
    assert found.scores["model"]["mase"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.scores["model"] == found.scores["seasonal_naive"] != found.scores["naive"]
    files = task.write(found, tmp_path)
    assert [file.name for file in files] == ["backtest.csv", "backtest.json"]
    assert json.loads(files[1].read_text())["naive"] == found.scores["naive"]


def test_missing_points_are_not_scored() -> None:
    frame = long_table()
    frame = frame[frame.unique_id == "a"].reset_index(drop=True)
    frame.loc[75, "y"] = np.nan
    frame.loc[76, "y"] = 1e6
    _, found = predict(frame, windows=1)
    assert found.actual.isna().sum() == 1 and np.isfinite(found.scores["model"]["mse"])
    frame.loc[76, "y"] = np.nan
    assert predict(frame, windows=1)[1].scores["model"]["mse"] < found.scores["model"]["mse"] / 100


@pytest.mark.parametrize(("inputs", "message"), [
    ({"windows": 0}, "windows=0 must be a number of windows"),
    ({"windows": 2, "step": -1}, "step=-1 must be a number of points"),
    ({"windows": 30}, r"windows=30 with horizon=7 and step=7 want 210 points.*longest series has 80; lower windows"),
])  # fmt: skip
def test_what_cannot_be_done(inputs: dict[str, int], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        predict(long_table(), **inputs)
