"""What travels between a router, its experts and the balancers. All of it is argument or result, nothing an attribute.

Shapes: T tokens (B * L flattened), K slots, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zoo.moe.balance import Balancers


@dataclass(frozen=True)
class RouteContext:
    """Side information for routing; every field may be left out. Token-wise fields have the leading shape of ``x``.

    Attributes:
        layer: index of the MoE layer among the MoE layers of the model.
        step: optimiser steps done.
        valid: False on padding, which is neither routed, nor counted, nor takes capacity.
        balancers: whose bias acts on the selection.
    """

    layer: int = 0
    step: int = 0
    valid: Tensor | None = None
    token_ids: Tensor | None = None
    seq_id: Tensor | None = None
    position: Tensor | None = None
    modality: Tensor | None = None
    domain: Tensor | None = None
    label: Tensor | None = None
    cond: Tensor | None = None
    balancers: Balancers | None = None

    def at(self, layer: int) -> RouteContext:
        """The same context seen from another layer."""
        return replace(self, layer=layer)


class RouterOutput(NamedTuple):
    """One decision of one MoE layer.

    ``select`` decides which experts, ``weight`` decides how much. An unused slot has weight 0, ``used`` False and any
    valid index. A chosen null or zero expert is used, and counts as load.
    """

    logits_TE: Tensor
    scores_TE: Tensor
    select_TE: Tensor
    index_TK: Tensor
    weight_TK: Tensor
    used_TK: Tensor
    valid_T: Tensor
    shared_weight: Tensor | None = None
    state: Any = None

    @property
    def num_experts(self) -> int:
        return self.logits_TE.shape[-1]

    def counts_E(self) -> Tensor:
        """Assignments per expert, padding left out. int64, no gradient."""
        used = self.used_TK.flatten()
        counts = torch.zeros(self.num_experts, dtype=torch.int64, device=used.device)
        return counts.index_add_(0, self.index_TK.flatten(), used.to(torch.int64))


Routing = tuple[RouterOutput, ...]
"""The decisions of all MoE layers of one forward pass, in order."""
