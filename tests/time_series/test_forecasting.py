"""The forecasting task by hand: objective, metrics, windows of one value, and what a user gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from zoo import config as zc
from zoo import report
from zoo_time_series.models.base import Forecaster, Prediction
from zoo_time_series.tasks.forecasting import Forecasting


class Says(Forecaster):
    """Forecasts fixed values, and remembers the windows it was given."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(None)
        self.values = values

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Any = None) -> Tensor:
        self.seen = past_BL
        return self.values[:, :horizon].expand(len(past_BL), -1)


def task(**settings: Any) -> Forecasting:
    return Forecasting(zc.make(Forecasting.Config, **settings))


def batch(**more: Tensor) -> dict[str, Tensor]:
    return {
        "past": torch.tensor([[1.0, 3.0], [0.0, 2.0]]),
        "past_valid": torch.tensor([[True, True], [False, True]]),
        "future": torch.tensor([[1.0, 2.0], [4.0, 0.0]]),
        "future_valid": torch.tensor([[True, True], [True, False]]),
        "mean": torch.tensor([10.0, 0.0]),
        "std": torch.tensor([2.0, 1.0]),
        "mase_scale": torch.tensor([0.5, 2.0]),
        "season": torch.tensor([1, 1]),
        **more,
    }


def test_metrics_count_valid_points_in_their_units() -> None:
    forecasting, metrics = task(window_norm=False), task().metrics()
    forecasting.update(metrics, Says(torch.tensor([[2.0, 0.0]])), batch())
    found = {name: float(value) for name, value in metrics.compute().items()}
    # errors at the three valid points: 1, -2 (scale 0.5), -2 (scale 2); original units 14 for 12, 10 for 14, 2 for 4
    assert found["mse"] == pytest.approx((1 + 4 + 4) / 3)
    assert found["mae"] == pytest.approx((1 + 2 + 2) / 3)
    assert found["mase"] == pytest.approx((1 / 0.5 + 2 / 0.5 + 2 / 2) / 3)
    assert found["smape"] == pytest.approx(200 * (2 / 26 + 4 / 24 + 2 / 6) / 3)
    forecasting.update(
        metrics, Says(torch.tensor([[1.0, 2.0]])), batch(future_valid=torch.tensor([[True, True], [False, False]]))
    )
    assert float(metrics.compute()["mse"]) == pytest.approx(9 / 5), "points count, not batches"


def test_windows_are_standardised_by_their_own_valid_points() -> None:
    forecasting, model = task(), Says(torch.tensor([[0.0, 1.0]]))
    past = torch.tensor([[1.0, 3.0, 5.0], [0.0, 7.0, 7.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    forecast = forecasting.forecast(model, past, valid, 2)
    std = (8 / 3) ** 0.5
    torch.testing.assert_close(model.seen, torch.tensor([[-2 / std, 0, 2 / std], [0, 0, 0], [0, 0, 0]]))
    torch.testing.assert_close(forecast, torch.tensor([[3, 3 + std], [7, 8], [0, 1]]), msg="a constant keeps its scale")


@pytest.mark.parametrize(("objective", "wanted"), [("mse", (1 + 25) / 2), ("huber", (0.5 + 2 * (5 - 1)) / 2)])
def test_objective(objective: str, wanted: float) -> None:
    class Heads(Says):
        def training_predictions(self, *_: Tensor) -> Any:
            predicted, target = torch.tensor([1.0, 9.0, 5.0]), torch.tensor([0.0, 0.0, 0.0])
            one = Prediction(predicted, target, torch.tensor([True, False, True]))
            nothing = Prediction(predicted, target, torch.zeros(3, dtype=torch.bool))
            return [one, one, nothing], ()

    loss = task(objective=objective).loss(Heads(torch.zeros(1, 2)), batch()).loss
    assert float(loss) == pytest.approx(wanted * 2 / 3), "the mean over heads, each over its valid targets"


@pytest.mark.parametrize(("objective", "wanted"), [("mae", 5 / 3), ("smape", 2 * (2 / 26 + 4 / 24 + 2 / 6) / 3)])
@pytest.mark.parametrize("window_norm", [False, True])
def test_objectives_in_units(objective: str, wanted: float, window_norm: bool) -> None:
    class Said(Says):
        def training_predictions(self, past: Tensor, valid: Tensor, future: Tensor, future_valid: Tensor) -> Any:
            # the forecast 2, 0 of the windows 1, 3 (mean 2, deviation 1) and 2 (mean 2, no deviation of its own)
            said = torch.tensor([[2.0, 0.0], [2.0, 0.0]]) - (2.0 if window_norm else 0.0)
            return [Prediction(said, future, future_valid)], ()

    loss = task(objective=objective, window_norm=window_norm).loss(Said(torch.zeros(1, 2)), batch()).loss
    assert float(loss) == pytest.approx(wanted), "original units 14 for 12, 10 for 14, 2 for 4"


PREPROCESSING = {
    "context": 16, "horizon": 4, "season": 7, "frequency": "D", "columns": ["a"], "mean": [10.0], "std": [2.0],
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    days = pd.date_range("2024-01-01", periods=20, freq="D")
    frame = pd.DataFrame({"day": days, "a": range(20), "b": [5.0] * 20})
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_predict_writes_a_table_and_a_picture(table: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    forecasting, model = task(window_norm=False), Says(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    given = {"input": str(table), "horizon": 3, "time": None, "columns": None}
    files = forecasting.write(forecasting.predict(model, PREPROCESSING, given), tmp_path)
    assert [file.name for file in files] == ["forecast.csv", "forecast.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    written = pd.read_csv(files[0])
    assert list(written.columns) == ["unique_id", "ds", "y"] and len(written) == 6
    a = written[written.unique_id == "a"]
    assert a.ds.tolist() == ["2024-01-21", "2024-01-22", "2024-01-23"]
    assert a.y.tolist() == [12.0, 14.0, 16.0], "back in the units of the training data"
    assert written[written.unique_id == "b"].y.tolist() == [6.0, 7.0, 8.0], "a constant is only centred"
    by_default = forecasting.predict(model, PREPROCESSING, {**given, "horizon": None, "columns": "a"})
    assert by_default.values_SH.shape == (1, 4)
    for wrong in (0, -1, 2.5, "x"):
        with pytest.raises(zc.ZooError, match="must be a number of points"):
            forecasting.predict(model, PREPROCESSING, {**given, "horizon": wrong})


def test_without_matplotlib_it_says_so_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_pyplot", lambda: None)
    report.plots_available.cache_clear()
    forecasting, model = task(), Says(torch.zeros(1, 4))
    given = {"input": str(table), "horizon": None, "time": None, "columns": None}
    for _ in range(2):
        files = forecasting.write(forecasting.predict(model, PREPROCESSING, given), tmp_path)
        assert [file.name for file in files] == ["forecast.csv"]
    assert capsys.readouterr().err.count("plots are left out: matplotlib is not installed; run: pip install") == 1
    monkeypatch.undo()
    report.plots_available.cache_clear()
