"""Sound files of every kind: read, converted and told, or refused with one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample as whole

from zoo.spec import ZooError
from zoo_audio import plots, sound


def tone(seconds: float = 0.5, rate: int = 8000, channels: int = 1, level: float = 0.3) -> np.ndarray:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "told"),
    [
        ("a.wav", 8000, 1, "PCM_16", []),
        ("b.wav", 44100, 2, "PCM_24", ["resampled from 44,100 to 8,000", "2 channels", "PCM_24"]),
        ("c.wav", 192000, 8, "FLOAT", ["resampled from 192,000", "8 channels", "FLOAT"]),
        ("d.flac", 16000, 1, "PCM_16", ["resampled from 16,000"]),
        ("e.wav", 4000, 1, "PCM_U8", ["resampled from 4,000"]),
    ],
)
def test_any_rate_width_and_number_of_channels(tmp_path: Path, name, rate, channels, subtype, told):
    soundfile.write(tmp_path / name, tone(0.5, rate, channels), rate, subtype=subtype)
    wave, notes = sound.read_sound(tmp_path / name, 8000)
    assert abs(len(wave) - 4000) <= 1
    middle, wanted = wave[1000:3000], torch.from_numpy(tone()[1000:3000, 0])
    assert (middle - wanted).abs().max() < 0.02
    assert len(notes) == len(told) and all(part in note for part, note in zip(told, notes, strict=True))


@pytest.mark.parametrize("rates", [(44100, 8000), (8000, 16000), (48000, 8000), (11025, 8000)])
def test_in_blocks_as_at_once(rates):
    wave = torch.randn(20_000)
    wanted = whole(wave, *rates, lowpass_filter_width=sound.WIDTH)
    for size in (701, 4096, 30_000):
        found = sound.resample(iter(wave.split(size)), *rates)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert len(sound.resample(iter(wave[:3].split(2)), *rates)) == len(whole(wave[:3], *rates))
    assert len(sound.resample(iter(()), *rates)) == 0


def test_silent_clipped_and_loud_files_are_told(tmp_path: Path):
    files = {"silent": np.zeros(800), "clipped": np.clip(tone(level=3), -1, 1), "loud": tone(level=4)}
    for name, wave in files.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 8000, subtype="FLOAT")
    notes = {name: " ".join(sound.read_sound(tmp_path / f"{name}.wav", 8000)[1]) for name in files}
    assert "silent (peak" in notes["silent"] and "full scale: clipped" in notes["clipped"]
    assert "peak 4.00 scaled to 1" in notes["loud"]
    assert sound.read_sound(tmp_path / "loud.wav", 8000)[0].abs().max() <= 1
    assert torch.equal(sound.levelled(torch.zeros(9)), torch.zeros(9))


def test_a_file_that_ends_early_is_told(tmp_path: Path):
    soundfile.write(tmp_path / "whole.wav", tone(), 8000)
    whole_file = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole_file[: len(whole_file) // 2])
    assert sound.read_sound(tmp_path / "whole.wav", 8000)[1] == []
    assert sound.read_sound(tmp_path / "cut.wav", 8000)[1] == [
        "cut.wav: its header names another length than it has: cut off?"
    ]


def test_pictures_of_silence_and_of_an_hour(tmp_path: Path):
    assert plots.decibels(torch.zeros(3600 * 8000), 8000).shape == (129, 4001)
    assert plots.decibels(torch.randn(8000), 8000).shape == (129, 126)
    files = plots.plot_spectrograms({"silence": torch.zeros(8000)}, 8000, tmp_path / "x.png")
    assert files == [tmp_path / "x.png"] and files[0].stat().st_size


def test_what_is_no_sound_is_refused(tmp_path: Path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    (tmp_path / "text.flac").write_text("not a sound")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "good.flac", tone(), 8000)
    good = (tmp_path / "good.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(good[: len(good) // 2])
    (tmp_path / "folder.wav").mkdir()
    for name, match in {
        "empty.wav": "is empty",
        "noise.wav": "cannot be read as sound",
        "text.flac": "cannot be read as sound",
        "none.wav": "holds no samples",
        "nan.wav": "not finite",
        "cut.flac": "cannot be read as sound|stops after",
        "folder.wav": "does not exist",
        "nowhere.wav": "does not exist",
    }.items():
        with pytest.raises(ZooError, match=match) as caught:
            sound.read_sound(tmp_path / name, 8000)
        assert "\n" not in str(caught.value)


def test_written_as_read(tmp_path: Path):
    wave = torch.from_numpy(tone()[:, 0])
    again, _ = sound.read_sound(sound.write_sound(tmp_path / "x.wav", wave, 8000), 8000)
    assert (again - wave).abs().max() < 1e-4
