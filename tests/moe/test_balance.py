"""Balancers: every one against a hand calculation, and the contract that all of them hold.

Shapes: T tokens, E experts, K slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo import registry
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput
from zoo.moe.types import Tags
from zoo.spec import ZooError

T, D, E, K = 6, 8, 4, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "entropy": {"direction": "minimise"},
    "label_ce": {"smoothing": 0.2, "gamma": 2.0},
    "pid": {"ki": 0.01, "kd": 0.01},
    "switch": {"scope": "global_batch"},
}
every_balancer = pytest.mark.parametrize("name", list(registry.entries("balancer")))


def balancers(name: str, num_layers: int = 1, num_experts: int = E, **settings: Any) -> Balancers:
    return Balancers({name: settings}, num_layers, num_experts)


def loss(name: str, *routing: RouterOutput, **settings: Any) -> Tensor:
    with torch.no_grad():
        return balancers(name, len(routing), **settings).loss(routing)[name]


def decision(logits_TE: Tensor, k: int = K, valid: list[bool] | None = None, **tags: Any) -> RouterOutput:
    scores_TE = logits_TE.softmax(-1)
    valid_T = torch.ones(len(logits_TE), dtype=torch.bool) if valid is None else torch.tensor(valid)
    weight_TK, index_TK = scores_TE.topk(k)
    used_TK = valid_T[:, None].expand(-1, k)
    return RouterOutput(
        logits_TE, scores_TE, scores_TE.detach(), index_TK, weight_TK, used_TK, valid_T, tags=Tags(**tags)
    )


def logits(tokens: int = T) -> Tensor:
    return torch.randn(tokens, E)


def by_hand(out: RouterOutput, tokens: list[int], weight: list[float] | None = None, k: int = K) -> list[list[float]]:
    """[f, P] of the tokens named, in plain loops; f adds up to 1."""
    weight = weight or [1.0] * len(out.scores_TE)
    total = sum(weight[t] for t in tokens)
    f, p = [0.0] * E, [0.0] * E
    for t in tokens:
        for slot in range(k):
            f[int(out.index_TK[t, slot])] += weight[t] / total / k
        for e in range(E):
            p[e] += weight[t] * float(out.scores_TE[t, e]) / total
    return [f, p]


def product(f: list[float], p: list[float]) -> float:
    return E * sum(a * b for a, b in zip(f, p, strict=True))


# -- the contract ------------------------------------------------------------------------------------------------------


@every_balancer
def test_contract(name: str) -> None:
    """Gradient, padding, nothing to balance, saving, a repeated forward pass under checkpointing."""
    settings = SETTINGS.get(name, {})
    config = zc.make(
        MoEConfig, num_experts=E, experts={"name": "swiglu", "intermediate_size": 4}, balance={name: settings}
    )
    made = MoE(config, D)
    made.reset_parameters(0.5)
    each = Balancers(config.balance, 1, E)
    x, valid = torch.randn(2, 5, D), torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    label = torch.randint(0, E, (2, 5))

    def run(x: Tensor, wrapped: bool = False) -> tuple[Tensor, RouterOutput]:
        with each.at_step(3):
            ctx = each.context(valid=valid, label=label)
        return checkpoint(made, x, ctx, use_reentrant=False) if wrapped else made(x, ctx)

    y, out = run(x)
    y_padded, padded = run(torch.where(valid[..., None], x, 9.0))
    torch.testing.assert_close(y[valid], y_padded[valid])
    losses, same = each.loss((out,)), each.loss((padded,))
    torch.testing.assert_close(losses, same)
    for value in losses.values():
        assert value.shape == () and value.isfinite()
        value.backward(retain_graph=True)
    gradients = []
    for wrapped in (False, True):
        made.zero_grad()
        y, out = run(x, wrapped)
        each.observe((out,))  # before the backward pass, as the trainer does
        (y.square().sum() + sum(each.loss((out,)).values())).backward()
        gradients.append([p.grad.clone() for p in made.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    each.step()
    other = Balancers(config.balance, 1, E)
    other.load_state_dict(each.state_dict())
    bias = each.bias(0, out.scores_TE.detach(), out.valid_T)
    if bias is not None:
        assert torch.equal(bias, other.bias(0, out.scores_TE.detach(), out.valid_T))  # type: ignore[arg-type]
    nothing = made.route(x[:, :0], RouteContext(label=label[:, :0]))
    for value in each.loss((nothing,)).values():
        assert value.isfinite()
    each.observe((nothing,))
    each.step()
    entry = registry.find("balancer", name)
    assert entry.spec.doc and entry.spec.paper.partition(",")[0] in entry.load().__doc__


# -- the Switch loss ---------------------------------------------------------------------------------------------------


def test_switch_of_each_sequence() -> None:
    seq_id = torch.tensor([7, 7, 7, 7, 2, 2])
    out = decision(logits(), valid=[True, True, True, False, True, True], seq_id=seq_id)
    wanted = [product(*by_hand(out, tokens)) for tokens in ([0, 1, 2], [4, 5])]
    assert float(loss("switch", out, coef=1.0, scope="sequence")) == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_switch_of_each_modality() -> None:
    out = decision(logits(), modality=torch.tensor([0, 3, 0, 3, 0, 0]))
    wanted = product(*by_hand(out, [0, 2, 4, 5])) + product(*by_hand(out, [1, 3]))
    assert float(loss("switch", out, coef=1.0, by="modality")) == pytest.approx(wanted, rel=1e-5)


def test_switch_with_weighted_tokens() -> None:
    weight = [1.0, 10.0, 1.0, 10.0, 1.0, 0.5]
    out = decision(logits(), importance=torch.tensor(weight))
    wanted = product(*by_hand(out, list(range(T)), weight))
    assert float(loss("switch", out, coef=1.0, weighted=True)) == pytest.approx(wanted, rel=1e-5)
    plain = product(*by_hand(out, list(range(T))))
    assert float(loss("switch", out, coef=1.0)) == pytest.approx(plain, rel=1e-5)


def test_switch_of_first_choices() -> None:
    out = decision(logits())
    wanted = product(*by_hand(out, list(range(T)), k=1))
    for norm in ("slots", "tokens"):
        assert float(loss("switch", out, coef=1.0, choices="first", norm=norm)) == pytest.approx(wanted, rel=1e-5)


def test_switch_over_layers() -> None:
    outs = [decision(logits()) for _ in range(3)]
    each = [product(*by_hand(out, list(range(T)))) for out in outs]
    assert float(loss("switch", *outs, coef=1.0, layers="sum")) == pytest.approx(sum(each), rel=1e-5)
    assert float(loss("switch", *outs, coef=1.0, layers="mean")) == pytest.approx(sum(each) / 3, rel=1e-5)
    (f0, p0), (f1, p1), (f2, p2) = (by_hand(out, list(range(T))) for out in outs)
    f, p = ([sum(v) / 3 for v in zip(*s, strict=True)] for s in ((f0, f1, f2), (p0, p1, p2)))
    assert float(loss("switch", *outs, coef=1.0, scope="all_layers")) == pytest.approx(product(f, p), rel=1e-5)


@torch.no_grad()
def test_switch_of_the_global_batch() -> None:
    each = balancers("switch", coef=1.0, scope="global_batch")
    first, second = decision(logits()), decision(logits(2))
    each.observe((first,))
    both = zip(by_hand(first, list(range(T)))[0], by_hand(second, [0, 1])[0], strict=True)
    f = [(a * T + b * 2) / (T + 2) for a, b in both]
    wanted = product(f, by_hand(second, [0, 1])[1])
    assert float(each.loss((second,))["switch"]) == pytest.approx(wanted, rel=1e-5)
    each.step()
    alone = product(*by_hand(second, [0, 1]))
    assert float(each.loss((second,))["switch"]) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.025), (5, 0.013), (10, 0.001), (None, 0.001)])
def test_switch_anneals(step: int | None, factor: float) -> None:
    out = decision(logits(), step=step)
    plain = float(loss("switch", out, coef=1.0))
    assert float(loss("switch", out, coef=0.025, end_coef=0.001, steps=10)) == pytest.approx(factor * plain, rel=1e-5)


def test_device_level() -> None:
    out = decision(logits())
    f, p = by_hand(out, list(range(T)))
    wanted = E * ((f[0] + f[1]) / 2 * (p[0] + p[1]) + (f[2] + f[3]) / 2 * (p[2] + p[3]))
    assert float(loss("device_level", out, coef=1.0)) == pytest.approx(wanted, rel=1e-5)


def test_null_mean() -> None:
    out = decision(logits())
    f, p = by_hand(out, list(range(T)))
    wanted = product([f[0], f[1], (f[2] + f[3]) / 2, (f[2] + f[3]) / 2], p)
    assert float(loss("null_mean", out, coef=1.0, num_null=2)) == pytest.approx(wanted, rel=1e-5)


def test_weighted_by_eta() -> None:
    out = decision(logits())
    f, p = by_hand(out, list(range(T)))
    wanted = product([f[0], f[1], f[2], 0.5 * f[3]], p)
    assert float(loss("weighted", out, coef=1.0, tau=0.5)) == pytest.approx(wanted, rel=1e-5)


def test_scores_that_are_logits_count_as_their_softmax() -> None:
    """Negative scores divided by their sum are no distribution: the loss is that of softmax scores."""
    x = torch.randn(2, 5, D)
    losses = []
    for activation in ("identity", "softmax"):
        router = {"name": "composed", "activation": activation, "weigher": "chosen_softmax"}
        torch.manual_seed(1)
        made = MoE(zc.make(MoEConfig, num_experts=E, router=router), D)
        made.reset_parameters(0.5)
        each = Balancers({"switch": {}, "load_variance": {}, "entropy": {"direction": "minimise"}}, 1, E)
        losses.append(each.loss((made.route(x, each.context()),)))
    assert losses[0]["switch"] > 0
    torch.testing.assert_close(losses[0], losses[1])


# -- terms -------------------------------------------------------------------------------------------------------------


def test_entropy_has_the_sign_it_is_told() -> None:
    out = decision(logits(), valid=[True] * 5 + [False])
    p_TE = out.scores_TE[:5]
    each = -(p_TE * p_TE.log()).sum(-1).mean()
    mean_E = p_TE.mean(0)
    torch.testing.assert_close(loss("entropy", out, coef=1.0, direction="minimise"), each)
    whole = loss("entropy", out, coef=1.0, direction="maximise", of="load")
    torch.testing.assert_close(whole, (mean_E * mean_E.log()).sum())
    with pytest.raises(ZooError, match="direction=minimise or direction=maximise"):
        balancers("entropy")


def test_load_variance() -> None:
    out = decision(logits())
    wanted = E**2 * out.scores_TE.mean(0).var(correction=0)
    torch.testing.assert_close(loss("load_variance", out, coef=1.0), wanted)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_label_loss(gamma: float) -> None:
    label = torch.tensor([0, 3, 1, -1, 2, 2])
    out = decision(logits(), valid=[True] * 5 + [False], label=label)
    p = [float(out.scores_TE[t, label[t]]) for t in (0, 1, 2, 4)]
    wanted = sum(-((1 - v) ** gamma) * np.log(v) for v in p) / 4
    assert float(loss("label_ce", out, coef=1.0, gamma=gamma)) == pytest.approx(wanted, rel=1e-5)
    smooth = torch.nn.functional.cross_entropy(out.logits_TE[[0, 1, 2, 4]], label[[0, 1, 2, 4]], label_smoothing=0.2)
    torch.testing.assert_close(loss("label_ce", out, coef=1.0, smoothing=0.2), smooth)


def test_orthogonality() -> None:
    out = decision(logits())
    wanted = sum(
        float(torch.cosine_similarity(out.scores_TE[:, i], out.scores_TE[:, j], dim=0)) ** 2
        for i in range(E)
        for j in range(E)
        if i != j
    )
    assert float(loss("orthogonality", out, coef=1.0)) == pytest.approx(wanted, rel=1e-5)


def test_what_the_model_does_not_tell_is_missed_aloud() -> None:
    for name, settings in {
        "label_ce": {},
        "switch": {"scope": "sequence"},
    }.items():
        with pytest.raises(ZooError, match="which this model does not give"):
            loss(name, decision(logits()), **settings)
    for bad in ({"by": "modality", "scope": "sequence"}, {"end_coef": 0.1}):
        with pytest.raises(ZooError):
            balancers("switch", **bad)


# -- biases ------------------------------------------------------------------------------------------------------------


def test_loss_free_bias_follows_the_sign_of_the_error() -> None:
    each = balancers("loss_free", rate=0.5)
    skewed = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * T)
    each.observe((decision(skewed, k=1),))
    each.observe((decision(skewed.flip(1), k=1, valid=[True] * 2 + [False] * 4),))
    each.step()
    state = each.each["loss_free"]
    assert state.bias_NE.tolist() == [[-0.5, 0.5, 0.5, 0.0]], "6 : 0 : 0 : 2 against a mean of 2"
    each.step()
    assert state.bias_NE.tolist() == [[-0.5, 0.5, 0.5, 0.0]], "a step without a token"
    centred = balancers("loss_free", rate=0.5, zero_mean=True)
    centred.observe((decision(skewed, k=1),))
    centred.step()
    torch.testing.assert_close(centred.each["loss_free"].bias_NE, torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))


def test_a_bias_changes_which_and_never_how_much() -> None:
    config = zc.make(MoEConfig, num_experts=E, experts={"name": "swiglu", "intermediate_size": 4})
    made = MoE(config, D)
    made.reset_parameters(0.5)
    each, x = balancers("loss_free"), torch.randn(1, 40, D)
    plain = made.route(x, RouteContext())
    each.each["loss_free"].bias_NE.copy_(torch.tensor([[0.3, -0.3, 0.0, 0.1]]))
    biased = made.route(x, each.context())
    assert not torch.equal(plain.index_TK, biased.index_TK)
    torch.testing.assert_close(biased.weight_TK, plain.scores_TE.gather(1, biased.index_TK))


def test_pid_against_a_hand_calculation() -> None:
    each = balancers("pid", kp=0.1, ki=0.01, kd=0.001, num_free=1, true_share=0.75)
    shares = [[0.5, 0.25, 0.0, 0.25], [0.25, 0.25, 0.25, 0.25]]
    picks = [[0, 0, 1, 3], [0, 1, 2, 3]]
    b, total, before = [0.0] * E, [0.0] * E, [0.0] * E
    for share, pick in zip(shares, picks, strict=True):
        each.observe((decision(torch.nn.functional.one_hot(torch.tensor(pick), E) * 5.0, k=1),))
        each.step()
        for e in range(3):
            error = E * (0.25 - share[e])
            total[e] += error
            b[e] += 0.1 * error + 0.01 * total[e] + 0.001 * (error - before[e])
            before[e] = error
    assert each.each["pid"].bias_NE[0].tolist() == pytest.approx(b, abs=1e-6)


def test_loss_free_balances_a_skewed_router() -> None:
    each = balancers("loss_free", rate=0.02)
    base = torch.tensor([1.0, 0.5, 0.0, -0.5])

    def violation() -> float:
        scores_TE = (torch.randn(256, E) + base).softmax(-1)
        chosen_TE = scores_TE + each.bias(0, scores_TE, torch.ones(256, dtype=torch.bool))  # type: ignore[operator]
        out = decision(scores_TE.log(), k=1)._replace(index_TK=chosen_TE.argmax(-1, keepdim=True))
        each.observe((out,))
        each.step()
        return float(out.counts_E().max() / 64 - 1)

    history = [violation() for _ in range(40)]
    assert np.mean(history[-8:]) < 0.5 * history[0]


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("activation", "sweeps"), [("softmax", 8), ("identity", 32)])
def test_bip_is_within_a_hundredth_of_the_optimum_and_balanced_at_once(
    skew: float, activation: str, sweeps: int
) -> None:
    """A little above the optimum is possible: prices balance nearly, the linear program exactly. Scores of any sign."""
    tokens, experts, k = 64, 8, 2
    logits_TE = torch.randn(tokens, experts) + skew * torch.linspace(1, -1, experts)
    scores_TE = logits_TE.softmax(-1) if activation == "softmax" else logits_TE
    each = balancers("bip", num_experts=experts, k=k, sweeps=sweeps)
    select_TE = scores_TE + each.bias(0, scores_TE, torch.ones(tokens, dtype=torch.bool))  # type: ignore[operator]
    index_TK = select_TE.topk(k).indices
    counts_E = index_TK.flatten().bincount(minlength=experts)
    plain_E = scores_TE.topk(k).indices.flatten().bincount(minlength=experts)
    room = tokens * k / experts
    assert plain_E.max() / room - 1 > max(skew, 0.2), "without prices"
    assert counts_E.max() / room - 1 < 0.1, "with prices, on the first batch"
    of_token, of_expert = np.kron(np.eye(tokens), np.ones(experts)), np.kron(np.ones(tokens), np.eye(experts))
    best = linprog(
        -scores_TE.flatten().double().numpy(),
        A_eq=of_token,
        b_eq=[k] * tokens,
        A_ub=of_expert,
        b_ub=[room] * experts,
        bounds=(0, 1),
    )
    routed = float(scores_TE.gather(1, index_TK).double().sum())
    assert routed == pytest.approx(-best.fun, rel=0.01)


@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (2, 1), (5, E)])
def test_bip_asks_no_price_where_all_have_room(tokens: int, k: int) -> None:
    each = balancers("bip", k=k)
    scores_TE = logits(tokens).softmax(-1)
    price_E = each.bias(0, scores_TE, torch.ones(tokens, dtype=torch.bool))
    assert price_E is not None and price_E.isfinite().all()
    if tokens == 1 or k == E:
        assert not price_E.any()


def test_bip_prices_move_once_a_step_and_stay_in_evaluation() -> None:
    each = balancers("bip", k=1, sweeps=1)
    out = decision(torch.randn(40, E) + torch.tensor([2.0, 0, 0, 0]), k=1)
    scores_TE = out.scores_TE
    training = each.bias(0, scores_TE, out.valid_T)
    each.observe((out,))
    assert torch.equal(each.bias(0, scores_TE, out.valid_T), training), "observed, not moved"  # type: ignore[arg-type]
    each.step()
    torch.testing.assert_close(-each.each["bip"].price_NE[0], training)
    each.eval()
    assert torch.equal(each.bias(0, scores_TE[:3], out.valid_T[:3]), -each.each["bip"].price_NE[0])  # type: ignore[arg-type]
    with pytest.raises(ZooError, match="set both alike"):
        each.observe((decision(logits(), k=2),))


def test_bip_does_not_see_padding() -> None:
    each = balancers("bip", k=1)
    scores_TE = (torch.randn(20, E) * 2).softmax(-1)
    valid_T = torch.arange(20) < 12
    other_TE = torch.where(valid_T[:, None], scores_TE, 0.9)
    bias = each.bias(0, scores_TE, valid_T)
    torch.testing.assert_close(bias, each.bias(0, other_TE, valid_T))
    torch.testing.assert_close(bias, each.bias(0, scores_TE[:12], valid_T[:12]))
