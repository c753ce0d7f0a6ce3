"""The objective and its scores by hand, what a user gets, and what a user is told."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from zoo import config as zc
from zoo import create_model, hub
from zoo.spec import ZooError
from zoo_audio import music
from zoo_audio.data.recordings import SPLITS
from zoo_audio.data.sets import CODEC, coded
from zoo_audio.data.synthesis import vowels
from zoo_audio.data.tokens import Piece, Tokens
from zoo_audio.generation import Drawn
from zoo_audio.tasks.recognition import Recognition, nothing, recognise
from zoo_audio.tasks.speaking import Speaking


def task(**settings: Any) -> Speaking:
    made = Speaking(zc.make(Speaking.Config, **settings))
    made.channels = 2
    return made


class Says(torch.nn.Module):
    """The same logits at every step."""

    def __init__(self, logits_CV: torch.Tensor) -> None:
        super().__init__()
        self.config, self.logits = SimpleNamespace(delay=[0, 1], codebook_size=logits_CV.shape[1] - 3), logits_CV

    def forward(self, text, codes, valid, domain):
        assert valid.shape[1] == text.shape[1] + codes.shape[1]
        return SimpleNamespace(logits_BSCV=self.logits.expand(*codes.shape[:2], -1, -1), routing=())


def batch() -> dict[str, torch.Tensor]:
    pieces = [
        Piece("speech", "ann", "ab", torch.tensor([[0, 1], [2, 3], [1, 1]])),
        Piece("music", "", "", torch.tensor([[3, 3], [0, 0]])),
    ]
    data = Tokens(dict.fromkeys(SPLITS, pieces), {}, [])
    return data.collate([data.split("test")[i] for i in range(2)])


def test_scores_of_a_model_that_knows_nothing():
    made, model = task(), Says(torch.zeros(2, 7))
    metrics = made.metrics()
    made.update(metrics, model, batch())
    found = {name: float(value) for name, value in metrics.compute().items()}
    # Speech: 3 frames and an end in each of 2 channels; music: 2 and an end; 4 codes and 3 special entries.
    assert found["speech_nats"] == pytest.approx(8 * math.log(7) / 3)
    assert found["music_nats"] == pytest.approx(6 * math.log(7) / 2)
    assert found["loss"] == pytest.approx((found["speech_nats"] + found["music_nats"]) / 4)
    # The roll: codes alone, no end, all 4 of them over all frames but the first.
    assert found["music_roll_nll"] == pytest.approx(4 * math.log(4) / 1)
    assert float(made.loss(model, batch()).loss) == pytest.approx(2 * math.log(7))


def test_channels_and_ends_count_as_they_should():
    logits = torch.zeros(2, 7)
    logits[1, 4] = 3.0  # the second channel likes to end
    found = task(music=0.0).loss(Says(logits), batch())
    normaliser = math.log(6 + math.exp(3))
    first, second = 4 * math.log(7) / 7, (3 * normaliser + normaliser - 3) / 7
    assert float(found.loss) == pytest.approx(first + second, rel=1e-5)
    assert float(found.logs["channel1"]) == pytest.approx(second, rel=1e-5)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> Any:
    """An untrained model with all that travels with it, saved and loaded again."""
    pieces, section = coded(lambda rate: vowels(15, rate, torch.Generator().manual_seed(0)), CODEC, -20.0)
    for split in SPLITS:
        pieces[split].append(Piece("music", "", "", torch.full((6, 4), 40)))
    data = Tokens(pieces, {"speech": section, "music": {"per_beat": 1.0}}, [])
    folder = tmp_path_factory.mktemp("speaker")
    model = create_model("audio/unimoe_audio_tiny", **{"stack.num_layers": 1})
    hub.save(folder, model, task={"name": "audio/speaking"}, preprocessing=data.preprocessing)
    return hub.load(folder)


def test_speech(speaker, tmp_path: Path):
    made = speaker.predict(text="ee", speaker="low", seconds=0.5, seed=3)
    assert made.domain == "speech" and len(made.wave_N) == 160 * len(made.codes_TC) <= 4000
    assert len(made.experts_T) == len(made.codes_TC) and made.experts_T.min() >= 0 and made.experts_T.max() <= 4
    again = speaker.predict(text="EE", speaker="Low", seconds=0.5, seed=3)
    assert torch.equal(made.codes_TC, again.codes_TC)
    files = speaker.write(made, tmp_path)
    assert [file.name for file in files] == ["ee_low.wav", "ee_low.png"] and all(f.stat().st_size for f in files)
    sound = {"ee": 0.3 * np.sin(np.arange(3200) * 0.1)}
    soundfile.write(tmp_path / "start.wav", sound["ee"], 16000)
    on = speaker.predict(text="ee", seconds=1.0, **{"continue": str(tmp_path / "start.wav")})
    assert on.given == 10 and any("no speaker given: high" in n for n in on.notes)
    assert any("resampled" in n for n in on.notes)


def test_music(speaker, tmp_path: Path):
    made = speaker.predict(seconds=4.0, bpm=60.0)
    assert made.domain == "music" and len(made.codes_TC) <= 4 and made.codes_TC.max() <= music.REST
    roll = torch.rand(5, 88).argsort(1) < 4
    music.write_midi(tmp_path / "start.mid", roll, 1.0)
    on = speaker.predict(seconds=4.0, bpm=60.0, **{"continue": str(tmp_path / "start.mid")})
    assert torch.equal(music.roll_of(on.codes_TC[:5]), roll) and on.given == 5
    files = speaker.write(on, tmp_path)
    assert [f.suffix for f in files] == [".wav", ".mid", ".png"] and files[1].name == "start_continued.mid"


def test_seconds_are_those_after_what_is_given_as_far_as_there_is_room(speaker, tmp_path: Path):
    music.write_midi(tmp_path / "long.mid", torch.rand(3000, 88).argsort(1) < 4, 1.0)
    on = speaker.predict(seconds=3.0, bpm=60.0, **{"continue": str(tmp_path / "long.mid")})
    assert on.given == 509 and 509 < len(on.codes_TC) <= 512
    assert any("goes on from the last 509 frames, 509 s" in n for n in on.notes)
    soundfile.write(tmp_path / "start.wav", 0.3 * np.sin(np.arange(8000) * 0.1), 8000)
    said = speaker.predict(text="ee", seconds=0.1, **{"continue": str(tmp_path / "start.wav")})
    assert said.given == 50 and len(said.codes_TC) <= 55
    soundfile.write(tmp_path / "long.wav", 0.3 * np.sin(np.arange(8000 * 30) * 0.1), 8000)
    with pytest.raises(ZooError, match=r"what to go on from lasts 30 s, and the model takes 20\.3"):
        speaker.predict(text="ee", **{"continue": str(tmp_path / "long.wav")})


def test_more_seconds_than_the_model_has_room_for_are_told(speaker, monkeypatch):
    asked = []

    def generate(model, text_BP, valid_BP, *, max_frames, **settings):
        asked.append(max_frames)
        return Drawn([torch.full((4, 4), 40)], [torch.ones(4)], [True])

    monkeypatch.setattr("zoo_audio.tasks.speaking.generate", generate)
    made = speaker.predict(seconds=1e6, bpm=60.0)
    assert asked == [1018] and made.notes == ["seconds=1e+06: the model has room for 1.02e+03 s"]


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"text": "ee", "speaker": "nobody"}, "unknown speaker 'nobody'; the model has heard high, low, middle"),
        ({"text": "xyz!"}, r"text='xyz!' has what the model never read \(!xyz\)"),
        ({"text": ""}, "never read"),
        ({"text": "ee", "seconds": -1}, "seconds=-1 must be a number"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"top_p": 2.0}, "top_p=2.0 above 0 and at most 1"),
        ({"bpm": 0.0}, "bpm must be above 0"),
        ({"continue": "song.txt"}, "is no MIDI file"),
        ({"continue": "nowhere.mid"}, "does not exist"),
        ({"seconds": float("nan")}, "seconds=nan must be a number"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"text": "ee", "continue": "song.mid"}, "continue=song.mid is music and text= speech"),
        ({"speaker": "high"}, "speaker= is for speech"),
    ],
)
def test_what_a_user_is_told(speaker, inputs, match):
    with pytest.raises(ZooError, match=match) as caught:
        speaker.predict(**inputs)
    assert "\n" not in str(caught.value)


def test_a_model_without_symbols_or_of_one_kind_says_so(speaker):
    predict = speaker.task.predict
    given = {name: i.default for name, i in speaker.inputs.items()}
    with pytest.raises(ZooError, match="without symbols and codec"):
        predict(speaker.model, {}, given)
    only = {k: v for k, v in speaker.preprocessing.items() if k != "speech"}
    with pytest.raises(ZooError, match="trained on music only"):
        predict(speaker.model, only, {**given, "text": "ee"})


def test_models_and_data_that_do_not_fit_are_refused(speaker):
    data = Tokens({s: [Piece("music", "", "", torch.full((6, 4), 40))] for s in SPLITS}, {"music": {}}, [])
    made = task()
    for settings, match in (
        ({"delay": [0, 1]}, "data have 4 channels and the model's delay 2"),
        ({"codebook_size": 40}, "data have code 40, the model 40; set model.codebook_size=41"),
        ({"text_vocab": 2}, "prompts have 4 symbols, the model 2"),
        ({"max_length": 30}, "and the model takes 30"),
    ):
        with pytest.raises(ZooError, match=match):
            made.match(create_model("audio/unimoe_audio_dense", **{"stack.num_layers": 0, **settings}), data, {})
    made.match(speaker.model, data, speaker.preprocessing)
    assert data.symbols == speaker.preprocessing["symbols"]
    other = {**speaker.preprocessing, "speech": {"codec": {"weights": {"a": torch.zeros(1)}}}}
    mine = Tokens(data.pieces, {"speech": {"codec": {"weights": {"a": torch.ones(1)}}}}, [])
    with pytest.raises(ZooError, match="codes of another codec"):
        made.match(speaker.model, mine, other)


def test_the_judge_refuses_what_says_nothing():
    judge = hub.load("audio/recogniser.digits")
    heard = [recognise(judge.model, judge.preprocessing, sound)[0] for sound in nothing(4, 1.28, 8000)]
    assert heard == [None] * 20


def test_noise_of_every_kind_is_finite_and_of_one_level():
    from zoo_audio.tasks.recognition import _noise

    rows = _noise(torch.zeros(64, 2048))
    assert torch.isfinite(rows).all() and ((rows.std(1) - 1).abs() < 0.01).float().mean() > 0.9
    loss = Recognition(Recognition.Config(nothing=1.0)).loss(
        create_model("audio/recogniser"),
        {"wave": torch.zeros(4, 2000), "label": torch.zeros(4).long(), "speaker": torch.zeros(4).long()},
    )
    assert torch.isfinite(loss.loss)
