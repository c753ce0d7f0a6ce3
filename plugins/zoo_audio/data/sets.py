"""The registered data sets: digits, chorales, folk tunes, both in one, what is synthesised, and the user's own.

Shapes: T frames, C channels, H keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import MISSING
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo import config as zc
from zoo import hub
from zoo.download import fetch
from zoo.report import console
from zoo.resources import cache_dir
from zoo.spec import DataFile, ZooError
from zoo.threads import one_thread
from zoo_audio.data import synthesis
from zoo_audio.data.files import JSB, NOTTINGHAM
from zoo_audio.data.recordings import SPLITS, Clips, Recordings, dealt, folder, fractions, fsdd, gathered, left_out
from zoo_audio.data.tokens import Piece, Pieces, Tokens
from zoo_audio.music import KEYS, frames_of, read_midi
from zoo_audio.sound import levelled

CODEC = "audio/codec.digits"


@dataclass
class SoundConfig:
    """Recordings. ``form: tokens`` are codes of ``codec`` (a tag, or the folder of a trained codec) for a model of
    speech; ``stretches`` and ``clips`` are waveforms, to learn a codec or a recogniser from. ``level`` is the root mean
    square of every clip, in dB below full scale."""

    form: Literal["tokens", "stretches", "clips"] = "tokens"
    codec: str = CODEC
    sample_rate: int = 8000
    window: float = 1.28
    level: float = -20.0
    context: int = 512

    def __post_init__(self) -> None:
        zc.at_least(1, self, "sample_rate", "context")


@dataclass
class MusicConfig:
    """Piano rolls. ``channels``: keys that may sound at once; ``shift``: in training a piece is transposed by up to so
    many semitones; ``context``: frames after which a longer piece is cut."""

    channels: int = 4
    shift: int = 0
    context: int = 512

    def __post_init__(self) -> None:
        zc.at_least(1, self, "channels", "context")
        zc.at_least(0, self, "shift")


class Sounds:
    """What data sets of recordings share: they become codes, or stay waveforms."""

    def __new__(cls, config: Any) -> Any:
        notes: list[str] = []
        if config.form != "tokens":
            return Recordings(cls.clips(config, config.sample_rate, notes), config, notes)
        pieces, section = coded(lambda rate: cls.clips(config, rate, notes), config.codec, config.level)
        return Tokens(pieces, {"speech": section}, notes, context=config.context)

    @staticmethod
    def clips(config: Any, rate: int, notes: list[str]) -> Clips:
        """The recordings at a rate."""
        raise TypeError("a data set of sounds must override clips")


class Digits(Sounds):
    """The Free Spoken Digit Dataset: ten digits by six speakers, takes 0 to 4 of each are test."""

    @dataclass
    class Config(SoundConfig):
        pass

    @staticmethod
    def clips(config: Any, rate: int, notes: list[str]) -> Clips:
        return fsdd(rate, notes)


class SoundFiles(Sounds):
    """Your own recordings: a folder of WAV, FLAC or OGG files (see `recordings.folder`)."""

    @dataclass
    class Config(SoundConfig):
        path: str = MISSING
        split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])

    @staticmethod
    def clips(config: Any, rate: int, notes: list[str]) -> Clips:
        return folder(config.path, rate, config.split, notes)


class Chorales(Tokens):
    """JSB Chorales as piano rolls of quarter notes (Boulanger-Lewandowski et al. 2012): 229, 76 and 77 pieces."""

    FILE: DataFile = JSB
    NAME = "JSB Chorales"

    @dataclass
    class Config(MusicConfig):
        shift: int = 5

    def __init__(self, config: Any) -> None:
        notes: list[str] = []
        rolls = published(self.FILE, self.NAME)
        pieces = as_pieces(rolls, config.channels, notes)
        super().__init__(pieces, {"music": {"per_beat": 1.0}}, notes, config.shift, config.context)


class Nottingham(Chorales):
    """Nottingham, British and American folk tunes with chords, as piano rolls (Boulanger-Lewandowski et al. 2012): 694,
    173 and 170 pieces; up to nine keys at once."""

    FILE, NAME = NOTTINGHAM, "Nottingham"

    @dataclass
    class Config(MusicConfig):
        channels: int = 9
        shift: int = 5
        context: int = 256


class MidiFiles(Tokens):
    """Your own MIDI files: a folder of them, ``per_beat`` frames to a quarter note. A file that cannot be read is left
    out and told; splits are by a hash of the name, so that more files move none."""

    @dataclass
    class Config(MusicConfig):
        path: str = MISSING
        per_beat: float = 1.0
        split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])

    def __init__(self, config: Any) -> None:
        root = Path(config.path).expanduser()
        if not root.is_dir():
            raise ZooError(f"'{config.path}' is not a folder; set data.path to one that holds MIDI files (.mid)")
        if config.per_beat <= 0:
            raise ZooError(f"per_beat={config.per_beat} must be above 0")
        fractions(config.split)
        files = sorted(f for f in root.rglob("*") if f.suffix.lower() in (".mid", ".midi"))
        rolls: dict[str, Tensor] = {}
        broken, remarks = [], list[str]()
        for file in files:
            key = file.relative_to(root).as_posix()
            try:
                rolls[key], odd = read_midi(file, config.per_beat)
                remarks += odd
            except ZooError as error:
                broken.append((key, str(error)))
        if not rolls:
            none = f"folder '{config.path}' holds no MIDI file (.mid); put some there"
            raise ZooError(broken[0][1] if broken else none)
        notes = left_out(broken, len(files)) + gathered(remarks)
        parts = dealt(rolls, config.split, notes)
        pieces = as_pieces(parts, config.channels, notes)
        super().__init__(pieces, {"music": {"per_beat": config.per_beat}}, notes, config.shift, config.context)


class Mixed(Tokens):
    """Speech and music in one. ``mix`` says how often each piece of a kind counts in an epoch; a kind with 0 is left
    out of all splits."""

    @dataclass
    class Config:
        speech: Any = zc.part("data set", "audio/digits")
        music: Any = zc.part("data set", "audio/chorales")
        mix: dict[str, int] = field(default_factory=lambda: {"speech": 1, "music": 1})

    def __init__(self, config: Any) -> None:
        if set(config.mix) != {"speech", "music"} or min(config.mix.values()) < 0 or not any(config.mix.values()):
            raise ZooError(
                f"mix={dict(config.mix)} must say how often speech and music count, such as {{speech: 1, music: 8}}"
            )
        sets = [zc.build("data set", config.speech), zc.build("data set", config.music)]
        for given, kind in zip(sets, ("speech", "music"), strict=True):
            if not isinstance(given, Tokens) or kind not in given.sections:
                raise ZooError(f"data.{kind} is no data set of {kind} as tokens; choose another")
        pieces = {split: [piece for given in sets for piece in given.pieces[split]] for split in SPLITS}
        sections = {kind: given.sections[kind] for given, kind in zip(sets, ("speech", "music"), strict=True)}
        notes = [note for given in sets for note in given.notes if not note.startswith(SPLITS)]
        super().__init__(pieces, sections, notes, sets[1].shift, max(s.context for s in sets), dict(config.mix))


class Synthetic(Tokens):
    """Made here, no file needed: vowels of three synthetic voices, and four-part cadences in all keys."""

    @dataclass
    class Config:
        codec: str = CODEC
        size: int = 120
        seed: int = 0

        def __post_init__(self) -> None:
            zc.at_least(10, self, "size")

    def __init__(self, config: Any) -> None:
        notes = ["synthetic vowels and cadences: for a first try, not for conclusions"]
        draw = torch.Generator().manual_seed(config.seed)
        pieces, section = coded(lambda rate: synthesis.vowels(config.size, rate, draw), config.codec, -20.0)
        channels = pieces["train"][0].codes_TC.shape[1]
        music = as_pieces(synthesis.cadences(config.size, draw), channels, notes)
        both = {split: pieces[split] + music[split] for split in SPLITS}
        super().__init__(
            both, {"speech": section, "music": {"per_beat": 1.0}}, notes, 0, 512, {"speech": 1, "music": 1}
        )


def published(file: DataFile, name: str) -> dict[str, list[Tensor]]:
    """The piano rolls of a MATLAB file as the TCN repository has it. Raises `ZooError` for any other content."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = fetch(file)
    try:
        content = loadmat(path, variable_names=[f"{split}data" for split in ("train", "valid", "test")])
        names = {"train": "traindata", "val": "validdata", "test": "testdata"}
        rolls = {split: [torch.from_numpy(x.astype("bool")) for x in content[n][0]] for split, n in names.items()}
        if any(roll.shape[1] != KEYS for split in SPLITS for roll in rolls[split]):
            raise ValueError("its rolls have not 88 keys")
    except (MatReadError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # What scipy does not read (the HDF5 files of MATLAB 7.3) is a RuntimeError to it.
        raise ZooError(f"'{path}' is not {name} as it was published ({error}); delete it, to fetch it again") from error
    return rolls


def as_pieces(rolls: Mapping[str, list[Tensor]], channels: int, notes: list[str]) -> Pieces:
    """Piano rolls as codes; keys beyond the channels are dropped and told."""
    pieces: Pieces = {split: [] for split in SPLITS}
    dropped = total = 0
    for split in SPLITS:
        for roll_TH in rolls[split]:
            codes_TC, lost = frames_of(roll_TH, channels)
            pieces[split].append(Piece("music", "", "", codes_TC))
            dropped, total = dropped + lost, total + len(codes_TC)
    if dropped:
        notes.append(f"{dropped:,} of {total:,} frames have more than {channels} keys: the lowest of them are dropped")
    return pieces


def coded(clips_at: Any, codec_name: str, level: float) -> tuple[Pieces, dict[str, Any]]:
    """Recordings as codes of a trained codec, and the section of the preprocessing that gives the sound back. Codes are
    kept in the cache, by what they are made from.

    Args:
        clips_at: gives the recordings at a sample rate.
    """
    predictor = hub.load(codec_name)
    codec = predictor.model
    if not hasattr(codec, "encode"):
        raise ZooError(f"'{codec_name}' is no codec; set data.codec to one, such as {CODEC}")
    state = {key: value.half() if value.is_floating_point() else value for key, value in codec.state_dict().items()}
    codec.load_state_dict(state)  # it travels in half precision, and the codes are to be those of what travels
    clips = clips_at(codec.config.sample_rate)
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.numpy().tobytes())
    digest.update(repr((codec.config, level)).encode())
    names = [(split, i) for split in SPLITS for i in range(len(clips[split]))]
    for split, i in names:
        digest.update(clips[split][i].wave_N.numpy().tobytes())
    path = cache_dir() / "codes" / f"{digest.hexdigest()[:24]}.safetensors"
    if path.is_file():
        found = load_file(path)
    else:
        doing = f"{len(names):,} recordings become codes of {codec_name}; they are kept in the cache"
        with one_thread(), console(stderr=True).status(doing):
            found = {f"{s}.{i}": codec.encode(levelled(clips[s][i].wave_N, level)).to(torch.int16) for s, i in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        save_file(found, new)
        new.replace(path)
    pieces: Pieces = {split: [] for split in SPLITS}
    for split, i in names:
        clip = clips[split][i]
        pieces[split].append(Piece("speech", clip.speaker, clip.text, found[f"{split}.{i}"].long()))
    section = {"codec": {"name": codec.zoo_name, "config": dict(vars(codec.config)), "weights": state}, "level": level}
    return pieces, section
