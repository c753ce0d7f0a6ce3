"""Pictures out of noise. What a picture becomes depends on its seed and its condition alone, not on its neighbours.

Shapes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.threads import one_thread
from zoo_diffusion.objectives import Objective, Predict
from zoo_diffusion.samplers import Sampler

SMALL = 5_000_000
"""Parameters below which a model draws on one thread."""


def guided(model: Any, condition: Tensor | None, scale: float) -> Predict:
    """The model as a predictor with classifier-free guidance, ``c + (scale - 1) (c - u)``, c with the condition and u
    without one, on all channels of the picture (a predicted variance is c's). At scale 1 it is c, bit for bit, and u is
    not computed."""
    channels = model.config.channels

    def predict(x: Tensor, time_B: Tensor) -> Tensor:
        if scale == 1 or condition is None or model.condition is None:
            known: Tensor = model(x, time_B, condition).prediction_BCHW
            return known
        both = torch.cat([condition, model.condition.nothing(condition)])
        known, unknown = model(torch.cat([x, x]), torch.cat([time_B, time_B]), both).prediction_BCHW.chunk(2)
        guidance = (scale - 1) * (known - unknown)
        guidance[:, channels:] = 0
        return known + guidance

    return predict


def generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """One for each picture, from ``first`` on of those that a seed gives."""
    return [torch.Generator().manual_seed((seed << 24) + first + n) for n in range(count)]


def sample(
    model: Any,
    objective: Objective,
    sampler: Sampler,
    condition: Tensor | None,
    count: int,
    *,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda pictures: None,
) -> Tensor:
    """``count`` samples in the model's space, (B, C, H, W).

    Args:
        condition: one a picture, or None.
        tick: called with the number of pictures after each evaluation of the model.
    """
    c, device = model.config, model.device
    small = device.type == "cpu" and sum(p.numel() for p in model.parameters()) < SMALL
    done = []
    for first in range(0, count, batch_size):
        drawn = generators(seed, first, min(batch_size, count - first))

        def draw(drawn: list[torch.Generator] = drawn) -> Tensor:
            shape = (c.channels, c.image_size, c.image_size)
            return torch.stack([torch.randn(shape, generator=each) for each in drawn]).to(device)

        given = None if condition is None else condition[first : first + batch_size].to(device)
        predict, size = guided(model, given, guidance), len(drawn)
        with one_thread() if small else nullcontext():
            done.append(sampler.run(objective, predict, draw(), draw, lambda size=size: tick(size)))  # type: ignore[misc]
    return torch.cat(done)


def to_pixels(x_BCHW: Tensor) -> NDArray[np.uint8]:
    """(B, H, W, 3) in 8 bits from values of -1 to 1; one channel is shown in grey."""
    x = x_BCHW if x_BCHW.shape[1] == 3 else x_BCHW[:, :1].expand(-1, 3, -1, -1)
    pixels: NDArray[np.uint8] = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


@contextmanager
def progress(what: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives ``tick(steps)``, which moves a bar on standard error, where that is a terminal."""
    from rich.progress import Progress

    from zoo.report import console

    shown = console(stderr=True)
    with Progress(console=shown, transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)
