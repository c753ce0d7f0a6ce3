"""The mixture of linear experts: cells, views and weights by hand; errors known before they are measured."""

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
from zoo_time_series.blocks.least_squares import outer, shared, solve, squared_error
from zoo_time_series.blocks.patching import filled
from zoo_time_series.data.frame import to_panel
from zoo_time_series.data.windows import SeriesDataset, split_rows
from zoo_time_series.models.linear_moe import (
    CellRouter,
    Cells,
    LinearMoE,
    _view,
    kmeans,
    least_worst,
    simplex,
    stretches,
)

HOUR = {"by": "hour", "cells": 2}
VIEWS = [{"span": 8, "shift": "mean"}, {"span": 4, "shift": "last"}, {"span": 8, "shift": "none"}]


def data(by_hour: float, rows: int = 1200, missing: float = 0.0) -> SeriesDataset:
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


def small(**overrides: Any) -> LinearMoE:
    settings = {"context": 8, "horizon": 2, "views": VIEWS, "router": {"by": "none"}, "season": 4, "covariates": 4}
    settings.update(overrides)
    model = create_model("time_series/linear_moe", **settings)
    assert isinstance(model, LinearMoE)
    return model


def fitted(source: SeriesDataset, **overrides: Any) -> tuple[LinearMoE, dict[str, Any]]:
    model = small(**overrides)
    return model, model.fit(source.split("train"), source.split("val"))


def mse(model: LinearMoE, source: SeriesDataset, split: str) -> float:
    windows = source.split(split)  # type: ignore[arg-type]
    batch = windows.batch(torch.arange(len(windows)))
    predicted = model.forecast(batch["past"], batch["past_valid"], 2, covariates_BTC=batch["covariates"])
    return float((predicted - batch["future"]).square().mean())


def router(**config: Any) -> CellRouter:
    return CellRouter(zc.make(Cells, **config), 3)


def test_cells_by_date() -> None:
    date = torch.zeros(24, 4)
    date[:, 0] = torch.arange(24) / 23 - 0.5
    cells = router(by="hour", cells=8).cell(torch.randn(24, 8), date)
    assert bool((cells.diff() >= 0).all()) and cells.bincount().tolist() == [3] * 8
    date[:7, 1] = torch.arange(7) / 6 - 0.5
    assert router(by="weekday", cells=7).cell(torch.randn(7, 8), date[:7]).tolist() == list(range(7))
    with pytest.raises(ZooError, match="needs the calendar, covariates=4"):
        small(router=HOUR, covariates=0)


def test_cells_by_the_window() -> None:
    x = torch.randn(200, 8) * torch.linspace(0.1, 3, 200)[torch.randperm(200)][:, None] + 5
    wide = router(by="spread", cells=4)
    wide.learn(x)
    cells = wide.cell(x, None)
    assert all(abs(int(count) - 50) <= 1 for count in cells.bincount())
    assert cells[x.std(1).argmax()] == 3 and cells[x.std(1).argmin()] == 0
    up, down = torch.arange(8.0), -torch.arange(8.0)
    shapes = torch.stack([up, 5 * up + 3, down, 2 * down, 7 * up])
    alike = router(by="shape", cells=2, span=8)
    alike.learn(shapes)
    assert alike.cell(shapes, None).tolist() in ([0, 0, 1, 1, 0], [1, 1, 0, 0, 1])
    with pytest.raises(ZooError, match="looks at span=9 points, but context=8"):
        small(router={"by": "shape", "span": 9})


def test_prototypes_are_means_of_their_members() -> None:
    x = torch.cat([torch.randn(50, 3) + 10, torch.randn(30, 3) - 10])
    centres = kmeans(x, 2)
    torch.testing.assert_close(centres.sort(dim=0).values, torch.stack([x[50:].mean(0), x[:50].mean(0)]))


@pytest.mark.parametrize(("shift", "taken"), [("mean", 6.5), ("last", 8.0), ("none", 0.0)])
def test_a_view_takes_off_what_it_puts_back(shift: str, taken: float) -> None:
    view = _view({"span": 4, "shift": shift}, 8)
    window = torch.arange(1.0, 9.0, dtype=torch.float64)
    whole = torch.cat([window, torch.tensor([1.0, 20.0, 30.0], dtype=torch.float64)])
    expected = [*(window[4:] - taken), 1, 20 - taken, 30 - taken]
    torch.testing.assert_close(view.change(8, 2) @ whole, torch.tensor(expected, dtype=torch.float64))
    weight, bias = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    folded, same = view.fold(weight, bias, 8)
    torch.testing.assert_close(folded @ window + same, (window[4:] - taken) @ weight + bias + taken)
    for wrong in ({"span": 9, "shift": "mean"}, {"span": 4, "shift": "median"}, {"span": 4}):
        with pytest.raises(ZooError, match="a view"):
            _view(wrong, 8)


def test_weights_are_the_best_of_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        error = torch.randn(40, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.5, 3.0])
        gram = error.T @ error
        weight = simplex(gram, 0.0)
        assert weight.min() >= 0 and float(weight.sum()) == pytest.approx(1)
        grid = [(a, b) for a in torch.linspace(0, 1, 51) for b in torch.linspace(0, 1, 51) if a + b <= 1]
        best = min(float((error @ torch.stack([a, b, 1 - a - b]).double()).square().sum()) for a, b in grid)
        assert float(weight @ gram @ weight) <= best * (1 + 1e-6)
    assert simplex(gram, math.inf).tolist() == pytest.approx([1 / 3] * 3)
    assert (simplex(gram, 1e4) - 1 / 3).abs().max() < 1e-3


def test_the_forecast_is_the_weighed_sum_of_experts() -> None:
    model = small(router=HOUR)
    model.weight_VHL.copy_(torch.randn(3, 2, 8))
    model.bias_VH.copy_(torch.randn(3, 2))
    model.router.mix_EV.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))
    x, dates = torch.randn(2, 8), torch.zeros(2, 10, 4)
    dates[0, 8, 0], dates[1, 8, 0] = -0.5, 0.5
    out = model(x, dates)
    each = torch.stack([x @ model.weight_VHL[v].T + model.bias_VH[v] for v in range(3)])
    torch.testing.assert_close(out.values_BH[0], each[0, 0])
    torch.testing.assert_close(out.values_BH[1], 0.2 * each[0, 1] + 0.3 * each[1, 1] + 0.5 * each[2, 1])
    assert out.routing[0].counts_E().tolist() == [2, 1, 1]


def test_errors_from_moments_are_those_of_forecasts() -> None:
    source = data(by_hour=0.0)
    model, found = fitted(source, router={"by": "spread", "cells": 2})
    ridge, equal, learned = torch.tensor(found["errors"]).T
    assert len(ridge) == 4 and bool((learned <= 1.02 * ridge).all())
    model.router.mix_EV.fill_(1 / 3)
    assert float(equal[0]) == pytest.approx(mse(model, source, "val"), rel=1e-4)
    plain = create_model("time_series/ridge", context=8, horizon=2, penalties=model.config.penalties)
    assert plain.fit(source.split("train"), source.split("val"))["val_mse"] == pytest.approx(float(ridge[0]), rel=1e-4)


def test_views_left_out_are_those_that_the_context_has() -> None:
    spans = {context: [view.span for view in small(context=context, views=[]).views] for context in (8, 200, 512, 600)}
    assert spans == {8: [8], 200: [168, 200], 512: [168, 336, 512], 600: [168, 336, 512]}


def test_a_stretch_is_forecast_by_what_came_before() -> None:
    """By hand for the view that changes nothing and has no prior."""
    source, model = data(by_hour=0.0, rows=600), small(views=VIEWS[2:], season=9)
    windows = source.split("train")
    moments = model._moments(windows, 3, 100)[0]
    batch = windows.batch(torch.arange(len(windows)))
    group = stretches(batch["series"], 3, 2)
    x, y = batch["past"].double(), batch["future"].double()
    seen, unseen = group < 3, (group == 4) | (group == 5)
    for s in (0, 1):  # the futures of what is known end before the stretch begins
        place = torch.arange(len(windows))[batch["series"] == s]
        known, stretch = place[seen[place]], place[unseen[place]]
        assert known.max() + 2 - 1 < stretch.min() and len(known) == known.max() - place[0] + 1
    _, weight, bias = next(solve(moments[:3].sum(0), 8, [0.1]))
    centred = x[seen] - x[seen].mean(0)
    gram = centred.T @ centred
    expected = torch.linalg.solve(gram + 0.1 * gram.trace() / 8 * torch.eye(8), centred.T @ (y[seen] - y[seen].mean(0)))
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    rest = y[unseen] - x[unseen] @ weight - bias
    assert squared_error(moments[4:6].sum(0), weight, bias) == pytest.approx(float(rest.square().sum()), rel=1e-6)
    torch.testing.assert_close(moments.sum(0), outer(x, y))
    view = _view({"span": 8, "shift": "none"}, 8)
    own, other = [moments[:3].sum(0)], moments[None, None, 4:6].sum(2)
    errors = model._errors(view, own, other)
    assert errors.shape == (1, len(model.config.penalties))
    assert float(errors[0, model.config.penalties.index(0.1)]) == pytest.approx(float(rest.square().sum()), rel=1e-6)


@pytest.mark.parametrize("horizon", [8, 6, 3])
def test_a_shared_map_is_one_regression_over_all_phases(horizon: int) -> None:
    """By hand: every phase of a window of two seasons of 4 (and a point in front) is a row of one regression."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(300, horizon, generator=generator, dtype=torch.float64)
    (found,) = shared(outer(x, y), 9, 4, [0.2])
    assert found.shape == (9, horizon) and not found[0].any()
    x0, y0 = (x - x.mean(0))[:, 1:].unflatten(1, (2, 4)), y - y.mean(0)
    level = x0.mean(2)
    for ahead in range(-(-horizon // 4)):
        phases = range(min(4, horizon - 4 * ahead))
        rows = torch.cat([torch.cat([x0[:, :, h] - level, level], 1) for h in phases])
        target = torch.cat([y0[:, 4 * ahead + h] for h in phases])
        gram = rows.T @ rows
        weight = torch.linalg.solve(gram + 0.2 * gram.trace() / 4 * torch.eye(4, dtype=x.dtype), rows.T @ target)
        for row, h in zip((rows @ weight).chunk(len(phases)), phases, strict=True):
            torch.testing.assert_close((x - x.mean(0)) @ found[:, 4 * ahead + h], row)


def test_a_penalty_shrinks_to_the_prior() -> None:
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    prior = torch.randn(3, 2, dtype=torch.float64)
    (_, free, _), (_, bound, bias), (_, same, _), (_, other, _) = solve(outer(x, y), 3, [0.0, 1e9], [prior, 0.0])
    torch.testing.assert_close(free, same)
    torch.testing.assert_close(bound, prior, atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, y.mean(0) - x.mean(0) @ prior, atol=1e-6, rtol=0)
    assert other.abs().max() < 1e-6


def test_weights_are_the_least_bad_where_they_are_worst() -> None:
    """One expert is good on one part and bad on the other: the mean would take it, the worst part does not."""
    steady, gamble = torch.tensor([1.0, 1.0]), torch.tensor([0.4, 1.4])
    ratio = torch.stack([torch.diag(torch.stack([a, b])) for a, b in zip(steady, gamble, strict=True)])[
        :, None
    ].double()
    weight = least_worst(ratio, 0.0)[0]
    # without correlation the errors are w^2 + (1 - w)^2 * (0.4, 1.4); the second part is the worse: w = 1.4 / 2.4
    assert weight.tolist() == pytest.approx([1.4 / 2.4, 1 / 2.4], abs=1e-3)
    same = torch.full((2, 2, 2), 1.0).double()
    same[0, 1, 1], same[1, 1, 1], same[0, 0, 1], same[0, 1, 0] = 0.4, 1.9, 0.5, 0.5
    same[1, 0, 1] = same[1, 1, 0] = 1.2
    assert least_worst(same[:, None], 1e-3)[0, 0] > 0.95


def test_the_penalty_is_the_least_bad_where_it_is_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation alone would take the first, the mean over the parts the second."""
    ridge, view = torch.tensor([[2.0, 1.0, 3.0], [9.0, 2.0, 9.0]]), torch.tensor([[0.5, 0.6, 0.8], [3.0, 1.9, 1.8]])

    def errors(self: LinearMoE, *_: Any, prior: bool = True) -> torch.Tensor:
        return view if prior else ridge

    monkeypatch.setattr(LinearMoE, "_errors", errors)
    _, found = fitted(data(by_hour=0.0, rows=600), views=VIEWS[:1], penalties=[1.0, 2.0, 3.0], season=9, folds=1)
    assert found["penalties"] == [[None, 3.0]]


def test_it_learns_where_the_cell_decides() -> None:
    """Two halves of the day want two experts: one that repeats the last value, one that forecasts the mean."""
    rng = np.random.default_rng(0)
    time = pd.date_range("2024-01-01", periods=1500, freq="h")
    x = np.zeros(1500)
    for t in range(1, 1500):
        x[t] = (0.99 if time[t].hour >= 12 else 0.0) * x[t - 1] + rng.normal()
    frame = pd.DataFrame({"time": time, "x": x})
    panel, bounds = split_rows(to_panel(frame, time="time"), [0.6, 0.2, 0.2], 2, "noise")
    source = SeriesDataset(panel, bounds, context=8, horizon=2, calendar=True)
    views = [{"span": 1, "shift": "none"}, {"span": 8, "shift": "last"}]
    penalties = [100.0]  # hardly a map: the first view forecasts the mean, the second the last value
    routed, _ = fitted(source, router=HOUR, views=views, penalties=penalties)
    plain, _ = fitted(source, views=views, penalties=penalties)
    mix = routed.router.mix_EV
    assert mix[0, 0] > 0.8 and mix[1, 1] > mix[0, 1] + 0.2
    assert mse(routed, source, "test") < 0.97 * mse(plain, source, "test")


def test_stretches_follow_the_first_half() -> None:
    found = stretches(torch.tensor([4] * 40 + [9] * 20), 2, 3)
    assert (
        found.tolist()
        == [0] * 18 + [1] * 2 + [2] * 8 + [3] * 2 + [4] * 10 + [0] * 8 + [1] * 2 + [2] * 3 + [3] * 2 + [4] * 5
    )
    assert stretches(torch.tensor([0, 0, 1]), 0, 3).tolist() == [0, 0, 0]


def test_gaps_short_windows_and_points_beyond_the_horizon() -> None:
    past, valid = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[True, False, True]])
    assert filled(past, valid, 5).tolist() == [[2, 2, 1, 2, 3]]
    source = data(by_hour=1.4, missing=0.1)
    model, _ = fitted(source, router=HOUR)
    batch = source.split("test").batch(torch.arange(6))
    past, valid, dates = batch["past"], batch["past_valid"], batch["covariates"]
    more = torch.cat([dates, dates[:, -1:] + 0.3], dim=1)
    own = model.forecast(past, valid, 2, covariates_BTC=dates)
    longer = model.forecast(past, valid, 3, covariates_BTC=more)
    torch.testing.assert_close(longer[:, :2], own)
    window = torch.cat([filled(past, valid, 8), own], dim=1)[:, -8:]
    torch.testing.assert_close(longer[:, 2:], model(window, more[:, 2:]).values_BH[:, :1])
    short = model.forecast(past[:, -5:], valid[:, -5:], 2, covariates_BTC=dates[:, -7:])
    assert short.shape == (6, 2) and bool(short.isfinite().all())
    with pytest.raises(ZooError, match="linear_moe has context=4 and horizon=2, the data context=8"):
        small(context=4, views=VIEWS[1:2]).fit(source.split("train"), source.split("val"))
