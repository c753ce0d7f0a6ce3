"""A stick figure that moves: animated GIF, with the beats of the music.

Shapes: T frames, J joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.spec import ZooError
from zoo_dance.motion.beats import gaussian
from zoo_dance.motion.skeleton import Motion

GIF_FPS = 15
FLASH = 0.12
_PAPER, _LINE, _BODY, _LEFT, _RIGHT, _BEAT = "#ffffff", "#d8d8d8", "#333333", "#c0392b", "#2471a3", "#e69f00"

_COLOURS, _SHARES = (_PAPER, _LINE, _BODY, _LEFT, _RIGHT, _BEAT), (1.0, 0.8, 0.6, 0.4, 0.2)


def _mixed(colour: str, share: float) -> list[int]:
    return [round(255 - share * (255 - int(colour[n : n + 2], 16))) for n in (1, 3, 5)]


def write_gif(
    motion: Motion,
    path: Path,
    beats: Sequence[float] = (),
    captions: Sequence[tuple[float, str]] = (),
    size: int = 240,
    seconds: float = 20.0,
) -> Path:
    """Write the first ``seconds`` of a canonical motion.

    Args:
        beats: of the music, in seconds: a dot lights up, and ticks run along the lower edge.
        captions: what is written from when on, such as the genre.
    """
    from PIL import Image, ImageDraw

    if len(motion) == 0:
        raise ZooError("there is no frame to draw; give a longer motion")
    step = motion.fps / GIF_FPS
    shown = min(len(motion), round(seconds * motion.fps))
    picks = [min(shown - 1, round(n * step)) for n in range(max(1, int(shown / step)))]
    places_TJ3 = motion.positions()[:shown]
    # The camera follows the root sideways, slowly, and looks from the front and a little from the side and above.
    root_T3 = places_TJ3[:, 0].clone()
    follow = torch.stack([gaussian(root_T3[:, axis], motion.fps / 3) for axis in (0, 2)], -1)
    turn, tilt = torch.tensor(0.5), 0.15
    double = 2 * size
    scale, floor = 0.40 * double, 0.86 * double
    # One palette for all frames: each colour on its way to the paper's.
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in _COLOURS for share in _SHARES for value in _mixed(colour, share)])
    frames = []
    for pick in picks:
        image = Image.new("RGB", (double, double), _PAPER)
        pen = ImageDraw.Draw(image)

        def at(x: float, y: float, z: float, pick: int = pick) -> tuple[float, float]:
            x, z = x - float(follow[pick, 0]), z - float(follow[pick, 1])
            across, ahead = x * float(turn.cos()) - z * float(turn.sin()), x * float(turn.sin()) + z * float(turn.cos())
            return double / 2 + scale * across, floor - scale * (y - tilt * ahead)

        for line in range(-4, 5):  # a floor of tiles of half a metre, so that one sees somebody walk
            x0, z0 = (round(float(follow[pick, axis]) * 2) / 2 for axis in (0, 1))
            near, far = line / 2, 2.0
            pen.line([at(x0 + near, 0, z0 - far), at(x0 + near, 0, z0 + far)], fill=_LINE, width=2)
            pen.line([at(x0 - far, 0, z0 + near), at(x0 + far, 0, z0 + near)], fill=_LINE, width=2)
        for joint, parent in enumerate(motion.skeleton.parents):
            if parent < 0:
                continue
            name = motion.skeleton.names[joint]
            colour = _LEFT if "left" in name else _RIGHT if "right" in name else _BODY
            pen.line([at(*places_TJ3[pick, parent].tolist()), at(*places_TJ3[pick, joint].tolist())], colour, width=8)
        head = at(*(places_TJ3[pick, motion.skeleton.names.index("head")]).tolist())
        radius = 0.11 * scale
        top = (head[0], head[1] - radius * 0.8)
        pen.ellipse([top[0] - radius, top[1] - radius, top[0] + radius, top[1] + radius], fill=_BODY)
        _marks(pen, pick / motion.fps, beats, captions, double)
        small = image.resize((size, size), Image.Resampling.LANCZOS)
        frames.append(small.quantize(palette=palette, dither=Image.Dither.NONE))
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) > 1:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / GIF_FPS), loop=0)
    else:
        frames[0].save(path)
    return path


def _marks(pen: object, now: float, beats: Sequence[float], captions: Sequence[tuple[float, str]], size: int) -> None:
    from PIL import ImageDraw, ImageFont

    assert isinstance(pen, ImageDraw.ImageDraw)
    font = ImageFont.load_default(size / 16)
    said = [text for start, text in captions if start <= now + 1e-6]
    if said:
        pen.text((size * 0.03, size * 0.02), said[-1], fill=_BODY, font=font)
    pen.text((size * 0.74, size * 0.02), f"{now:5.1f} s", fill=_BODY, font=font)
    if beats:
        edge, window = size * 0.97, 2.0
        pen.line([(0, edge), (size, edge)], fill=_LINE, width=2)
        pen.line([(size / 2, edge - 14), (size / 2, edge + 14)], fill=_BODY, width=3)
        for beat in beats:
            if abs(beat - now) < window:
                x = size / 2 + (beat - now) / window * size / 2
                pen.line([(x, edge - 10), (x, edge + 10)], fill=_BEAT, width=6)
        if any(0 <= now - beat < FLASH for beat in beats):
            pen.ellipse([size * 0.9, size * 0.10, size * 0.97, size * 0.17], fill=_BEAT)
