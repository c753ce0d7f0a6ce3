"""Gate conventions against a hand calculation, selectors against a plain loop, schedules, units and capacity.

Shapes: T tokens, E experts, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput
from zoo.moe.router import Router, RouterConfig
from zoo.moe.scorers.comet import assignment, branches, smooth_step
from zoo.moe.selectors.table import MovingThreshold, ranks_within
from zoo.nn import Transformer, TransformerConfig
from zoo.spec import ZooError
from zoo_kernels import ops


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    with ops.use_backend("reference"):
        yield


def router(num_experts: int, hidden_size: int | None = None, **parts: Any) -> Router:
    """Composed; when no scorer is given the logits are the input itself."""
    made = Router(zc.make(RouterConfig, **parts), hidden_size or num_experts, num_experts)
    made.reset_parameters(1.0)
    if "scorer" not in parts and hidden_size is None:
        torch.nn.init.eye_(made.scorer.weight)
    return made


def route(made: Router, logits: Tensor, **ctx: Any) -> RouterOutput:
    valid_T = ctx.pop("valid", torch.ones(len(logits), dtype=torch.bool))
    return made(logits, valid_T, RouteContext(**ctx))


def chosen(out: RouterOutput) -> list[set[int]]:
    pairs = zip(out.index_TK.tolist(), out.used_TK.tolist(), strict=True)
    return [{e for e, used in zip(row, flags, strict=True) if used} for row, flags in pairs]


def dense(out: RouterOutput) -> Tensor:
    """(T, E): the weight of every expert."""
    return torch.zeros_like(out.scores_TE).scatter_add(1, out.index_TK, out.weight_TK)


# Gate conventions: logits log 4, log 3, log 2, log 1 have the softmax 0.4, 0.3, 0.2, 0.1.
LOGITS = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).log()
SIGMOID = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
BIAS = {"bias": {"values": [0.0, -0.15, 0.05, 0.0]}}  # lifts the third expert over the second


@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        ({}, [0.4, 0.3, 0, 0]),  # a: softmax, top-k
        ({"weigher": {"name": "gather", "renorm": True}}, [4 / 7, 3 / 7, 0, 0]),  # b: renormalised
        ({"activation": "identity", "weigher": "chosen_softmax"}, [4 / 7, 3 / 7, 0, 0]),  # c: softmax over the chosen
        (  # d: sigmoid, selection bias, renormalised, scaled
            {
                "activation": "sigmoid",
                "hooks": BIAS,
                "weigher": {"name": "gather", "renorm": True, "scale": 2.5},
            },
            [2.5 * SIGMOID[0] / (SIGMOID[0] + SIGMOID[2]), 0, 2.5 * SIGMOID[2] / (SIGMOID[0] + SIGMOID[2]), 0],
        ),
        ({"hooks": BIAS, "weigher": {"name": "gather", "scale": 6.0}}, [2.4, 0, 1.2, 0]),  # e: bias, scaled
        ({"weigher": {"name": "gather", "renorm": True, "num_null": 3}}, [1, 0, 0, 0]),  # nulls weigh nothing
        ({"weigher": "uniform"}, [1, 1, 0, 0]),
        ({"weigher": "chosen_sigmoid"}, [SIGMOID[0], SIGMOID[1], 0, 0]),
        ({"weigher": "sparsemixer"}, [0.4, 0.5, 0, 0]),  # 3 / (3 + 2 + 1) once the first is taken
    ],
)
def test_gate_conventions_by_hand(parts: dict[str, Any], weights: list[float]) -> None:
    torch.testing.assert_close(
        dense(route(router(4, **parts).eval(), LOGITS))[0], torch.tensor(weights, dtype=torch.float32)
    )


def test_flags_of_topk_say_the_same() -> None:
    logits, parts = torch.randn(9, 5), {"weigher": {"name": "chosen_softmax"}, "activation": "identity"}
    flags = zc.build("router", {"name": "topk", "k": 2, "order": "topk_then_score"}, 5, 5)
    torch.nn.init.eye_(flags.scorer.weight)
    assert torch.equal(dense(route(flags, logits)), dense(route(router(5, **parts), logits)))


def test_a_bias_changes_which_and_never_how_much() -> None:
    logits, made = torch.randn(20, 6), router(6)
    balancers = Balancers({}, 1, 6)
    bias_E = torch.tensor([3.0, 0, 0, 0, 0, -3.0])
    balancers.bias = lambda layer, scores, valid: bias_E  # type: ignore[method-assign]
    plain, biased = route(made, logits), route(made, logits, balancers=balancers)
    assert all(0 in row and 5 not in row for row in chosen(biased))
    both = (dense(plain) > 0) & (dense(biased) > 0)
    assert torch.equal(dense(plain)[both], dense(biased)[both])
    assert torch.equal(plain.scores_TE, biased.scores_TE)
    assert not biased.select_TE.requires_grad


def test_joint_softmax_by_hand() -> None:
    made = router(4, weigher={"name": "joint_softmax", "num_shared": 1, "renorm": True})
    torch.nn.init.zeros_(made.weigher.weight)  # the shared logit is 0, its share 1 / (4 + 3 + 2 + 1 + 1)
    out = route(made, LOGITS)
    torch.testing.assert_close(out.shared_weight, torch.tensor([[1 / 11]]))
    torch.testing.assert_close(dense(out)[0], torch.tensor([10 / 11 * 4 / 7, 10 / 11 * 3 / 7, 0, 0]))


def test_sparsemixer_keeps_the_gradient_and_changes_the_value() -> None:
    made = router(4, selector={"name": "forced", "experts": [2]}, weigher="sparsemixer")
    values, gradients = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        logits = LOGITS.clone().requires_grad_()
        weight = route(made, logits).weight_TK.sum()
        weight.backward()
        values.add(round(weight.item(), 4))
        gradients.add(tuple(round(v, 4) for v in logits.grad[0].tolist()))  # type: ignore[index]
    assert values == {0.2, round(0.2 / 3, 4)}
    assert gradients == {(-0.08, -0.06, 0.16, -0.02)}  # 0.2 * (one-hot - p)


# Selectors against a plain loop.


def top_p(p: Tensor, limit: float) -> list[set[int]]:
    rows = []
    for row in p.tolist():
        taken, total = set(), 0.0
        for e in sorted(range(len(row)), key=lambda e: -row[e]):
            taken.add(e)
            total += row[e]
            if total >= limit:
                break
        rows.append(taken)
    return rows


def expert_choice(p: Tensor, groups: list[list[int]], k: float) -> list[set[int]]:
    rows: list[set[int]] = [set() for _ in p]
    for tokens in groups:
        room = math.ceil(len(tokens) * k / p.shape[1])
        for e in range(p.shape[1]):
            for t in sorted(tokens, key=lambda t: -p[t, e].item())[:room]:
                rows[t].add(e)
    return rows


VALID = torch.arange(12) < 10


def test_selectors_equal_a_plain_loop() -> None:
    logits = torch.randn(12, 6)
    p, real = logits.softmax(-1), list(range(10))

    def got(**selector: Any) -> list[set[int]]:
        seq_id = torch.tensor([7] * 4 + [2] * 8)
        rows = chosen(route(router(6, selector=selector).train(), logits, valid=VALID, seq_id=seq_id, step=0))
        assert rows[10:] == [set(), set()]
        return rows[:10]

    best = [sorted(range(6), key=lambda e: -row[e]) for row in p.tolist()]
    assert got(name="topk", k=3) == [set(row[:3]) for row in best[:10]]
    for limit in (0.0, 0.4, 0.8, 1.0):
        assert got(name="top_p", p=limit) == top_p(p[:10], limit)
    assert got(name="threshold", threshold=0.3) == [
        {e for e in range(6) if row[e] > 0.3} or {max(range(6), key=lambda e: row[e])} for row in p[:10].tolist()
    ]
    assert got(name="group_topk", k=2, groups=2) == [
        {max(half, key=lambda e: row[e]) for half in (range(3), range(3, 6))} for row in p[:10].tolist()
    ]
    assert got(name="expert_choice", k=1.5) == expert_choice(p, [real], 1.5)[:10]
    in_sequences = expert_choice(p, [real[:4], real[4:]], 1.5)[:10]
    assert got(name="expert_choice", k=1.5, scope="sequence") == in_sequences
    table = sorted(((p[t, e].item(), t, e) for t in real for e in range(6)), reverse=True)[: int(10 * 1.5)]
    assert got(name="race", k=1.5) == [{e for _, t, e in table if t == token} for token in real]
    assert got(name="all") == [set(range(6))] * 10


@pytest.mark.parametrize("tile", [1, 2, 3, 4])
def test_token_rounding_fills_tiles(tile: int) -> None:
    logits = torch.randn(40, 5)
    made = router(5, selector={"name": "token_rounding", "k": 2, "tile": tile})
    out, valid = route(made.train(), logits, valid=torch.arange(40) < 33), logits[:33]
    plain = route(router(5), valid).counts_E()
    assert (out.counts_E() % tile == 0).all()
    assert ((out.counts_E() - plain).abs() <= tile / 2).all()
    table, p = dense(out)[:33] > 0, valid.softmax(-1)
    first = dense(route(router(5), valid)) > 0
    for e in range(5):  # dropped are the worst of the chosen, added the best of the others
        dropped, added = first[:, e] & ~table[:, e], table[:, e] & ~first[:, e]
        if dropped.any():
            assert p[dropped, e].max() <= p[first[:, e] & table[:, e], e].min()
        if added.any():
            assert p[added, e].min() >= p[~first[:, e] & ~table[:, e], e].max()
    assert torch.equal(route(made.eval(), valid).counts_E(), plain)


def test_given_experts() -> None:
    label = torch.tensor([0, 2, 5, -1])
    groups = {"name": "label", "groups": [[0], [1], [1, 2]]}
    assert chosen(route(router(3, selector=groups), torch.randn(4, 3), label=label)) == [{0}, {1, 2}, set(), set()]
    plain = router(3, selector="modality")
    assert chosen(route(plain, torch.randn(4, 3), modality=label)) == [{0}, {2}, set(), set()]
    with pytest.raises(ZooError, match=r"ctx\.modality"):
        route(plain, torch.randn(4, 3))
    hashed = router(6, selector={"name": "hash", "k": 2})
    ids = torch.arange(600) % 300
    first, other = (route(hashed, torch.randn(600, 6), token_ids=ids, layer=n) for n in (0, 1))
    assert chosen(first)[:300] == chosen(first)[300:]
    assert chosen(first) != chosen(other)
    assert first.counts_E().min() > 0.7 * 200


def test_hooks_forbid_and_force() -> None:
    logits, modality = torch.randn(30, 6), torch.arange(30) % 2
    mask = {"modality_mask": {"groups": [[0, 1, 2], [2, 3, 4, 5]]}}
    out = route(router(6, hooks=mask), logits, modality=modality)
    assert all(row <= ({0, 1, 2}, {2, 3, 4, 5})[n % 2] for n, row in enumerate(chosen(out)))
    inside = route(router(6, logit_hooks=mask), logits, modality=modality)
    assert chosen(inside) == chosen(out)
    torch.testing.assert_close(inside.scores_TE[0, :3].sum(), torch.tensor(1.0))
    single = {"modality_mask": {"groups": [[3], [0, 1]]}}
    assert {len(row) for row in chosen(route(router(6, hooks=single), logits, modality=modality))[::2]} == {1}
    forced = route(router(6, hooks={"steer": {"experts": [4], "force": True}}), logits)
    assert all(4 in row for row in chosen(forced))
    torch.testing.assert_close(dense(forced)[:, 4], logits.softmax(-1)[:, 4])
    elsewhere = {"steer": {"experts": [4], "force": True, "layers": [3]}}
    assert chosen(route(router(6, hooks=elsewhere), logits)) == chosen(route(router(6), logits))


def test_group_limit_by_hand() -> None:
    # Groups of two: sums 0.5, 0.59, 0.55. The best single expert is in the worst group.
    scores = torch.tensor([[0.48, 0.02, 0.3, 0.29, 0.35, 0.2]])
    parts = {"activation": "identity", "hooks": {"group_limit": {"groups": 3, "keep": 2}}}
    assert chosen(route(router(6, **parts), scores)) == [{2, 4}]
    assert chosen(route(router(6, **parts), scores - 1)) == [{2, 4}], "negative scores are no reason to be chosen"


def test_schedules_end_with_the_training() -> None:
    made = router(6, selector={"name": "topk", "k": 1, "layers": [4, 2], "steps": 10})
    sizes = [[len(chosen(route(made, torch.randn(2, 6), layer=n, step=s))[0]) for n in range(3)] for s in (0, 9, 10)]
    assert sizes == [[4, 2, 1], [4, 2, 1], [1, 1, 1]]
    assert len(chosen(route(made, torch.randn(2, 6)))[0]) == 1
    warm = router(4, activation={"name": "softmax", "start": 8.0, "temperature": 2.0, "steps": 2})
    for step, tau in ((0, 8.0), (1, 4.0), (2, 2.0), (None, 2.0)):
        torch.testing.assert_close(route(warm, LOGITS, step=step).scores_TE, (LOGITS / tau).softmax(-1))
    random = router(4, logit_hooks={"stochastic_warmup": {"steps": 100}})
    assert not torch.allclose(route(random, LOGITS, step=0).logits_TE, LOGITS)
    for finished in (route(random, LOGITS, step=100), route(random, LOGITS), route(random.eval(), LOGITS, step=0)):
        assert torch.equal(finished.logits_TE, LOGITS)


def test_the_step_reaches_every_layer_and_ends() -> None:
    moe = {"router": {"name": "composed", "selector": {"name": "topk", "k": 1, "layers": [3, 3], "steps": 5}}}
    config = zc.make(
        TransformerConfig, hidden_size=8, num_layers=2, mixer={"num_heads": 2}, moe={"num_experts": 4, **moe}
    )
    model, x = Transformer(config), torch.randn(1, 3, 8)
    with model.balancers.at_step(4):
        assert [out.index_TK.shape[1] for out in model(x)[1]] == [3, 3]
    with model.balancers.at_step(5):
        assert [out.index_TK.shape[1] for out in model(x)[1]] == [1, 1]
    assert [out.index_TK.shape[1] for out in model(x)[1]] == [1, 1]
    with pytest.raises(ValueError, match="stop"), model.balancers.at_step(4):
        raise ValueError("stop")
    assert model.balancers.now is None


def test_a_stack_owns_the_shared_cell_and_carries_the_state() -> None:
    moe = {"num_experts": 4, "router": {"name": "composed", "scorer": {"name": "recurrent", "size": 4}}}
    config = zc.make(TransformerConfig, hidden_size=8, num_layers=3, mixer={"num_heads": 2}, moe=moe)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config.activation_checkpointing = checkpointing
        model = Transformer(config)
        y, routing = model(torch.ones(1, 5, 8).cumsum(1))
        (y.sum() + routing[-1].weight_TK.square().sum()).backward()
        results.append([p.grad for p in model.router_common.parameters()])  # type: ignore[union-attr]
        assert sum("gru" in name or "cell" in name for name, _ in model.named_parameters()) == 4
    torch.testing.assert_close(results[0], results[1])
    assert all(g.any() for g in results[0])


def test_a_threshold_moves_once_a_step() -> None:
    moving = MovingThreshold(1, momentum=0.5)
    for step, margin in ((0, 4.0), (0, 100.0), (1, 2.0), (1, 100.0), (2, math.inf), (None, 100.0)):
        moving.move(torch.tensor([margin]), RouteContext(step=step))
    assert moving.value.item() == 3.0


def test_races_and_expert_choice_have_a_causal_end() -> None:
    logits = torch.randn(50, 6)
    for selector in ({"name": "race", "k": 2.0}, {"name": "expert_choice", "k": 2.0, "inference": "threshold"}):
        made = router(6, selector=selector)
        trained = chosen(route(made.train(), logits, step=0))
        made.eval()
        assert sum(len(a ^ b) for a, b in zip(trained, chosen(route(made, logits)), strict=True)) <= 6
        assert chosen(route(made, logits[:7])) == chosen(route(made, logits))[:7], "looks at later tokens"


def test_the_causal_router_learns_who_was_taken() -> None:
    made = router(
        4, 8, scorer="linear", selector={"name": "expert_choice", "k": 1.0, "inference": "causal", "coef": 1.0}
    )
    x, optimizer = torch.randn(200, 8), torch.optim.Adam(made.selector.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        out = route(made, x)
        out.loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    assert made.scorer.weight.grad is None, "the auxiliary loss must not reach the router itself"
    table, guess = dense(route(made, x)) > 0, dense(route(made.eval(), x)) > 0
    assert (table == guess).float().mean() > 0.9


def test_capacity_by_hand() -> None:
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [9.0, 0.0]])
    valid = torch.tensor([True, True, True, True, False])
    selector = {"name": "topk", "k": 1}
    for drop, kept in (("position", [{0}, {0}, set(), {1}, set()]), ("score", [{0}, set(), {0}, {1}, set()])):
        capacity = {"name": "factor", "train": 1.0, "eval": 9.0, "minimum": 1, "drop": drop}
        made = router(2, selector=selector, capacity=capacity)
        assert chosen(route(made, logits, valid=valid)) == kept  # ceil(1.0 * 4 / 2) = 2 an expert
        assert len(chosen(route(made.eval(), logits, valid=valid))[2]) == 1
    both = router(2, selector={"name": "topk", "k": 2}, capacity={"name": "factor", "train": 0.5, "minimum": 1})
    assert chosen(route(both, logits, valid=valid)) == [{0, 1}, {0}, set(), {1}, set()], "first choices come first"
    hetero = {"name": "heterogeneous", "num_zero": 1, "tau": 0.5, "train": 1.0}
    out = route(router(2, selector=selector, capacity=hetero), torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6))
    assert out.counts_E().tolist() == [4, 6]  # 0.5 * 12 / 1.5 = 4 and 12 / 1.5 = 8


def test_ranks_within_groups() -> None:
    key, group = torch.randn(30, 3), torch.randint(-2, 3, (30, 3))
    rank = ranks_within(group, key)
    for t in range(30):
        for e in range(3):
            better = (group[:, e] == group[t, e]) & (key[:, e] > key[t, e])
            assert rank[t, e] == better.sum()


@pytest.mark.parametrize("view", ["flatten", "mean"])
def test_a_segment_has_one_decision(view: str) -> None:
    unit = {"name": "segment", "length": 3, "view": view}
    layer = MoE(zc.make(MoEConfig, num_experts=4, unit=unit, experts={"name": "swiglu", "intermediate_size": 4}), 8)
    layer.reset_parameters(0.5)
    x, valid = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    valid[1, 3:] = False
    y, out = layer(x, RouteContext(valid=valid))
    assert out.valid_T.tolist() == [True, True, True, True, False, False]
    bank = MoE(zc.make(MoEConfig, num_experts=4, experts={"name": "swiglu", "intermediate_size": 4}), 8)
    bank.experts.load_state_dict(layer.experts.state_dict())
    for b in range(2):
        for t in range(7):  # every token by itself, with its segment's experts and weights
            unit_row = slice(3 * b + t // 3, 3 * b + t // 3 + 1)
            one = out._replace(**{k: getattr(out, k)[unit_row] for k in ("index_TK", "weight_TK", "used_TK")})
            torch.testing.assert_close(bank.apply_experts(x[b : b + 1, t : t + 1], one)[0, 0], y[b, t])
    tail = torch.where(valid[..., None], x, 5.0)
    assert torch.equal(layer.route(tail, RouteContext(valid=valid)).logits_TE, out.logits_TE)


def test_units_that_look_back_and_whole_sequences() -> None:
    x = torch.randn(2, 6, 8)
    changed = x.clone()
    changed[:, 2:] = 0
    causal = MoE(zc.make(MoEConfig, unit={"name": "segment", "length": 2, "causal": True}), 8)
    causal.reset_parameters(0.5)
    before, after = (causal.route(v, RouteContext()).logits_TE.view(2, 3, -1) for v in (x, changed))
    assert not before[:, 0].any()
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])
    whole = MoE(zc.make(MoEConfig, unit={"name": "sequence"}), 8)
    whole.reset_parameters(0.5)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False
    logits = whole.route(x, RouteContext(valid=valid)).logits_TE
    mean = torch.stack([x[0].mean(0), x[1, :4].mean(0)])
    torch.testing.assert_close(logits, mean @ whole.router.scorer.weight.T)


def test_scorers_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0]])
    near = router(2, 2, scorer="centroid")
    near.scorer.centroid_ED.copy_(torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    torch.testing.assert_close(route(near, x).logits_TE, torch.tensor([[-5.0, -1.0]]))
    cosine = router(2, 2, scorer={"name": "cosine", "temperature": 0.5})
    cosine.scorer.prototype.data = torch.tensor([[2.0, 0.0], [-3.0, -4.0]])
    torch.testing.assert_close(route(cosine, x).logits_TE, torch.tensor([[1.2, -2.0]]))
    domain = router(2, 2, scorer="domain_embedding")
    domain.scorer.weight.data.zero_()
    for bias, seen in ((1.0, 0.0), (-1.0, -1.0)):
        domain.scorer.bias.data.fill_(bias)
        torch.testing.assert_close(route(domain, x).logits_TE, torch.tensor([[0.0, seen]]))
    residual = router(2, 2, scorer="gate_residual")
    residual.scorer.residual.data = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    valid, ctx = torch.ones(1, dtype=torch.bool), RouteContext()
    first = residual(x, valid, ctx)
    second = residual(x, valid, ctx, first.state)
    torch.testing.assert_close(second.logits_TE - first.logits_TE, first.logits_TE.flip(-1) * torch.tensor([1.0, 2.0]))


def test_the_sparsest_expert_by_hand() -> None:
    """Units of the first expert see 3 and 9, mean 6 and deviation 3; those of the second -4 and 4."""
    experts = zc.build("experts", {"name": "relu", "intermediate_size": 2}, 2, 2)
    with torch.no_grad():
        experts.up_proj.copy_(torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, -1.0], [0.0, 1.0]]]))
    out = route(router(2, 2, scorer="sparsity_aware"), torch.tensor([[3.0, 4.0]]), experts=experts)
    torch.testing.assert_close(out.logits_TE, torch.tensor([[-math.erf(2 / math.sqrt(2)), 0.0]]))
    assert out.index_TK[0, 0] == 1, "the one with fewer positive units"


def test_the_sparsest_expert_is_foretold() -> None:
    """The score falls with the true share of positive units, over random experts and tokens."""
    experts = zc.build("experts", {"name": "relu", "intermediate_size": 400}, 16, 6)
    with torch.no_grad():
        experts.up_proj.normal_().add_(torch.randn(6, 1, 16) * 0.5)
    x_TD = torch.randn(50, 16)
    logits_TE = route(router(6, 16, scorer="sparsity_aware"), x_TD, experts=experts).logits_TE
    positive_TE = (torch.einsum("td,efd->tef", x_TD, experts.up_proj) > 0).float().mean(-1)
    torch.testing.assert_close(logits_TE, 1 - 2 * positive_TE, atol=0.15, rtol=0)


@pytest.mark.parametrize("scorer", ["linear", "cosine", "centroid", "uncertainty", "domain_embedding", "conditional"])
def test_renumbering_experts_renumbers_the_routing(scorer: str) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    one, other = (router(5, 8, scorer=scorer).eval() for _ in range(2))
    state = one.state_dict()
    other.load_state_dict({k: v[order] if v.shape[:1] == (5,) and "mask" not in k else v for k, v in state.items()})
    other.scorer.own_E = one.scorer.own_E[order] if scorer == "domain_embedding" else None
    x, cond = torch.randn(11, 8), torch.randn(11, 256)
    first, second = route(one, x, cond=cond), route(other, x, cond=cond)
    torch.testing.assert_close(second.logits_TE, first.logits_TE[:, order], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(dense(second), dense(first)[:, order], atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("experts", [1, 2, 5, 6, 8])
def test_comet_is_a_softmax_over_all_leaves(experts: int) -> None:
    left, right = branches(experts)
    assert left.shape == (experts - 1, experts)
    assert torch.equal((left + right).sum(0).sort().values, (left + right).sum(0).sort().values.clamp(max=4))
    made = router(experts, 8, scorer={"name": "comet", "trees": 2, "gamma": 4.0}, selector="threshold")
    made.scorer.node.data.normal_()
    x = torch.randn(20, 8)
    go = smooth_step(torch.einsum("td,rnd->trn", x, made.scorer.node) + made.scorer.node_bias, 4.0)
    p = torch.ones(20, 2, experts)
    for n in range(experts - 1):
        p = p * torch.where(left[n] > 0, go[:, :, n : n + 1], torch.where(right[n] > 0, 1 - go[:, :, n : n + 1], 1.0))
    torch.testing.assert_close(p.sum(-1), torch.ones(20, 2))
    both = (p * torch.einsum("td,red->tre", x, made.scorer.leaf).exp()).flatten(1)
    expected = (both / both.sum(-1, keepdim=True)).view(20, 2, experts).sum(1)
    torch.testing.assert_close(route(made, x).scores_TE, expected)
    made.scorer.node.data *= 1e6  # saturated: a leaf a tree
    assert all(len(row) <= 2 for row in chosen(route(made, x)))


def test_local_search_ends_in_a_permutation() -> None:
    order = torch.randn(7, 7) * 0.1
    planted = torch.randperm(7)
    order[planted, torch.arange(7)] += 3
    assert torch.equal(assignment(order, 20, 0.5), planted)
    made = router(7, logit_hooks={"local_search": {"steps": 4}})
    made.logit_hooks[0].order.data = order
    logits = torch.randn(5, 7)
    torch.testing.assert_close(route(made, logits).logits_TE, logits[:, planted])
    soft = route(made.train(), logits, step=0)
    torch.testing.assert_close(soft.logits_TE.exp().sum(-1), logits.exp().sum(-1), rtol=1e-2, atol=0)


def test_refusals() -> None:
    for parts, words in (
        ({"selector": {"name": "topk", "k": 9}}, "k=9"),
        ({"selector": {"name": "group_topk", "k": 3, "groups": 2}}, "groups=2"),
        ({"hooks": {"group_limit": {"groups": 4, "keep": 1}}}, "do not fit"),
        ({"hooks": {"bias": {"values": [1.0]}}}, "one value for each"),
        ({"hooks": {"modality_mask": {"groups": [[0], []]}}}, "without any expert"),
        ({"selector": {"name": "forced", "experts": [6]}}, "not among"),
    ):
        with pytest.raises(ZooError, match=words):
            router(6, **parts)
    layer = MoE(zc.make(MoEConfig, router={"name": "composed", "weigher": "joint_softmax"}), 8)
    layer.reset_parameters(0.1)
    with pytest.raises(ZooError, match="shared"):
        layer(torch.randn(1, 2, 8), RouteContext())


def test_an_expert_closed_by_its_logit_is_not_chosen_beside_one_that_takes_all() -> None:
    logits = torch.tensor([[0.0, 500.0, -300.0, 0.0]])
    mask = {"modality_mask": {"groups": [[1, 2]]}}
    node = {"name": "composed", "scorer": "none", "logit_hooks": mask, "selector": {"name": "topk", "k": 3}}
    built = zc.build("router", zc.resolve_part("router", node, "router"), 4, 4)
    built.scorer.forward = lambda x, ctx, state: (logits, state)
    out = built(logits, torch.ones(1, dtype=torch.bool), RouteContext(modality=torch.zeros(1, dtype=torch.int64)))
    assert out.index_TK[out.used_TK].tolist() == [1, 2]


def test_each_modality_has_a_router_of_its_own_over_its_experts() -> None:
    built = zc.build(
        "router", {"name": "composed", "scorer": {"name": "by_modality", "groups": [[0, 1], [1, 2]]}}, 3, 4
    )
    built.reset_parameters(1.0)
    x, modality = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 5])
    logits = built(x, torch.ones(6, dtype=torch.bool), RouteContext(modality=modality)).logits_TE
    for t, m in enumerate(modality.clamp(max=1).tolist()):
        own = x[t] @ built.scorer.weight[m].T
        wanted = torch.full((4,), -torch.inf)
        wanted[[[0, 1], [1, 2]][m]] = own.detach()
        torch.testing.assert_close(logits[t], wanted)


def test_a_scorer_that_forgets_an_expert_is_told() -> None:
    made = router(4)
    made.scorer.forward = lambda x_TD, ctx, state=None: (x_TD[:, :3], state)  # type: ignore[method-assign]
    with pytest.raises(ZooError, match=r"zoo\.moe\.scorers\.\S+ gives 3 logits for 4 experts"):
        route(made, torch.zeros(2, 4))
