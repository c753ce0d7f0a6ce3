"""Probabilistic forecasts: the quantile loss, quantiles of sample paths, and both in the units of the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from zoo import config as zc
from zoo.moe import Routing
from zoo_time_series.blocks.probabilistic import pinball, quantiles_of
from zoo_time_series.models.base import Forecaster, Prediction
from zoo_time_series.tasks.forecasting import Forecasting


def test_pinball_by_hand() -> None:
    predicted = torch.tensor([[1.0, 2.0, 5.0]])
    loss = pinball(predicted, torch.tensor([[3.0]]), [0.1, 0.5, 0.9])
    assert loss[0].tolist() == pytest.approx([2 * 0.1 * 2, 1.0, 2 * 0.1 * 2])


def test_pinball_is_least_at_the_quantiles_of_the_targets() -> None:
    y = torch.randn(20001, generator=torch.Generator().manual_seed(0))
    grid = torch.linspace(-2, 2, 401)
    for level in (0.1, 0.5, 0.8):
        best = grid[torch.stack([pinball(f, y, [level]).mean() for f in grid]).argmin()]
        assert abs(best - y.quantile(level)) < 0.02


def test_quantiles_of_paths() -> None:
    paths = torch.stack([torch.arange(11.0), torch.arange(11.0) * 10], dim=-1)[None].expand(2, -1, -1)
    assert quantiles_of(paths, [0.1, 0.55])[1].tolist() == [[1, 10], [5.5, 55]]


class Drawn(Forecaster):
    """Normal paths around the last value."""

    def training_predictions(
        self, past_BL: Tensor, past_valid_BL: Tensor, future_BH: Tensor, future_valid_BH: Tensor, **covariates: Tensor
    ) -> tuple[list[Prediction], Routing]:
        return [Prediction(Normal(past_BL[:, -1:], 1.0), future_BH, future_valid_BH)], ()

    def sample_paths(
        self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, count: int, seed: int = 0, **covariates: Tensor
    ) -> Tensor:
        noise = torch.randn(count, horizon, generator=torch.Generator().manual_seed(seed))
        return past_BL[:, -1:, None] + noise


def test_the_task_gives_paths_and_quantiles_in_the_units_of_the_data() -> None:
    task, model = Forecasting(zc.make(Forecasting.Config)), Drawn(Forecaster.Config())
    past = torch.randn(3, 40)
    valid = torch.ones_like(past, dtype=torch.bool)
    one, other = (task.sample_paths(model, scale * past + 7, valid, 5, 100) for scale in (1.0, 10.0))
    assert one is not None and other is not None and one.shape == (3, 100, 5)
    torch.testing.assert_close(other - 7, 10 * (one - 7), atol=1e-4, rtol=1e-4)
    assert not torch.equal(one, task.sample_paths(model, past + 7, valid, 5, 100, seed=1))
    found = task.quantiles(model, past + 7, valid, 5, [0.1, 0.5, 0.9])
    assert found is not None and found.shape == (3, 3, 5) and bool((found.diff(dim=1) > 0).all())
    many = task.sample_paths(model, past + 7, valid, 5, 256)
    assert many is not None
    torch.testing.assert_close(found, quantiles_of(many, [0.1, 0.5, 0.9]))


def test_the_loss_is_that_of_what_the_model_says() -> None:
    task, model = Forecasting(zc.make(Forecasting.Config, window_norm=False)), Drawn(Forecaster.Config())
    batch = {"past": torch.zeros(2, 4), "past_valid": torch.ones(2, 4, dtype=torch.bool)}
    batch |= {
        "future": torch.tensor([[1.0, 9.0], [2.0, 0.0]]),
        "future_valid": torch.tensor([[True, False], [True, True]]),
    }
    expected = -Normal(0.0, 1.0).log_prob(torch.tensor([1.0, 2.0, 0.0])).mean()
    torch.testing.assert_close(task.loss(model, batch).loss, expected)
