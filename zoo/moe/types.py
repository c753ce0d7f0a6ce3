"""What travels between a router, its experts and the balancers. All of it is argument or result, nothing an attribute.

Shapes: T tokens (B * L flattened), K slots, E experts, C conditioning width, S shared experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from zoo.moe.balance import Balancers


@dataclass(frozen=True)
class RouteContext:
    """Side information for routing; every field may be left out. Token-wise fields have the leading shape of ``x``.

    Attributes:
        layer: index of the MoE layer among the MoE layers of the model.
        step: optimiser steps done while training; None for a finished model, where every schedule is at its end.
        valid: False on padding, which is neither routed, nor counted, nor takes capacity.
        seq_id: which sequence a token belongs to; the layer fills in the row of the batch.
        importance: how much a token counts in balance losses that say so; 1 for all when it is left out.
        cond: what conditions the routing (noise level, text, task), (..., C); may be one a sequence, as may the rest.
        balancers: whose bias acts on the selection.
        common: the module that the routers of all layers share, owned by the stack (see `Router.common`).
        experts: the bank behind this router, filled in by the layer, for scorers that look at its weights.
        losses: where a router's parts put losses of their own; `Router` sums them into `RouterOutput.loss`.
    """

    layer: int = 0
    step: int | None = None
    valid: Tensor | None = None
    token_ids: Tensor | None = None
    seq_id: Tensor | None = None
    position: Tensor | None = None
    modality: Tensor | None = None
    domain: Tensor | None = None
    label: Tensor | None = None
    importance: Tensor | None = None
    cond: Tensor | None = None
    balancers: Balancers | None = None
    common: nn.Module | None = None
    experts: nn.Module | None = None
    losses: list[Tensor] | None = None

    def progress(self, steps: int) -> float:
        """How much of a schedule of so many steps is done, 0 to 1."""
        return 1.0 if self.step is None or self.step >= steps else self.step / steps

    def add_loss(self, loss: Tensor) -> None:
        """Hand over a loss, coefficient applied, that the trainer adds."""
        if self.losses is not None:
            self.losses.append(loss)

    def at(self, layer: int) -> RouteContext:
        """The same context seen from another layer."""
        return replace(self, layer=layer)


class Tags(NamedTuple):
    """What balancers know of the T decisions of a layer, as the context had it; and the step."""

    step: int | None = None
    seq_id: Tensor | None = None
    modality: Tensor | None = None
    domain: Tensor | None = None
    label: Tensor | None = None
    importance: Tensor | None = None


class RouterOutput(NamedTuple):
    """One decision of one MoE layer.

    ``select`` decides which experts, ``weight`` decides how much; -inf in ``select`` forbids. An unused slot has weight
    0, ``used`` False and any valid index. A chosen null or zero expert is used, and counts as load. With a unit of more
    than one token, T counts units. ``shared_weight`` (T, S) weighs S shared experts; ``state`` goes to the next layer;
    ``loss`` is the sum of what the router's own parts want added; ``tags`` are filled in by the layer. ``prob_TE`` is
    what balance losses take for the scores where those are no distribution and cannot be normalised to one.
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
    loss: Tensor | None = None
    tags: Tags | None = None
    prob_TE: Tensor | None = None

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
