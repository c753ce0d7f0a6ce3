"""Music for motion that has none: its steps become the beats that a band plays.

Shapes: T frames, J joints.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from zoo_dance.motion.beats import step_beats
from zoo_dance.motion.skeleton import Motion
from zoo_dance.music.synth import steady, style_of, synthesise

FASTEST, SLOWEST = 60 / 200, 60 / 50
"""Seconds between two beats."""


def beats_of(motion: Motion) -> list[float]:
    """Beats in seconds for a motion: its steps; where two are far apart, beats between them divide the time evenly.
    A motion without any gets 120 beats a minute."""
    seconds = len(motion) / motion.fps
    steps = [frame / motion.fps for frame in step_beats(motion.positions(), motion.fps)]
    return fill(steps, seconds)


def fill(steps: Sequence[float], seconds: float) -> list[float]:
    """Beats of which the steps are some: steps that come too soon are left out, long waits are divided evenly."""
    kept: list[float] = []
    for step in steps:
        if not kept or step - kept[-1] >= FASTEST:
            kept.append(float(step))
    if len(kept) < 2:
        return steady(max(seconds, 1.5), 120.0)
    beats = [kept[0]]
    usual = float(np.median(np.diff(kept)))
    usual /= np.ceil(usual / SLOWEST)
    for one, two in itertools.pairwise(kept):
        parts = max(1, min(round((two - one) / usual), int((two - one) / FASTEST)))
        beats += [one + (two - one) * n / parts for n in range(1, parts + 1)]
    return beats


def music_for(motion: Motion, genre: str, seed: int = 0) -> Tensor:
    """(N,) sound at `zoo_dance.music.features.RATE` as long as the motion, played in the style of its genre."""
    seconds = max(1.0, len(motion) / motion.fps)
    return synthesise(style_of(genre), seconds, beats_of(motion), seed)
