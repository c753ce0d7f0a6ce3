"""Bytes that autograd keeps for the backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes saved for the backward of ``run()``, each storage counted once, the parameters' not at all."""
    skipped = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storages keeps their addresses unique

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def minimum_bytes(tokens: int, model: int, inner: int, experts: int, slots: int, itemsize: int = 4) -> int:
    """x, the gate and up pre-activation, and the routing: weight, token and pair of each pair, offsets.

    SonicMoE (arXiv 2512.14080, section 3) shows that nothing more is needed without computing a GEMM twice.
    """
    pairs = tokens * slots
    return itemsize * (tokens * model + pairs * (2 * inner + 1)) + (8 + 8) * pairs + 8 * (experts + 1)
