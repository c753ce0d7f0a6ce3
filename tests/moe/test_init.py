"""Mixture layers from dense ones compute at first what the dense layer did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import config as zc
from zoo.moe import MoE, MoEConfig, RouteContext
from zoo.moe.init import beside, clone, specialists, split
from zoo.spec import ZooError

D, E, INNER = 8, 6, 12
DENSE_SHAPES = {"gate_up_proj": (2 * INNER, D), "down_proj": (D, INNER)}


def layer(size: int = INNER, **router: Any) -> MoE:
    return composed({"name": "swiglu", "intermediate_size": size}, {"renorm": True, **router})


def composed(experts: Any, router: Any, **parts: Any) -> MoE:
    made = MoE(zc.make(MoEConfig, num_experts=E, experts=experts, router=router, **parts), D)
    made.reset_parameters(0.5)
    return made


def dense() -> dict[str, Tensor]:
    return {name: 0.5 * torch.randn(shape) for name, shape in DENSE_SHAPES.items()}


def run(view: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, up = (x @ view["gate_up_proj"].T).chunk(2, -1)
    return (F.silu(gate) * up) @ view["down_proj"].T


def test_clones_compute_what_the_dense_layer_did() -> None:
    made, view, x = layer(), dense(), torch.randn(2, 5, D)
    clone(made, view)
    torch.testing.assert_close(made(x, RouteContext())[0], run(view, x), rtol=1e-5, atol=1e-5)
    clone(made, view, noise=0.1)
    assert not torch.equal(made.experts.view(0)["down_proj"], made.experts.view(1)["down_proj"])


@pytest.mark.parametrize("parts", [2, 3])
def test_an_exact_split_computes_what_the_dense_layer_did(parts: int) -> None:
    made, view, x = layer(INNER // parts, k=parts), dense(), torch.randn(2, 5, D)
    split(made, view, parts)
    torch.testing.assert_close(made(x, RouteContext())[0], run(view, x), rtol=1e-5, atol=2e-5)
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


@pytest.mark.parametrize("by", ["label", "modality", "domain"])
def test_a_label_router_over_identical_experts_is_the_dense_layer(by: str) -> None:
    """Whatever the labels say; those beyond the table get nothing."""
    router = {"name": "composed", "scorer": "none", "selector": {"name": "label", "by": by}, "weigher": "uniform"}
    made, view, x = composed({"name": "swiglu", "intermediate_size": INNER}, router), dense(), torch.randn(2, 5, D)
    clone(made, view)
    y, out = made(x, RouteContext(**{by: torch.randint(0, E, (2, 5))}))
    torch.testing.assert_close(y, run(view, x), rtol=1e-5, atol=1e-5)
    assert out.used_TK.all()
    assert not made(x, RouteContext(**{by: torch.full((2, 5), E)}))[0].any()


def test_null_experts_alone_contribute_nothing() -> None:
    made, x = composed("null", {"renorm": True}), torch.randn(2, 5, D)
    y, out = made(x, RouteContext())
    assert not y.any() and out.counts_E().sum() == 20, "a chosen null expert is used, and counts as load"
    banks = [{"name": "swiglu", "intermediate_size": INNER, "count": E - 2}, {"name": "null", "count": 2}]
    router = {"name": "composed", "scorer": "none", "weigher": {"name": "uniform", "renorm": True}}
    forced = {**router, "selector": {"name": "forced", "experts": [E - 2, E - 1]}}
    assert not composed({"name": "mixed", "banks": banks}, forced)(x, RouteContext())[0].any()
    one = {**router, "selector": {"name": "forced", "experts": [0, E - 1]}}
    made, view = composed({"name": "mixed", "banks": banks}, one), dense()
    made.experts.write(0, view)
    torch.testing.assert_close(made(x, RouteContext())[0], run(view, x) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("selector", ["topk", "top_p", "group_topk", "threshold"])
def test_a_batch_is_its_sequences(selector: str) -> None:
    """Dropless: what a token gets does not depend on what else is in the batch."""
    settings = {"k": 2, "groups": 2} if selector == "group_topk" else {}
    router = {"name": "composed", "selector": {"name": selector, **settings}}
    made, x = composed({"name": "swiglu", "intermediate_size": INNER}, router).eval(), torch.randn(4, 5, D)
    whole = made(x, RouteContext())[0]
    alone = torch.cat([made(row[None], RouteContext())[0] for row in x])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_ternary_clones_beside_the_frozen_layer() -> None:
    """What was there stays, bit by bit; the routed experts, each the rounded layer, come on top."""
    shared = {"name": "swiglu", "intermediate_size": INNER, "frozen": True}
    ternary = {"name": "ternary", "intermediate_size": INNER, "round_input": False}
    made, view, x = composed(ternary, {"k": 1}, shared=shared), dense(), torch.randn(2, 5, D)
    beside(made, view)
    assert torch.equal(made.shared(x, torch.zeros_like(x)), run_as_shared(view, x))
    y, out = made(x, RouteContext())
    rounded = {
        name: part for name, part in zip(DENSE_SHAPES, (each[0] for each in made.experts.weights()[:2]), strict=True)
    }
    routed = out.weight_TK.view(2, 5, 1) * run(rounded, x)
    torch.testing.assert_close(y, run(view, x) + routed, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert all(p.grad is None for p in made.shared.parameters()) and made.experts.down_proj.grad.any()
    with pytest.raises(ZooError, match=f"not as wide as the dense layer \\({INNER}\\); set intermediate_size=7"):
        beside(made, {"gate_up_proj": torch.randn(14, D), "down_proj": torch.randn(D, 7)})
    with pytest.raises(ZooError, match=r"needs moe.shared.name=swiglu"):
        beside(layer(), view)


def run_as_shared(view: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, up = view["gate_up_proj"].chunk(2)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), view["down_proj"])
