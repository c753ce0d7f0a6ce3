"""Expert load: how evenly the experts of each layer are used.

Shapes: N MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoo.moe.layer import MoE
from zoo.moe.types import Routing


class ExpertLoad:
    """Assignments per layer and expert, summed over forward passes; padding is not counted."""

    def __init__(self) -> None:
        self.counts: dict[int, Tensor] = {}

    def observe(self, routing: Routing) -> None:
        for layer, out in enumerate(routing):
            self.add(layer, out.counts_E())

    def add(self, layer: int, counts_E: Tensor) -> None:
        self.counts[layer] = self.counts[layer] + counts_E if layer in self.counts else counts_E

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[ExpertLoad]:
        """Observe every forward pass of the model's MoE layers inside the block. Not for checkpointed training, which
        runs a layer twice."""
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        handles = [
            module.register_forward_hook(lambda _m, _i, result, n=n: self.add(n, result[1].counts_E()))
            for n, module in enumerate(layers)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def shares(self) -> list[Tensor]:
        """Share of each layer's assignments per expert, (E,) a layer."""
        return [counts.double() / counts.sum().clamp(min=1) for _, counts in sorted(self.counts.items())]

    def summary(self) -> list[dict[str, float]]:
        """Per layer: ``entropy`` of the load as a share of its maximum, ``dead`` experts (no token at all), and
        ``max_vio``, the largest load over the mean, minus 1 (arXiv:2408.15664, eq. 4)."""
        rows = []
        for share_E in self.shares():
            experts = len(share_E)
            entropy = -(share_E * share_E.clamp(min=1e-12).log()).sum() / max(torch.tensor(float(experts)).log(), 1e-12)
            rows.append(
                {
                    "entropy": float(entropy),
                    "dead": int((share_E == 0).sum()),
                    "max_vio": float(share_E.max() * experts - 1),
                }
            )
        return rows
