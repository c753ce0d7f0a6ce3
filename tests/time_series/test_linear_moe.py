"""The mixture of linear experts: gates by hand, errors known before they are measured, what it can and cannot beat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from zoo import config as zc
from zoo import create_model
from zoo.spec import ZooError
from zoo_time_series.blocks.least_squares import outer, solve, squared_error
from zoo_time_series.data.frame import to_panel
from zoo_time_series.data.windows import SeriesDataset, split_rows
from zoo_time_series.models.linear_moe import Gate, GateConfig, LinearMoE, blocks, kmeans, left_over

HOUR, WEEKDAY = {"by": "hour", "experts": 8}, {"by": "weekday", "experts": 7}


def data(by_hour: float, rows: int = 1500, missing: float = 0.0) -> SeriesDataset:
    """Hourly noise that follows the point before it, and the more the later in the day it is."""
    rng = np.random.default_rng(0)
    time = pd.date_range("2024-01-01", periods=rows, freq="h")
    x = np.zeros((rows, 2))
    for t in range(1, rows):
        x[t] = (0.4 + by_hour * (time[t].hour / 23 - 0.5)) * x[t - 1] + rng.normal(size=2)
    frame = pd.DataFrame(x, columns=["a", "b"]).mask(rng.random(x.shape) < missing)
    frame["time"] = time
    panel, bounds = split_rows(to_panel(frame, time="time"), [0.6, 0.2, 0.2], 2, "noise")
    return SeriesDataset(panel, bounds, context=8, horizon=2, calendar=True)


def fitted(source: SeriesDataset, gates: list[dict[str, Any]]) -> tuple[LinearMoE, dict[str, float]]:
    model = create_model("time_series/linear_moe", context=8, horizon=2, gates=gates)
    assert isinstance(model, LinearMoE)
    return model, model.fit(source.split("train"), source.split("val"))


def mse(model: LinearMoE, source: SeriesDataset, split: str) -> float:
    windows = source.split(split)  # type: ignore[arg-type]
    batch = windows.batch(torch.arange(len(windows)))
    predicted = model.forecast(batch["past"], batch["past_valid"], 2, covariates_BTC=batch["covariates"])
    return float((predicted - batch["future"]).square().mean())


def gate(**config: Any) -> Gate:
    return Gate(zc.make(GateConfig, **config), 8, 2)


def test_gates_by_date() -> None:
    hours = torch.arange(24)
    date = torch.zeros(24, 4)
    date[:, 0] = hours / 23 - 0.5
    assert gate(by="hour", experts=24).route(torch.randn(24, 8), date).index_TK[:, 0].tolist() == hours.tolist()
    out = gate(by="hour", experts=8).route(torch.randn(24, 8), date)
    assert bool((out.index_TK[:, 0].diff() >= 0).all()) and out.counts_E().tolist() == [3] * 8
    date[:7, 1] = torch.arange(7) / 6 - 0.5
    assert gate(**WEEKDAY).route(torch.randn(7, 8), date[:7]).index_TK[:, 0].tolist() == list(range(7))
    with pytest.raises(ZooError, match="needs the calendar, covariates=4"):
        create_model("time_series/linear_moe", gates=[HOUR], covariates=0)


def test_gates_by_the_window() -> None:
    x = torch.randn(200, 8) * torch.linspace(0.1, 3, 200)[torch.randperm(200)][:, None]
    wide = gate(by="spread", experts=4)
    wide.learn(x)
    out = wide.route(x, None)
    assert all(abs(int(count) - 50) <= 1 for count in out.counts_E())
    assert out.index_TK[x.std(1).argmax()] == 3 and out.index_TK[x.std(1).argmin()] == 0
    up, down = torch.arange(8.0) - 3.5, 3.5 - torch.arange(8.0)
    shapes = torch.stack([up, 5 * up, down, 2 * down, 7 * up])
    alike = gate(by="shape", experts=2, span=8)
    alike.learn(shapes)
    assert [int(e) for e in alike.route(shapes, None).index_TK[:, 0]] in ([0, 0, 1, 1, 0], [1, 1, 0, 0, 1])
    with pytest.raises(ZooError, match="looks at span=9 points, but context=8"):
        gate(by="shape", span=9)


def test_prototypes_are_means_of_their_members() -> None:
    x = torch.cat([torch.randn(50, 3) + 10, torch.randn(30, 3) - 10])
    centres = kmeans(x, 2)
    torch.testing.assert_close(centres.sort(dim=0).values, torch.stack([x[50:].mean(0), x[:50].mean(0)]))


def test_each_window_goes_through_its_expert() -> None:
    one = gate(by="hour", experts=3)
    one.weight.copy_(torch.randn(3, 2, 8))
    one.bias.copy_(torch.randn(3, 2))
    x, date = torch.randn(5, 8), torch.tensor([-0.5, 0.0, 0.5, 0.0, -0.5])[:, None].expand(5, 4)
    y = one(x, one.route(x, date))
    for row, e in enumerate([0, 1, 2, 1, 0]):
        torch.testing.assert_close(y[row], one.weight[e] @ x[row] + one.bias[e])
    assert one.inactive_parameters() == 2 * (2 * 8 + 2)


def test_it_beats_the_ridge_where_the_hour_decides() -> None:
    source = data(by_hour=1.4)
    model, found = fitted(source, [HOUR])
    ridge, plain = fitted(source, [])
    assert found["gain_0_hour"] < -0.05 and found["val_mse"] < 0.95 * plain["val_mse"]
    assert mse(model, source, "test") < 0.95 * mse(ridge, source, "test")
    assert found["val_mse"] == pytest.approx(mse(model, source, "val"), rel=1e-4)


def test_a_gate_that_does_not_help_is_left_out() -> None:
    source = data(by_hour=0.0, rows=400)
    model, found = fitted(source, [WEEKDAY, HOUR])
    names = [key for key in ("0_weekday", "1_hour") if found[f"penalty_{key}"] == math.inf]
    assert names and all(found[f"gain_{name}"] == 0 for name in names)
    for name in names:
        left_out = model.gates[int(name[0])]
        assert not left_out.weight.any() and not left_out.bias.any()


def test_errors_of_the_parts_are_those_of_maps_that_did_not_see_them() -> None:
    """By hand for one block: a map from the windows of the others forecasts it."""
    source = data(by_hour=1.4, rows=600)
    model = create_model("time_series/linear_moe", context=8, horizon=2, gates=[HOUR])
    assert isinstance(model, LinearMoE)
    windows = source.split("train")
    (moments,) = model._moments(windows, 3, 100)
    batch = windows.batch(torch.arange(len(windows)))
    block = blocks(batch["series"], 3, 5)
    shift = batch["past"].mean(1, keepdim=True)
    x, y = (batch["past"] - shift).double(), (batch["future"] - shift).double()
    seen, unseen = (block < 3) & (block != 1), block == 1
    own, other = moments[:, :3].sum((0, 1)) - moments[:, 1].sum(0), moments[:, 1].sum(0)
    _, weight, bias = next(solve(own, 8, [0.1]))
    centred = x[seen] - x[seen].mean(0)
    gram = centred.T @ centred
    expected = torch.linalg.solve(gram + 0.1 * gram.trace() / 8 * torch.eye(8), centred.T @ (y[seen] - y[seen].mean(0)))
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    rest = y[unseen] - x[unseen] @ weight - bias
    assert squared_error(other, weight, bias) == pytest.approx(float(rest.square().sum()), rel=1e-6)
    torch.testing.assert_close(left_over(other, weight, bias), outer(x[unseen], rest), atol=1e-6, rtol=1e-6)


def test_blocks_of_time_leave_a_gap() -> None:
    found = blocks(torch.tensor([4] * 40 + [9] * 20), 2, 3)
    assert found.tolist() == [0] * 17 + [2] * 6 + [1] * 17 + [0] * 8 + [2] * 4 + [1] * 8
    assert blocks(torch.tensor([0, 0, 1]), 0, 3).tolist() == [0, 0, 0]


def test_later_points_are_routed_by_their_own_date_and_gaps_are_learned_through() -> None:
    source = data(by_hour=1.4, missing=0.1)
    model, _ = fitted(source, [HOUR])
    windows = source.split("test")
    batch = windows.batch(torch.arange(6))
    past, valid, dates = batch["past"], batch["past_valid"], batch["covariates"]
    more = torch.cat([dates, dates[:, -1:] + 0.3], dim=1)
    own = model.forecast(past, valid, 2, covariates_BTC=dates)
    longer = model.forecast(past, valid, 3, covariates_BTC=more)
    torch.testing.assert_close(longer[:, :2], own)
    shift = past.sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    window = torch.cat([(past - shift) * valid, own - shift], dim=1)[:, -8:]
    torch.testing.assert_close(longer[:, 2:], model(window, more[:, 2:]).values_BH[:, :1] + shift)
    short = model.forecast(past[:, -5:], valid[:, -5:], 2, covariates_BTC=dates[:, -7:])
    assert short.shape == (6, 2) and bool(short.isfinite().all())
