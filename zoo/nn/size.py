"""How large a model is: parameters, the part of them that a token passes, FLOPs and memory. Nothing is computed, so a
model on the meta device will do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Size:
    """``active`` parameters and ``flops`` are per token, forward only: two FLOPs, a multiplication and an addition, for
    each active weight of a matrix (Kaplan et al., arXiv:2001.08361, section 2.1). Embedding tables are looked up, not
    multiplied, and attention over the context comes on top. Memory is that of the parameters, in bytes."""

    parameters: int
    active: int
    flops: int
    bytes_fp32: int
    bytes_bf16: int


def measure(model: nn.Module) -> Size:
    """Size of a model."""
    total = sum(p.numel() for p in model.parameters())
    active = total - sum(m.inactive_parameters() for m in model.modules() if hasattr(m, "inactive_parameters"))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    unmultiplied = sum(p.numel() for p in model.parameters() if p.dim() < 2 or id(p) in tables)
    # A layer that runs several times on one bank may use its experts more than once: FLOPs count that, parameters not.
    return Size(total, min(active, total), 2 * (active - unmultiplied), 4 * total, 2 * total)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of each direct child."""
    return {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
