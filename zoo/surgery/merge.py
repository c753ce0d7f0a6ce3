"""One model from several that were trained apart around one anchor, and experts that leave it again (FlexOlmo,
arXiv:2507.07024).

Each owner trains new experts beside the anchor's, which are frozen like everything else; a merge puts the owners'
experts and their rows of the router side by side, and opting out takes them away. Nothing is trained, and what stays
stays bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo import config as zc
from zoo.hub import Model
from zoo.hub.folder import unique_state
from zoo.spec import ZooError
from zoo.surgery.upcycle import rebuilt


@torch.no_grad()
def merge(models: Sequence[Model], anchor: int = 1, overrides: Mapping[str, Any] | None = None) -> Model:
    """The anchor's experts, then each model's own, in the order of the models.

    Args:
        models: alike but for their number of experts; the first ``anchor`` experts of each, and all weights that have
            no expert in them, are the same.
        overrides: other settings of the merged model, such as how many experts a token takes.

    Raises:
        ZooError: fewer than two models, models of other settings, or weights that should be one and are not.
    """
    if len(models) < 2:
        raise ZooError(f"a merge wants two models or more, not {len(models)}")
    counts = [_experts(model) for model in models]
    if anchor < 0 or min(counts) < anchor:
        raise ZooError(f"anchor={anchor}, but the models have {counts} experts")
    trees = [_without_experts(model) for model in models]
    for place, tree in enumerate(trees[1:], start=1):
        if tree != trees[0]:
            raise ZooError(f"model {place} has other settings than model 0 ({_difference(trees[0], tree)})")
    total = anchor + sum(count - anchor for count in counts)
    tree = _resized(models[0], list(range(anchor)), total, overrides)
    new = rebuilt(models[0], tree)
    states = [unique_state(model) for model in models]
    for key, place in unique_state(new).items():
        parts = [state[key].detach() for state in states]
        dim = _expert_dim(key, parts[0], place, counts[0], total)
        shared = parts if dim is None else [part.narrow(dim, 0, anchor) for part in parts]
        for owner, part in enumerate(shared[1:], start=1):
            if not torch.equal(part, shared[0]):
                whose = "" if dim is None else " of the anchor"
                raise ZooError(f"'{key}'{whose} differs between model 0 and model {owner}: they have no common anchor")
        if dim is not None:
            own = [part.narrow(dim, anchor, count - anchor) for part, count in zip(parts, counts, strict=True)]
            place.detach().copy_(torch.cat([shared[0], *own], dim))
        else:
            place.detach().copy_(shared[0])
    return new


@torch.no_grad()
def opt_out(model: Model, experts: Sequence[int], overrides: Mapping[str, Any] | None = None) -> Model:
    """The model without those experts: their weights, their rows of the routers and their biases are gone.

    Raises:
        ZooError: an expert that is not there, or too few experts left for the router.
    """
    count = _experts(model)
    if unknown := [e for e in experts if not 0 <= e < count]:
        raise ZooError(f"expert {unknown[0]} is not among the model's {count} (0 to {count - 1})")
    keep = [e for e in range(count) if e not in set(experts)]
    if not keep:
        raise ZooError(f"all {count} experts would go; keep one at least")
    new = rebuilt(model, _resized(model, keep, len(keep), overrides))
    given = unique_state(model)
    for key, place in unique_state(new).items():
        dim = _expert_dim(key, given[key], place, count, len(keep))
        part = given[key].detach()
        index = torch.tensor(keep, device=part.device)
        place.detach().copy_(part if dim is None else part.index_select(dim, index))
    return new


def _experts(model: Model) -> int:
    try:
        return int(model.config.stack.moe.num_experts)
    except AttributeError:
        raise ZooError(f"a {type(model).__name__} has no stack of mixtures to merge or to opt out of") from None


def _without_experts(model: Model) -> zc.Tree:
    tree = dataclasses.asdict(model.config)
    tree["stack"]["moe"].pop("num_experts")
    tree["stack"]["moe"]["experts"].pop("members", None)
    return tree


def _resized(model: Model, keep: list[int], total: int, overrides: Mapping[str, Any] | None) -> zc.Tree:
    """The settings for ``total`` experts, of which the first ones are those in ``keep``."""
    tree = dataclasses.asdict(model.config)
    moe = tree["stack"]["moe"]
    moe["num_experts"] = total
    members = moe["experts"].pop("members", None)
    if members and total == len(keep):
        moe["experts"]["members"] = [members[e] for e in keep]
    scorer = moe["router"].get("scorer") or {}
    if "public" in scorer:  # experts by number: they move when others leave
        scorer["public"] = [keep.index(e) for e in scorer["public"] if e in keep]
    merged: zc.Tree = zc.merge(tree, overrides or {})
    return merged


def _expert_dim(key: str, old: Tensor, new: Tensor, before: int, after: int) -> int | None:
    """The dimension in which a tensor has its experts, None when it has none."""
    if old.shape == new.shape:
        return None
    dims = [d for d, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    if len(dims) != 1 or (old.shape[dims[0]], new.shape[dims[0]]) != (before, after):
        raise ZooError(
            f"'{key}' has shape {tuple(old.shape)} and would have {tuple(new.shape)}: not experts side by side"
        )
    return dims[0]


def _difference(one: zc.Tree, other: zc.Tree, path: str = "") -> str:
    for key in one:
        if one[key] != other.get(key):
            where = f"{path}{key}"
            if isinstance(one[key], dict) and isinstance(other.get(key), dict):
                return _difference(one[key], other[key], f"{where}.")
            return f"{where}={other.get(key)!r}, not {one[key]!r}"
    return "a setting more"
