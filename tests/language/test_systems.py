"""The systems: published totals, and what sets one apart from the next. That each trains is `tests/test_recipes.py`."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo import config as zc
from zoo.nn.size import measure
from zoo_language.systems import SYSTEMS

# Total and active parameters in billions, embeddings included; None where nobody published one that is comparable.
PUBLISHED = {
    "deepseek_moe_16b": (16.38, 2.829),
    "deepseek_v3": (671.0, 37.55),
    "moe_pp_7b": (7.68, None),
    "olmoe_7b": (6.92, 1.28),
    "qwen3_30b_a3b": (30.53, 3.35),
    "jetmoe_8b": (8.52, 2.33),
    "flexolmo_7x7b": (33.27, None),
    "mixtral_8x7b": (46.70, 12.88),
    "ling_lite": (16.8, 2.75),
    "longcat_560b": (560.0, None),
    "pangu_72b": (71.99, 16.50),
    "switch_base_128": (7.4, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    size, (total, active) = measure(zoo.create_model(f"language/{name}", device="meta")), PUBLISHED[name]
    assert size.parameters == pytest.approx(total * 1e9, rel=0.005)
    assert active is None or size.active == pytest.approx(active * 1e9, rel=0.005)


@pytest.mark.parametrize("name", [name for name, *_ in SYSTEMS if name.endswith("_tiny")])
def test_tiny_systems_learn_to_repeat(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.create_model(f"language/{name}").train()
    tokens = torch.randint(model.config.vocab_size, (2, 24))
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(12):
        with model.stack.balancers.at_step(step):
            out = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(out.logits_BLV.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + sum(model.stack.balancers.loss(out.routing).values())).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_a_group_of_pangu_gets_one_expert_of_each_token() -> None:
    model = zoo.create_model("language/pangu_tiny").eval()
    tokens = torch.randint(256, (2, 32))
    for out in model(tokens).routing:
        groups_G = out.counts_E().view(4, 4).sum(1)
        assert groups_G.tolist() == [64] * 4


def test_a_tiny_system_is_the_published_one_at_the_size_of_the_bed() -> None:
    for large, tiny in (("mixtral_8x7b", "mixtral_tiny"), ("deepseek_v3", "deepseek_v3_tiny")):
        trees = [zc.resolve_part("model", f"language/{name}", "model") for name in (large, tiny)]
        parts = [tree["stack"]["moe"] for tree in trees if tree is not None]
        for key in ("router", "experts", "balance"):
            one, other = (part[key] for part in parts)
            assert one.get("name") == other.get("name") and set(one) == set(other)
