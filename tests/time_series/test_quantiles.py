"""Quantiles: their metrics by hand, those around a model of points, and what a user gets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import zoo
from zoo import config as zc
from zoo import hub
from zoo.metrics import CRPS, Coverage
from zoo.spec import ZooError
from zoo_time_series.data.csv import Csv
from zoo_time_series.models.baselines import Naive, Ridge, SeasonalNaive, seasonal_spread
from zoo_time_series.models.patch_encoder import PatchEncoder
from zoo_time_series.tasks import residuals
from zoo_time_series.tasks.forecasting import LEVELS, Forecasting


def task(**settings: Any) -> Forecasting:
    return Forecasting(zc.make(Forecasting.Config, **settings))


def test_crps_and_coverage_by_hand() -> None:
    crps, levels = CRPS(), torch.tensor([0.1, 0.5, 0.9])
    crps.update(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([4.0]), levels)
    crps.update(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([-2.0]), levels)
    first, second = 2 * (0.1 * 3 + 0.5 * 2 + 0.9 * 1), 2 * (0.9 * 2 + 0.5 * 2 + 0.1 * 2)
    assert float(crps.compute()) == pytest.approx((first + second) / 3 / (4 + 2))
    point = CRPS()
    point.update(torch.tensor([[3.0, 3.0]]), torch.tensor([5.0]), torch.tensor([0.2, 0.8]))
    assert float(point.compute()) == pytest.approx(2 / 5), "of a point mass it is the weighted absolute error"
    coverage = Coverage()
    coverage.update(
        torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 3.0, 1.0]), torch.tensor([1.0, 2, 1, 1])
    )
    assert float(coverage.compute()) == pytest.approx(0.5)


def test_the_naive_methods_know_their_spread() -> None:
    noise = torch.randn(4, 2000)
    valid = torch.ones_like(noise, dtype=torch.bool)
    walk = noise.cumsum(1)
    found = task(window_norm=True).quantiles(Naive(Naive.Config()), walk, valid, 9, [0.1, 0.5, 0.9])
    assert found is not None and torch.allclose(found[:, 1], walk[:, -1:].expand(-1, 9), atol=1e-4)
    width = (found[:, 2] - found[:, 1]) / 1.2816
    torch.testing.assert_close(width, torch.arange(1, 10).sqrt().expand(4, -1), atol=0.15, rtol=0.05)
    season_B = torch.full((4,), 7)
    repeated = noise[:, :7].repeat(1, 20) + torch.arange(140) // 7  # a season higher each time
    spread = seasonal_spread(repeated, torch.ones_like(repeated, dtype=torch.bool), 15, season_B)
    torch.testing.assert_close(spread[0], torch.tensor([1.0] * 7 + [2**0.5] * 7 + [3**0.5]))
    half = torch.ones_like(repeated, dtype=torch.bool)
    half[:, :130] = False
    assert torch.isfinite(SeasonalNaive(SeasonalNaive.Config()).spread(repeated * half, half, 5, season_B)).all()


def test_residual_quantiles_step_by_step() -> None:
    error = torch.arange(101.0)[:, None] * torch.tensor([1.0, 10.0, 1.0])
    valid = torch.ones_like(error, dtype=torch.bool)
    valid[:, 2] = False
    saved = residuals.learn(error, valid)
    assert saved["windows"] == 101 and len(saved["steps"]) == 3
    found = residuals.apply(saved, [0.1, 0.15, 0.9, 0.999], 5, torch.zeros(()))
    assert found[:, 0].tolist() == pytest.approx([10, 15, 90, 99])
    assert found[:, 1].tolist() == pytest.approx([100, 150, 900, 990])
    assert not found[:, 2:].any(), "a step that nothing was known of, and those beyond it"


def noisy(rows: int = 600) -> pd.DataFrame:
    """Two series of one season and noise, one of them ten thousand times as large."""
    rng, time = np.random.default_rng(0), np.arange(rows)
    wave = np.sin(2 * np.pi * time / 24)
    values = {f"x {scale}": scale * (wave + 0.3 * rng.normal(size=rows) + 5) for scale in (1, 10000)}
    return pd.DataFrame({"at": pd.date_range("2024-01-01", periods=rows, freq="h"), **values})


@pytest.fixture
def ridge(tmp_path: Path) -> hub.Predictor:
    noisy().to_csv(tmp_path / "x.csv", index=False)
    data = Csv(Csv.Config(path=str(tmp_path / "x.csv"), context=48, horizon=12))
    model = zoo.create_model("time_series/ridge", context=48, horizon=12)
    assert isinstance(model, Ridge)
    model.fit(data.split("train"), data.split("val"))
    forecasting = task()
    more = forecasting.calibrate(model, data, 1000)
    assert more["residuals"]["windows"] == len(data.split("val")) == 98
    hub.save(tmp_path / "ridge", model, preprocessing={**data.preprocessing, **more})
    return zoo.load(tmp_path / "ridge")


def test_a_model_of_points_has_the_quantiles_of_its_validation_errors(ridge: hub.Predictor, tmp_path: Path) -> None:
    data = Csv(Csv.Config(path=str(tmp_path / "x.csv"), context=48, horizon=12))
    metrics = ridge.task.metrics()
    windows = data.split("test")
    ridge.task.update(metrics, ridge.model, windows.batch(torch.arange(len(windows))))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert 0.74 < found["coverage80"] < 0.86, "noise that never changes is covered as promised"
    bare = ridge.task.metrics()
    ridge.model.saved_with = {}
    ridge.task.update(bare, ridge.model, windows.batch(torch.arange(len(windows))))
    without = {name: float(value) for name, value in bare.compute().items()}
    assert without["coverage80"] == 0 and without["crps"] > 1.2 * found["crps"]
    assert without["mse"] == found["mse"]


def test_python_gives_a_data_frame(ridge: hub.Predictor, tmp_path: Path) -> None:
    frame = noisy()
    found = ridge.predict(frame, 30, quantiles=[0.9, 0.1])
    assert isinstance(found, pd.DataFrame) and list(found.columns) == ["unique_id", "ds", "y", "0.1", "0.9"]
    assert len(found) == 60 and found.ds.iloc[0] == pd.Timestamp("2024-01-26") and (found["0.1"] < found["0.9"]).all()
    assert type(found[found.unique_id == "x 1"]) is pd.DataFrame
    wide = found["0.9"] - found["0.1"]
    assert wide[30:].mean() / wide[:30].mean() == pytest.approx(10000, rel=0.2), "in the units of each series"
    assert any("errors of 98 validation windows" in note and "step 12 beyond" in note for note in found.notes)
    by_name = ridge.predict(input=frame, horizon=30)
    pd.testing.assert_series_equal(by_name["y"], found["y"], check_names=False)
    files = ridge.write(found, tmp_path)
    assert list(pd.read_csv(files[0]).columns) == list(found.columns)
    with pytest.raises(ZooError, match=r"input 'horizon' of .* is given twice"):
        ridge.predict(frame, 30, horizon=20)
    with pytest.raises(ZooError, match="has 8 inputs"):
        ridge.predict(frame, 1, *[None] * 7)


def test_sample_paths_of_a_users_table(ridge: hub.Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match="the model has no sample paths"):
        ridge.predict(noisy(), 4, paths=3)
    with pytest.raises(ZooError, match="leave paths or windows out"):
        ridge.predict(noisy(), 4, paths=3, windows=2)

    def walks(past_BL: Tensor, valid_BL: Tensor, horizon: int, count: int, seed: int = 0) -> Tensor:
        steps = torch.arange(1.0, count + 1)[:, None] * torch.arange(1, horizon + 1)
        return past_BL[:, -1:, None] + steps

    monkeypatch.setattr(ridge.model, "sample_paths", walks)
    found = ridge.predict(noisy(), 4, paths=3)
    last, scale = noisy()["x 10000"].iloc[-1], noisy()["x 10000"].iloc[-48:].std(ddof=0)
    np.testing.assert_allclose(found.paths_SNH[1], last + scale * np.outer([1, 2, 3], [1, 2, 3, 4]), rtol=1e-3)
    written = pd.read_csv(ridge.write(found, tmp_path)[1])
    assert list(written.columns) == ["unique_id", "ds", "0", "1", "2"] and len(written) == 8
    np.testing.assert_allclose(written["2"][4:], found.paths_SNH[1, 2], rtol=1e-5)


@pytest.mark.parametrize("wrong", [0, 1.0, "0.1;0.9", "a", [0.5, -1]])
def test_levels_that_are_none(ridge: hub.Predictor, wrong: Any) -> None:
    with pytest.raises(ZooError, match="must be levels between 0 and 1"):
        ridge.predict(noisy(), 3, quantiles=wrong)


def test_without_validation_errors_it_says_so(ridge: hub.Predictor) -> None:
    ridge.model.saved_with = {}
    with pytest.raises(ZooError, match=r"no validation errors were saved with its weights.*leave quantiles out"):
        ridge.predict(noisy(), 3, quantiles=0.5)


def test_a_model_of_quantiles_needs_no_validation_errors(tmp_path: Path) -> None:
    noisy().to_csv(tmp_path / "x.csv", index=False)
    data = Csv(Csv.Config(path=str(tmp_path / "x.csv"), context=48, horizon=16))
    config = zc.make(PatchEncoder.Config, context=48, horizon=16, quantiles=[0.1, 0.5, 0.9])
    model = PatchEncoder(config).eval()
    assert task().calibrate(model, data, 10) == {}
    found = task().quantiles(model, torch.randn(3, 48), torch.ones(3, 48, dtype=torch.bool), 16, LEVELS)
    assert found is not None and found.shape == (3, 9, 16)


def test_covariates_reach_the_model_of_a_users_table(tmp_path: Path) -> None:
    class Seen(PatchEncoder):
        def forecast(self, *args: Any, covariates_BTC: Tensor, **more: Any) -> Tensor:
            self.seen = covariates_BTC
            return super().forecast(*args, covariates_BTC=covariates_BTC, **more)

    noisy().to_csv(tmp_path / "x.csv", index=False)
    data = Csv(Csv.Config(path=str(tmp_path / "x.csv"), context=48, horizon=16, calendar=True))
    model = Seen(zc.make(PatchEncoder.Config, context=48, horizon=16, covariates=4)).eval()
    given = {"input": noisy(), "horizon": 16, "quantiles": None, "time": None, "columns": None}
    assert len(task().predict(model, data.preprocessing, given)) == 32
    hour = model.seen[0, :, 0] * 23 + 11.5
    assert hour[48:].round().int().tolist() == list(range(16)), "the hours that are forecast"
