"""Equal terms: active FLOPs, tokens, and the controls that are made from the system itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from zoo import config as zc
from zoo import hub
from zoo.claims.claim import Claim, samples, tokens
from zoo.nn.size import Size, measure
from zoo.spec import ZooError
from zoo.train.recipe import resolve_recipe

TOLERANCE = 0.03
"""Largest difference of active FLOPs per token between contestants."""


def size(tree: zc.Tree) -> Size:
    """Size of a recipe's model, built without memory."""
    settings = {key: value for key, value in tree["model"].items() if key != "name"}
    return measure(hub.create_model(tree["model"]["name"], device="meta", **settings))


def control(kind: str | None, tree: zc.Tree) -> zc.Tree:
    """A standard control, made from the resolved recipe of a system with mixtures of SwiGLU, GELU or ReLU experts.

    ``dense``: every mixture is one MLP, as wide as makes the active FLOPs equal; ``dense_wide``: as wide as makes the
    parameters equal; ``random_router``: the routers stay as they were initialised. Raises `ZooError` where that
    cannot be.
    """
    name = tree["model"]["name"]
    if kind == "random_router":
        return {**tree, "freeze": [*tree["freeze"], "*.router.*"]}
    wanted = "flops" if kind == "dense" else "parameters"
    target = getattr(size(tree), wanted)
    try:
        low, high = (getattr(size(_dense(tree, width)), wanted) for width in (1, 2))  # both are linear in the width
    except ZooError as error:
        raise ZooError(f"it cannot be made of the layers of '{name}' ({error}); write the contestant out") from error
    if low == high:
        raise ZooError(f"model '{name}' has no mixture to make it of; write the contestant out")
    width = 1 + round((target - low) / (high - low))
    if width < 1:
        raise ZooError(f"no dense model of '{name}' is so small; write the contestant out")
    return _dense(tree, width)


def _mixtures(node: Any) -> Iterator[dict[str, Any]]:
    """The mixture layers of a resolved config."""
    if isinstance(node, dict):
        if {"num_experts", "router", "experts", "balance"} <= set(node):
            yield node
        for value in node.values():
            yield from _mixtures(value)


def _dense(tree: zc.Tree, width: int) -> zc.Tree:
    """Every mixture replaced by one expert that all tokens pass with weight 1."""
    tree = copy.deepcopy(tree)
    for node in _mixtures(tree["model"]):
        kind = node["experts"]["name"]
        node.update(
            num_experts=1,
            unit={"name": "token"},
            # Every setting of it: the model's own YAML may have another router of this name below.
            router={
                "name": "topk",
                "k": 1,
                "score": "softmax",
                "order": "score_then_topk",
                "renorm": True,
                "scale": 1.0,
            },
            experts={"name": kind if kind in ("gelu", "relu") else "swiglu", "intermediate_size": width},
            shared=None,
            balance=dict.fromkeys(node["balance"]),
        )
    return resolve_recipe(tree, "dense")


def check(claim: Claim, trees: Mapping[str, zc.Tree]) -> dict[str, Size]:
    """Sizes of all contestants. Raises `ZooError` when they do not compete on equal terms."""
    sizes = {name: size(tree) for name, tree in trees.items()}
    (first, base), *others = sizes.items()
    if claim.flops == "equal":
        for name, other in others:
            if claim.contestants[name].control == "dense_wide":
                continue  # equal in parameters instead
            gap = abs(other.flops - base.flops) / max(1, min(other.flops, base.flops))
            if gap > TOLERANCE:
                raise ZooError(
                    f"contestant '{name}' takes {other.flops:,} active FLOPs a token and '{first}' {base.flops:,}, "
                    f"{gap:.1%} apart, where {TOLERANCE:.0%} are allowed; change the width of one, or set flops: free "
                    f"with a reason"
                )
    _equal_samples({name: tree for name, tree in trees.items() if not claim.contestants[name].of})
    return sizes


def _equal_samples(trees: Mapping[str, zc.Tree]) -> None:
    counts = {name: (samples(tree), tokens(tree)) for name, tree in trees.items()}
    (first, base), *others = counts.items()
    for name, other in others:
        if other[0] != base[0] and other[1] != base[1]:
            raise ZooError(
                f"contestant '{name}' trains on {other[0]:,} samples ({other[1]:,} tokens) and '{first}' on "
                f"{base[0]:,} ({base[1]:,}); make train.steps * train.batch_size * train.accumulate equal"
            )
