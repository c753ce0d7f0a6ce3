"""What a forward pass is about: which positions, which of them see which, and what earlier passes left in the cache.

Shapes: B batch, L new positions, S all positions (cached and new), Q positions that are asked for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from zoo.moe.types import RouteContext
from zoo.nn.rotary import angles, turned
from zoo.spec import ZooError


class Cache:
    """What the mixers keep of the positions so far. One cache serves one forward-only decoding."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, tuple[Tensor, ...]] = {}
        self.valid: Tensor | None = None
        self.length = 0

    def extend(self, owner: Hashable, *new: Tensor) -> tuple[Tensor, ...]:
        """Append what is new of ``owner``, positions in the last dimension but one, and return all of it."""
        if owner in self.kept:
            new = tuple(torch.cat(pair, dim=-2) for pair in zip(self.kept[owner], new, strict=True))
        self.kept[owner] = new
        return new


@dataclass(frozen=True)
class Span:
    """The new positions of a pass among all positions.

    Attributes:
        position_BL: what rotary embeddings see; valid positions are counted, each document's from its start.
        start: positions in the cache; ``length`` new ones follow.
        first: answers are asked for from this new position on; keys and values are those of all.
        causal: a position sees itself and what is before it, else all.
        valid_BS, document_BS: False on padding, which nobody sees; a position sees its own document, and those of a
            negative number, which all documents of the row share (an image before several questions; full attention
            only).
    """

    position_BL: Tensor
    length: int
    start: int = 0
    first: int = 0
    causal: bool = True
    valid_BS: Tensor | None = None
    document_BS: Tensor | None = None
    cache: Cache | None = None
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    angles: dict[tuple[float, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def tail(self, first: int) -> Span:
        """The same span, asked for the positions from ``first`` on."""
        return replace(self, first=first, masks={})

    def rotary(self, x_BHLC: Tensor, theta: float, interleaved: bool = False) -> Tensor:
        """Rotary positions of the new positions, or of the last of them, as many as ``x`` has."""
        if (key := (theta, x_BHLC.shape[-1])) not in self.angles:
            self.angles[key] = angles(self.position_BL, *key)
        first = self.length - x_BHLC.shape[-2]
        cos, sin = (part_B1LC[:, :, first:] for part_B1LC in self.angles[key])
        return turned(x_BHLC, cos, sin, interleaved)

    def mask(self, window: int | None = None) -> tuple[Tensor | None, bool]:
        """Boolean mask (B or 1, 1, Q, S) and False, or None and whether attention is causal where that says it all.

        Args:
            window: a position sees so many positions, itself the last; None for all.

        A padded query sees itself, so that its softmax has something to sum over; nobody reads the result.
        """
        total = self.start + self.length
        window = None if window is None or window >= total else window
        if self.valid_BS is None and self.document_BS is None and window is None:
            queries = self.length - self.first
            if not self.causal or queries == 1:
                return None, False
            if queries == total:
                return None, True
        if window not in self.masks:
            self.masks[window] = self._mask(window, total)
        return self.masks[window], False

    def _mask(self, window: int | None, total: int) -> Tensor:
        device = self.position_BL.device
        key_S = torch.arange(total, device=device)
        query_Q1 = key_S[self.start + self.first :, None]
        seen = (key_S <= query_Q1) if self.causal else torch.ones(len(query_Q1), total, dtype=torch.bool, device=device)
        if window is not None:
            seen = seen & ((query_Q1 - key_S).abs() < window)
        seen = seen[None]
        if self.document_BS is not None:
            key_B1S = self.document_BS[:, None]
            own = self.document_BS[:, self.start + self.first :, None] == key_B1S
            seen = seen & (own | (key_B1S < 0))
        if self.valid_BS is not None:
            seen = seen & self.valid_BS[:, None]
        return (seen | (key_S == query_Q1))[:, None]


def span_of(
    x_BLD: Tensor,
    valid_BL: Tensor | None = None,
    document_BL: Tensor | None = None,
    cache: Cache | None = None,
    causal: bool = True,
) -> Span:
    """The span of a pass over ``x``. Raises `ZooError` for packed documents or an encoder with a cache."""
    length, start = x_BLD.shape[1], 0 if cache is None else cache.length
    if cache is not None and not causal:
        raise ZooError("a stack with causal=false has no cache: later positions change what earlier ones say")
    if cache is not None and document_BL is not None:
        raise ZooError("packed documents cannot be decoded with a cache; give each document a row of its own")
    all_valid = valid_BL
    if cache is not None and (valid_BL is not None or cache.valid is not None):
        new = x_BLD.new_ones(x_BLD.shape[:2], dtype=torch.bool) if valid_BL is None else valid_BL
        old = new.new_ones(len(new), start) if cache.valid is None else cache.valid
        cache.valid = all_valid = torch.cat([old, new], dim=1)
    if all_valid is None:
        position_BL = torch.arange(start, start + length, device=x_BLD.device)[None]
    else:
        position_BL = (all_valid.cumsum(1) - 1).clamp(min=0)[:, start:]
    if document_BL is not None:
        opens_BL = document_BL != torch.cat([document_BL[:, :1], document_BL[:, :-1]], dim=1)
        position_BL = position_BL - torch.where(opens_BL, position_BL, 0).cummax(1).values
        shared_BL = document_BL < 0
        # A document goes on where the shared start of its row ends.
        length_B1 = (shared_BL if all_valid is None else shared_BL & all_valid).sum(1, keepdim=True)
        position_BL = position_BL + torch.where(shared_BL, 0, length_B1)
    return Span(position_BL, length, start, 0, causal, all_valid, document_BL, cache)


def asked(x: Tensor, ctx: RouteContext, span: Span) -> tuple[Tensor, RouteContext]:
    """States and context of the positions that are asked for."""
    if not span.first:
        return x, ctx
    length = x.shape[1]
    cut = {
        f.name: value[:, span.first :]
        for f in fields(ctx)
        if isinstance(value := getattr(ctx, f.name), Tensor) and value.dim() > 1 and value.shape[1] == length
    }
    return x[:, span.first :], replace(ctx, **cut)
