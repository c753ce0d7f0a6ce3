"""Pictures of policies at work: a film with the active expert drawn in, and the use of experts over an episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.report import figure, plots_available, save_figure

if TYPE_CHECKING:
    from zoo_robotics.rollout import Episode, Step

COLOURS = ("#4477aa", "#66ccee", "#ccbb44", "#ee6677", "#228833", "#aa3377", "#bbbbbb", "#222222")
_PAPER, _INK = "#ffffff", "#222222"


def write_film(film: Sequence[Step], phases: Sequence[str], success: bool, fps: float, path: Path) -> list[Path]:
    """The steps that have a picture, as an animated GIF; below each a bar for every expert's weight, and which was the
    largest so far. Without pictures nothing is written."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [n for n, step in enumerate(film) if step.picture_HWC is not None]
    if not shown:
        return []
    size = film[shown[0]].picture_HWC.shape[0]
    gated = film[0].gate_P is not None
    row = max(12, size // 16)
    below = row * (len(phases) + 2) if gated else row
    font = ImageFont.load_default(row * 0.8)
    largest = [int(np.argmax(step.gate_P)) for step in film if step.gate_P is not None]
    frames = []
    for n in [*shown, *([shown[-1]] * 8)]:  # stay at the end
        step = film[n]
        frame = Image.new("RGB", (size, size + below), _PAPER)
        frame.paste(Image.fromarray(step.picture_HWC), (0, 0))
        pen = ImageDraw.Draw(frame)
        last = n == shown[-1]
        label = f"step {len(film) if last else n + 1}" + ((", solved" if success else ", not solved") if last else "")
        pen.text((4, size + 1), label, fill=_INK, font=font)
        if gated and step.gate_P is not None:
            active = largest[n]
            pen.text((size * 0.5, size + 1), f"expert: {_name(phases, active)}", fill=_colour(active), font=font)
            for p, weight in enumerate(step.gate_P):
                top = size + row * (p + 1)
                pen.text((4, top + 1), _name(phases, p), fill=_INK, font=font)
                left = size * 0.4
                pen.rectangle([left, top + 2, size - 4, top + row - 3], outline="#dddddd")
                pen.rectangle([left, top + 2, left + max(1.0, weight * (size - 4 - left)), top + row - 3], _colour(p))
            top = size + row * (len(phases) + 1)
            for t in range(n + 1):
                x0, x1 = (4 + (size - 8) * edge / len(film) for edge in (t, t + 1))
                pen.rectangle([x0, top + 2, x1, top + row - 3], _colour(largest[t]))
        frames.append(frame)
    # One palette for all: of some frames, and of the colours that mean something.
    sample = Image.new("RGB", (size, 4 * size), _PAPER)
    for n in range(3):
        sample.paste(frames[n * (len(frames) - 1) // 2], (0, n * size))
    pen = ImageDraw.Draw(sample)
    for n, colour in enumerate((*COLOURS, _INK, _PAPER)):
        pen.rectangle([0, 3 * size + n * size // 10, size, 3 * size + (n + 1) * size // 10], colour)
    palette = sample.quantize(160)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return [path]


def plot_use(episodes: Sequence[Episode], phases: Sequence[str], path: Path) -> list[Path]:
    """Mean weight of every expert over the course of an episode, an axis a task. Nothing for heads without experts."""
    tasks = list(dict.fromkeys(e.task for e in episodes if e.use_BP))
    if not tasks or not plots_available():
        return []
    fig, axes = figure(len(tasks), 1, width=7, height=1.8)
    for axis, task in zip(axes, tasks, strict=True):
        use_BP = np.mean([e.use_BP for e in episodes if e.task == task and e.use_BP], axis=0)
        along = np.linspace(0, 1, len(use_BP))
        axis.stackplot(along, use_BP.T, colors=[_colour(p) for p in range(use_BP.shape[1])], labels=phases)
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_title(task, loc="left", fontsize=9)
    axes[-1].set_xlabel("part of the episode", fontsize=8)
    axes[0].legend(fontsize=7, ncols=5, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    return save_figure(fig, path)


def _colour(expert: int) -> str:
    return COLOURS[expert % len(COLOURS)]


def _name(phases: Sequence[str], expert: int) -> Any:
    return phases[expert] if expert < len(phases) else f"expert {expert}"
