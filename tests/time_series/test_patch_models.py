"""Patch models against slices and sums by hand: patches, segments, covariates, heads, and horizons of any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import create_model
from zoo.spec import ZooError
from zoo_time_series.blocks.patching import cut, fit_context, patch_count
from zoo_time_series.blocks.revin import RevIN
from zoo_time_series.models.patch_encoder import PatchEncoder, interpolate
from zoo_time_series.models.time_mixer import TimeMixer, moving_average

SMALL = {"encoder.hidden_size": 8, "encoder.num_heads": 2, "context": 48, "horizon": 8, "patch": 4, "stride": 4}


def small(name: str, **overrides: Any) -> PatchEncoder:
    model = create_model(f"time_series/{name}", **{**SMALL, **overrides}).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, PatchEncoder)
    return model


def window(length: int = 48, batch: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, length)
    return x, torch.ones_like(x, dtype=torch.bool)


def test_patches_end_with_the_window() -> None:
    x = torch.arange(11.0)[None]
    assert cut(x, 4, 3)[0].tolist() == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]]
    assert patch_count(11, 4, 3) == 3 and patch_count(11, 4, 4) == 2
    assert fit_context(x, 13)[0].tolist() == [0, 0, *range(11)] and fit_context(x, 2)[0].tolist() == [9, 10]


@pytest.mark.parametrize("name", ["patch_tst", "seg_moe"])
def test_more_points_than_the_head_has_are_fed_back(name: str) -> None:
    model, (past, valid) = small(name), window()
    with torch.no_grad():
        own = model.forecast(past, valid, 8)
        longer = model.forecast(past, valid, 20)
        again = model.forecast(torch.cat([past, own], 1)[:, -48:], valid, 8)
    torch.testing.assert_close(longer[:, :8], own)
    torch.testing.assert_close(longer[:, 8:16], again)
    assert longer.shape == (3, 20) and model.forecast(past, valid, 3).shape == (3, 3)


def test_padding_in_front_changes_nothing() -> None:
    """Patches that hold no valid point are seen by nobody; the flattened head alone reads their states."""
    model, (past, valid) = small("mohets", covariates=0), window()
    valid[:, :8] = False
    noisy = torch.where(valid, past, 5.0)
    with torch.no_grad():
        torch.testing.assert_close(model.forecast(past, valid, 8), model.forecast(noisy, valid, 8))
        assert not torch.allclose(model.forecast(past, valid, 8), model.forecast(past, torch.ones_like(valid), 8))


def test_seg_moe_routes_segments_of_several_lengths() -> None:
    model, (past, _) = small("seg_moe"), window()
    routing = model(past).routing
    assert [len(out.index_TK) for out in routing] == [3 * 2, 3 * 3, 3 * 6], "12 patches in segments of 8, 4 and 2"
    assert [layer.moe.experts.config.length for layer in model.encoder.layers] == [8, 4, 2]
    with pytest.raises(ZooError, match="layers describes 3 layers, but num_layers=2"):
        small("seg_moe", **{"encoder.num_layers": 2})


def test_one_mohets_serves_every_horizon_and_sees_its_covariates() -> None:
    model, (past, valid) = small("mohets", covariates=2), window()
    known = torch.randn(3, 48 + 30, 2)
    with torch.no_grad():
        forecast = model.forecast(past, valid, 30, covariates_BTC=known)
        assert forecast.shape == (3, 30)
        for where, changed in ((slice(0, 48), "past"), (slice(48, 78), "future")):
            other = known.clone()
            other[:, where] += 1
            assert not torch.allclose(forecast, model.forecast(past, valid, 30, covariates_BTC=other)), changed
    with pytest.raises(ZooError, match=r"takes covariates=2 channels, the data give 1; set model.covariates"):
        model.forecast(past, valid, 30, covariates_BTC=known[..., :1])
    with pytest.raises(ZooError, match="needs stride=4, the patch, not stride=2"):
        small("mohets", stride=2)


def test_quantiles_are_interpolated_and_never_cross() -> None:
    own = torch.tensor([[[1.0, 3.0, 7.0]]])
    assert interpolate(own, [0.1, 0.5, 0.9], [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])[0, 0].tolist() == pytest.approx(
        [1, 1, 2, 3, 6, 7]
    )
    assert interpolate(own[..., :1], [0.5], [0.1, 0.9])[0, 0].tolist() == [1, 1]
    model, (past, valid) = small("patch_tst", quantiles=[0.1, 0.5, 0.9]), window()
    with torch.no_grad():
        found = model.quantiles(past, valid, 20, [0.1, 0.5, 0.9])
        assert found is not None and found.shape == (3, 3, 20) and bool((found.diff(dim=1) >= 0).all())
        (heads,), _ = model.training_predictions(past, valid, past[:, :8], valid[:, :8])
    assert heads.predicted.shape == heads.target.shape == heads.valid.shape == (3, 8, 3)
    assert small("patch_tst").quantiles(past, valid, 8, [0.5]) is None


def test_time_mixer_sums_the_forecasts_of_its_scales() -> None:
    x = torch.arange(6.0)[None, :, None]
    assert moving_average(x, 3)[0, :, 0].tolist() == pytest.approx([1 / 3, 1, 2, 3, 4, 14 / 3])
    model = TimeMixer(TimeMixer.Config(context=32, horizon=5, scales=2, num_layers=0, hidden_size=4, dropout=0.0))
    assert model.lengths == [32, 16, 8]
    with torch.no_grad():
        for predict, value in zip(model.predict, (1.0, 10.0, 100.0), strict=True):
            predict.weight.zero_()
            predict.bias.fill_(value)
        model.project.weight.fill_(1.0)
        model.project.bias.zero_()
        x = torch.randn(2, 32) * 3 + 7
        expected = 444 * x.std(1, correction=0) + x.mean(1)  # 4 features of 1 + 10 + 100, in the units of the window
        torch.testing.assert_close(model(x), expected[:, None].expand(-1, 5), rtol=1e-4, atol=1e-3)
    with pytest.raises(ZooError, match="context=4 cannot be pooled 3 times"):
        TimeMixer(TimeMixer.Config(context=4))


def test_time_mixer_reads_the_calendar_of_the_points_it_is_given() -> None:
    model = TimeMixer(TimeMixer.Config(context=16, horizon=4, scales=1, hidden_size=4, kernel=3, covariates=2)).eval()
    x, known = torch.randn(2, 16), torch.randn(2, 22, 2)
    valid = torch.ones_like(x, dtype=torch.bool)
    with torch.no_grad():
        own = model.forecast(x, valid, 4, covariates_BTC=known)
        other = known.clone()
        other[:, 16:] += 1
        torch.testing.assert_close(model.forecast(x, valid, 4, covariates_BTC=other), own)
        other[:, 15] += 1  # of the finest scale alone
        assert not torch.allclose(model.forecast(x, valid, 4, covariates_BTC=other), own)
        longer = model.forecast(x, valid, 6, covariates_BTC=known)
        again = model(torch.cat([x, own], 1)[:, -16:], known[:, 4:])
        torch.testing.assert_close(longer, torch.cat([own, again[:, :2]], 1))
        short = model.forecast(x[:, -9:], valid[:, -9:], 4, covariates_BTC=known[:, 7:])
        assert short.shape == (2, 4) and bool(short.isfinite().all())
        model.predict[0].weight.zero_()  # the coarse scale alone, which has every second point's
        model.mixing = torch.nn.ModuleList()
        for point, seen in ((13, False), (14, True)):
            other = known.clone()
            other[:, point] += 1
            assert torch.allclose(model(x, other), model(x, known)) is not seen
    with pytest.raises(ZooError, match=r"takes covariates=2 channels, the data give 0; set model.covariates"):
        model(x)


def test_what_revin_takes_off_it_puts_back() -> None:
    x = torch.randn(3, 50, requires_grad=True) * 4 - 9
    norm = RevIN()
    with torch.no_grad():
        norm.gain.fill_(2.0)  # type: ignore[union-attr]
        norm.shift.fill_(0.5)  # type: ignore[union-attr]
    normed, scale = norm(x)
    torch.testing.assert_close(normed.mean(1), torch.full((3,), 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(1, correction=0), torch.full((3,), 2.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.back(normed, scale), x)
    assert not scale.mean_B1.requires_grad and not scale.std_B1.requires_grad
    assert not list(RevIN(affine=False).parameters())
