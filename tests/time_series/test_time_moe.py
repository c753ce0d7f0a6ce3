"""Time-MoE: published sizes, decoding with and without a cache, heads, and targets of every horizon."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from zoo import create_model
from zoo.cli import app

SMALL = {"num_layers": 2, "hidden_size": 16, "mixer": {"num_heads": 2}, "init_std": 0.3}


def small(**settings: Any) -> Any:
    return create_model("time_series/time_moe_tiny", **{"stack": SMALL, **settings}).eval()


@pytest.mark.parametrize(
    ("size", "total", "active"), [("base", 113.4, 49.7), ("large", 453.2, 198.4), ("ultra", 2416.5, 1057.6)]
)
def test_published_sizes(size: str, total: float, active: float) -> None:
    done = CliRunner().invoke(app, ["info", f"time_series/time_moe_{size}", "--json"])
    document = json.loads(done.stdout)
    assert round(document["parameters"] / 1e6, 1) == total
    assert round(document["active_parameters"] / 1e6, 1) == active
    assert document["bytes_fp32"] == 4 * document["parameters"]


@pytest.fixture
def windows() -> tuple[Tensor, Tensor]:
    """Three windows, two of them left-padded."""
    past, valid = torch.randn(3, 40), torch.ones(3, 40, dtype=torch.bool)
    valid[1, :13], valid[2, :30] = False, False
    return torch.where(valid, past, 0.0), valid


@pytest.mark.parametrize("padded", [False, True])
def test_cached_equals_uncached(windows: tuple[Tensor, Tensor], padded: bool) -> None:
    model, (past, valid) = small(), windows
    valid = valid if padded else torch.ones_like(valid)
    with torch.no_grad():
        cached = model.forecast(past, valid, 75)
        plain = model.forecast(past, valid, 75, use_cache=False)
    assert cached.shape == (3, 75)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)


def test_one_window_equals_many_and_padding_changes_nothing(windows: tuple[Tensor, Tensor]) -> None:
    model, (past, valid) = small(), windows
    with torch.no_grad():
        together = model.forecast(past, valid, 75)
        for b in range(3):
            alone = model.forecast(past[b : b + 1], valid[b : b + 1], 75)
            torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-5)
            cut = past[b : b + 1, valid[b]]
            short = model.forecast(cut, torch.ones_like(cut, dtype=torch.bool), 75)
            torch.testing.assert_close(together[b : b + 1], short, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("horizon", "heads"),
    [(96, [64, 32]), (1, [1]), (7, [1] * 7), (9, [8, 1]), (41, [32, 8, 1]), (136, [64, 64, 8])],
)
def test_the_largest_head_that_fits(horizon: int, heads: list[int]) -> None:
    model, used = small(), []
    for head in model.heads:
        head.register_forward_hook(lambda head, *_: used.append(head.out_features))
    with torch.no_grad():
        model.forecast(torch.randn(1, 8), torch.ones(1, 8, dtype=torch.bool), horizon)
    assert used == heads


def test_the_smallest_head_is_cut_when_none_fits() -> None:
    model = small(horizons=[4])
    with torch.no_grad():
        forecast = model.forecast(torch.ones(1, 8), torch.ones(1, 8, dtype=torch.bool), 6)
        first = model(torch.ones(1, 8)).heads[0][:, -1]
    assert forecast.shape == (1, 6)
    torch.testing.assert_close(forecast[:, :4], first)


def test_targets_of_every_horizon() -> None:
    model = small(horizons=[1, 3])
    past, future = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]])
    past_valid = torch.tensor([[False, True, True, True]])
    future_valid = torch.tensor([[True, False]])
    (one, three), routing = model.training_predictions(past, past_valid, future, future_valid)
    assert one.predicted.shape == (1, 5, 1) and three.predicted.shape == (1, 5, 3) and len(routing) == 2
    assert one.target[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert one.valid[0, :, 0].tolist() == [False, True, True, True, False], (
        "padding predicts nothing, nor is a gap a target"
    )
    assert three.target[0].tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 0], [5, 0, 0]]
    yes, no = True, False
    assert three.valid[0].tolist() == [[no, no, no], [yes, yes, yes], [yes, yes, no], [yes, no, no], [no, no, no]]
    with torch.no_grad():
        alone = model(past[:, 1:2]).heads[1]
    torch.testing.assert_close(three.predicted[:, 1:2], alone, msg="position 1 sees itself alone")


def test_a_point_sees_nothing_later() -> None:
    model, x = small(), torch.randn(1, 12)
    changed = x.clone()
    changed[:, 7:] += 5
    with torch.no_grad():
        for one, other in zip(model(x).heads, model(changed).heads, strict=True):
            torch.testing.assert_close(one[:, :7], other[:, :7])
            assert not torch.allclose(one[:, 7:], other[:, 7:])


def test_more_points_than_it_can_see() -> None:
    model = small(max_length=16)
    with pytest.raises(Exception, match=r"context 12 and horizon 5 exceed max_length=16; lower one"):
        model.forecast(torch.zeros(1, 12), torch.ones(1, 12, dtype=torch.bool), 5)
