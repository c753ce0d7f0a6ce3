"""Units: what gets one decision of the router. A token, a segment of w tokens, or a sequence.

A unit turns ``x`` (B, L, D) into what the router sees, (T, ``width``), one row a unit, and brings the context along;
`spread` gives each of its tokens the unit's decision. Experts with ``whole_units`` see units, (T, length, D), instead.

Shapes: B batch, L length, D model width, T units, W tokens of a unit, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.types import RouteContext
from zoo.spec import ZooError

FIELDS = ("token_ids", "seq_id", "position", "modality", "domain", "label", "importance", "cond")


class TokenUnit(nn.Module):
    """One decision a token."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.config, self.width = config, hidden_size

    def see(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor, RouteContext]:
        """What the router sees, (T, width); which units have a valid token, (T,); and the context a unit."""
        flat = flatten_context(x, ctx)
        return x.reshape(-1, x.shape[-1]), flat.valid, flat  # type: ignore[return-value]

    def split(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(T, W, D): the tokens of every unit, zero where they are not valid."""
        x_TWD = x.reshape(-1, 1, x.shape[-1])
        return x_TWD if valid is None else x_TWD * valid.reshape(-1, 1, 1)

    def join(self, y_TWD: Tensor, x: Tensor) -> Tensor:
        """`split` undone."""
        return y_TWD.reshape(x.shape)

    def spread(self, value_TK: Tensor, x: Tensor) -> Tensor:
        """A unit's row for each of its tokens, in the order of ``x`` flattened."""
        return value_TK


class SegmentUnit(TokenUnit):
    """One decision for ``length`` neighbouring tokens: the router sees them side by side, ``W vec(x_1 ... x_w)``
    (Seg-MoE, arXiv:2601.21641; with ``length=60`` the patches of Union of Experts, arXiv:2503.02495), or their mean.

    Within a segment later tokens decide about earlier ones. With ``causal`` a segment is routed by what the one before
    it held, the first by zeros. The last segment of a sequence may be short: it is padded, and padding is not valid.
    """

    @dataclass
    class Config:
        length: int = 8
        view: Literal["flatten", "mean"] = "flatten"
        causal: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "length")

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.width = hidden_size * config.length if config.view == "flatten" else hidden_size

    def length(self, x: Tensor) -> int:
        """Tokens of a unit. Raises `ZooError` when ``x`` has no dimension of positions."""
        if x.dim() != 3:
            raise ZooError(f"a unit of several tokens needs x as (batch, length, width), not {tuple(x.shape)}")
        return self.config.length

    def see(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor, RouteContext]:
        ctx = flatten_context(x, ctx)
        flat_BL = ctx.valid.view(x.shape[:2])  # type: ignore[union-attr]
        valid_TW = self._cut(flat_BL[..., None], x)[..., 0]
        valid_T = valid_TW.any(-1)
        x_TWD = self.split(x, flat_BL)
        if self.config.view == "flatten":
            seen_TD = x_TWD.flatten(1)
        else:
            seen_TD = x_TWD.sum(1) / valid_TW.sum(1, keepdim=True).clamp(min=1)
        if self.config.causal:
            per_row = len(valid_T) // max(1, x.shape[0])
            seen_TD = F.pad(seen_TD.unflatten(0, (x.shape[0], per_row)), (0, 0, 1, 0))[:, :per_row].flatten(0, 1)
        first_T1 = valid_TW.int().argmax(-1, keepdim=True)
        fields = {name: self._first(value, first_T1, x) for name in FIELDS if (value := getattr(ctx, name)) is not None}
        return seen_TD, valid_T, replace(ctx, valid=valid_T, **fields)

    def split(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return self._cut(x if valid is None else x * valid[..., None], x)

    def join(self, y_TWD: Tensor, x: Tensor) -> Tensor:
        segments = -(-x.shape[1] // y_TWD.shape[1])
        return y_TWD.reshape(x.shape[0], segments * y_TWD.shape[1], y_TWD.shape[-1])[:, : x.shape[1]]

    def spread(self, value_TK: Tensor, x: Tensor) -> Tensor:
        wide_TWK = value_TK[:, None].expand(-1, self.length(x), -1)
        return self.join(wide_TWK, x).flatten(0, 1)

    def _cut(self, value: Tensor, x: Tensor) -> Tensor:
        """(B, L, ...) to (T, W, ...), padded at the end of every sequence."""
        length = self.length(x)
        value = F.pad(value, (0, 0, 0, -value.shape[1] % length)) if value.shape[1] % length else value
        return value.reshape(-1, length, value.shape[-1])

    def _first(self, value: Tensor, first_T1: Tensor, x: Tensor) -> Tensor:
        """A field at the first valid token of every unit."""
        cut_TWC = self._cut(value.reshape(*x.shape[:2], value.shape[1:].numel()), x)
        index_T1C = first_T1[..., None].expand(-1, -1, cut_TWC.shape[-1])
        return cut_TWC.gather(1, index_T1C)[:, 0].reshape(-1, *value.shape[1:])


class SequenceUnit(SegmentUnit):
    """One decision a sequence, from the mean of its valid tokens (UniF2ace; trajectories in DriveMoE)."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__(SegmentUnit.Config(view="mean"), hidden_size)

    def length(self, x: Tensor) -> int:
        super().length(x)
        return max(1, x.shape[1])


def flatten_context(x: Tensor, ctx: RouteContext) -> RouteContext:
    """The context with every token-wise field as (T, ...) for T = the tokens of ``x``. A field with fewer leading
    dimensions than ``x`` (one value a sequence) is repeated. ``valid`` and, for (B, L, D), ``seq_id`` are filled in."""
    lead = x.shape[:-1]
    flat = {}
    for name in (*FIELDS, "valid"):
        value = getattr(ctx, name)
        if value is not None:
            own = value.dim() - (1 if name == "cond" else 0)
            rest = value.shape[own:]
            if value.shape[:own] != lead[:own]:
                raise ZooError(f"ctx.{name} has shape {tuple(value.shape)}, which does not fit x {tuple(x.shape)}")
            wide = value.reshape(*lead[:own], *[1] * (len(lead) - own), *rest).expand(*lead, *rest)
            flat[name] = wide.reshape(lead.numel(), *rest)
    if ctx.valid is None:
        flat["valid"] = torch.ones(lead.numel(), dtype=torch.bool, device=x.device)
    if ctx.seq_id is None and len(lead) > 1:
        flat["seq_id"] = torch.arange(lead[0], device=x.device).repeat_interleave(lead[1:].numel())
    return replace(ctx, **flat)
