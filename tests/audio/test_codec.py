"""The codec: pieces as the whole, bounded memory, phases that agree with magnitudes, scores by hand."""

from __future__ import annotations

import math

import pytest
import torch

from zoo import create_model
from zoo.spec import ZooError
from zoo_audio.tasks.coding import CodecScores, Coding, log_mel, si_sdr


def codec(**settings):
    return create_model("audio/codec", width=8, depth=2, codebook_size=16, iterations=3, **settings).eval()


@pytest.mark.parametrize("seconds", [0.02, 0.9, 3.3])
def test_pieces_say_what_the_whole_says(seconds):
    whole, pieces = codec(piece=1000.0), codec(piece=1.0)
    pieces.load_state_dict(whole.state_dict())
    wave = torch.randn(round(8000 * seconds)) * 0.1
    codes = whole.encode(wave)
    assert codes.shape == (math.ceil(50 * seconds), 4)
    assert torch.equal(pieces.encode(wave), codes)
    one, other = whole.decode(codes), pieces.decode(codes)
    assert len(one) == 160 * len(codes)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-4)
    assert torch.equal(whole(wave[None]).codes_BTC[0], codes)


def test_ten_minutes_are_never_whole_in_memory(monkeypatch):
    model, sizes = codec(piece=10.0), []
    spectrum = model.spectrum
    monkeypatch.setattr(model, "spectrum", lambda wave: (sizes.append(wave.shape[-1]), spectrum(wave))[1])
    codes = model.encode(torch.zeros(600 * 8000))
    assert len(codes) == 30_000 and len(model.decode(codes)) == 600 * 8000
    assert max(sizes) < 12 * 8000


def test_sixteen_kilohertz():
    model = codec(sample_rate=16000, n_fft=640, hop=160)
    assert model.frame_rate == 50 and len(model.encode(torch.zeros(16000))) == 50


def test_phases_agree_with_the_magnitudes():
    model = create_model("audio/codec", iterations=60)
    time = torch.arange(8000) / 8000
    wave = 0.2 * torch.sin(2 * math.pi * 300 * time) + 0.1 * torch.sin(2 * math.pi * 1210 * time)
    size = model.spectrum(wave[None]).abs()[0]
    again = model.spectrum(model.phased(size)[None]).abs()[0]
    assert (again - size).norm() / size.norm() < 0.1


def test_unused_codes_take_the_place_of_latents():
    model = codec().train()
    before = model.quantiser.tables[0].weight.clone()
    model(0.1 * torch.randn(2, 8000))
    assert not torch.equal(model.quantiser.tables[0].weight, before)
    assert (model.quantiser.usage_CV > 0).all()
    model.eval()
    after = model.quantiser.usage_CV.clone()
    model(0.1 * torch.randn(2, 8000))
    assert torch.equal(model.quantiser.usage_CV, after)


def test_scores_by_hand():
    wave, noise = torch.zeros(8000), torch.zeros(8000)
    wave[::2], noise[1::2] = 1.0, 0.1
    assert si_sdr(3 * wave + 3 * noise, wave).item() == pytest.approx(20, abs=1e-3)
    assert (log_mel(wave, 8000) - log_mel(wave / math.e, 8000)).max() <= 1 + 1e-4
    scores = CodecScores(1, 4)
    scores.update(wave, wave + noise, torch.tensor([[0], [0], [1], [1]]), 8000)
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found["code_use"] == 0.5 and found["code_bits"] == pytest.approx(1)
    assert found["si_sdr"] == pytest.approx(20, abs=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ZooError, match="multiple of 2 \\* hop"):
        codec(hop=100)
    data = type("Data", (), {"preprocessing": {"sample_rate": 16000}})
    with pytest.raises(ZooError, match="works at 8000 Hz and the data come at 16000"):
        Coding(Coding.Config()).match(codec(), data, {})
