"""What must hold for every routing and every layer, on inputs that hypothesis draws.

Legend: T tokens, K slots, E experts, D model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import configuration, given, settings
from hypothesis import strategies as st

from zoo_kernels import ops, reference

# its own folder in the repository would make pytest's collection warn, and warnings are errors
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "moe-zoo-hypothesis")
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None, database=None)


@st.composite
def routings(draw) -> dict:
    groups = draw(st.sampled_from([None, 2, 4]))
    experts = draw(st.integers(1, 12)) * (groups or 1)
    kept = None if groups is None else draw(st.integers(1, groups))
    choosable = experts if groups is None else experts // groups * kept
    return {
        "logits": torch.randn(draw(st.integers(0, 9)), experts, generator=torch.Generator().manual_seed(draw(seeds))),
        "k": draw(st.integers(1, choosable)),
        "score": draw(st.sampled_from(ops.SCORES)),
        "order": draw(st.sampled_from(ops.ORDERS)),
        "renorm": draw(st.booleans()),
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "num_groups": groups,
        "groups_kept": kept,
    }


@quick
@given(routings())
def test_routing(options: dict) -> None:
    logits, k = options.pop("logits"), options.pop("k")
    index_TK, weight_TK, scores_TE = ops.route(logits, k, **options)
    assert index_TK.shape == weight_TK.shape == (len(logits), k) and scores_TE.shape == logits.shape
    assert all(len(set(row)) == k for row in index_TK.tolist())
    if options["num_groups"]:
        group = index_TK // (logits.shape[1] // options["num_groups"])
        assert all(len(set(row)) <= options["groups_kept"] for row in group.tolist())
    if options["score"] != "none":
        total = weight_TK.sum(-1)
        if options["renorm"] or (options["order"], options["score"]) == ("topk_then_score", "softmax"):
            torch.testing.assert_close(total, torch.full_like(total, options["scale"]))
        assert (weight_TK >= 0).all()
    if options["num_groups"] is None:
        assert (logits.gather(1, index_TK).diff(dim=1) <= 0).all()  # best first: scores are monotone in the logits


@quick
@given(seeds, st.integers(1, 7), st.floats(-3, 3))
def test_bias_changes_which_never_how_much(seed: int, k: int, bias: float) -> None:
    torch.manual_seed(seed)
    logits, bias_E = torch.randn(5, 8), torch.randn(8) * bias
    for order in ops.ORDERS:
        index, weight, scores = ops.route(logits, k, score="sigmoid", order=order, select_bias_E=bias_E)
        torch.testing.assert_close(weight, logits.sigmoid().gather(1, index))
        base = scores if order == "score_then_topk" else logits
        assert torch.equal((base + bias_E).topk(k).values, (base + bias_E).gather(1, index))


def test_ties_go_to_the_lower_expert() -> None:
    index, _, _ = ops.route(torch.zeros(2, 6), 3)
    assert index.tolist() == [[0, 1, 2]] * 2


def test_group_score_is_the_sum_of_its_two_best() -> None:
    logits = torch.tensor([[5.0, -9.0, 2.0, 2.5]])  # the first group has the best expert, the second the best pair
    index, _, _ = ops.route(logits, 1, score="none", num_groups=2, groups_kept=1)
    assert index.item() == 3


def test_routing_is_fp32_and_differentiable() -> None:
    logits = torch.randn(6, 5, dtype=torch.bfloat16, requires_grad=True)
    _, weight, scores = ops.route(logits, 2, renorm=True)
    assert weight.dtype == scores.dtype == torch.float32
    weight[:, 0].sum().backward()
    assert logits.grad is not None and logits.grad.any()
    exact = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    for score in ops.SCORES:
        for order in ops.ORDERS:
            for renorm in (False, score != "none"):

                def weigh(x, score=score, order=order, renorm=renorm):
                    return ops.route(x, 2, score=score, order=order, renorm=renorm)[1:]

                assert torch.autograd.gradcheck(weigh, (exact,))


def layer(seed: int, tokens: int, experts: int, k: int) -> tuple:
    torch.manual_seed(seed)
    x, w_in, w_out = torch.randn(tokens, 9), torch.randn(experts, 14, 9), torch.randn(experts, 9, 7)
    return x, torch.rand(tokens, k), torch.randint(0, experts, (tokens, k)), w_in, w_out


sizes = {"seed": seeds, "tokens": st.integers(1, 40), "experts": st.integers(1, 9), "k": st.integers(1, 4)}


def run(x, weight_TK, index_TK, w_in, w_out):
    return ops.expert_ffn(x, weight_TK.flatten(), ops.plan(index_TK, len(w_in)), w_in, w_out)


@quick
@given(**sizes)
def test_permuting_tokens_permutes_the_output(seed: int, tokens: int, experts: int, k: int) -> None:
    x, weight, index, w_in, w_out = layer(seed, tokens, experts, k)
    order = torch.randperm(tokens)
    got = run(x[order], weight[order], index[order], w_in, w_out)
    torch.testing.assert_close(got, run(x, weight, index, w_in, w_out)[order], rtol=1e-4, atol=1e-4)


@quick
@given(**sizes)
def test_renaming_experts_changes_nothing(seed: int, tokens: int, experts: int, k: int) -> None:
    x, weight, index, w_in, w_out = layer(seed, tokens, experts, k)
    order = torch.randperm(experts)
    got = run(x, weight, order.argsort()[index], w_in[order], w_out[order])
    torch.testing.assert_close(got, run(x, weight, index, w_in, w_out), rtol=1e-4, atol=1e-4)


@quick
@given(**sizes)
def test_layer_is_linear_in_the_gates_and_in_w_out(seed: int, tokens: int, experts: int, k: int) -> None:
    x, weight, index, w_in, w_out = layer(seed, tokens, experts, k)
    other = torch.rand_like(weight)
    both = run(x, weight + 2 * other, index, w_in, w_out)
    parts = run(x, weight, index, w_in, w_out) + run(x, other, index, w_in, 2 * w_out)
    torch.testing.assert_close(both, parts, rtol=1e-4, atol=1e-3)


@quick
@given(**sizes)
def test_combine_is_linear_and_expand_is_its_transpose(seed: int, tokens: int, experts: int, k: int) -> None:
    x, weight, index, *_ = (
        leaf.double() if leaf.is_floating_point() else leaf for leaf in layer(seed, tokens, experts, k)
    )
    plan = ops.plan(index, experts, torch.rand(tokens, k) > 0.3)
    one, two = torch.randn(2, tokens * k, 9, dtype=torch.float64)
    both = ops.combine(one + 3 * two, weight.flatten(), plan)
    parts = ops.combine(one, weight.flatten(), plan) + 3 * ops.combine(two, weight.flatten(), plan)
    torch.testing.assert_close(both, parts)
    ones = torch.ones(tokens * k, dtype=torch.float64)
    inner = (ops.expand(x, plan) * one).sum()
    torch.testing.assert_close(inner, (x * ops.combine(one, ones, plan)).sum())


@quick
@given(seeds, st.integers(0, 60), st.integers(1, 8))
def test_plan_pairs_is_a_permutation(seed: int, pairs: int, experts: int) -> None:
    torch.manual_seed(seed)
    expert_N, token_N, used_N = (
        torch.randint(0, experts, (pairs,)),
        torch.randint(0, 10, (pairs,)),
        torch.rand(pairs) > 0.2,
    )
    plan = ops.plan_pairs(token_N, expert_N, 10, experts, used_N)
    assert sorted(plan.pair_N.tolist()) == list(range(pairs))
    assert torch.equal(plan.token_N, token_N[plan.pair_N])
    counts = torch.bincount(expert_N[used_N], minlength=experts)
    assert torch.equal(plan.offset_E1, torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))
    want_pair, want_offset = reference.sort_pairs(expert_N, used_N, experts)
    assert torch.equal(plan.pair_N, want_pair) and torch.equal(plan.offset_E1, want_offset)
