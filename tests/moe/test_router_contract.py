"""The contract of every registered part of a router: what `router_cases` builds must hold all of this."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo import registry
from zoo.moe import MoE, RouteContext, RouterOutput
from zoo.moe.router import Router, RouterConfig
from zoo_kernels import ops

_spec = importlib.util.spec_from_file_location("router_cases", Path(__file__).with_name("router_cases.py"))
assert _spec and _spec.loader
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
B, L, D, E = cases.B, cases.L, cases.D, cases.E


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    """Routing does not depend on the backend, and the reference needs no compiler."""
    with ops.use_backend("reference"):
        yield


every_part = pytest.mark.parametrize(("kind", "name"), cases.PARTS, ids=["-".join(p) for p in cases.PARTS])


def run(made: MoE, x: Tensor, ctx: RouteContext) -> tuple[Tensor, RouterOutput]:
    """The layer with the state of a layer below, which had the same input."""
    return made(x, ctx, made.route(x, ctx).state)


def total(y: Tensor, out: RouterOutput) -> Tensor:
    mixed = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    return mixed if out.loss is None else mixed + out.loss


@every_part
def test_gives_a_routing(kind: str, name: str) -> None:
    made, x = cases.layer(kind, name), torch.randn(B, L, D)
    ctx = cases.context(made)
    y, out = run(made, x, ctx)
    slots = out.index_TK.shape[1]
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert out.index_TK.dtype == torch.int64
    assert ((out.index_TK >= 0) & (out.index_TK < E)).all()
    assert out.weight_TK.shape == out.used_TK.shape == (len(out.valid_T), slots)
    assert out.weight_TK.isfinite().all()
    assert out.logits_TE.dtype == out.weight_TK.dtype == torch.float32
    assert not out.weight_TK[~out.used_TK].any()
    assert not out.used_TK[~out.valid_T].any()
    assert out.counts_E().sum() == out.used_TK.sum() > 0
    for row, used in zip(out.index_TK.tolist(), out.used_TK.tolist(), strict=True):
        chosen = [expert for expert, is_used in zip(row, used, strict=True) if is_used]
        assert len(chosen) == len(set(chosen)), "an expert is chosen twice"
    assert made.eval().router.mean_slots <= E
    made.inactive_parameters()


@every_part
def test_gradient_reaches_every_parameter(kind: str, name: str) -> None:
    made, x = cases.layer(kind, name), torch.randn(B, 3 * L, D)
    ctx = cases.context(made, (B, 3 * L))
    total(*run(made, x, ctx)).backward()
    named = [*made.named_parameters(), *(ctx.common.named_parameters() if ctx.common else ())]
    for parameter_name, parameter in named:
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@every_part
def test_padding_changes_nothing_else(kind: str, name: str) -> None:
    made, x = cases.layer(kind, name).eval(), torch.randn(B, L, D)
    ctx = cases.context(made, step=None)
    with torch.no_grad():
        y, out = run(made, x, ctx)
        y_other, other = run(made, torch.where(ctx.valid[..., None], x, 9.0), ctx)  # type: ignore[index]
    assert torch.equal(out.counts_E(), other.counts_E())
    torch.testing.assert_close(y[ctx.valid], y_other[ctx.valid])


@every_part
@pytest.mark.parametrize("lead", [(0, 4), (2, 0), (2, 4)], ids=["no-sequence", "no-token", "all-padding"])
def test_nothing_to_route(kind: str, name: str, lead: tuple[int, int]) -> None:
    made, x = cases.layer(kind, name), torch.randn(*lead, D, requires_grad=True)
    ctx = cases.context(made, lead, valid=torch.zeros(lead, dtype=torch.bool))
    y, out = run(made, x, ctx)
    assert y.shape == x.shape
    assert not out.counts_E().any()
    total(y, out).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
    if made.shared is None:
        assert not y.any()


@every_part
def test_checkpointing_changes_nothing(kind: str, name: str) -> None:
    made, x = cases.layer(kind, name), torch.randn(B, L, D)
    ctx = cases.context(made)
    results = []
    for wrapped in (False, True):
        made.zero_grad()
        torch.manual_seed(5)
        state = made.route(x, ctx).state
        y, out = checkpoint(made, x, ctx, state, use_reentrant=False) if wrapped else made(x, ctx, state)
        total(y, out).backward()
        results.append([y.detach(), *(p.grad.clone() for p in made.parameters())])
    torch.testing.assert_close(results[0], results[1])


@every_part
def test_saves_and_loads(kind: str, name: str) -> None:
    one, other, x = cases.layer(kind, name), cases.layer(kind, name), torch.randn(B, L, D)
    ctx = cases.context(one)
    run(one, x, ctx)  # moves what training moves
    other.load_state_dict(one.state_dict())
    finished = replace(ctx, step=None)
    with torch.no_grad():
        first, second = run(one.eval(), x, finished)[0], run(other.eval(), x, finished)[0]
    assert torch.equal(first, second)
    assert torch.equal(first, run(one, x, finished)[0]), "evaluation is not deterministic"


@every_part
def test_routes_in_full_precision(kind: str, name: str) -> None:
    made, x = cases.layer(kind, name).bfloat16(), torch.randn(B, L, D, dtype=torch.bfloat16)
    out = made.route(x, cases.context(made.eval(), step=None)).state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made.route(x, cases.context(made, step=None), out)
    assert out.logits_TE.dtype == out.scores_TE.dtype == out.weight_TK.dtype == torch.float32


@every_part
def test_leaves_nothing_to_chance(kind: str, name: str) -> None:
    """A parameter of ``torch.empty`` that ``reset_parameters`` forgets holds whatever lay in memory."""
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN now
    try:
        made = cases.layer(kind, name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [key for key, value in made.state_dict().items() if value.isnan().any()] == []


@every_part
def test_says_what_it_is(kind: str, name: str) -> None:
    entry = registry.find(kind, name)
    target = entry.load()
    assert entry.spec.doc
    assert target.__doc__ and len(target.__doc__) > 20
    paper = entry.spec.paper.partition(",")[0]
    assert paper.startswith("arXiv:") or not paper
    assert paper in target.__doc__, "the docstring names another paper than the registry"


MIXES = list(
    zip_longest(
        *([name for kind, name in cases.PARTS if kind == wanted] for wanted in cases.KINDS if wanted != "unit"),
    )
)


@pytest.mark.parametrize("mix", MIXES, ids=["-".join(filter(None, mix)) for mix in MIXES])
def test_traces_without_a_break(mix: tuple[str | None, ...]) -> None:
    """Every part is compiled as one graph with those that stand beside it in the lists."""
    router: dict[str, object] = {}
    for kind, name in zip([k for k in cases.KINDS if k != "unit"], mix, strict=True):
        if name is None:
            continue
        settings = cases.SETTINGS.get((kind, name), {})
        key = {"logit_hook": "logit_hooks", "select_hook": "hooks"}.get(kind)
        router[key or kind] = {name: settings} if key else {"name": name, **settings}
    made = Router(zc.make(RouterConfig, **router), D, E).eval()
    made.reset_parameters(0.5)
    holder = cases.layer("scorer", "linear")
    x_TD = torch.randn(9, D)
    ctx = RouteContext(
        common=made.common(),
        experts=holder.experts,
        seq_id=torch.zeros(9, dtype=torch.int64),
        modality=torch.randint(0, 2, (9,)),
        label=torch.randint(0, E, (9,)),
        token_ids=torch.arange(9),
        cond=torch.randn(9, cases.C),
    )
    valid_T = torch.arange(9) < 7
    torch.compiler.reset()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, got = made(x_TD, valid_T, ctx), compiled(x_TD, valid_T, ctx)
    for field in ("logits_TE", "index_TK", "weight_TK", "used_TK"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field))


def test_a_recurrent_state_runs_through_the_layers() -> None:
    made = cases.layer("scorer", "recurrent")
    ctx, x = cases.context(made), torch.randn(B, L, D)
    first = made.route(x, ctx)
    second = made.route(x, ctx, first.state)
    assert first.state.shape == (B * L, 4)
    assert not torch.allclose(first.logits_TE, second.logits_TE)
    assert isinstance(ctx.common, nn.Module)
