"""Plans, routing and token rounding of every CPU-side backend against the reference.

Legend: T tokens, K slots, E experts.
"""

from __future__ import annotations

import pytest
import torch

from zoo_kernels import cpu, ops, reference
from zoo_kernels.plan import inverse, rows_per_expert

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(bool(cpu.unavailable()), reason="no C compiler"))]


def test_plan_is_a_stable_permutation() -> None:
    index_TK = torch.randint(0, 5, (50, 3), generator=torch.Generator().manual_seed(0))
    used_TK = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    plans = []
    for backend in ("reference", None):
        with ops.use_backend(backend):
            plans.append(ops.plan(index_TK, 6, used_TK))
    for plan in plans:
        used = int(plan.offset_E1[-1])
        assert used == int(used_TK.sum()) and plan.offset_E1[5] == used
        assert torch.equal(plan.pair_N.sort().values, torch.arange(150))
        assert torch.equal(plan.token_N, plan.pair_N // 3)
        assert torch.equal(inverse(plan.pair_N)[plan.pair_N], torch.arange(150))
        assert not used_TK.flatten()[plan.pair_N[used:]].any()
        for e, rows in enumerate(rows_per_expert(plan).tolist()):
            segment = plan.pair_N[int(plan.offset_E1[e]) :][:rows]
            assert (index_TK.flatten()[segment] == e).all() and (segment.diff() > 0).all()
    assert all(torch.equal(a, b) for a, b in zip(plans[0][:3], plans[1][:3], strict=True))


ROUTES = [
    {},
    {"renorm": True, "scale": 2.5},
    {"order": "topk_then_score"},
    {"order": "topk_then_score", "score": "sigmoid", "renorm": True},
    {"score": "sigmoid", "renorm": True, "select_bias_E": True, "num_groups": 4, "groups_kept": 2},
    {"score": "none", "select_bias_E": True, "num_groups": 12, "groups_kept": 5},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", ROUTES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float64, 0)])
def test_routing_and_its_gradient(backend: str, options: dict, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    options = options | ({"select_bias_E": torch.randn(36)} if "select_bias_E" in options else {})
    logits = torch.randn(67, 36).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    index, *got = ops.route(logits, 5, backend=backend, **options)
    want_index, *want = reference.route(exact, 5, **options)
    assert torch.equal(index, want_index)
    assert all((a.double() - b).norm() <= 2e-6 * b.norm() for a, b in zip(got, want, strict=True))
    upstream = [torch.randn_like(out) for out in got]
    for used in ([0, 1], [0], [1]):  # both results, or one of them, are used
        pick = [[tensors[i] for i in used] for tensors in (got, want, upstream)]
        (dgot,) = torch.autograd.grad(pick[0], logits, pick[2], retain_graph=True)
        (dwant,) = torch.autograd.grad(pick[1], exact, [u.double() for u in pick[2]], retain_graph=True)
        assert dgot.dtype == dtype and (dgot.double() - dwant).norm() <= tolerance * dwant.norm() + 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_routing_of_ties_infinities_and_nothing(backend: str) -> None:
    assert ops.route(torch.zeros(2, 5), 5, backend=backend)[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    index, weight, scores = ops.route(torch.tensor([[-torch.inf, 3.0, 1.0, -torch.inf]]), 3, backend=backend)
    assert index.tolist() == [[1, 2, 0]] and weight[0, 2] == scores[0, 3] == 0
    assert ops.route(torch.full((1, 20), torch.nan), 3, backend=backend)[0].max() < 20
    assert [tuple(out.shape) for out in ops.route(torch.zeros(0, 5), 2, backend=backend)] == [(0, 2), (0, 2), (0, 5)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "experts", "k", "tile"), [(1, 1, 1, 1), (40, 7, 2, 3), (777, 5, 3, 16), (0, 4, 2, 8)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_token_rounding(backend: str, tokens: int, experts: int, k: int, tile: int, ties: bool) -> None:
    torch.manual_seed(0)
    select, valid = torch.randn(tokens, experts), torch.rand(tokens) < 0.8
    if ties:
        select = (2 * select).round() / 2
        select[select < -1] = -torch.inf
    index = reference.select(select, k, None, None, None)
    chosen = ops.round_tokens(select, index, tile, valid, backend=backend)
    open_TE = valid[:, None] & (select > -torch.inf)
    before = torch.zeros_like(open_TE).scatter(1, index, True) & open_TE
    for e in range(experts):
        # by hand: the nearest multiple; the chosen by score, then the others by score
        rows = min(int((before[:, e].sum() / tile + 0.5).floor()), int(open_TE[:, e].sum()) // tile) * tile
        order = sorted(range(tokens), key=lambda t: (not before[t, e], not open_TE[t, e], -select[t, e].item(), t))
        assert chosen[:, e].nonzero().flatten().tolist() == sorted(order[:rows])
