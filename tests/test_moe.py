"""The mixture layer against hand calculations: gates, losses, padding, and what is counted when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext
from zoo.nn import Transformer, TransformerConfig
from zoo.spec import ZooError

D, E = 8, 4


def moe(**settings: Any) -> MoE:
    base = {"num_experts": E, "experts": {"intermediate_size": 6}}
    layer = MoE(zc.make(MoEConfig, **zc.merge(base, settings)), D)
    torch.manual_seed(1)
    layer.reset_parameters(0.5)
    return layer


def stack(**settings: Any) -> Transformer:
    base = {
        "hidden_size": D, "num_layers": 2, "mixer": {"num_heads": 2}, "init_std": 0.5,
        "moe": {"num_experts": E, "experts": {"intermediate_size": 6}},
    }  # fmt: skip
    torch.manual_seed(1)
    return Transformer(zc.make(TransformerConfig, **zc.merge(base, settings)))


LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0])
BIAS = torch.tensor([-1.0, 1.0, -1.0, 0.0])  # the second expert before the first, and neither weight is touched
P, S = LOGITS.softmax(-1), LOGITS.sigmoid()
GATES = {
    "switch": ({"k": 1}, P[[0]]),
    "time_moe": ({}, P[[0, 2]]),
    "mixtral": ({"renorm": True}, P[[0, 2]] / P[[0, 2]].sum()),
    "gpt_oss": ({"order": "topk_then_score"}, LOGITS[[0, 2]].softmax(-1)),
    "llama4": ({"order": "topk_then_score", "score": "sigmoid"}, S[[0, 2]]),
    "deepseek_v3": ({"score": "sigmoid", "renorm": True, "scale": 2.5}, 2.5 * S[[0, 2]] / S[[0, 2]].sum()),
    "longcat": ({"scale": 6.0}, 6.0 * P[[0, 2]]),
}
BIASED = {
    "deepseek_v3": ({"score": "sigmoid", "renorm": True, "scale": 2.5}, 2.5 * S[[1, 3]] / S[[1, 3]].sum()),
    "longcat": ({"scale": 6.0}, 6.0 * P[[1, 3]]),
}


@pytest.mark.parametrize("name", BIASED)
def test_gate_conventions_with_a_selection_bias(name: str) -> None:
    """The bias of a balancer: which experts, never how much."""
    settings, wanted_K = BIASED[name]
    layer, balancers = moe(router=settings), Balancers({"loss_free": {}}, 1, E)
    balancers.each["loss_free"].bias_NE[0] = BIAS
    with torch.no_grad():
        layer.router.scorer.weight.zero_()[:, 0] = LOGITS
    out = layer.route(torch.eye(D)[:1, None], balancers.context())
    assert out.index_TK.tolist() == [[1, 3]]
    torch.testing.assert_close(out.weight_TK[0], wanted_K)


@pytest.mark.parametrize("name", GATES)
def test_gate_conventions(name: str) -> None:
    settings, wanted_K = GATES[name]
    layer = moe(router=settings)
    weight = layer.router.get_parameter(next(n for n, p in layer.router.named_parameters() if p.shape == (E, D)))
    with torch.no_grad():
        weight.zero_()
        weight[:, 0] = LOGITS
    x = torch.zeros(1, 1, D)
    x[..., 0] = 1
    out = layer.route(x, RouteContext())
    assert out.index_TK.tolist() == [[0, 2][: len(wanted_K)]]
    torch.testing.assert_close(out.weight_TK[0], wanted_K)
    torch.testing.assert_close(out.logits_TE[0], LOGITS)


def test_forward_is_the_weighted_sum_of_the_experts() -> None:
    layer = moe(shared={"name": "swiglu", "intermediate_size": 5, "gate": "sigmoid"})
    x = torch.randn(2, 3, D)
    y, out = layer(x, RouteContext())
    wanted = torch.zeros(6, D)
    for t, x_D in enumerate(x.reshape(-1, D)):
        for e, w in zip(out.index_TK[t], out.weight_TK[t], strict=True):
            gate, up = (layer.experts.gate_up_proj[e] @ x_D).chunk(2)
            wanted[t] += w * (layer.experts.down_proj[e] @ (F.silu(gate) * up))
        shared = layer.shared
        dense = shared.down_proj(F.silu(shared.gate_proj(x_D)) * shared.up_proj(x_D))
        wanted[t] += shared.gate(x_D).sigmoid() * dense
    torch.testing.assert_close(y.reshape(-1, D), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    layer = moe(balance={"switch": {}, "z_loss": {}})
    x = torch.randn(1, tokens, D, requires_grad=True)
    y, out = layer(x, RouteContext())
    loss = sum(Balancers(layer.config.balance, 1, E).loss((out,)).values())
    (y.sum() + loss).backward()
    assert y.shape == x.shape and torch.isfinite(loss) and out.counts_E().sum() == 2 * tokens
    assert x.grad is not None and torch.isfinite(x.grad).all()


def by_hand(scope: str, norm: str, logits_NTE: Tensor, k: int) -> Tensor:
    prob_NTE = logits_NTE.softmax(-1)
    chosen_NTE = torch.zeros_like(prob_NTE).scatter(-1, prob_NTE.topk(k, dim=-1).indices, 1.0)
    if scope == "all_layers":
        prob_NTE, chosen_NTE = prob_NTE.flatten(0, 1)[None], chosen_NTE.flatten(0, 1)[None]
    share_NE = chosen_NTE.mean(1) / (k if norm == "slots" else 1)
    return logits_NTE.shape[-1] * (share_NE * prob_NTE.mean(1)).sum()


@pytest.mark.parametrize("order", ["score_then_topk", "topk_then_score"])
@pytest.mark.parametrize("norm", ["slots", "tokens"])
@pytest.mark.parametrize("scope", ["micro_batch", "global_batch", "all_layers"])
def test_switch_loss(scope: str, norm: str, order: str) -> None:
    model = stack(moe={"balance": {"switch": {"coef": 0.5, "scope": scope, "norm": norm}}, "router": {"order": order}})
    _, routing = model(torch.randn(2, 5, D))
    wanted = by_hand(scope, norm, torch.stack([out.logits_TE for out in routing]), 2)
    torch.testing.assert_close(model.balancers.loss(routing)["switch"], 0.5 * wanted)


def test_every_scope_of_the_switch_loss_by_hand() -> None:
    """Two layers of two sequences of two tokens, two experts, top-1. Scores of the first expert, and what was chosen:

    ======= ================= =================
    layer   sequence 0        sequence 1
    first   0.9, 0.7: both 0  0.2, 0.4: both 1
    second  0.6, 0.8: both 0  0.7, 0.1: 0 and 1
    ======= ================= =================
    """
    first_L22 = torch.tensor([[[0.9, 0.7], [0.2, 0.4]], [[0.6, 0.8], [0.7, 0.1]]])
    routing = []
    for score_22 in first_L22:
        layer = moe(num_experts=2, router={"k": 1})
        with torch.no_grad():
            layer.router.scorer.weight.zero_()[:, :2] = torch.eye(2)
        x = torch.zeros(2, 2, D)
        x[..., 0], x[..., 1] = score_22.log(), (1 - score_22).log()
        routing.append(layer.route(x, RouteContext()))
    wanted = {  # 2 * (f_0 P_0 + f_1 P_1)
        # layers: f = 2/4, P_0 = 0.55: 1; f_0 = 3/4, P_0 = 0.55: 2 * (0.4125 + 0.1125)
        "micro_batch": 1.0 + 1.05,
        "global_batch": 1.0 + 1.05,  # one process, one micro-batch
        # f_0 = 1, P_0 = 0.8: 1.6; f_1 = 1, P_1 = 0.7: 1.4; f_0 = 1, P_0 = 0.7: 1.4; f_0 = 1/2: 1
        "sequence": (1.6 + 1.4) / 2 + (1.4 + 1.0) / 2,
        "all_layers": 2 * (5 / 8 * 0.55 + 3 / 8 * 0.45),  # eight tokens, five to expert 0, mean score 0.55
        "pool": 2 * (5 / 8 * 0.55 + 3 / 8 * 0.45),  # of both layers
    }
    for scope, value in wanted.items():
        pool = {"pool": 2} if scope == "pool" else {}
        loss = Balancers({"switch": {"coef": 1.0, "scope": scope, **pool}}, 2, 2).loss(tuple(routing))["switch"]
        assert loss.item() == pytest.approx(value, abs=1e-6), scope
    three = Balancers({"switch": {"coef": 1.0, "scope": "pool", "pool": 2}}, 3, 2).loss((*routing, routing[0]))
    assert three["switch"].item() == pytest.approx(wanted["pool"] + 1.0, abs=1e-6), "a pool of two and one of one"
    over = Balancers({"switch": {"coef": 1.0, "scope": "global_batch"}}, 2, 2)
    over.observe(tuple(routing))
    over.observe(tuple(out._replace(index_TK=1 - out.index_TK) for out in routing))  # the other way round
    # with these and the present one f_0 = (2 + 2 + 2) / 12 and (3 + 1 + 3) / 12, P is that of the present one
    later = 2 * (6 / 12 * 0.55 + 6 / 12 * 0.45) + 2 * (7 / 12 * 0.55 + 5 / 12 * 0.45)
    assert over.loss(tuple(routing))["switch"].item() == pytest.approx(later, abs=1e-6)


def test_a_pool_is_said_twice_or_not_at_all() -> None:
    for settings in ({"scope": "pool"}, {"pool": 2}):
        with pytest.raises(ZooError, match="a pool of 2 or more layers is a scope of its own"):
            Balancers({"switch": settings}, 2, 2)


def test_z_loss() -> None:
    model = stack(moe={"balance": {"z_loss": {"coef": 0.1}}})
    _, routing = model(torch.randn(2, 5, D))
    wanted = sum(out.logits_TE.logsumexp(-1).pow(2).mean() for out in routing)
    torch.testing.assert_close(model.balancers.loss(routing)["z_loss"], 0.1 * wanted)


def test_balance_loss_pulls_on_a_collapsed_router() -> None:
    layer = moe(router={"k": 1}, balance={"switch": {"coef": 1.0}})
    weight = next(p for p in layer.router.parameters() if p.shape == (E, D))
    with torch.no_grad():
        weight.zero_()
        weight[0] = 0.1
    out = layer.route(torch.rand(1, 16, D), RouteContext())
    assert out.counts_E().tolist() == [16, 0, 0, 0]
    Balancers(layer.config.balance, 1, E).loss((out,))["switch"].backward()
    assert weight.grad is not None
    assert (weight.grad[0] > 0).all() and (weight.grad[1:] < 0).all(), "down with the used one, up with the others"


@pytest.mark.parametrize("scope", ["micro_batch", "global_batch", "all_layers"])
def test_padding_changes_nothing(scope: str) -> None:
    model = stack(moe={"balance": {"switch": {"scope": scope}, "z_loss": {}}})
    x, lengths = torch.randn(3, 6, D), (6, 4, 1)
    valid = torch.tensor([[t >= 6 - n for t in range(6)] for n in lengths])
    outs = []
    for filler in (0.0, 50.0):
        y, routing = model(torch.where(valid[..., None], x, filler), valid)
        losses = {k: v.detach() for k, v in model.balancers.loss(routing).items()}
        outs.append((y[valid], [out.counts_E() for out in routing], losses))
    torch.testing.assert_close(outs[0], outs[1], msg="what lies in the padding does not matter")
    alone = [model(x[b : b + 1, 6 - n :]) for b, n in enumerate(lengths)]
    torch.testing.assert_close(outs[0][0], torch.cat([y[0] for y, _ in alone]), rtol=1e-5, atol=1e-5)
    for layer, counts_E in enumerate(outs[0][1]):
        assert counts_E.tolist() == sum(routing[layer].counts_E() for _, routing in alone).tolist()
        assert counts_E.sum() == 2 * sum(lengths)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_load_is_counted_once(checkpointing: bool) -> None:
    switch = {"coef": 1.0, "scope": "global_batch"}
    model = stack(activation_checkpointing=checkpointing, moe={"balance": {"switch": switch}})
    total, (one, two) = torch.zeros(2, E), torch.randn(2, 3, 5, D)
    for micro in (one, two):
        y, routing = model(micro)
        loss = model.balancers.loss(routing)["switch"]
        (y.sum() + loss).backward()
        model.balancers.observe(routing)
        total += torch.stack([out.counts_E() for out in routing])
        prob_NE = torch.stack([out.logits_TE.softmax(-1).mean(0) for out in routing])
        torch.testing.assert_close(loss, E * (total / total.sum(1, keepdim=True) * prob_NE).sum())
    assert total.sum() == 2 * 2 * 30
    model.balancers.step()
    _, routing = model(one)
    fresh = by_hand("micro_batch", "slots", torch.stack([out.logits_TE for out in routing]), 2)
    torch.testing.assert_close(model.balancers.loss(routing)["switch"], fresh)


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = stack(activation_checkpointing=checkpointing, moe={"balance": {"switch": {}}})
        y, routing = model(torch.linspace(-1, 1, 2 * 5 * D).view(2, 5, D))
        (y.square().sum() + model.balancers.loss(routing)["switch"]).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused() -> None:
    layer = moe(balance={"switch": {}})
    kept = []

    def run(x: Tensor) -> Tensor:
        y, out = layer(x, RouteContext())
        kept.append(out)
        return y

    checkpoint(run, torch.randn(1, 3, D), use_reentrant=True)
    with pytest.raises(ZooError, match=r"no gradient.*use_reentrant=False"):
        Balancers(layer.config.balance, 1, E).loss((kept[0],))


def test_a_coefficient_without_a_mixture_is_refused() -> None:
    with pytest.raises(ZooError, match=r"moe.balance sets switch, but the model has no MoE layer; remove it"):
        stack(num_layers=0, moe={"balance": {"switch": {}}})
    assert stack(num_layers=0, moe={"balance": {"switch": None}}).balancers.loss(()) == {}


def test_routing_is_in_full_precision_under_autocast() -> None:
    layer = moe()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.route(torch.randn(1, 3, D).bfloat16(), RouteContext())
    assert out.logits_TE.dtype == out.weight_TK.dtype == torch.float32


ACROSS: dict[str, dict[str, Any]] = {
    "global_batch": {"switch": {"coef": 1.0, "scope": "global_batch"}, "z_loss": {"coef": 0.1}},
    "devices": {"device_level": {"coef": 1.0, "scope": "global_batch"}},
    "sequence": {"switch": {"coef": 1.0, "scope": "sequence"}},
    "loss_free": {"loss_free": {"rate": 0.1}},
}


def step(balance: dict[str, Any], x: Tensor) -> dict[str, Tensor]:
    """Gradients of one step over two micro-batches, and what the balancers keep for the next."""
    model = stack(moe={"balance": balance})
    for micro in x.chunk(2, dim=1):
        y, routing = model(micro)
        (y.square().mean() + sum(model.balancers.loss(routing).values())).backward()
        model.balancers.observe(routing)
    model.balancers.step()
    return {**{n: p.grad for n, p in model.named_parameters()}, **model.balancers.state_dict(prefix="balancers.")}


def worker(rank: int, folder: str, world_size: int = 4) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    x, results = torch.load(f"{folder}/x.pt").chunk(world_size)[rank], {}
    for name, balance in ACROSS.items():
        for key, value in step(balance, x).items():
            if not key.startswith("balancers."):
                dist.all_reduce(value)
                value /= world_size  # the mean, as DDP takes it
            results[f"{name}/{key}"] = value
    torch.save(results, f"{folder}/results{rank}.pt")
    dist.destroy_process_group()


def test_four_processes_equal_one(tmp_path: Path) -> None:
    """One process with batch B, four with B / 4 each: the same gradients to 1e-6, and the same state."""
    x = torch.randn(8, 6, D)
    torch.save(x, tmp_path / "x.pt")
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(4)]
    wanted = {f"{name}/{key}": value for name, balance in ACROSS.items() for key, value in step(balance, x).items()}
    assert [process.wait(270) for process in workers] == [0] * 4
    for rank in range(4):
        got = torch.load(tmp_path / f"results{rank}.pt")
        assert set(got) == set(wanted) and any("bias_NE" in key for key in got)
        for key, value in wanted.items():
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
