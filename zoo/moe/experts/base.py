"""What every bank of experts has in common: how it is called, seen, changed in size and tapped.

Shapes: T tokens or units, W tokens of a unit, K slots, N = T * K pairs, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.spec import ZooError
from zoo_kernels import ops
from zoo_kernels.plan import Plan

View = dict[str, Tensor]
"""The weights of one expert by parameter name; they share memory with the bank's."""
Tap = Callable[[Tensor, Plan], Tensor | None]


@dataclass(frozen=True)
class Member:
    """Who an expert is, whatever its place: ``id`` is never reused inside a bank; ``origin`` says where it came from,
    ``bits`` how its weights are stored if not in full, and ``protected`` experts are left alone by compression."""

    id: int
    origin: str = ""
    bits: float | None = None
    protected: bool = False


@dataclass
class BankConfig:
    """``members`` are the fields of `Member` of every expert; empty means ids 0, 1, 2 and so on."""

    members: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Taps:
    """What sees, and may replace, a bank's rows: each is called with (rows, plan) and returns other rows or None.

    ``input`` (N, D) before the expert, ``atomic`` (N, F) the inner units of an MLP before the matrix down, ``output``
    (N, D) what the expert says before it is weighed. Rows are sorted by expert: those of expert e are
    ``plan.offset_E1[e]`` to ``plan.offset_E1[e + 1]``, their tokens ``plan.token_N``.
    """

    input: Tap | None = None
    atomic: Tap | None = None
    output: Tap | None = None


class Bank(nn.Module):
    """E experts: ``y_t = sum_k weight_tk * expert_(index_tk)(x_t)``.

    A family of experts overrides `rows`, or `fused` where a kernel does better, and names in ``stacked`` its parameters
    with the experts in front. With ``whole_units`` its experts see all tokens of a unit, (T, W, D).
    """

    whole_units = False
    stacked: tuple[str, ...] = ()

    @dataclass
    class Config(BankConfig):
        pass

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        if config.members and len(config.members) != num_experts:
            raise ZooError(f"experts.members names {len(config.members)} experts, but num_experts={num_experts}")
        self.config, self.hidden_size, self.num_experts = config, hidden_size, num_experts
        self.taps: Taps | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """Who the experts are, in the order of their places."""
        given = self.config.members or [{"id": place} for place in range(self.num_experts)]
        return tuple(Member(**fields) for fields in given)

    def reset_parameters(self, std: float) -> None:
        """Normal initialisation, of biases zero."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else std)

    def forward(self, x: Tensor, weight_TK: Tensor, plan: Plan, valid_TW: Tensor | None = None) -> Tensor:
        """``x`` (T, D), or (T, W, D) with ``whole_units``, and then ``valid_TW`` False on padding."""
        weight_N = weight_TK.flatten().to(x.dtype)
        return (self.fused if self.taps is None else self.by_rows)(x, weight_N, plan, valid_TW)

    def fused(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        """`forward` with nobody looking at the rows."""
        return self.by_rows(x, weight_N, plan, valid_TW)

    def by_rows(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        """`forward` row by row: expand, `rows`, combine."""
        rows = ops.expand(x.flatten(1), plan).unflatten(1, x.shape[1:])
        valid_NW = None if valid_TW is None else valid_TW[plan.token_N]
        y = self.tap("output", self.rows(self.tap("input", rows, plan), plan, valid_NW), plan)
        return ops.combine(y.flatten(1), weight_N, plan).unflatten(1, y.shape[1:])

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        """What every row's expert makes of it, (N, D) or (N, W, D)."""
        raise TypeError(f"{type(self).__name__} must override rows")

    # -- taps ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def tapped(self, taps: Taps) -> Iterator[None]:
        """Inside the block the bank runs in plain PyTorch, row by row, and shows its rows to the taps."""
        before, self.taps = self.taps, taps
        try:
            yield
        finally:
            self.taps = before

    def tap(self, point: str, rows: Tensor, plan: Plan) -> Tensor:
        seen_by = getattr(self.taps, point, None)
        other = None if seen_by is None else seen_by(rows, plan)
        return rows if other is None else other

    # -- experts one by one --------------------------------------------------------------------------------------------

    def view(self, e: int) -> View:
        """The weights of the expert in place ``e``."""
        return {name: self.get_parameter(name).detach()[e] for name in self.stacked}

    def write(self, e: int, view: Mapping[str, Tensor]) -> None:
        """Set the weights of the expert in place ``e``. Raises `ZooError` when names or shapes do not fit."""
        own = self.view(e)
        if {name: tuple(t.shape) for name, t in view.items()} != {name: tuple(t.shape) for name, t in own.items()}:
            wanted = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own.items())
            given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in view.items())
            raise ZooError(f"cannot write expert {e}: it has {wanted or 'no weights'}, not {given or 'nothing'}")
        for name, tensor in own.items():
            tensor.copy_(view[name])

    def resize(self, keep: Tensor, widths: Tensor | None = None) -> Bank:
        """A new bank of the experts in the places ``keep``, with their ids. ``widths`` cuts each to its first inner
        units, where a family knows how."""
        if widths is not None:
            raise ZooError(f"experts of {type(self).__name__} have no inner units to cut; leave widths out")
        places = keep.tolist()
        new = self._sized([self.members[place] for place in places])
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                new.get_parameter(name).copy_(parameter[keep] if name in self.stacked else parameter)
        return new

    def append(self, views: Sequence[Mapping[str, Tensor]], origin: str = "") -> Bank:
        """A new bank with more experts behind the present ones, under new ids."""
        first = 1 + max((member.id for member in self.members), default=-1)
        new = self._sized([*self.members, *(Member(first + n, origin) for n in range(len(views)))])
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                part = new.get_parameter(name)
                (part[: self.num_experts] if name in self.stacked else part).copy_(parameter)
        for n, view in enumerate(views):
            new.write(self.num_experts + n, view)
        return new

    def _sized(self, members: Sequence[Member]) -> Bank:
        config = replace(self.config, members=[asdict(member) for member in members])
        new = type(self)(config, self.hidden_size, len(members))
        example = next(self.parameters(), None)
        return new if example is None else new.to(example)

    def active_parameters(self, slots: float) -> float:
        """Parameters that a token passes when it uses so many experts."""
        each = sum(self.get_parameter(name).numel() for name in self.stacked)
        return sum(p.numel() for p in self.parameters()) - each * (1 - slots / max(1, self.num_experts))


def narrowed(plan: Plan, start: int, stop: int) -> Plan:
    """The plan of the experts ``start`` to ``stop`` alone: their pairs first, all others unused."""
    size = plan.token_N.shape[0]
    turned_N = torch.arange(size, device=plan.token_N.device) + plan.offset_E1[start]
    turned_N = turned_N % max(1, size)
    offset_E1 = plan.offset_E1[start : stop + 1] - plan.offset_E1[start]
    return Plan(plan.token_N[turned_N], plan.pair_N[turned_N], offset_E1, plan.num_tokens, stop - start)


def widened(plan: Plan, width: int) -> Plan:
    """The plan of the single tokens of units that have ``width`` of them."""
    inside_W = torch.arange(width, device=plan.token_N.device)

    def each(index_N: Tensor) -> Tensor:
        return (index_N[:, None] * width + inside_W).flatten()

    return Plan(
        each(plan.token_N), each(plan.pair_N), plan.offset_E1 * width, plan.num_tokens * width, plan.num_experts
    )
