"""The data sets: DeepMimic and AMP, Bandai-Namco's two, AIST++, FineDance, and one's own files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo.download import fetch, unpack
from zoo.spec import ZooError
from zoo_dance.data.files import AMP, BANDAI_NAMCO_1, DEEPMIMIC
from zoo_dance.data.motions import MotionData, Source, WindowConfig, load, motion_files

KINDS: Mapping[str, tuple[str, ...]] = {
    "dance": ("dance_a", "dance_b", "dance"),
    "walk": ("walk", "zombie_walk", "stealthy_walk"),
    "run": ("run", "jog"),
    "jump": ("jump", "hop"),
    "spin": ("spin", "dance_spin"),
    "acrobatics": ("cartwheel", "backflip", "sideflip", "roll"),
    "fight": ("kick", "punch", "spinkick"),
    "floor": ("crawl", "getup_facedown", "getup_faceup"),
}
"""What the clips of DeepMimic and AMP show."""
AIST = {
    "gBR": "break", "gPO": "pop", "gLO": "lock", "gMH": "middle_hiphop", "gLH": "la_hiphop",
    "gHO": "house", "gWA": "waack", "gKR": "krump", "gJS": "street_jazz", "gJB": "ballet_jazz",
}  # fmt: skip
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")


class Mimic(MotionData):
    """DeepMimic's 20 reference motions (MIT) and AMP's five others from CMU's motion capture (BSD-3-Clause); the kind
    of motion stands in for the genre, and music is made for the steps.

    Config:
        kinds: the genres to take; all by default.
    """

    @dataclass
    class Config(WindowConfig):
        kinds: list[str] = field(default_factory=lambda: list(KINDS))

    def __init__(self, config: Config) -> None:
        if unknown := [kind for kind in config.kinds if kind not in KINDS]:
            raise ZooError(f"no kind '{unknown[0]}'; choose among {', '.join(KINDS)}")
        notes: list[str] = []
        mimic = motion_files(unpack(fetch(DEEPMIMIC)), (".txt",))
        amp = [path for path in motion_files(unpack(fetch(AMP)), (".npy",)) if "backflip" not in path.stem]
        sources = []
        for path in [*(p for p in mimic if p.stem.startswith("humanoid3d_")), *amp]:
            name = path.stem.removeprefix("humanoid3d_").removeprefix("amp_humanoid_")
            kind = next((kind for kind, names in KINDS.items() if name in names), None)
            if kind in config.kinds and kind is not None:
                sources.append(Source(path, kind))
        super().__init__(load(sources, notes, "mimic"), config, notes)


class BandaiNamco(MotionData):
    """Bandai-Namco-Research-Motiondataset 1 or 2: contents by styles, the style as genre. CC BY-NC: for research, never
    for weights that are given away.

    Config:
        path: the folder of a download; by default dataset 1 under ``ZOO_DATA``.
        contents: take these only.
    """

    @dataclass
    class Config(WindowConfig):
        path: str | None = None
        contents: list[str] = field(default_factory=list)
        by: str = "clip"

    def __init__(self, config: Config) -> None:
        folder = unpack(fetch(BANDAI_NAMCO_1)) if config.path is None else Path(config.path).expanduser()
        sources, notes = [], list[str]()
        for path in motion_files(folder, (".bvh",)):
            words = path.stem.split("_")  # dataset-1_walk-left_happy_001
            if (
                len(words) >= 4
                and words[0].startswith("dataset-")
                and (words[1] in config.contents or not config.contents)
            ):
                sources.append(Source(path, words[2], words[1]))
        if not sources:
            raise ZooError(
                f"'{folder}' holds no clip named as in dataset-1_walk_happy_001.bvh"
                f"{f' with contents {config.contents}' if config.contents else ''}; set data.path=FOLDER"
            )
        super().__init__(load(sources, notes, "bandai_namco"), config, notes)


class AISTpp(MotionData):
    """AIST++ (arXiv:2101.08779) as it is downloaded: a folder with ``motions/*.pkl``, and the music of AIST, which has
    terms of its own, as ``mBR0.wav`` and so on in ``music``.

    Config:
        music: the folder of the songs; by default ``music`` beside the motions. Where it is missing, music is made.
    """

    @dataclass
    class Config(WindowConfig):
        path: str = "~/aist_plusplus"
        music: str | None = None
        frames: int = 240
        by: str = "clip"

    def __init__(self, config: Config) -> None:
        folder, notes = Path(config.path).expanduser(), list[str]()
        songs = Path(config.music).expanduser() if config.music else folder / "music"
        sources = []
        for path in motion_files(folder, (".pkl",)):
            words = path.stem.split("_")  # gBR_sBM_cAll_d04_mBR0_ch01
            genre = AIST.get(words[0])
            if genre is None or len(words) < 5:
                continue
            sources.append(Source(path, genre, "", _song(songs, words[4])))
        if not sources:
            raise ZooError(
                f"'{folder}' holds no motion named as in gBR_sBM_cAll_d04_mBR0_ch01.pkl; set data.path=FOLDER"
            )
        super().__init__(load(sources, notes, "aist"), config, notes)


class FineDance(MotionData):
    """FineDance (arXiv:2212.03741) as it is downloaded: ``motion/*.npy``, ``music_wav/*.wav``, ``label_json/*.json``.

    Config:
        coarse: the four styles (``style1``) instead of the fine ones (``style2``).
    """

    @dataclass
    class Config(WindowConfig):
        path: str = "~/FineDance"
        coarse: bool = False
        frames: int = 240
        by: str = "clip"

    def __init__(self, config: Config) -> None:
        folder, notes, sources = Path(config.path).expanduser(), list[str](), []
        for path in motion_files(folder / "motion", (".npy",)):
            label = folder / "label_json" / f"{path.stem}.json"
            try:
                said = json.loads(label.read_text(encoding="utf-8"))
                genre = str(said["style1" if config.coarse else "style2"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ZooError(f"'{label}' gives no style for {path.name} ({error}); download it again") from error
            sources.append(Source(path, genre, "", _song(folder / "music_wav", path.stem)))
        super().__init__(load(sources, notes, "finedance"), config, notes)


class Own(MotionData):
    """Your own motion: a folder for every genre, motion files in it, beside each a sound file of the same name where
    there is music. Files straight in the folder are of the genre ``any``."""

    @dataclass
    class Config(WindowConfig):
        path: str = "motions"
        by: str = "clip"

    def __init__(self, config: Config) -> None:
        folder, notes = Path(config.path).expanduser(), list[str]()
        sources = [
            Source(path, path.relative_to(folder).parts[0] if path.parent != folder else "any", "", _beside(path))
            for path in motion_files(folder)
        ]
        taken = {path for source in sources for path in (source.path, source.music)}
        rest = sorted(path for path in folder.rglob("*") if path.is_file() and path not in taken)
        if songs := [path.name for path in rest if path.suffix.lower() in SOUNDS]:
            notes.append(f"{len(songs)} songs lie beside no motion of their name, such as {songs[0]}: not used")
        others = Counter(path.suffix.lower() or path.name for path in rest if path.suffix.lower() not in SOUNDS)
        if others:
            notes.append(f"passed over: {', '.join(f'{n} {suffix}' for suffix, n in others.most_common(8))}")
        super().__init__(load(sources, notes, "own"), config, notes)


def _song(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{suffix}" for suffix in SOUNDS if (folder / f"{name}{suffix}").is_file()), None)


def _beside(path: Path) -> Path | None:
    return _song(path.parent, path.stem)
