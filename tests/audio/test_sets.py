"""Data sets: public ones as published, the user's folders with broken files in them, and what is synthesised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from zoo import config as zc
from zoo import create_model
from zoo.spec import ZooError
from zoo_audio import music
from zoo_audio.data import sets, synthesis
from zoo_audio.data.recordings import SPLITS
from zoo_audio.data.tokens import Piece, Tokens


def build(name: str, **settings: Any) -> Any:
    node = zc.resolve_part("data set", {"name": f"audio/{name}", **settings}, "data")
    return zc.build("data set", node)


def test_chorales_are_those_of_the_benchmark(zoo_data):
    zoo_data("music/polymusic_mat/JSB_Chorales.mat")
    data = build("chorales")
    assert [len(data.pieces[split]) for split in SPLITS] == [229, 76, 77]
    first = data.pieces["train"][0].codes_TC
    assert first.shape == (129, 4) and sum(len(p.codes_TC) for p in data.pieces["test"]) == 4725
    assert not any("dropped" in note for note in data.notes), "four voices hold every chord"


def test_nottingham_needs_nine_channels(zoo_data):
    zoo_data("music/polymusic_mat/Nottingham.mat")
    data = build("nottingham")
    assert [len(data.pieces[split]) for split in SPLITS] == [694, 173, 170]
    assert not any("dropped" in note for note in data.notes)
    assert any("have more than 4 keys" in note for note in build("nottingham", channels=4).notes)


def test_digits_keep_the_official_split(zoo_data):
    zoo_data("speech/FSDD/fsdd.tar.xz")
    data = build("digits", form="clips")
    assert [len(data.clips[split]) for split in SPLITS] == [2580, 120, 300]
    assert all(int(Path(clip.name).stem.split("_")[2]) < 5 for clip in data.clips["test"])
    assert len(data.texts) == 10 and len(data.speakers) == 6
    item = data.split("test")[0]
    assert item["wave"].shape == (10240,) and 0 <= item["label"] < 10
    rms = item["wave"][item["valid"]].square().mean().sqrt()
    assert 0.05 < rms < 0.11  # -20 dB, or less where the peak would clip


def test_a_broken_matrix_file_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    path = tmp_path / "music/polymusic_mat/JSB_Chorales.mat"
    path.parent.mkdir(parents=True)
    for content in (b"", b"not a matrix file" * 20, b"MATLAB 5.0 MAT-file" + bytes(200)):
        path.write_bytes(content)
        with pytest.raises(ZooError, match="is not JSB Chorales as it was published"):
            build("chorales")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Twelve sounds of three kinds of names, and four files that are none."""
    for i in range(12):
        wave = 0.3 * np.sin(np.arange(4000 + 100 * i) * 0.1)
        soundfile.write(tmp_path / f"yes_ann_{i}.wav", wave, (8000, 16000)[i % 2])
    (tmp_path / "no").mkdir()
    soundfile.write(tmp_path / "no" / "x.flac", np.zeros(4000), 8000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.txt").write_text("not a sound")
    return tmp_path


def test_a_folder_of_recordings(recordings: Path):
    data = build("sounds", form="clips", path=str(recordings))
    clips = [clip for split in SPLITS for clip in data.clips[split]]
    assert {(clip.text, clip.speaker) for clip in clips} == {("yes", "ann"), ("no", "")}
    told = " ".join(data.notes)
    assert "2 of 15 files left out" in told and "resampled from 16,000" in told
    (recordings / "metadata.csv").write_text("no/x.flac,Oh No!,Bob\n")
    clips = [c for split in SPLITS for c in build("sounds", form="clips", path=str(recordings)).clips[split]]
    assert ("oh no!", "bob") in {(clip.text, clip.speaker) for clip in clips}
    tokens = build("sounds", path=str(recordings))
    assert tokens.preprocessing["channels"] == 4 and "<ann>" in tokens.symbols
    assert {"codec", "level"} == set(tokens.preprocessing["speech"])


def test_folders_that_hold_nothing_are_refused(tmp_path: Path):
    with pytest.raises(ZooError, match="is not a folder"):
        build("sounds", path=str(tmp_path / "nowhere"))
    with pytest.raises(ZooError, match="holds no sound file"):
        build("sounds", path=str(tmp_path))
    (tmp_path / "x.wav").touch()
    with pytest.raises(ZooError, match=r"no file of .* can be read: .*empty"):
        build("sounds", path=str(tmp_path))
    with pytest.raises(ZooError, match="holds no MIDI file"):
        build("midi", path=str(tmp_path))
    (tmp_path / "x.mid").write_bytes(b"MThd")
    with pytest.raises(ZooError, match="cannot be read as MIDI"):
        build("midi", path=str(tmp_path))


def test_a_folder_of_midi_files(tmp_path: Path):
    for i in range(10):
        music.write_midi(tmp_path / f"{i}.mid", torch.rand(8, 88).argsort(1) < 3, 2.0)
    (tmp_path / "bad.mid").write_bytes(b"la")
    data = build("midi", path=str(tmp_path), per_beat=2.0, shift=3)
    held = {split: {tuple(piece.codes_TC[:, 0].tolist()) for piece in data.pieces[split]} for split in SPLITS}
    assert sum(map(len, held.values())) == 10 and len(held["train"]) < 10
    assert any("1 of 11 files left out" in note for note in data.notes)
    seen = {int(data.split("train")[0]["codes"][0, 0]) for _ in range(40)}
    assert 1 < len(seen) <= 7, "transposed by up to three semitones"


def test_what_is_in_a_folder_is_accounted_for(recordings: Path):
    for i in range(5):
        soundfile.write(recordings / f"quiet_ann_{i}.wav", np.full(80, 1e-5 * i), 8000, subtype="FLOAT")
        (recordings / f"broken{i}.wav").touch()
    (recordings / "song.m4a").touch()
    told = build("sounds", form="clips", path=str(recordings), window=0.1).notes
    assert "passed over: 1 .txt, 1 .m4a" in told
    assert any(n.startswith("6 files, such as x.flac: silent") for n in told), told
    left = next(n for n in told if "left out" in n)
    assert left.startswith("7 of 25 files") and left.endswith("; and broken2.wav, broken3.wav, broken4.wav, empty.wav")
    assert any("13 clips, such as" in n and "longer than data.window=0.1 s" in n for n in told)


def test_a_table_of_files_that_are_not_there_is_told(recordings: Path):
    table = recordings / "metadata.csv"
    table.write_text("file,text,speaker\nno/x.flac,oh no,bob\nnowhere.wav,a,b\nyes_ann_0.wav\n")
    told = build("sounds", form="clips", path=str(recordings)).notes
    assert "metadata.csv: 2 lines name no sound file, such as 'nowhere.wav,a,b'" in told
    assert any("no line for 14 files" in note for note in told)
    table.write_text("yes_ann_0|Yes, I do|ann\n")
    with pytest.raises(ZooError, match=r"names none of the 15 sound files \('yes_ann_0\|Yes"):
        build("sounds", form="clips", path=str(recordings))


@pytest.mark.parametrize("kind", ["sounds", "midi"])
def test_shares_that_leave_files_out_are_refused(recordings: Path, kind):
    with pytest.raises(ZooError, match="three fractions that sum to 1"):
        build(kind, path=str(recordings), split=[0.5, 0.1, 0.1])


@pytest.mark.parametrize(("model", "form"), [("codec", "stretches"), ("recogniser", "clips")])
def test_codes_for_a_model_of_waveforms_are_refused(recordings: Path, model, form):
    data = build("sounds", path=str(recordings))
    task = zc.build("task", {"name": {"codec": "audio/coding", "recogniser": "audio/recognition"}[model]})
    with pytest.raises(ZooError, match=f"set data.form={form}"):
        task.match(create_model(f"audio/{model}"), data, {})


def test_a_long_recording_is_judged_in_parts(tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", 0.3 * np.sin(np.arange(8000 * 50) * 0.1), 8000)
    items = build("sounds", form="stretches", path=str(tmp_path)).split("val")
    assert [int(items[i]["valid"].sum()) for i in range(len(items))] == [160_000, 160_000, 80_000]


def test_items_come_together_padded_on_the_outside():
    pieces = [
        Piece("speech", "ann", "yes", torch.ones(5, 2, dtype=torch.long)),
        Piece("music", "", "", torch.ones(9, 2, dtype=torch.long)),
    ]
    data = Tokens(dict.fromkeys(SPLITS, pieces), {}, [], context=7)
    assert len(data.split("train")) == 2 and len(data.split("test")) == 3  # the piece of nine is cut at seven
    batch = data.collate([data.split("test")[i] for i in range(3)])
    assert batch["frames"].tolist() == [5, 7, 2] and batch["codes"].shape == (3, 7, 2)
    assert batch["text_valid"].sum(1).tolist() == [5, 2, 2] and batch["text_valid"][:, -1].all()
    assert data.split("train")[1]["codes"].shape == (7, 2)


def test_mixes_count_pieces_as_often_as_they_say(zoo_data, recordings: Path):
    zoo_data("music/polymusic_mat/JSB_Chorales.mat")
    speech = {"name": "audio/sounds", "path": str(recordings)}
    data = build("digits_chorales", speech=speech, mix={"speech": 2, "music": 3})
    own = sum(piece.domain == "speech" for piece in data.pieces["train"])
    assert own > 1 and len(data.split("train")) == 2 * own + 3 * 229
    assert len(data.split("test")) == len(data.pieces["test"]) > 77
    alone = build("digits_chorales", speech=speech, mix={"speech": 0, "music": 1})
    assert len(alone.split("train")) == 229 and len(alone.split("test")) == 77
    assert alone.symbols == data.symbols
    with pytest.raises(ZooError, match="must say how often speech and music count"):
        build("digits_chorales", speech=speech, mix={"speech": 0, "music": 0})
    with pytest.raises(ZooError, match=r"data\.speech is no data set of speech"):
        build("digits_chorales", speech={"name": "audio/chorales"})


def test_what_is_synthesised_is_the_same_each_time():
    one, other = (synthesis.vowels(10, 8000, torch.Generator().manual_seed(0)) for _ in range(2))
    assert all(torch.equal(a.wave_N, b.wave_N) for a, b in zip(one["train"], other["train"], strict=True))
    chords = synthesis.cadences(10, torch.Generator().manual_seed(0))["train"]
    assert all((roll.sum(1) == 4).all() for roll in chords)
    data = build("synthetic", size=10)
    assert len(data.split("train")) == 20 and data.preprocessing["channels"] == 4


def test_another_kind_of_model_is_no_codec():
    with pytest.raises(ZooError, match="is no codec"):
        sets.coded(lambda rate: {}, "audio/recogniser.digits", -20.0)
