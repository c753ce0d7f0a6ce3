"""The contract of whole mixture layers, as shipped models and published systems compose them.

Shapes: B batch, L length, D model width, E experts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput
from zoo_kernels import ops

_spec = importlib.util.spec_from_file_location("combinations", Path(__file__).with_name("combinations.py"))
assert _spec and _spec.loader
combinations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(combinations)
B, L, D = 3, 12, combinations.WIDTH
BREAKS: dict[str, str] = {}
"""Combinations that torch.compile cannot take whole, and why; none so far."""
every = pytest.mark.parametrize("name", combinations.COMBINATIONS)


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    with ops.use_backend("reference"):
        yield


def made(name: str) -> tuple[MoE, Balancers]:
    config = zc.make(MoEConfig, **combinations.COMBINATIONS[name])
    layer = MoE(config, D)
    layer.reset_parameters(0.5)
    with torch.no_grad():
        for module in (layer.experts, layer.shared):
            for parameter in module.parameters() if module is not None else ():
                parameter.normal_(std=0.5)
    return layer, Balancers(config.balance, 1, config.num_experts)


def context(layer: MoE, balancers: Balancers, lead: tuple[int, int] = (B, L), **fields: Any) -> RouteContext:
    """Everything that a router may ask for; the second and the last sequence are padded at their end."""
    valid = torch.ones(lead, dtype=torch.bool)
    valid[1::2, -5:] = False
    given: dict[str, Any] = {
        "valid": valid,
        "token_ids": torch.randint(0, 50, lead),
        "modality": torch.randint(0, 2, lead),
        "label": torch.randint(0, layer.num_experts, lead[:1]),
        "domain": torch.randint(0, 4, lead),
        "importance": torch.rand(lead),
        "cond": torch.randn(*lead[:1], combinations.CONDITION),
        "common": layer.router.common(),
    }
    with balancers.at_step(3):
        return balancers.context(**{**given, **fields})


def run(layer: MoE, x: Tensor, ctx: RouteContext, wrapped: bool = False) -> tuple[Tensor, RouterOutput]:
    """The layer with the state of a layer below, which had the same input."""
    state = layer.route(x, ctx).state
    return checkpoint(layer, x, ctx, state, use_reentrant=False) if wrapped else layer(x, ctx, state)


def total(y: Tensor, out: RouterOutput, balancers: Balancers) -> Tensor:
    """A loss in which every output counts, balance losses included."""
    mixed = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    return mixed + sum(balancers.loss((out,)).values())


def said(name: str) -> int:
    """Width of the output: action heads say something narrower than they hear."""
    return combinations.COMBINATIONS[name].get("experts", {}).get("outputs") or D


def parameters(*modules: nn.Module | None) -> dict[str, nn.Parameter]:
    return {
        name: p for module in modules if module is not None for name, p in module.named_parameters() if p.requires_grad
    }


@every
def test_forward_backward_and_a_gradient_everywhere(name: str) -> None:
    layer, balancers = made(name)
    length = L * -(-layer.num_experts // 8)  # enough tokens for all experts
    x = torch.randn(B, length, D, requires_grad=True)
    ctx = context(layer, balancers, (B, length))
    y, out = run(layer, x, ctx)
    assert y.shape == (*x.shape[:-1], said(name)) and y.isfinite().all()
    assert not out.weight_TK[~out.used_TK].any() and not out.used_TK[~out.valid_T].any()
    total(y, out, balancers).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    for where, parameter in parameters(layer, ctx.common).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), where
        assert parameter.grad.any(), f"{where} gets no gradient"


@every
def test_padding_changes_nothing_else(name: str) -> None:
    layer, balancers = made(name)
    layer.eval(), balancers.eval()
    x = torch.randn(B, L, D)
    ctx = replace(context(layer, balancers), step=None)
    results = []
    with torch.no_grad():
        for filler in (0.0, 9.0):
            y, out = run(layer, torch.where(ctx.valid[..., None], x, filler), ctx)  # type: ignore[index]
            results.append((y[ctx.valid], out.counts_E(), balancers.loss((out,))))
    torch.testing.assert_close(results[0], results[1])


@every
@pytest.mark.parametrize(
    "lead", [(0, 4), (2, 0), (2, 4), (1, 1)], ids=["no-sequence", "no-token", "padding", "one-token"]
)
def test_nothing_to_route_and_empty_experts(name: str, lead: tuple[int, int]) -> None:
    """No token at all, only padding, and one token, which leaves nearly every expert empty."""
    layer, balancers = made(name)
    x = torch.randn(*lead, D, requires_grad=True)
    ctx = context(layer, balancers, lead, valid=torch.full(lead, lead == (1, 1)))
    y, out = run(layer, x, ctx)
    assert y.shape == (*x.shape[:-1], said(name)) and y.isfinite().all()
    assert bool(out.counts_E().any()) <= (lead == (1, 1))
    total(y, out, balancers).backward()
    balancers.observe((out,))
    balancers.step()
    tensors = [p.grad for p in parameters(layer, ctx.common).values() if p.grad is not None]
    assert all(t.isfinite().all() for t in (*tensors, *balancers.state_dict().values()))


@every
def test_checkpointing_changes_nothing(name: str) -> None:
    results = []
    for wrapped in (False, True):
        torch.manual_seed(5)
        layer, balancers = made(name)
        x = torch.randn(B, L, D)
        ctx = context(layer, balancers)
        y, out = run(layer, x, ctx, wrapped)
        balancers.observe((out,))  # before the backward pass, as the trainer does
        total(y, out, balancers).backward()
        balancers.step()
        gradients = {where: parameter.grad for where, parameter in parameters(layer, ctx.common).items()}
        results.append((y.detach(), out.counts_E(), gradients, layer.state_dict(), balancers.state_dict()))
    torch.testing.assert_close(results[0], results[1])


@every
def test_saves_and_loads(name: str) -> None:
    (one, balancers), (other, others) = made(name), made(name)
    x = torch.randn(B, L, D)
    ctx = context(one, balancers)
    balancers.observe((run(one, x, ctx)[1],))  # moves what training moves
    balancers.step()
    other.load_state_dict(one.state_dict())
    others.load_state_dict(balancers.state_dict())
    results = []
    with torch.no_grad():
        for layer, its in ((one, balancers), (one, balancers), (other, others)):
            layer.eval(), its.eval()
            results.append(run(layer, x, replace(ctx, step=None, balancers=its))[0])
    assert torch.equal(results[0], results[1]), "evaluation is not deterministic"
    assert torch.equal(results[0], results[2]), "loaded as it was saved"


@every
def test_compiles_whole(name: str) -> None:
    if name in BREAKS:
        pytest.skip(f"a stated break: {BREAKS[name]}")
    layer, balancers = made(name)
    layer.eval(), balancers.eval()
    x = torch.randn(B, L, D)
    ctx = replace(context(layer, balancers), step=None)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, state: layer(x, ctx, state)[0], backend="eager", fullgraph=True)
    with torch.no_grad():
        state = layer.route(x, ctx).state
        torch.testing.assert_close(compiled(x, state), layer(x, ctx, state)[0])
