"""Music: features, beats, the band, music for motion; sounds that nobody could dance to."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from zoo.spec import ZooError
from zoo_dance.music.features import (
    BEAT,
    CHROMA,
    FEATURES,
    FPS,
    HOP,
    ONSET,
    RATE,
    beat_times,
    features,
    read_song,
    tempo,
)
from zoo_dance.music.pairing import beats_of, fill, music_for
from zoo_dance.music.synth import STYLES, steady, style_of, synthesise, write_song


@pytest.mark.parametrize("bpm", [90.0, 120.0])
@pytest.mark.parametrize("style", ["march", "hiphop"])
def test_beats_of_the_band_are_found(style: str, bpm: float) -> None:
    heard = features(synthesise(style, 10, steady(10, bpm)))
    assert heard.shape == (300, FEATURES) and heard.isfinite().all()
    assert tempo(heard[:, ONSET]) == pytest.approx(bpm, rel=0.02)
    played, found = torch.tensor(steady(10, bpm)), beat_times(heard)
    hits = sum(float((played - beat).abs().min()) < 0.07 for beat in found)
    assert hits >= 0.9 * len(found) and len(found) >= 0.85 * len(played)


def test_pitch_classes_are_those_that_sound() -> None:
    time = torch.arange(2 * RATE) / RATE
    for note, frequency in ((9, 440.0), (0, 261.63), (4, 329.63)):
        chroma = features(torch.sin(2 * torch.pi * frequency * time))[20:40, CHROMA].mean(0)
        assert int(chroma.argmax()) == note and chroma[note] > 2 * chroma.sort().values[-3]


def test_a_song_in_blocks_is_the_song_whole() -> None:
    song = synthesise("house", 64, steady(64, 120.0), seed=1)
    blocks = features(song)
    assert len(blocks) == -(-len(song) // HOP)
    from zoo_dance.music.features import _spectra

    whole, chroma = _spectra(song, len(blocks))
    clipped = whole.clamp(min=float(whole.max()) - 80)
    from zoo_dance.music.features import _dct

    torch.testing.assert_close(blocks[:, :20], clipped @ _dct(), rtol=0, atol=1e-2)
    torch.testing.assert_close(blocks[:, CHROMA], chroma, rtol=0, atol=1e-3)


def test_styles_sound_different_and_repeat() -> None:
    pieces = {style: synthesise(style, 4, steady(4, 120.0)) for style in STYLES}
    for one, two in itertools.combinations(pieces.values(), 2):
        assert not torch.allclose(one, two)
    assert torch.equal(pieces["march"], synthesise("march", 4, steady(4, 120.0)))
    assert style_of("house") == "house" and style_of("whatever") == style_of("whatever") in STYLES
    for style, beats in (("polka", [0.0, 1.0]), ("march", [1.0]), ("march", [1.0, 0.5])):
        with pytest.raises(ZooError):
            synthesise(style, 4, beats)


def test_other_rates_and_channels_become_ours(tmp_path: Path) -> None:
    song = synthesise("march", 3, steady(3, 120.0))
    write_song(song, tmp_path / "a.wav")
    again = read_song(tmp_path / "a.wav")
    torch.testing.assert_close(again.sound_N, song, rtol=0, atol=1e-3)
    assert again.notes == ()
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "b.wav", rng.uniform(-0.5, 0.5, (44100, 2)), 44100)
    other = read_song(tmp_path / "b.wav")
    assert other.seconds == pytest.approx(1.0, abs=0.01) and len(other.notes) == 2


def test_sounds_that_nobody_could_dance_to(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(44100), 44100)
    soundfile.write(tmp_path / "short.wav", np.ones(4410) * 0.5, 44100)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 44100)
    (tmp_path / "text.wav").write_text("la la la")
    for name, told in (
        ("silent.wav", "is silent"),
        ("short.wav", "lasts 0.1 s"),
        ("empty.wav", "lasts 0 s"),
        ("text.wav", "cannot be read as sound"),
        ("none.wav", "does not exist"),
    ):
        with pytest.raises(ZooError, match=told) as error:
            read_song(tmp_path / name)
        assert "\n" not in str(error.value)


def test_music_is_made_for_the_steps(walker: Any) -> None:
    motion = walker(8.0, 2.0)
    beats = beats_of(motion)
    gaps = torch.tensor(beats).diff()
    assert 0.45 < float(gaps.median()) < 0.55
    heard = features(music_for(motion, "march"))
    assert abs(len(heard) - len(motion)) <= 1
    found = torch.tensor(beat_times(heard))
    near = (torch.tensor(beats)[:, None] - found).abs().min(1).values
    assert float((near < 0.1).float().mean()) > 0.7
    still = replace(motion, rotation_TJ33=torch.eye(3).double().expand(len(motion), 24, 3, 3))
    assert torch.tensor(beats_of(still)).diff().median() == pytest.approx(0.5), "without steps 120 a minute"


def test_long_waits_are_divided_and_quick_steps_left_out() -> None:
    assert fill([0.0, 0.5, 1.0, 3.0], 4.0) == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert fill([0.0, 0.05, 0.6, 1.2], 2.0) == pytest.approx([0, 0.6, 1.2])
    assert len(fill([], 3.0)) == 6


def test_the_beat_column_is_the_beats() -> None:
    heard = features(synthesise("march", 6, steady(6, 120.0)))
    assert beat_times(heard) == [n / FPS for n in heard[:, BEAT].nonzero()[:, 0].tolist()]
