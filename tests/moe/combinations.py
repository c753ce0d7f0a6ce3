"""The mixture layers that registered models and recipes use, shrunk, and those of published systems not shipped yet.

A published system is a composition of named parts: that each line of `PUBLISHED` keeps the contract is the test of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from zoo import config as zc
from zoo import hub, registry
from zoo.moe import MoE, MoEConfig
from zoo.train.recipe import read_recipe

WIDTH, CONDITION = 12, 5
"""Model width of every layer here, and of what conditions it."""

MLP = {"name": "swiglu", "intermediate_size": 6}
RENORM = {"name": "gather", "renorm": True}
Node = dict[str, Any]


def composed(**parts: Any) -> Node:
    return {"name": "composed", **parts}


def topk(k: int, **settings: Any) -> Node:
    return {"name": "topk", "k": k, **settings}


PUBLISHED: dict[str, Node] = {
    "switch": {"router": composed(selector=topk(1), capacity="factor", jitter=0.01), "balance": {"switch": {}}},
    "gshard": {"router": composed(selector=topk(2), capacity="factor", weigher=RENORM),
               "balance": {"switch": {"choices": "first"}}},
    "deepseek_v2": {"router": composed(selector=topk(2), hooks={"group_limit": {"groups": 4, "keep": 2, "top": 1}}),
                    "shared": MLP, "balance": {"switch": {"scope": "sequence"}, "device_level": {"devices": 4}}},
    "deepseek_v3": {"router": composed(activation="sigmoid", selector=topk(2),
                                       hooks={"group_limit": {"groups": 4, "keep": 2, "top": 2}},
                                       weigher={"name": "gather", "renorm": True, "scale": 2.5}),
                    "shared": MLP, "balance": {"loss_free": {}, "switch": {"scope": "sequence", "coef": 1e-4}}},
    "longcat_flash": {"router": topk(3, scale=6.0), "balance": {"pid": {"num_free": 2, "true_share": 0.7}},
                      "experts": {"name": "mixed", "banks": [{**MLP, "count": 6}, {"name": "copy", "count": 2}]}},
    "moe_plus_plus": {"router": composed(scorer="gate_residual", logit_hooks={"normalise": {}}, selector=topk(2),
                                         capacity={"name": "heterogeneous", "num_zero": 4},
                                         weigher={"name": "gather", "renorm": True, "num_null": 1}),
                      "experts": {"name": "mixed", "banks": [{**MLP, "count": 4}, {"name": "constant", "count": 2},
                                                             {"name": "copy", "count": 1},
                                                             {"name": "null", "count": 1}]},
                      "balance": {"weighted": {"num_free": 4}}},
    "adamoe": {"router": composed(selector=topk(4), weigher={"name": "gather", "renorm": True, "num_null": 4}),
               "experts": {"name": "mixed", "banks": [{**MLP, "count": 4}, {"name": "null", "count": 4}]},
               "balance": {"null_mean": {"num_null": 4}}},
    "adamoe_vla": {"router": composed(weigher="decoupled_scale"), "shared": MLP, "balance": {"switch": {}}},
    "dynamic_top_p": {"router": composed(selector={"name": "top_p", "p": 0.4}),
                      "balance": {"switch": {}, "entropy": {"direction": "minimise", "coef": 1e-4}}},
    "uni_moe_2": {"router": composed(selector={"name": "top_p", "p": 0.7},
                                     weigher={"name": "joint_softmax", "num_shared": 2}),
                  "experts": {"name": "mixed", "banks": [{**MLP, "count": 7}, {"name": "null", "count": 1}]},
                  "shared": MLP, "balance": {"switch": {"layers": "mean"}}},
    "grin": {"router": composed(hooks={"gumbel": {"log": True}}, weigher="sparsemixer"),
             "balance": {"switch": {"scope": "global_batch"}}},
    "jetmoe": {"router": topk(2, order="topk_then_score"), "balance": {"switch": {}, "z_loss": {}}},
    "gpt_oss": {"router": composed(scorer={"name": "linear", "bias": True}, activation="identity", selector=topk(4),
                                   weigher="chosen_softmax"), "balance": {"switch": {}}},
    "moirai": {"router": composed(scorer={"name": "centroid", "sign": 1}, activation="identity",
                                  weigher="chosen_softmax")},
    "pangu": {"router": composed(selector={"name": "group_topk", "k": 4, "groups": 4}), "shared": MLP},
    "sigma_tiny": {"router": composed(selector=topk(1, layers=[4, 2], steps=10), weigher=RENORM),
                   "balance": {"switch": {"scope": "global_batch"}}},
    "ling": {"router": composed(logit_hooks={"stochastic_warmup": {"steps": 10}}, weigher=RENORM),
             "shared": MLP, "balance": {"switch": {"coef": 0.015}, "z_loss": {"coef": 1e-4}}},
    "rmoe": {"router": composed(scorer={"name": "recurrent", "size": 5}, weigher=RENORM),
             "balance": {"switch": {}}},
    "moe_x": {"router": composed(scorer="sparsity_aware", weigher="chosen_softmax"),
              "experts": {"name": "relu", "intermediate_size": 6}, "balance": {"switch": {}}},
    "moma": {"router": composed(activation="sigmoid",
                                logit_hooks={"modality_mask": {"groups": [[0, 1, 2, 3], [4, 5, 6, 7]]}},
                                selector={"name": "expert_choice", "k": 1, "inference": "causal"})},
    "moiie": {"router": composed(logit_hooks={"modality_mask": {"groups": [[0, 1, 2, 6, 7], [3, 4, 5, 6, 7]]}}),
              "balance": {"switch": {"by": "modality"}}},
    "race_dit": {"router": composed(activation="identity", selector="race", weigher="gather"), "shared": MLP,
                 "balance": {"orthogonality": {}}},
    "seg_moe": {"unit": {"name": "segment", "length": 4}, "router": topk(1), "shared": MLP,
                "experts": {"name": "segment_mlp", "length": 4, "intermediate_size": 6}, "balance": {"switch": {}}},
    "union_of_experts": {"unit": {"name": "segment", "length": 3, "causal": True}, "router": topk(4),
                         "experts": {"name": "slices", "intermediate_size": 16}, "balance": {"switch": {}}},
    "hecto": {"unit": "sequence", "router": topk(1), "balance": {"entropy": {"direction": "maximise", "of": "load"}},
              "experts": {"name": "mixed", "banks": [{"name": "gelu", "intermediate_size": 6, "count": 4},
                                                     {"name": "gru", "size": 5, "count": 4}]}},
    "comet": {"router": composed(scorer={"name": "comet", "trees": 2, "entropy": 0.01},
                                 logit_hooks={"local_search": {"steps": 10}},
                                 selector={"name": "threshold", "threshold": 1e-6})},
    "mofme": {"router": composed(scorer="uncertainty"), "experts": {"name": "film", "intermediate_size": 6},
              "balance": {"switch": {}}},
    "flex_olmo": {"router": composed(scorer="domain_embedding"), "balance": {"switch": {}}},
    "mote": {"router": topk(1), "experts": {"name": "ternary", "intermediate_size": 6},
             "shared": {**MLP, "frozen": True}, "balance": {"switch": {}}},
    "smora": {"router": topk(2), "experts": {"name": "lora", "rank": 1}, "balance": {"loss_free": {}}},
    "bigmac": {"router": topk(2), "experts": {"name": "bottleneck", "rank": 4, "experts": MLP},
               "balance": {"switch": {}}},
    "molae": {"router": topk(2), "experts": {"name": "latent", "rank": 4, "experts": MLP}, "balance": {"switch": {}}},
    "bam": {"unit": "sequence", "router": composed(selector="all"), "experts": {"name": "attention", "size": 4}},
    "moe_act": {"router": composed(selector="all"), "balance": {"label_ce": {"smoothing": 0.2},
                                                                "entropy": {"direction": "minimise"}}},
    "megadance": {"router": composed(scorer="none", selector="label", weigher="uniform")},
    "mono_internvl": {"router": composed(scorer="none", selector="modality", weigher="uniform")},
    "mode": {"router": composed(scorer={"name": "conditional", "size": CONDITION}), "balance": {"switch": {}}},
    "mentor": {"router": topk(2, renorm=True), "balance": {"load_variance": {}, "entropy": {"direction": "minimise"}}},
    "sonic_moe": {"router": composed(selector={"name": "token_rounding", "k": 2, "tile": 4}),
                  "balance": {"switch": {}}},
    "bip": {"router": topk(2), "balance": {"bip": {}}},
    "hash_layers": {"router": composed(scorer="none", selector="hash", weigher="uniform")},
    "x_moe": {"router": composed(scorer={"name": "cosine", "rank": 4}, selector=topk(1)), "balance": {"switch": {}}},
    "residual_moe": {"router": topk(1), "shared": {**MLP, "gate": "mix", "norm": True}, "balance": {"switch": {}}},
}  # fmt: skip


def combinations() -> dict[str, Node]:
    """The mixture layers of every registered model and recipe, then the published ones; of those that differ in
    numbers only, the one with the fewest experts."""
    found = [
        (f"{name}[{place}]", asdict(moe.config))
        for name, node in _models()
        for place, moe in enumerate(m for m in _built(node).modules() if isinstance(m, MoE))
    ]
    found.sort(key=lambda item: item[1]["num_experts"])
    found += [(f"published {name}", asdict(_made(node))) for name, node in PUBLISHED.items()]
    kept: dict[str, tuple[str, Node]] = {}
    for name, node in found:
        kept.setdefault(json.dumps(_form(node), sort_keys=True), (name, shrunk(node)))
    return dict(kept.values())


def _made(node: Node) -> MoEConfig:
    return zc.make(MoEConfig, **{"experts": MLP, **node})


def _form(node: Any) -> Any:
    """A node without its numbers."""
    if isinstance(node, dict):
        return {key: _form(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_form(item) for item in node if isinstance(item, dict)]
    return node if isinstance(node, str | bool | None) else "number"


def _models() -> Iterator[tuple[str, Node]]:
    for name in registry.list_models():
        yield name, {"name": name}
    for recipe in zc.recipes():
        yield f"recipe {recipe}", read_recipe(recipe)["model"]


def _built(node: Node) -> Any:
    return hub.create_model(node["name"], device="meta", **{k: v for k, v in node.items() if k != "name"})


def shrunk(node: Any, inside: str = "") -> Any:
    """The same parts, narrow: inner sizes at most 16, so that a layer of any model is built in no time."""
    if isinstance(node, list):
        return [shrunk(item, inside) for item in node]
    if not isinstance(node, dict):
        return node
    small = {key: shrunk(value, key) for key, value in node.items()}
    for key, most in (("intermediate_size", 16), ("rank", 4), ("modes", WIDTH // 2 + 1)):
        if isinstance(small.get(key), int):
            small[key] = min(small[key], most)
    if isinstance(small.get("size"), int):
        small["size"] = CONDITION if small.get("name") == "conditional" else min(small["size"], 8)
    if isinstance(small.get("widths"), list):
        small["widths"] = [min(width, 4) for width in small["widths"]]
    return small


COMBINATIONS = combinations()
