"""Init actions: clones compute what their model did, and silent experts say nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo import config as zc
from zoo.moe import MoE, MoEConfig, RouteContext, give
from zoo.spec import ZooError

MLP = {"name": "swiglu", "intermediate_size": 6}


def layer(**settings: Any) -> MoE:
    torch.manual_seed(0)
    moe = MoE(
        zc.make(MoEConfig, **{"num_experts": 4, "router": {"k": 2, "renorm": True}, "experts": MLP} | settings), 8
    )
    moe.reset_parameters(0.3)
    return moe.eval()


def act(name: str, moe: MoE, **settings: Any) -> None:
    zc.build("init action", {"name": name, **settings})(moe, {})


def says(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return moe(x, RouteContext())[0]


def test_clones_of_one_expert_say_what_it_said_alone() -> None:
    moe, x = layer(), torch.randn(2, 5, 8)
    give(moe, 1)
    alone = says(moe, x)
    give(moe, None)
    assert not torch.allclose(says(moe, x), alone)
    act("clone", moe, of=1)
    torch.testing.assert_close(says(moe, x), alone, rtol=0, atol=1e-5)
    act("clone", moe, of=1, noise=0.1)
    assert not torch.equal(moe.experts.view(0)["down_proj"], moe.experts.view(2)["down_proj"])


def test_silent_experts_leave_the_shared_one_and_can_be_its_clones() -> None:
    moe, x = layer(shared=MLP, experts={"name": "ternary", "intermediate_size": 6}), torch.randn(2, 5, 8)
    act("silence", moe)
    shared = moe.shared(x, torch.zeros_like(x)).detach()
    torch.testing.assert_close(says(moe, x), shared, rtol=0, atol=1e-6)
    act("clone", moe, of="shared")
    assert torch.equal(moe.experts.down_proj[3], moe.shared.down_proj.weight)
    assert not torch.allclose(says(moe, x), shared)
    act("silence", moe, what="shared")
    assert not moe.shared(x, torch.zeros_like(x)).any()


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("clone", {"of": 4}, "a layer has 4 experts; count from 0"),
        ("clone", {"of": "shared"}, "of=shared needs moe.shared.name=swiglu"),
        ("clone", {"of": "first"}, "must be the number of an expert, or shared"),
        ("silence", {"what": "shared"}, "have no down_proj"),
    ],
)
def test_what_cannot_be_is_told(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ZooError, match=told):
        act(name, layer(), **settings)
    with pytest.raises(ZooError, match="no mixture"):
        zc.build("init action", {"name": "clone"})(torch.nn.Linear(2, 2), {})
