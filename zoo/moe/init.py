"""A mixture layer from dense ones. A dense layer is a view: its matrices under the names of the bank's parameters.

Shapes: E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.moe import shared
from zoo.moe.experts import MLP, View
from zoo.moe.layer import MoE
from zoo.spec import ZooError


@torch.no_grad()
def clone(moe: MoE, dense: View, noise: float = 0.0) -> None:
    """Every expert becomes the dense layer, plus normal noise of ``noise`` times each matrix's own deviation (sparse
    upcycling, arXiv:2212.05055). Without noise, and with weights that sum to 1, the layer computes what it did."""
    for e in range(moe.num_experts):
        jittered = {n: t + noise * t.std() * torch.randn_like(t) for n, t in dense.items()} if noise else dense
        moe.experts.write(e, jittered)


def specialists(moe: MoE, dense: Sequence[View]) -> None:
    """Expert e becomes the e-th of the dense layers, which were trained apart (Branch-Train-MiX, arXiv:2403.07816)."""
    if len(dense) != moe.num_experts:
        raise ZooError(f"{len(dense)} dense layers cannot become num_experts={moe.num_experts}; give one for each")
    for e, view in enumerate(dense):
        moe.experts.write(e, view)


@torch.no_grad()
def beside(moe: MoE, dense: View, noise: float = 0.0) -> None:
    """The shared expert becomes the dense layer, which ``shared.frozen`` keeps as it is, and every expert a clone,
    for what they may add (MoTE: ternary clones beside the frozen layer)."""
    if not isinstance(moe.shared, shared.SwiGLU) or set(dense) != {"gate_up_proj", "down_proj"}:
        raise ZooError("a dense layer beside its clones needs moe.shared.name=swiglu")
    gate, up = dense["gate_up_proj"].chunk(2)
    for linear, weight in (
        (moe.shared.gate_proj, gate),
        (moe.shared.up_proj, up),
        (moe.shared.down_proj, dense["down_proj"]),
    ):
        if linear.weight.shape != weight.shape:
            wanted, given = linear.out_features, len(gate)
            raise ZooError(
                f"the shared expert is not as wide as the dense layer ({wanted}); set intermediate_size={given}"
            )
        linear.weight.copy_(weight)
    clone(moe, dense, noise)


@torch.no_grad()
def split(moe: MoE, dense: View, parts: int) -> None:
    """Groups of ``parts`` neighbours hold the slices of the dense SwiGLU, and share one row of a linear router: top-k
    with k = parts takes a whole group. ``down`` is scaled by parts: with weights that sum to 1, each 1 / parts, the
    layer computes what the dense one did."""
    rows_ED = getattr(getattr(moe.router, "scorer", None), "weight", None)
    if not isinstance(moe.experts, MLP) or set(dense) != {"gate_up_proj", "down_proj"} or rows_ED is None:
        raise ZooError("an exact split needs swiglu experts and a linear router")
    inner = dense["down_proj"].shape[1]
    if inner % parts or moe.num_experts % parts:
        raise ZooError(f"parts={parts} must divide num_experts={moe.num_experts} and the dense layer's {inner} units")
    gate_up = dense["gate_up_proj"].unflatten(0, (2, parts, -1))
    down = dense["down_proj"].unflatten(1, (parts, -1)) * parts
    for e in range(moe.num_experts):
        own = e % parts
        moe.experts.write(e, {"gate_up_proj": gate_up[:, own].flatten(0, 1), "down_proj": down[:, own]})
        rows_ED[e] = rows_ED[e - own]
