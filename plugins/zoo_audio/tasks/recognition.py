"""Recognition: which word, which speaker, or neither.

Shapes: B waveforms, N samples, Y words, S speakers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from zoo.config import at_least
from zoo.spec import ZooError
from zoo.threads import one_thread
from zoo.train.task import Batch, Loss, Task
from zoo_audio.sound import levelled, read_sound

SURE = 0.5


class Recognised(NamedTuple):
    """What `Recognition.predict` returns: word and speaker, None where nothing is sure enough, with probabilities."""

    word: str | None
    speaker: str | None
    word_share: float
    speaker_share: float
    notes: list[str]


class Recognition(Task):
    """Binary cross-entropy of every word and speaker; noise and silence are among the training items as no word and no
    speaker, so that both may be refused.

    Config:
        nothing: part of each training batch that is noise or silence instead of its recording.
        noise: largest level of noise that is laid over a recording in training.
    """

    monitor = "word_error"

    @dataclass
    class Config:
        nothing: float = 0.1
        noise: float = 0.02

        def __post_init__(self) -> None:
            at_least(0, self, "nothing", "noise")

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        p, c = data.preprocessing, model.config
        if "texts" not in p:
            raise ZooError("a recogniser learns from waveforms, and the data come as codes; set data.form=clips")
        known = trained.get("texts"), trained.get("speakers")
        if trained and known != (p["texts"], p["speakers"]):
            raise ZooError(f"the recogniser knows the words {known[0]}, the data have {p['texts']}; choose other data")
        for what, found, size in (("words", p["texts"], c.words), ("speakers", p["speakers"], c.speakers)):
            if len(found) != size:
                raise ZooError(f"the data have {len(found)} {what} and the model {size}; set model.{what}={len(found)}")
        if p["sample_rate"] != c.sample_rate:
            raise ZooError(
                f"the model hears {c.sample_rate} Hz, the data have {p['sample_rate']}; set data.sample_rate"
            )

    def loss(self, model: Any, batch: Batch) -> Loss:
        wave_BN, label_B, speaker_B = batch["wave"], batch["label"], batch["speaker"]
        size = wave_BN.shape[1]
        # Shifted within the window, at another level, with some noise; a part is nothing but noise or silence.
        shift_B = torch.randint(-size // 8, size // 8 + 1, (len(wave_BN),)).tolist()
        wave_BN = torch.stack([w.roll(s) for w, s in zip(wave_BN, shift_B, strict=True)])
        wave_BN = wave_BN * torch.empty(len(wave_BN), 1, device=wave_BN.device).uniform_(0.5, 1.3)
        wave_BN = wave_BN + self.config.noise * torch.rand(len(wave_BN), 1, device=wave_BN.device) * _noise(wave_BN)
        empty_B = torch.rand(len(wave_BN), device=wave_BN.device) < self.config.nothing
        loud_B1 = torch.rand(len(wave_BN), 1, device=wave_BN.device) * 0.3
        wave_BN = torch.where(empty_B[:, None], loud_B1 * _noise(wave_BN), wave_BN)
        heard = model(wave_BN)
        word_B = torch.where(empty_B, -1, label_B)
        who_B = torch.where(empty_B, -1, speaker_B)
        word, who = _yes_no(heard.word_BY, word_B), _yes_no(heard.speaker_BS, who_B)
        return Loss(word + who, (), {"word": word, "speaker": who})

    def metrics(self) -> MetricCollection:
        """Shares of recordings whose word or speaker is not the one recognised, or not surely."""
        return MetricCollection({"word_error": MeanMetric(), "speaker_error": MeanMetric()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        heard = model(batch["wave"])
        for name, logits, wanted_B in (
            ("word_error", heard.word_BY, batch["label"]),
            ("speaker_error", heard.speaker_BS, batch["speaker"]),
        ):
            share_B, found_B = logits.sigmoid().max(-1)
            metrics[name].update(((found_B != wanted_B) | (share_B < SURE)).float())

    @one_thread()
    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """``refused``: the share of sounds that are no speech in which no word is recognised: silence, noise of
        two colours, hum and clicks. It was trained to refuse the like of them, other draws of other pitch and slope."""
        count = 40 if most is None else min(40, most)
        sounds = nothing(count, data.preprocessing["window"], model.config.sample_rate)
        heard = [recognise(model, data.preprocessing, wave_N)[:2] for wave_N in sounds]
        return {"refused": sum(word is None for word, _ in heard) / len(heard)}

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Recognised:
        """Word and speaker of a sound file."""
        wave_N, notes = read_sound(Path(inputs["input"]).expanduser(), model.config.sample_rate)
        word, speaker, word_share, speaker_share = recognise(model, preprocessing, wave_N)
        return Recognised(word, speaker, word_share, speaker_share, notes)

    def write(self, result: Recognised, out: Path) -> list[Path]:
        """``recognised.json``."""
        text = json.dumps({k: v for k, v in result._asdict().items() if k != "notes"}, indent=2)
        (out / "recognised.json").write_text(text + "\n", encoding="utf-8")
        return [out / "recognised.json"]


def recognise(
    model: Any, preprocessing: Mapping[str, Any], wave_N: Tensor
) -> tuple[str | None, str | None, float, float]:
    """Word and speaker of a waveform at the model's rate, None where it is not sure, and how sure it is of the
    likeliest ones."""
    size = round(preprocessing["window"] * model.config.sample_rate)
    wave_N = levelled(wave_N, preprocessing["level"])
    room = size - len(wave_N)
    wave_N = F.pad(wave_N, (room // 2, room - room // 2)) if room > 0 else wave_N
    with torch.no_grad():
        heard = model(wave_N[None].to(model.device))
    found = []
    for logits, names in ((heard.word_BY, preprocessing["texts"]), (heard.speaker_BS, preprocessing["speakers"])):
        share, place = logits[0].sigmoid().max(-1)
        found.append((names[int(place)] if share >= SURE else None, float(share)))
    (word, word_share), (speaker, speaker_share) = found
    return word, speaker, word_share, speaker_share


def nothing(count: int, seconds: float, rate: int) -> list[Tensor]:
    """``count`` of each of five sounds that say nothing: silence, white and brown noise, hum, clicks."""
    draw, size = torch.Generator().manual_seed(0), round(seconds * rate)
    time, sounds = torch.arange(size) / rate, []
    for _ in range(count):
        white = torch.randn(size, generator=draw)
        pitch = 50 + 150 * torch.rand(1, generator=draw)
        hum = sum(torch.sin(2 * torch.pi * pitch * h * time) / h for h in range(1, 5))
        clicks = (torch.rand(size, generator=draw) < 20 / rate).float()
        brown = white.cumsum(0) - white.cumsum(0).mean()
        sounds += [torch.zeros(size), white, brown, hum, clicks]
    return sounds


def _yes_no(logits: Tensor, wanted_B: Tensor) -> Tensor:
    """Cross-entropy of yes or no for each name, summed over names; -1 is none of them."""
    target = (torch.arange(logits.shape[-1], device=logits.device) == wanted_B[:, None]).float()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()


def _noise(like_BN: Tensor) -> Tensor:
    """Of each row one of four, about as loud as speech: white noise, noise of a random slope, a steady tone with
    harmonics, clicks."""
    rows, size = like_BN.shape
    draw = torch.rand(4, rows, 1, device=like_BN.device)
    white = torch.randn_like(like_BN)
    bins = torch.arange(size // 2 + 1, device=like_BN.device) + 1.0
    sloped = torch.fft.irfft(torch.fft.rfft(white) * bins ** (-1.5 * draw[0]), size)
    time = torch.arange(size, device=like_BN.device)
    turn = 2 * torch.pi * time * (0.005 + 0.04 * draw[1])
    tone = sum(torch.sin(h * turn) * draw[2] ** (h - 1) for h in range(1, 6))
    clicks = (torch.rand_like(like_BN) < 0.01 * draw[1]).float()
    kinds = torch.stack([k / k.std(1, keepdim=True).clamp(min=1e-6) for k in (white, sloped, tone, clicks)])
    return kinds.gather(0, (4 * draw[3]).long().clamp(max=3)[None].expand(1, -1, size))[0]
