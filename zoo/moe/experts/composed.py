"""Banks made of banks: behind shared projections, or several kinds side by side.

Shapes: T tokens or units, W tokens of a unit, N pairs, E experts, D model width, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe.experts.base import Bank, BankConfig, Member, Taps, View, narrowed, widened
from zoo.spec import ZooError
from zoo_kernels.plan import Plan


class Bottleneck(Bank):
    """``W_up sum_k w_k E_k(W_down x)``: tokens go down to ``rank`` before they are sent to experts that are wide
    inside, and up again after they came back, so that little travels between devices (BigMac, arXiv:2502.16927).
    The router sees all of x. The experts are any other bank."""

    @dataclass
    class Config(BankConfig):
        rank: int = 64
        experts: Any = zc.part("experts", "swiglu")

        def __post_init__(self) -> None:
            zc.at_least(1, self, "rank")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.down_weight = nn.Parameter(torch.empty(config.rank, hidden_size))
        self.up_weight = nn.Parameter(torch.empty(hidden_size, config.rank))
        self.experts = zc.build("experts", config.experts, config.rank, num_experts)
        self.whole_units = self.experts.whole_units
        self.stacked = tuple(f"experts.{name}" for name in self.experts.stacked)

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.down_weight, std=std)
        nn.init.normal_(self.up_weight, std=std)
        self.experts.reset_parameters(std)

    def forward(self, x: Tensor, weight_TK: Tensor, plan: Plan, valid_TW: Tensor | None = None) -> Tensor:
        low = F.linear(x, self.down_weight.to(x.dtype))
        y: Tensor = self.experts(low, weight_TK, plan, valid_TW)
        return F.linear(y, self.up_weight.to(y.dtype))

    def tapped(self, taps: Taps) -> Any:
        """Taps see the rows of the experts inside, of width ``rank``."""
        return self.experts.tapped(taps)


class Latent(Bottleneck):
    """``[gate_e; up_e] = A_e B`` and ``down_e = C D_e`` with B and C shared by all experts: latent experts of width
    ``rank`` in place of matrices of full width (MoLAE, S071). The function is that of `Bottleneck`, where what counts
    is that the rank is far below D; here it comes from the joint singular vectors of trained experts, and the router
    likewise sees all of x. One B serves gate and up."""


class Mixed(Bank):
    """Several banks in one layer, each with a range of the experts: true ones first, then null, copy, constant ones
    (MoE++, arXiv:2410.07348), or an MLP beside a GRU (Hecto, S084).

    ``banks`` is a list of ``{name, count, ...settings}``. Where one bank wants whole units all get them, and those
    that work on single tokens do so on each of the unit's.
    """

    @dataclass
    class Config(BankConfig):
        banks: list[Any] = field(default_factory=list)

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        counts = [node.get("count") if isinstance(node, Mapping) else None for node in config.banks]
        if any(not isinstance(count, int) or count < 1 for count in counts):
            raise ZooError("mixed experts: each of banks needs a name and a count, for example {name: copy, count: 1}")
        if sum(counts) != num_experts:
            raise ZooError(f"mixed experts: the counts {counts} of banks must add up to num_experts={num_experts}")
        settings = [{key: value for key, value in node.items() if key != "count"} for node in config.banks]
        self.banks = nn.ModuleList(
            zc.build("experts", node, hidden_size, count) for node, count in zip(settings, counts, strict=True)
        )
        self.starts = [sum(counts[:n]) for n in range(len(counts))]
        self.whole_units = any(bank.whole_units for bank in self.banks)

    def reset_parameters(self, std: float) -> None:
        for bank in self.banks:
            bank.reset_parameters(std)

    def forward(self, x: Tensor, weight_TK: Tensor, plan: Plan, valid_TW: Tensor | None = None) -> Tensor:
        y = torch.zeros_like(x)
        for start, bank in zip(self.starts, self.banks, strict=True):
            part = narrowed(plan, start, start + bank.num_experts)
            if self.whole_units and not bank.whole_units:
                each_TK = weight_TK.reshape(-1, 1).expand(-1, x.shape[1])
                y = y + bank(x.flatten(0, 1), each_TK, widened(part, x.shape[1])).view_as(x)
            else:
                y = y + bank(x, weight_TK, part, valid_TW)
        return y

    @contextmanager
    def tapped(self, taps: Taps) -> Any:
        """Taps see the rows of one bank after the other, with experts counted from the first of that bank."""
        with ExitStack() as stack:
            for bank in self.banks:
                stack.enter_context(bank.tapped(taps))
            yield

    def _at(self, e: int) -> tuple[int, int]:
        n = max(n for n, start in enumerate(self.starts) if start <= e)
        return n, e - self.starts[n]

    def view(self, e: int) -> View:
        n, inside = self._at(e)
        view: View = self.banks[n].view(inside)  # type: ignore[operator]
        return view

    def write(self, e: int, view: Mapping[str, Tensor]) -> None:
        n, inside = self._at(e)
        self.banks[n].write(inside, view)  # type: ignore[operator]

    def resize(self, keep: Tensor, widths: Tensor | None = None) -> Bank:
        """As every bank's, but ``keep`` must go up, so that the experts of a kind stay together."""
        places = keep.tolist()
        if places != sorted(set(places)):
            raise ZooError(f"a mixed bank keeps its order: keep={places} must go up")
        if widths is not None:
            raise ZooError("experts of a mixed bank are cut bank by bank; leave widths out")
        kept = [[inside for n, inside in map(self._at, places) if n == number] for number in range(len(self.banks))]
        sizes = [torch.tensor(inside, dtype=torch.int64) for inside in kept]
        banks = [bank.resize(size) for bank, size in zip(self.banks, sizes, strict=True) if len(size)]  # type: ignore[operator]
        nodes = [{**node, "count": len(i)} for node, i in zip(self.config.banks, kept, strict=True) if i]
        return self._of(banks, nodes, [self.members[place] for place in places])

    def append(self, views: Sequence[Mapping[str, Tensor]], origin: str = "") -> Bank:
        """Behind the last bank, whose kind the new experts must be."""
        first = 1 + max(member.id for member in self.members)
        members = [*self.members, *(Member(first + n, origin) for n in range(len(views)))]
        last = self.banks[-1].append(views, origin)  # type: ignore[operator]
        nodes = [*self.config.banks[:-1], {**self.config.banks[-1], "count": last.num_experts}]
        return self._of([*self.banks[:-1], last], nodes, members)

    def _of(self, banks: Sequence[Any], nodes: list[Any], members: Sequence[Member]) -> Bank:
        fields = [{"id": m.id, "origin": m.origin, "bits": m.bits, "protected": m.protected} for m in members]
        new = Mixed(replace(self.config, banks=nodes, members=fields), self.hidden_size, len(members))
        for own, bank in zip(new.banks, banks, strict=True):
            own.to(next(bank.parameters(), torch.empty(0))).load_state_dict(bank.state_dict())
        return new

    def active_parameters(self, slots: float) -> float:
        """With the load spread evenly over all experts, free ones included."""
        each = slots / max(1, self.num_experts)
        return sum(bank.active_parameters(each * bank.num_experts) for bank in self.banks)  # type: ignore[operator,misc]
