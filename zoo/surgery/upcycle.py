"""A mixture-of-experts model from a dense one, which says the same before it is trained on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from zoo import config as zc
from zoo.hub import Model
from zoo.hub.folder import unique_state
from zoo.moe.init import clone, split
from zoo.nn.feed_forward import Dense, Mixture
from zoo.spec import ZooError


@torch.no_grad()
def upcycle(
    dense: Model,
    num_experts: int = 8,
    k: int = 2,
    method: Literal["clone", "split"] = "clone",
    *,
    every: int = 1,
    noise: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """The model with a mixture in place of each MLP; all its other weights stay.

    ``clone``: every expert is the whole MLP, so that active parameters grow with k (sparse upcycling,
    arXiv:2212.05055). ``split``: every group of k experts is the MLP in k slices, so that active parameters stay
    (exact without training: the rows of a group are equal, and weigh 1 / k each).

    Args:
        dense: a model with a stack of ``feed_forward.name=dense``, gated by SiLU and without biases.
        every: only every so many-th layer gets a mixture, the last of each run.
        noise: of the clones, in standard deviations of each matrix; 0 keeps the function.
        overrides: other settings of the new model, such as ``{"stack": {"moe": {"balance": {"switch": {}}}}}``.

    Raises:
        ZooError: another kind of model, an unknown method, or sizes that do not divide.
    """
    tree = dataclasses.asdict(dense.config)
    node = tree.get("stack", {}).get("feed_forward", {})
    if node.get("name") != "dense" or not node["gated"] or node["activation"] != "silu" or node["bias"]:
        raise ZooError("upcycle wants a dense stack: feed_forward.name=dense, gated by silu, without bias")
    if method not in ("clone", "split"):
        raise ZooError(f"unknown method '{method}' of upcycling; choose clone or split")
    if every < 1 or not 1 <= k <= num_experts or noise < 0:
        raise ZooError(f"k={k} must be 1 to num_experts={num_experts}, every={every} at least 1 and noise={noise} 0")
    inner = node["intermediate_size"]
    if method == "split" and (inner % k or num_experts % k or noise):
        raise ZooError(
            f"split: k={k} must divide num_experts={num_experts} and the {inner} inner units; noise must be 0"
        )
    stack = tree["stack"]
    stack["feed_forward"] = {"name": "moe"}
    if every > 1:
        if stack["pattern"]:
            raise ZooError(f"every={every} is a pattern of layers, and the model has one already; leave every at 1")
        stack["pattern"] = [{"count": every - 1, "feed_forward": node}, {}]
    stack["moe"] |= {
        "num_experts": num_experts,
        "router": {"name": "topk", "k": k, "score": "softmax", "renorm": True},
        "experts": {"name": "swiglu", "intermediate_size": inner // k if method == "split" else inner},
    }
    new = rebuilt(dense, zc.merge(tree, overrides or {}))
    given = unique_state(dense)
    for key, place in unique_state(new).items():
        if key in given:
            place.detach().copy_(given[key])
    mixtures = {name: module for name, module in new.named_modules() if isinstance(module, Mixture)}
    for name, moe in mixtures.items():
        mlp = dense.get_submodule(name)
        assert isinstance(mlp, Dense) and mlp.gate_proj is not None
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        view = {"gate_up_proj": gate_up, "down_proj": mlp.down_proj.weight}
        if method == "clone":
            clone(moe, view, noise)
        else:
            split(moe, view, k)
    return new


def rebuilt(model: Model, tree: Mapping[str, Any]) -> Model:
    """A new model of the same class with other settings, in eval mode, and with what came with the old one."""
    target = type(model)
    new = target(zc.to_object(target.Config, zc.resolve(target.Config, tree, "model")))
    new.zoo_name, new.saved_with = model.zoo_name, copy.deepcopy(model.saved_with)
    return new.eval()
