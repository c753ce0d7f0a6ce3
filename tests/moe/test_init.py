"""Mixture layers from dense ones compute at first what the dense layer did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import config as zc
from zoo.moe import MoE, MoEConfig, RouteContext
from zoo.moe.init import clone, specialists, split
from zoo.spec import ZooError

D, E, INNER = 8, 6, 12
DENSE_SHAPES = {"gate_up_proj": (2 * INNER, D), "down_proj": (D, INNER)}


def layer(size: int = INNER, **router: Any) -> MoE:
    experts = {"name": "swiglu", "intermediate_size": size}
    made = MoE(zc.make(MoEConfig, num_experts=E, experts=experts, router={"renorm": True, **router}), D)
    made.reset_parameters(0.5)
    return made


def dense() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in DENSE_SHAPES.items()}


def run(view: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, up = (x @ view["gate_up_proj"].T).chunk(2, -1)
    return (F.silu(gate) * up) @ view["down_proj"].T


def test_clones_compute_what_the_dense_layer_did() -> None:
    made, view, x = layer(), dense(), torch.randn(2, 5, D)
    clone(made, view)
    torch.testing.assert_close(made(x, RouteContext())[0], run(view, x), rtol=1e-4, atol=1e-4)
    clone(made, view, noise=0.1)
    assert not torch.equal(made.experts.view(0)["down_proj"], made.experts.view(1)["down_proj"])


@pytest.mark.parametrize("parts", [2, 3])
def test_an_exact_split_computes_what_the_dense_layer_did(parts: int) -> None:
    made, view, x = layer(INNER // parts, k=parts), dense(), torch.randn(2, 5, D)
    split(made, view, parts)
    torch.testing.assert_close(made(x, RouteContext())[0], run(view, x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match="must divide"):
        split(made, view, 5)


def test_specialists_are_the_experts() -> None:
    made, views, x = layer(k=1), [dense() for _ in range(E)], torch.randn(1, 7, D)
    specialists(made, views)
    y, out = made(x, RouteContext())
    wanted = torch.stack([run(views[int(e)], x[0, t]) for t, e in enumerate(out.index_TK[:, 0])])
    torch.testing.assert_close(y[0], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match="one for each"):
        specialists(made, views[:2])
