"""The task of a dancer: a tokeniser, what follows in its codes, and dances to a user's music.

Shapes: B clips, T frames, t tokens, C features, F numbers of music, N digits, V values of all digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate
from torchmetrics import MeanMetric, MetricCollection

from zoo import registry
from zoo.hub.convert import read_pickle
from zoo.nn.wiring import MixtureOfBlocks
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Batch, Loss, Task
from zoo_dance.generate import dance
from zoo_dance.motion.bvh import write_bvh
from zoo_dance.motion.draw import write_gif
from zoo_dance.motion.formats import read_motion
from zoo_dance.motion.retarget import canonical
from zoo_dance.motion.skeleton import BODY, FPS, ORDER, WIDTH, Motion, facing, from_features, grounded, to_features
from zoo_dance.music.features import BEAT, Song, beat_times, features, read_song
from zoo_dance.music.synth import played, write_song
from zoo_dance.tasks.coding import code_use, update_reconstruction
from zoo_dance.tasks.evaluator import judged, train_judge
from zoo_dance.tasks.reconstruction import ReconstructionConfig, Scale, reconstruction_loss

LEAST = 8
"""Windows that an evaluation of dances needs."""
BAND_SECONDS = 16.0
"""How long the band plays, unless a user says otherwise."""


class Danced(NamedTuple):
    """What `Dancing.predict` returns: a motion, the beats of its music in seconds, from when on which genre, how
    much of it a picture shows, and the music where it was made for the dance."""

    motion: Motion
    beats: list[float]
    genres: list[tuple[float, str]]
    seconds_shown: float
    notes: list[str]
    made_N: Tensor | None = None


class Dancing(Task):
    """Codec and decoder: a stage trains what its ``trainable`` says, and its losses are those of what it trains.

    Args (config):
        weights: of the codec's reconstruction.
        quantiser: factor of the quantisers' own loss.
        temperature, top_p: how dances are drawn, unless a user says otherwise.
        drawn: how many windows an evaluation dances at most.
    """

    monitor = "loss"

    @dataclass
    class Config:
        weights: ReconstructionConfig = field(default_factory=ReconstructionConfig)
        quantiser: float = 1.0
        temperature: float = 1.0
        top_p: float = 0.9
        drawn: int = 96

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scale: Scale | None = None

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Raises `ZooError` for windows or genres that are not the model's."""
        if trained:
            data.normalise_as(trained)
        p, c = data.preprocessing, model.config
        if p["frames"] % c.codec.stride:
            raise ZooError(f"data.frames={p['frames']} is no multiple of a token's {c.codec.stride} frames; change it")
        for key in ("genres", "contents"):
            most = getattr(c, key)
            if len(p[key]) > most and (most or key == "genres"):
                raise ZooError(
                    f"the data have {len(p[key])} {key} and the model has room for {most}; "
                    f"set model.{key}={len(p[key])}"
                )
        tokens = p["frames"] // c.codec.stride
        if tokens > c.max_length:
            raise ZooError(
                f"a window has {tokens} tokens and model.max_length={c.max_length}; lower data.frames to "
                f"{c.max_length * c.codec.stride}"
            )
        self.scale = Scale(p)

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> Loss:
        assert self.scale is not None
        codec_learns = any(p.requires_grad for p in model.codec.parameters())
        decoder_learns = any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("codec."))
        x, valid = batch["motion"], batch["valid"]
        total, logs, routing = x.new_zeros(()), {}, ()
        if codec_learns:
            coded = model.codec(x)
            digits = tuple(model.own_digits(each.detach()) for each in coded.digits)
            logs["codec"] = reconstruction_loss(x, coded.motion_BTC, valid, self.scale, self.config.weights)
            total = total + logs["codec"] + self.config.quantiser * coded.loss_B.mean()
        else:
            with torch.no_grad():
                digits = tuple(model.own_digits(each) for each in model.codec.encode(x))
        if decoder_learns:
            music = model.music_of_tokens(batch["music"])
            logits, routing = model.foretell(digits, music, batch["genre"], batch["content"])
            logs["token"], _ = token_loss(model, logits, digits, valid)
            total = total + logs["token"]
        return Loss(total, routing, {key: value.detach() for key, value in logs.items()})

    def metrics(self) -> MetricCollection:
        """``loss``: of the codes, in nats a token, a mean over both streams, or of the codec while only that is
        trained; and those of the codec, see `zoo_dance.tasks.coding`."""
        return MetricCollection(
            {"loss": MeanMetric(), "l1": MeanMetric(), "joint_cm": MeanMetric(), "joint_mse": MeanMetric()}
        )

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        assert self.scale is not None
        out = model(batch["motion"], batch["music"], batch["genre"], batch["content"])
        update_reconstruction(metrics, batch, out.motion_BTC, self.scale)
        if any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("codec.")):
            metrics["loss"].update(*token_loss(model, out.logits, out.digits, batch["valid"]))
        else:
            metrics["loss"].update((batch["motion"] - out.motion_BTC).abs().mean(-1)[batch["valid"]])

    # -- dances --------------------------------------------------------------------------------------------------------

    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """Dances to the music and genre of the split's windows, see `zoo_dance.tasks.evaluator.judged`; and
        ``code_use`` of the whole data set."""
        dataset = data.split(split)
        rows = spread(len(dataset), min(self.config.drawn, most or len(dataset), len(dataset)))
        use = {"code_use": code_use(model.codec, data)}
        if len(rows) < LEAST:
            return use
        dataset.move = False
        batch = default_collate([dataset[row] for row in rows])
        scale, device = Scale(data.preprocessing), model.device
        music = model.music_of_tokens(batch["music"].to(device))
        genre_Bt = batch["genre"][:, None].expand(-1, music.shape[1]).to(device)
        digits = dance(
            model,
            music,
            genre_Bt,
            batch["content"].to(device),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            generator=torch.Generator().manual_seed(0),
            first=self._first(model, batch["motion"].to(device)),
            cached=_cached(model),
        )
        made_BTC = scale.undo(model.decode(digits)).cpu()
        lengths = batch["valid"].sum(1).tolist()
        made = [places(x[:length]) for x, length in zip(made_BTC, lengths, strict=True)]
        real = [places(x[:length]) for x, length in zip(scale.undo(batch["motion"]), lengths, strict=True)]
        hop = Scale(data.preprocessing, "music").undo(batch["music"])[..., BEAT] > 0.5
        beats = [row[:length].nonzero()[:, 0].tolist() for row, length in zip(hop, lengths, strict=True)]
        judge = None
        if len(genres := data.preprocessing["genres"]) > 1:
            windows = data.split("train")
            windows.move = False
            seen = default_collate([windows[row] for row in range(len(windows))])
            known = [places(x[: int(v.sum())]) for x, v in zip(scale.undo(seen["motion"]), seen["valid"], strict=True)]
            judge = train_judge(known, seen["genre"], len(genres))
        return use | judged(made, real, beats, batch["genre"], judge, batch["held_out"])

    def _first(self, model: Any, motion_BTC: Tensor | None) -> tuple[Tensor, ...] | None:
        """The first token's digits, for models that go on from a pose."""
        if model.start_SD is not None or motion_BTC is None:
            return None
        return tuple(model.own_digits(each[:, :1]) for each in model.codec.encode(motion_BTC))

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Danced:
        """A dance as long as the music."""
        if inputs["stats"] is not None:
            preprocessing = {**preprocessing, **public_stats(Path(inputs["stats"]).expanduser())}
        stride, device = model.config.codec.stride, model.device
        limit = _number("seconds", inputs["seconds"], 0, 24 * 3600)
        made = None
        if not Path(inputs["music"]).expanduser().exists():
            made = played(inputs["music"], BAND_SECONDS if limit is None else max(limit, 1.0))
        song = read_song(inputs["music"]) if made is None else Song(made)
        notes = list(song.notes)
        heard_TF = features(song.sound_N)
        if limit is not None:
            heard_TF = heard_TF[: max(stride, round(limit * FPS))]
        frames = len(heard_TF)
        tokens = -(-frames // stride)
        names = preprocessing.get("genres") or [str(n) for n in range(model.config.genres)]
        spans = genres_over_time(inputs["genre"], names, notes)
        genre_t = torch.zeros(tokens, dtype=torch.long)
        for start, name in spans:
            if start * FPS >= frames:
                raise ZooError(
                    f"genre={inputs['genre']}: {name} is to start at {start:g} s, and the music lasts "
                    f"{frames / FPS:.3g} s; leave it out"
                )
            genre_t[round(start * FPS / stride) :] = names.index(name)
        padded = torch.cat([heard_TF, heard_TF[-1:].expand(tokens * stride - frames, -1)])
        music = model.music_of_tokens(_scale(preprocessing, "music").do(padded)[None].to(device))
        temperature = _number("temperature", inputs["temperature"], 0, 100)
        top_p = _number("top_p", inputs["top_p"], 0, 1)
        seed = _number("seed", inputs["seed"], 0, 2**32 - 1)
        digits = dance(
            model,
            music,
            genre_t[None].to(device),
            self._content(model, preprocessing, inputs["content"]),
            temperature=self.config.temperature if temperature is None else temperature,
            top_p=self.config.top_p if top_p is None else top_p,
            generator=torch.Generator().manual_seed(int(seed or 0)),
            first=self._start(model, preprocessing, inputs["start"]),
            cached=_cached(model),
        )
        x_TC = _scale(preprocessing, "motion").undo(model.decode(digits))[0, :frames].cpu()
        if not x_TC.isfinite().all():
            raise ZooError("the dance is not finite: the weights are damaged; train on, or load them again")
        motion = grounded(from_features(x_TC))
        beats = [beat for beat in beat_times(heard_TF) if beat * FPS < frames]
        notes.append(f"{frames / FPS:.3g} s of music, {len(beats)} beats, {tokens} tokens")
        return Danced(motion, beats, spans, float(_number("gif", inputs["gif"], 0, 3600) or 0), notes, made)

    def _content(self, model: Any, preprocessing: Mapping[str, Any], asked: Any) -> Tensor | None:
        known = preprocessing.get("contents") or []
        if asked is None:
            return None
        if not model.config.contents:
            raise ZooError(f"content={asked}: this model knows no contents; leave it out")
        if str(asked) not in known:
            raise ZooError(f"no content '{asked}'; {registry.suggest(str(asked), known)}: {', '.join(known[:20])}")
        return torch.tensor([known.index(str(asked))], device=model.device)

    def _start(self, model: Any, preprocessing: Mapping[str, Any], path: Any) -> tuple[Tensor, ...] | None:
        """The first token of a motion file, or of somebody who stands."""
        if model.start_SD is not None:
            if path is not None:
                raise ZooError(f"start={path}: this model has a start token of its own; leave it out")
            return None
        if path is None:
            still = torch.eye(3, dtype=torch.float64).expand(4 * model.codec.stride, len(BODY.names), 3, 3)
            motion = Motion(BODY, torch.zeros(len(still), 3, dtype=torch.float64), still, FPS)
        else:
            motion = facing(canonical(read_motion(str(path)), f"'{path}'", FPS))
        x = _scale(preprocessing, "motion").do(to_features(motion)[None]).to(model.device)
        whole = x.shape[1] // model.codec.stride * model.codec.stride
        if not whole:
            raise ZooError(f"start={path} is shorter than a token ({model.codec.stride} frames at 30 a second)")
        return self._first(model, x[:, :whole])

    def write(self, result: Danced, out: Path) -> list[Path]:
        """``dance.bvh``, ``dance.gif`` of its start, ``dance.json`` with beats and genres, and ``music.wav`` where the
        band has played."""
        out.mkdir(parents=True, exist_ok=True)
        files = [write_bvh(result.motion, out / "dance.bvh")]
        if result.seconds_shown > 0:
            shown = result.seconds_shown
            files.append(write_gif(result.motion, out / "dance.gif", result.beats, result.genres, seconds=shown))
        if result.made_N is not None:
            files.append(write_song(result.made_N, out / "music.wav"))
        document = {
            "seconds": len(result.motion) / result.motion.fps,
            "fps": result.motion.fps,
            "beats": result.beats,
            "genres": [{"from": start, "genre": name} for start, name in result.genres],
        }
        (out / "dance.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return [*files, out / "dance.json"]


def token_loss(
    model: Any, logits: Sequence[Tensor], digits: Sequence[Tensor], valid_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the codes in nats a token, and how many tokens count: the sum over digits, the mean over tokens
    and streams. Tokens that hold padding do not count, nor does a first one that was given."""
    valid_Bt = valid_BT.unflatten(1, (-1, model.codec.stride)).all(-1)
    if model.start_SD is None:
        valid_Bt = valid_Bt & (torch.arange(valid_Bt.shape[1], device=valid_Bt.device) > 0)
    total, count = logits[0].new_zeros(()), valid_Bt.sum()
    for each, target in zip(logits, digits, strict=True):
        for n, part in enumerate(each.float().split(list(model.levels), -1)):
            loss_N = F.cross_entropy(part.flatten(0, 1), target[..., n].flatten(), reduction="none")
            total = total + (loss_N * valid_Bt.flatten()).sum() / count.clamp(min=1)
    return total / len(logits), count


def places(features_TC: Tensor) -> Tensor:
    """(T, J, 3) of a dance, its feet on the ground."""
    return grounded(from_features(features_TC)).positions()


def genres_over_time(asked: Any, names: Sequence[str], notes: list[str]) -> list[tuple[float, str]]:
    """``happy``, or ``happy,sad@12.5``: from when on which genre, in seconds.

    Raises:
        ZooError: a genre that the model does not know, with the near miss, or times that do not rise.
    """
    if asked is None or not str(asked).strip():
        notes.append(f"no genre=...: {names[0]}; there are {', '.join(names[:20])}")
        return [(0.0, names[0])]
    spans: list[tuple[float, str]] = []
    for part in str(asked).split(","):
        found = re.fullmatch(r"\s*([^@]+?)\s*(?:@\s*(\d+(?:\.\d+)?)\s*s?)?\s*", part)
        if found is None or (spans and found[2] is None):
            raise ZooError(f"genre={asked} is not understood; write genre=NAME, or NAME,OTHER@SECONDS")
        name, start = found[1], float(found[2] or 0.0)
        if name not in names:
            raise ZooError(f"no genre '{name}'; {registry.suggest(name, names)}: {', '.join(names[:20])}")
        if spans and start <= spans[-1][0]:
            raise ZooError(f"genre={asked}: the times must rise; write genre=NAME,OTHER@8,THIRD@16")
        spans.append((start if spans else 0.0, name))
    return spans


def public_stats(folder: Path) -> dict[str, Any]:
    """Means and spreads as MEGADance's authors give them, ``mean.pt`` and ``std.pt``, in our order and units: theirs
    are joints in turn, and metres a frame.

    Raises:
        ZooError: a file that is missing, or more or other than these tensors.
    """
    found: dict[str, dict[str, Any]] = {"motion": {}, "music": {}}
    for name in ("mean", "std"):
        tensors = read_pickle(folder / f"{name}.pt") if (folder / f"{name}.pt").is_file() else {}
        parts = [tensors.get(f"{key}_{name}") for key in ("smpl_poses", "smpl_root_vel", "music_librosa")]
        if any(part is None or part.numel() != n for part, n in zip(parts, (WIDTH - 3, 3, 35), strict=True)):
            raise ZooError(f"'{folder / f'{name}.pt'}' does not give the {name} of MEGADance; set stats=FOLDER")
        poses, velocity, music = (part.flatten().float() for part in parts if part is not None)
        found["motion"][name] = torch.cat([poses, velocity * FPS])[list(ORDER)].tolist()
        found["music"][name] = music.tolist()
    return found


def _cached(model: Any) -> bool:
    """Whether the layers can keep what they saw: unlabelled routing looks at the whole sequence each time."""
    return all(layer.by_tag for layer in model.stack.layers if isinstance(layer, MixtureOfBlocks))


def _scale(preprocessing: Mapping[str, Any], key: str) -> Scale:
    if key not in preprocessing:
        raise ZooError(
            f"the weights came without the means and spreads of their {key}; give the folder of mean.pt and std.pt: "
            "stats=FOLDER"
        )
    return Scale(preprocessing, key)


def _number(name: str, value: Any, least: float, most: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ZooError(f"{name}={value!r} must be a number from {least:g} to {most:g}")
    return float(value)
