"""Piano rolls as codes and as MIDI files, there and back; files that are none."""

from __future__ import annotations

from pathlib import Path

import mido
import pytest
import torch

from zoo.spec import ZooError
from zoo_audio import music


def roll(frames: int = 12, keys: int = 4) -> torch.Tensor:
    return torch.rand(frames, 88).argsort(1) < keys


def test_a_set_of_keys_has_one_frame():
    keys = torch.zeros(3, 88, dtype=torch.bool)
    keys[0, [10, 40, 41]] = True
    keys[1, [3]] = True
    codes, lost = music.frames_of(keys, 4)
    assert codes.tolist() == [[41, 40, 10, 88], [3, 88, 88, 88], [88, 88, 88, 88]] and lost == 0
    assert torch.equal(music.roll_of(codes), keys)
    codes, lost = music.frames_of(roll(keys=6), 4)
    assert lost == 12 and (codes.diff(dim=1) < 0).all()
    many = roll(50)
    assert torch.equal(music.roll_of(music.frames_of(many, 4)[0]), many)


def test_transposition_keeps_rests_and_stays_on_the_keyboard():
    codes = torch.tensor([[41, 10, 88], [40, 9, 88]])
    assert music.transposed(codes, 2).tolist() == [[43, 12, 88], [42, 11, 88]]
    assert torch.equal(music.transposed(codes, -10), codes)


@pytest.mark.parametrize("per_beat", [1.0, 2.0, 4.0])
def test_midi_there_and_back(tmp_path: Path, per_beat):
    given = roll()
    again, notes = music.read_midi(music.write_midi(tmp_path / "x.mid", given, per_beat), per_beat)
    assert torch.equal(again, given) and not notes


def test_percussion_silence_before_and_tracks(tmp_path: Path):
    file = mido.MidiFile(ticks_per_beat=96)
    for channel, note in ((0, 60), (1, 64), (9, 40)):
        on, off = (mido.Message(kind, note=note, channel=channel, time=192) for kind in ("note_on", "note_off"))
        file.tracks.append(mido.MidiTrack([on, off]))
    file.save(tmp_path / "x.mid")
    found, notes = music.read_midi(tmp_path / "x.mid", 1.0)
    assert found.shape == (2, 88) and found.nonzero()[:, 1].unique().tolist() == [39, 43]
    assert "1 notes of percussion" in notes[0] and "2 frames in" in notes[1]


def test_what_is_no_midi_is_refused(tmp_path: Path):
    good = music.write_midi(tmp_path / "good.mid", roll(), 1.0).read_bytes()
    mido.MidiFile().save(tmp_path / "none.mid")
    mido.MidiFile(type=2).save(tmp_path / "two.mid")
    for name, content in {
        "empty.mid": b"",
        "text.mid": b"la la la",
        "cut.mid": good[:60],
        "odd.mid": good[:30] + b"\xff" * 40,
    }.items():
        (tmp_path / name).write_bytes(content)
    for name, match in {
        "empty.mid": "cannot be read as MIDI",
        "text.mid": "cannot be read as MIDI",
        "cut.mid": "cannot be read as MIDI",
        "odd.mid": "cannot be read as MIDI",
        "none.mid": "no notes",
        "two.mid": "is MIDI of type 2",
        "nowhere.mid": "does not exist",
    }.items():
        with pytest.raises(ZooError, match=match) as caught:
            music.read_midi(tmp_path / name, 1.0)
        assert "\n" not in str(caught.value)


def test_it_sounds():
    wave = music.played(roll(), 1.0, 120)
    assert len(wave) == 14 * 8000 and 0.69 < wave.abs().max() < 0.71 and torch.isfinite(wave).all()
    assert not music.played(torch.zeros(3, 88, dtype=torch.bool), 1.0).any()
