"""Speech and music from one model: the objective, its scores, and sounds for a user.

Shapes: B sequences, P symbols, S steps, T frames, C channels, V entries of a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from zoo.config import at_least
from zoo.spec import ZooError
from zoo.threads import one_thread
from zoo.train.task import Batch, Loss, Task
from zoo_audio import music
from zoo_audio.data.tokens import DOMAINS
from zoo_audio.generation import Drawn, asked, generate
from zoo_audio.plots import plot_roll, plot_spectrograms
from zoo_audio.sound import levelled, read_sound, write_sound
from zoo_audio.tasks import judging
from zoo_audio.travelling import codec_of, prompts, speakers_of

MIDI = (".mid", ".midi")


class Made(NamedTuple):
    """What `Speaking.predict` returns: frames and what they sound like; the first ``given`` were the user's."""

    domain: str
    name: str
    codes_TC: Tensor
    experts_T: Tensor
    wave_N: Tensor
    sample_rate: int
    frame_rate: float
    given: int
    per_beat: float
    notes: list[str]


class Scores(Metric):
    """Negative log-likelihoods in nats, by domain. ``speech_nats`` and ``music_nats`` are those of all channels and of
    the end, per frame; ``loss`` is their mean over domains, per channel.

    ``music_roll_nll`` is the one of piano rolls that Boulanger-Lewandowski et al. (2012) and the TCN paper
    (arXiv:1803.01271) report, as an upper bound: the probability of the whole roll, given its length (that is, of codes
    only, with EOS, PAD and BOS left out of every softmax), over the number of frames but the first. They leave out what
    the first frame costs, which is in here. A roll has one sequence of codes, so what other sequences of codes that
    stand for the same roll would add is left out as well.
    """

    higher_is_better = False
    full_state_update = False
    nats_D: Tensor
    frames_D: Tensor
    roll: Tensor
    steps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        for name in ("nats_D", "frames_D"):
            self.add_state(name, torch.zeros(len(DOMAINS), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("roll", "steps"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats_B: Tensor, roll_B: Tensor, frames_B: Tensor, domain_B: Tensor) -> None:
        """One value a sequence: its nats, those among codes alone, its frames and its domain."""
        self.nats_D.index_add_(0, domain_B, nats_B.double())
        self.frames_D.index_add_(0, domain_B, frames_B.double())
        music_B = domain_B == DOMAINS.index("music")
        self.roll += roll_B[music_B].sum()
        self.steps += (frames_B[music_B] - 1).clamp(min=0).sum()

    def compute(self) -> dict[str, Tensor]:
        each = {d: self.nats_D[i] / self.frames_D[i] for i, d in enumerate(DOMAINS) if self.frames_D[i] > 0}
        if not each:
            return {"loss": self.nats_D.sum() / self.frames_D.sum()}
        values = {"loss": torch.stack(list(each.values())).mean() / self.channels}
        values |= {f"{domain}_nats": value for domain, value in each.items()}
        if self.steps > 0:
            values["music_roll_nll"] = self.roll / self.steps
        return {name: value.float() for name, value in values.items()}


class Speaking(Task):
    """Cross-entropy of every channel's next step, the mean over a channel's codes and EOS, summed over channels.

    Config:
        speech, music: factors on what each kind of sound counts in the loss.
        temperature, top_p, fine: of the draws of speech, unless a user asks for others (see `generate`); those of music
            are 1, 0.95 and 1.
        judge: a recogniser that hears what is generated; `zoo eval` then says how much of it is what it should be.
        takes: so many takes of every text by every speaker are generated for it.
    """

    monitor = "loss"

    @dataclass
    class Config:
        speech: float = 1.0
        music: float = 1.0
        temperature: float = 1.0
        top_p: float = 0.9
        fine: float = 1.0
        judge: str | None = None
        takes: int = 2

        def __post_init__(self) -> None:
            at_least(0, self, "speech", "music", "temperature", "fine")
            at_least(1, self, "takes")

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """A trained model keeps its symbols and its codec. Raises `ZooError` where model and data do not fit."""
        p, c = data.preprocessing, model.config
        self.channels = len(c.delay)
        if p["channels"] != self.channels:
            raise ZooError(
                f"the data have {p['channels']} channels and the model's delay {self.channels}; "
                f"set model.delay to {p['channels']} numbers, or another data.channels or data.codec"
            )
        if trained:
            ours, theirs = _weights(trained), _weights(p)
            if (
                ours
                and theirs
                and not (ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items()))
            ):
                raise ZooError("the model was trained on the codes of another codec; set data.codec to that one")
            data.use(trained["symbols"], p["channels"])
        if len(data.symbols) > c.text_vocab:
            raise ZooError(
                f"the prompts have {len(data.symbols)} symbols, the model {c.text_vocab}; set model.text_vocab higher"
            )
        most = max(
            int(piece.codes_TC.max()) for s in ("train", "val") for piece in data.pieces[s] if len(piece.codes_TC)
        )
        if most >= c.codebook_size:
            raise ZooError(
                f"the data have code {most}, the model {c.codebook_size}; set model.codebook_size={most + 1}"
            )
        context = max(len(piece.codes_TC) for split in data.pieces.values() for piece in split)
        longest = min(context, data.context) + 1 + max(c.delay) + 32
        if longest > c.max_length:
            raise ZooError(
                f"sequences of {longest} positions, and the model takes {c.max_length}; set data.context lower"
            )

    def loss(self, model: Any, batch: Batch) -> Loss:
        out, target_BSC, counts_BSC = asked(model, batch)
        nats_BSC = _nats(out.logits_BSCV, target_BSC)
        factor_D = torch.tensor([self.config.speech, self.config.music], device=nats_BSC.device)
        weight_BSC = counts_BSC * factor_D[batch["domain"]][:, None, None]
        # Every channel's mean, then their sum, as the published loss has it.
        loss_C = (nats_BSC * weight_BSC).sum((0, 1)) / counts_BSC.sum((0, 1)).clamp(min=1)
        logs = {f"channel{c}": value for c, value in enumerate(loss_C[:4])}
        return Loss(loss_C.sum(), out.routing, logs)

    def metrics(self) -> MetricCollection:
        """See `Scores`."""
        return MetricCollection({"scores": Scores(getattr(self, "channels", 1))})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        out, target_BSC, counts_BSC = asked(model, batch)
        nats_B = (_nats(out.logits_BSCV, target_BSC) * counts_BSC).sum((1, 2))
        codes = model.config.codebook_size
        among_BSC = _nats(out.logits_BSCV[..., :codes], target_BSC.clamp(max=codes - 1))
        roll_B = (among_BSC * (counts_BSC & (target_BSC < codes))).sum((1, 2))
        metrics["scores"].update(nats_B, roll_B, batch["frames"], batch["domain"])

    @one_thread()
    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """With a judge: the shares of generated clips whose word and whose speaker it recognises, and the mean number
        of real experts on silent and on voiced frames of the split's recordings."""
        pieces = [piece for piece in data.pieces[split] if piece.domain == "speech"]
        if self.config.judge is None or not pieces or "speech" not in data.preprocessing:
            return {}
        c = self.config
        draws = {"temperature": c.temperature, "top_p": c.top_p, "fine": c.fine}
        found = judging.judged(model, data, c.judge, c.takes, draws, most)
        return found | judging.experts_by_level(model, data, pieces[: most or 120])

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Made:
        """Speech of a text by a speaker, or a piece of music that goes on from a MIDI file or starts anew."""
        if "symbols" not in preprocessing:
            raise ZooError(
                "the model was saved without symbols and codec, so it makes no sound; train it with `zoo train`"
            )
        text, before = inputs["text"], inputs["continue"]
        music_wanted = text is None
        if text is not None and before is not None and Path(str(before)).suffix.lower() in MIDI:
            raise ZooError(f"continue={before} is music and text= speech; give a sound file, or leave text= out")
        if music_wanted and inputs["speaker"] is not None:
            raise ZooError("speaker= is for speech, and without text= music is made; give text=, or leave speaker= out")
        if not 0 <= inputs["seed"] < 2**63:
            raise ZooError(f"seed={inputs['seed']} must be at least 0 and below 2**63")
        kind = "music" if music_wanted else "speech"
        c = self.config
        own = {"temperature": 1.0, "top_p": 0.95} if music_wanted else {"temperature": c.temperature, "top_p": c.top_p}
        inputs = {**inputs, **{key: value for key, value in own.items() if inputs[key] is None}}
        for key in ("seconds", "temperature", "top_p", "bpm"):
            value = inputs[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ZooError(f"{key}={value!r} must be a number of at least 0")
        if kind not in preprocessing:
            have = ", ".join(d for d in DOMAINS if d in preprocessing)
            hint = 'text="..."' if kind == "music" else "continue=FILE.mid, or nothing"
            raise ZooError(f"the model was trained on {have} only; give {hint}")
        section = preprocessing[kind]
        return (
            self._music(model, preprocessing, section, inputs)
            if music_wanted
            else self._speech(model, preprocessing, section, inputs)
        )

    def _speech(
        self, model: Any, preprocessing: Mapping[str, Any], section: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Made:
        codec = codec_of(section).to(model.device)
        text, notes, speakers = str(inputs["text"]).lower(), [], speakers_of(preprocessing)
        speaker = None if inputs["speaker"] is None else str(inputs["speaker"]).lower()
        if speaker is not None and speaker not in speakers:
            raise ZooError(
                f"unknown speaker '{speaker}'; the model has heard {', '.join(speakers) or 'nobody by name'}"
            )
        if speaker is None and speakers:
            speaker = speakers[0]
            notes.append(f"no speaker given: {speaker} speaks")
        unknown = sorted({letter for letter in text if letter not in preprocessing["symbols"]})
        if not text or unknown:
            raise ZooError(f"text='{text}' has what the model never read ({''.join(unknown) or 'nothing'}); change it")
        given = None
        if inputs["continue"] is not None:
            wave_N, remarks = read_sound(Path(inputs["continue"]).expanduser(), codec.config.sample_rate)
            given, notes = codec.encode(levelled(wave_N, section["level"]).to(model.device)).cpu(), notes + remarks
        most = _most(model, 2 + len(text), inputs["seconds"], codec.frame_rate, given, notes)
        name = f"{text}_{speaker}" if speaker else text
        drawn = self._draw(model, preprocessing, ("speech", speaker or "", text), most, given, inputs)
        codes_TC = drawn.codes[0]
        wave_N = codec.decode(codes_TC).cpu()
        if not drawn.ended[0]:
            notes.append(f"stopped after {len(codes_TC) / codec.frame_rate:.3g} s: it did not end by itself")
        return Made(
            "speech",
            "".join(x if x.isalnum() or x == "_" else "-" for x in name)[:60],
            codes_TC.cpu(),
            drawn.experts[0],
            wave_N,
            codec.config.sample_rate,
            codec.frame_rate,
            0 if given is None else len(given),
            0.0,
            notes,
        )

    def _music(
        self, model: Any, preprocessing: Mapping[str, Any], section: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Made:
        per_beat, notes, given, name = section["per_beat"], [], None, "music"
        if inputs["bpm"] <= 0:
            raise ZooError("bpm must be above 0")
        if inputs["continue"] is not None:
            path = Path(str(inputs["continue"])).expanduser()
            if path.suffix.lower() not in MIDI:
                raise ZooError(
                    f"continue={path} is no MIDI file (.mid), and without text= music is made; give one of both"
                )
            roll_TH, notes = music.read_midi(path, per_beat)
            given, lost = music.frames_of(roll_TH, preprocessing["channels"])
            if lost:
                notes.append(f"{lost} frames have more than {preprocessing['channels']} keys: the lowest are left out")
            name = f"{path.stem}_continued"
        rate = inputs["bpm"] / 60 * per_beat
        room = _room(model, 2)
        if given is not None and len(given) > room // 2:
            given = given[-(room // 2) :]
            notes.append(f"the model goes on from the last {len(given)} frames, {len(given) / rate:.3g} s")
        most = _most(model, 2, inputs["seconds"], rate, given, notes)
        drawn = self._draw(model, preprocessing, ("music", "", ""), most, given, inputs)
        codes_TC = drawn.codes[0].cpu()
        wave_N = music.played(music.roll_of(codes_TC), per_beat, inputs["bpm"])
        start = 0 if given is None else len(given)
        return Made("music", name, codes_TC, drawn.experts[0], wave_N, music.RATE, rate, start, per_beat, notes)

    def _draw(
        self,
        model: Any,
        preprocessing: Mapping[str, Any],
        what: tuple[str, str, str],
        most: int,
        given: Tensor | None,
        inputs: Mapping[str, Any],
    ) -> Drawn:
        text_BP, valid_BP = prompts(preprocessing, [what])
        generator = torch.Generator(model.device).manual_seed(inputs["seed"])
        return generate(
            model,
            text_BP.to(model.device),
            valid_BP.to(model.device),
            max_frames=most,
            given_TC=given,
            temperature=inputs["temperature"],
            top_p=inputs["top_p"],
            fine=self.config.fine if what[0] == "speech" else 1.0,
            generator=generator,
            codes_in_use=music.KEYS + 1 if what[0] == "music" else None,
        )

    def write(self, result: Made, out: Path) -> list[Path]:
        """The sound as WAV, music as MIDI too, and its picture with the number of active experts under it."""
        files = [write_sound(out / f"{result.name}.wav", result.wave_N, result.sample_rate)]
        picture = out / f"{result.name}.png"
        if result.domain == "speech":
            waves = {result.name: result.wave_N}
            return files + plot_spectrograms(waves, result.sample_rate, picture, result.experts_T, result.frame_rate)
        roll_TH = music.roll_of(result.codes_TC)
        bpm = 60 * result.frame_rate / result.per_beat
        files.append(music.write_midi(out / f"{result.name}.mid", roll_TH, result.per_beat, bpm))
        return files + plot_roll(roll_TH, picture, result.experts_T, result.given)


def _room(model: Any, symbols: int) -> int:
    """Frames that the model has positions for after a prompt of so many symbols."""
    return int(model.config.max_length) - symbols - 1 - max(model.config.delay)


def _most(model: Any, symbols: int, seconds: float, rate: float, given: Tensor | None, notes: list[str]) -> int:
    """Frames of what is given and at most ``seconds`` after it, or as many as the model has positions for."""
    before, room = 0 if given is None else len(given), _room(model, symbols)
    if before >= room:
        raise ZooError(
            f"what to go on from lasts {before / rate:.3g} s, and the model takes {room / rate:.3g}; give a shorter one"
        )
    wanted = before + max(1, round(seconds * rate))
    if wanted > room:
        notes.append(f"seconds={seconds:g}: the model has room for {(room - before) / rate:.3g} s")
    return min(wanted, room)


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), target.flatten(), reduction="none").view_as(target)


def _weights(preprocessing: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return preprocessing.get("speech", {}).get("codec", {}).get("weights", {})
