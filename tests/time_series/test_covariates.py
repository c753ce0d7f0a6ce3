"""Covariates by hand: calendar, columns known in advance, static columns, in windows and beyond a user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from zoo.spec import ZooError
from zoo_time_series.data.context import frame_to_context
from zoo_time_series.data.csv import Csv


def wide(rows: int = 200) -> pd.DataFrame:
    t = np.arange(rows)
    return pd.DataFrame(
        {"day": pd.date_range("2024-01-01", periods=rows), "price": t % 5 + 1.0, "a": np.sin(t), "b": np.cos(t)}
    )


def long(series: int = 3, rows: int = 60) -> pd.DataFrame:
    pieces = [
        pd.DataFrame(
            {
                "unique_id": f"s{i}",
                "ds": pd.date_range("2024-01-01", periods=rows + 7 * i),
                "y": np.arange(rows + 7 * i) + 10.0 * i,
                "promo": np.arange(rows + 7 * i) % 2,
                "size": float(i),
                "kind": ["shop", "web"][i % 2],
            }
        )
        for i in range(series)
    ]
    return pd.concat(pieces, ignore_index=True)


def opened(folder: Path, frame: pd.DataFrame, **settings: Any) -> Csv:
    frame.to_csv(folder / "table.csv", index=False)
    return Csv(Csv.Config(path=str(folder / "table.csv"), context=16, horizon=4, **settings))


def test_calendar_and_known_columns_of_a_wide_table(tmp_path: Path) -> None:
    data = opened(tmp_path, wide(), calendar=True, known=["price"])
    assert data.preprocessing["columns"] == ["a", "b"], "a covariate is no series"
    windows = data.split("val")
    item = windows[0]
    assert item["covariates"].shape == (20, 5)
    days = pd.date_range("2024-01-01", periods=200)[140 - 16 : 144]  # val starts at row 140
    np.testing.assert_allclose(item["covariates"][:, 1], days.day_of_week / 6 - 0.5, atol=1e-6)
    np.testing.assert_allclose(item["covariates"][:, 3], (days.day_of_year - 1) / 365 - 0.5, atol=1e-6)
    mean, std = data.preprocessing["covariates"]["known"]["price"]
    np.testing.assert_allclose(item["covariates"][:, 4] * std + mean, np.arange(124, 144) % 5 + 1.0, atol=1e-5)
    assert torch.equal(windows[len(windows) // 2]["covariates"], item["covariates"]), "the first window of the other"


def test_static_columns_of_a_long_table(tmp_path: Path) -> None:
    data = opened(tmp_path, long(), known=["promo"], static=["size", "kind"])
    windows = data.split("test")
    seen = {int(windows[i]["series"]): windows[i]["covariates"] for i in range(len(windows))}
    sizes = {s: float(c[0, 1]) for s, c in seen.items()}
    assert sizes == pytest.approx({0: -(1.5**0.5), 1: 0, 2: 1.5**0.5}), "standardised over the series"
    assert {s: c[0, 2:].tolist() for s, c in seen.items()} == {0: [1, 0], 1: [0, 1], 2: [1, 0]}, "shop, web"


def test_a_table_to_forecast_brings_its_own_future(tmp_path: Path) -> None:
    frame = wide()
    data = opened(tmp_path, frame, calendar=True, known=["price"])
    with pytest.raises(ZooError, match="known of the future of 'a' for 0 rows, and horizon=4 wants as many"):
        frame_to_context(frame, data.preprocessing, 4)
    frame.loc[196:, ["a", "b"]] = np.nan
    context = frame_to_context(frame, data.preprocessing, 4)
    assert context.covariates is not None and context.covariates.shape == (2, 20, 5)
    assert list(context.future_time[0]) == list(frame.day[196:]), "the forecast starts behind the last value"
    mean, std = data.preprocessing["covariates"]["known"]["price"]
    np.testing.assert_allclose(context.covariates[1, :, 4] * std + mean, frame.price[180:], atol=1e-5)
    np.testing.assert_allclose(context.covariates[0, :, 1], frame.day[180:].dt.day_of_week / 6 - 0.5, atol=1e-6)


def test_the_calendar_goes_on_by_itself(tmp_path: Path) -> None:
    frame = long()[["unique_id", "ds", "y"]]
    context = frame_to_context(frame, opened(tmp_path, frame, calendar=True).preprocessing, 4)
    assert context.covariates is not None
    for s in range(3):
        days = pd.DatetimeIndex([*context.past_time[s], *context.future_time[s]])
        np.testing.assert_allclose(context.covariates[s, :, 1], days.day_of_week / 6 - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("frame", "settings", "message"),
    [
        (wide(), {"known": ["prize"]}, "no covariate 'prize'; did you mean price"),
        (wide(), {"static": ["price"]}, "is wide, and static covariates want a long one"),
        (wide().drop(columns="day"), {"calendar": True}, "has no dates, which calendar covariates need"),
        (wide().assign(price="x"), {"known": ["price"]}, "covariate 'price' holds no numbers"),
        (long(40).assign(kind=lambda f: f.unique_id), {"static": ["kind"]}, "has 40 texts, at most 32; leave it out"),
    ],
)
def test_errors_name_the_fault_and_the_remedy(
    tmp_path: Path, frame: pd.DataFrame, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ZooError, match=message):
        opened(tmp_path, frame, **settings)
