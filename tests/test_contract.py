"""What everything that is registered owes its users."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import config as zc
from zoo import create_model, hub, registry
from zoo.moe import RouterOutput
from zoo.moe.router import Router

LARGE = 20_000_000
KINDS = [kind for kind in registry.kinds() if kind != "model"]
THINGS = [(kind, name) for kind in KINDS for name in registry.entries(kind)]
MODELS = registry.list_models()


def size(name: str) -> int:
    return sum(p.numel() for p in create_model(name, device="meta").parameters())


def tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors of an output, those of the routing left out."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, tuple | list) and not isinstance(tree, RouterOutput):
        return [tensor for part in tree for tensor in tensors(part)]
    return []


@pytest.mark.parametrize(("kind", "name"), THINGS, ids=str)
def test_things_say_what_they_are(kind: str, name: str) -> None:
    entry = registry.find(kind, name)
    target = entry.load()
    assert dataclasses.is_dataclass(target.Config), "settings are a dataclass"
    assert (target.__doc__ or "").strip() and entry.spec.doc, "it says what it is"
    required = {f.name for f in dataclasses.fields(target.Config) if zc._default(f) == "???"}
    zc.resolve(target.Config, dict.fromkeys(required, "x"), name)


@pytest.mark.parametrize("name", MODELS)
def test_models_build_without_memory(name: str) -> None:
    model = create_model(name, device="meta")
    assert all(t.is_meta for t in model.parameters()) and model.zoo_name == name
    assert registry.find("task", registry.full_task(registry.find("model", name))).load()
    with torch.no_grad():
        model(**{key: value.to("meta") for key, value in model.dummy_inputs(1).items()})


@pytest.mark.parametrize("name", [name for name in MODELS if size(name) <= LARGE])
def test_models_keep_the_contract(name: str, tmp_path: Path) -> None:
    model = create_model(name).train()
    inputs = model.dummy_inputs(3)
    out = model(**inputs)
    routing = getattr(out, "routing", ())
    loss = sum((t.square().mean() for t in tensors(out)), torch.zeros(()))
    if any(module.__class__.__name__ == "MoE" for module in model.modules()):
        assert routing and all(layer.counts_E().sum() > 0 for layer in routing)
        balancers = next(module for module in model.modules() if module.__class__.__name__ == "Balancers")
        balance = balancers.loss(routing)
        assert all(torch.isfinite(value) for value in balance.values())
        loss = loss + sum(balance.values())
    if parameters := {key: p for key, p in model.named_parameters() if p.requires_grad}:
        loss.backward()
        assert [key for key, p in parameters.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    hub.save(tmp_path / "saved", model)
    again = hub.load(tmp_path / "saved").model
    assert list(again.state_dict()) == list(model.state_dict())
    model.eval()
    with torch.no_grad():
        whole = tensors(model(**inputs))
        for one, other in zip(tensors(again(**inputs)), whole, strict=True):
            assert torch.equal(one, other), "loaded as it was saved"
        if any(isinstance(m, Router) and m.capacity is not None for m in model.modules()):
            return  # an expert's places are the whole batch's: who gets one depends on the others (GShard, Switch)
        for b in range(3):
            alone = tensors(model(**{key: value[b : b + 1] for key, value in inputs.items()}))
            for one, other in zip(alone, whole, strict=True):
                torch.testing.assert_close(one, other[b : b + 1], rtol=0, atol=1e-5)
