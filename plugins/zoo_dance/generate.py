"""Dances of any length: token for token, with what the layers keep of the past.

Shapes: B dances, t tokens, F numbers of music, N digits, V values of all digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.nn import Cache
from zoo.nn.generation import choose
from zoo.spec import ZooError

Digits = tuple[Tensor, ...]


@torch.no_grad()
def dance(
    model: Any,
    music_BtF: Tensor,
    genre_Bt: Tensor,
    content_B: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    first: Digits | None = None,
    cached: bool = True,
    tick: Callable[[], None] | None = None,
) -> Digits:
    """Codes (B, t, N) of each stream of the body, a token for every one of the music.

    After ``max_length`` tokens, and where a genre changes, what is kept begins anew from the last half of them, under
    the new genre; so memory does not grow with the song, and all dances of a batch change genre together.

    Args:
        genre_Bt: the genre of each token.
        first: the first token's digits (B, 1, N), for models without a start token.
        temperature: divides the logits; 0 takes the likeliest digit. ``top_p`` as in `zoo.nn.generation`.
        cached: without, every token is computed from all before it; the same tokens, slower.

    Raises:
        ZooError: no music, or no first token where one is needed.
    """
    total = music_BtF.shape[1]
    if not total:
        raise ZooError("the music is shorter than a token; give more of it")
    start = model.start_SD is not None
    if not start and first is None:
        raise ZooError("this model goes on from a pose; give the first token")
    ahead = 0 if start else 1
    limit, keep = model.config.max_length, max(1, model.config.max_length // 2)
    digits: list[Digits] = [] if start else [first]  # type: ignore[list-item]
    cache, low = Cache(), 0
    for place in range(ahead, total):
        changed = place > ahead and bool((genre_Bt[:, place] != genre_Bt[:, place - 1]).any())
        if changed or place - low >= limit:
            low, cache = max(0, place - keep), Cache()
        begun = cached and cache.length > 0
        inputs = range(place - 1, place) if begun else range(low, place)
        seen = tuple(
            torch.cat([digits[n][s] for n in inputs], 1) if len(inputs) else _nothing(model, music_BtF) for s in (0, 1)
        )
        music = music_BtF[:, (place if begun else low) - ahead * begun : place + 1 - ahead]
        logits, _ = model.next(seen, music, genre_Bt[:, place], content_B, cache if cached else None)
        digits.append(tuple(_draw(each[:, -1:], model.levels, temperature, top_p, generator) for each in logits))
        if tick is not None:
            tick()
    return tuple(torch.cat([each[s] for each in digits], 1) for s in (0, 1))


def _nothing(model: Any, music_BtF: Tensor) -> Tensor:
    return music_BtF.new_zeros(len(music_BtF), 0, len(model.levels), dtype=torch.long)


def _draw(
    logits_B1V: Tensor, levels: Sequence[int], temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """(B, 1, N): each digit by itself."""
    parts = logits_B1V[:, 0].float().cpu().split(list(levels), -1)
    drawn = [choose(part, temperature, top_p, generator) for part in parts]
    return torch.stack(drawn, -1).to(logits_B1V.device)
