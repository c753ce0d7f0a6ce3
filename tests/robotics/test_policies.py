"""Policies against hand-computed cases: the autoencoder, flow matching, heads of phases, and what padding may not do.

Shapes: B batch, K actions of a chunk, A numbers of an action, P phases.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import create_model
from zoo.moe import give
from zoo.moe.router import Router
from zoo.nn.size import measure
from zoo.spec import ZooError
from zoo_robotics.models.act import kl_divergence
from zoo_robotics.models.flow import between, euler

B, K, A, P = 6, 8, 4, 5
OURS = ("mlp", "act", "moe_act", "adamoe_tiny")


def batch(size: int = B, **changes: Tensor) -> dict[str, Tensor]:
    valid = torch.ones(size, K, dtype=torch.bool)
    valid[-1, 3:] = False
    made = {
        "observation": torch.randn(size, 39),
        "task": torch.arange(size) % 4,
        "actions": torch.rand(size, K, A) * 2 - 1,
        "valid": valid,
        "phase": torch.arange(size * K).view(size, K) % P,
    }
    return {**made, **changes}


def policy(name: str, **settings: Any) -> Any:
    return create_model(f"robotics/{name}", **settings)


# -- the conditional autoencoder ---------------------------------------------------------------------------------------


def test_the_divergence_by_hand() -> None:
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logvar = torch.tensor([[0.0, math.log(4)], [0.0, 0.0]])
    # (1 + 1 - 1 - 0) / 2 + (0 + 4 - 1 - log 4) / 2
    torch.testing.assert_close(kl_divergence(mean, logvar), torch.tensor([0.5 + (3 - math.log(4)) / 2, 0.0]))


def test_the_latent_is_zero_when_it_acts() -> None:
    model, given = policy("act").eval(), batch()
    heard: list[Tensor] = []
    model.latent_in.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    model.act(given)
    assert not heard[0].any()
    args = {"observation_BS": given["observation"], "task_B": given["task"], "actions_BKA": given["actions"]}
    out = model(**args)
    assert torch.equal(heard[1], out.mean_BZ) and heard[1].any(), "in evaluation the posterior's mean"
    torch.manual_seed(0)
    out = model.train()(**args)
    torch.manual_seed(0)
    drawn = out.mean_BZ + (0.5 * out.logvar_BZ).exp() * torch.randn(B, 8)
    torch.testing.assert_close(heard[2], drawn)


def test_the_losses_of_act_by_hand() -> None:
    model, given = policy("act", kl=3.0), batch()
    torch.manual_seed(1)
    terms, _ = model.losses(given)
    torch.manual_seed(1)
    out = model(given["observation"], given["task"], given["actions"], given["valid"])
    wrong = (out.actions_BKA - given["actions"]).abs()
    real = torch.cat([wrong[:-1].flatten(), wrong[-1, :3].flatten()])
    torch.testing.assert_close(terms["action"], real.mean())
    torch.testing.assert_close(terms["kl"], 3 * kl_divergence(out.mean_BZ, out.logvar_BZ).mean())
    assert "kl" not in policy("act", latent=0).losses(given)[0]


def test_yes_or_no_actions() -> None:
    model, given = policy("act", binary=[3]), batch()
    terms, _ = model.eval().losses(given)
    out = model(given["observation"], given["task"], given["actions"], given["valid"])
    logit, yes = out.actions_BKA[..., 3], (given["actions"][..., 3] > 0).float()
    each = -(yes * logit.sigmoid().log() + (1 - yes) * (1 - logit.sigmoid()).log())
    torch.testing.assert_close(terms["binary"], 0.05 * each[given["valid"]].mean())
    torch.testing.assert_close(
        terms["action"], (out.actions_BKA - given["actions"])[..., :3].abs()[given["valid"]].mean()
    )
    assert set(model.act(given).actions_BKA[..., 3].flatten().tolist()) <= {-1.0, 1.0}


# -- flow matching -----------------------------------------------------------------------------------------------------


def test_the_way_and_its_velocity_by_hand() -> None:
    actions, noise = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -2.0)
    assert between(actions, noise, torch.tensor([0.25])).item() == 0.25 * -2 + 0.75 * 2
    late, early = (between(actions, noise, torch.tensor([t])) for t in (0.75, 0.25))
    assert (late - early).item() / 0.5 == (noise - actions).item()


def test_euler_by_hand() -> None:
    seen = []

    def decay(x: Tensor, time: Tensor) -> Tensor:
        seen.append(time.item())
        return x

    assert euler(decay, torch.full((1, 1, 1), 8.0), 2).item() == 2.0  # 8 - 8 / 2 = 4, 4 - 4 / 2 = 2
    assert seen == [1.0, 0.5]
    noise, actions = torch.randn(2, K, A), torch.randn(2, K, A)
    for steps in (1, 3):
        torch.testing.assert_close(euler(lambda x, t: noise - actions, noise, steps), actions)


def test_the_loss_of_a_flow_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = policy("adamoe_tiny"), batch()
    asked: dict[str, Tensor] = {}
    whole = type(model).forward

    def spy(self: Any, **inputs: Tensor) -> Any:
        asked.update(inputs)
        out = whole(self, **inputs)
        return out._replace(velocity_BKA=torch.ones_like(out.velocity_BKA))

    monkeypatch.setattr(type(model), "forward", spy)
    torch.manual_seed(2)
    terms, routing = model.losses(given)
    torch.manual_seed(2)
    noise, u = torch.randn(B, K, A), torch.rand(B)
    torch.testing.assert_close(asked["time_B"], 0.001 + 0.999 * u ** (1 / 1.5))
    torch.testing.assert_close(asked["noisy_BKA"], between(given["actions"], noise, asked["time_B"]))
    wrong = 1 - (noise - given["actions"])
    torch.testing.assert_close(terms["action"], wrong[given["valid"]].square().mean())
    assert len(routing) == 2 and routing[0].counts_E().sum() == 2 * B + given["valid"].sum()


def test_state_and_task_do_not_look_at_actions() -> None:
    model, given = policy("adamoe_tiny").eval(), policy("adamoe_tiny").dummy_inputs(2)
    states: list[Tensor] = []
    model.stack.register_forward_hook(lambda _m, _i, out: states.append(out[0]))
    model(**given)
    model(**{**given, "noisy_BKA": given["noisy_BKA"] + 1, "time_B": given["time_B"] / 2})
    torch.testing.assert_close(states[0][:, :2], states[1][:, :2])
    assert not torch.allclose(states[0][:, 2:], states[1][:, 2:])


def test_the_same_noise_the_same_actions() -> None:
    model, given = policy("adamoe_tiny").eval(), batch()
    one, two, other = (model.act(given, torch.Generator().manual_seed(s)).actions_BKA for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


# -- the heads of phases -----------------------------------------------------------------------------------------------


def mixture(**settings: Any) -> Any:
    torch.manual_seed(3)
    return policy("moe_act", **settings).head


def test_a_mixture_of_heads_by_hand() -> None:
    head, x = mixture(), torch.randn(2, 3, 64)
    y, gate, (out,) = head(x, None, torch.zeros(2, 3, dtype=torch.int64))
    scorer, bank = head.moe.router.scorer, head.moe.experts
    hidden = torch.nn.functional.silu(x @ scorer.weight[0].T + scorer.bias[0])
    p = (hidden @ scorer.weight[1].T + scorer.bias[1]).softmax(-1)  # the temperature begins at 1
    torch.testing.assert_close(gate, p)
    each = [
        torch.nn.functional.silu(x @ bank.first[e].T + bank.first_bias[e]) @ bank.last[0][e].T + bank.last_bias[e]
        for e in range(P)
    ]
    torch.testing.assert_close(y, sum(p[..., e : e + 1] * each[e] for e in range(P)))
    loss = head.balancers.loss((out,))["label_ce"]
    torch.testing.assert_close(loss, -0.1 * p[..., 0].log().mean())


def test_groups_of_actions_have_mlps_of_their_own() -> None:
    head = mixture(**{"head.groups": [3, 1], "head.hidden": [16, 4]})
    bank, x = head.moe.experts, torch.randn(1, 1, 64)
    before = head(x)[0]
    with torch.no_grad():
        bank.first[:, 16:] += 1.0  # the hidden units of the gripper
    after = head(x)[0]
    torch.testing.assert_close(before[..., :3], after[..., :3])
    assert not torch.allclose(before[..., 3], after[..., 3])
    with pytest.raises(ZooError, match="add up to 4 outputs"):
        mixture(**{"head.groups": [3, 2], "head.hidden": [16, 4]})


def test_a_temperature_of_100_mixes_evenly_and_is_learned() -> None:
    head, x = mixture(**{"head.router.activation.start": 100.0}), torch.randn(4, 3, 64)
    y, gate, (out,) = head(x)
    torch.testing.assert_close(gate.flatten(0, 1), (out.logits_TE / 100).softmax(-1))
    assert (gate - 1 / P).abs().max() < 0.01
    y.square().sum().backward()
    assert head.moe.router.activation.log_tau.grad.abs() > 0


def test_hard_teacher_forcing_is_the_label_and_then_the_best() -> None:
    model, given = policy("moe_act").eval(), batch()
    give(model, "label")
    chunk = model.act(given)
    bank = model.head.moe.experts
    heard: list[Tensor] = []
    model.decoder_norm.register_forward_hook(lambda _m, _i, out: heard.append(out))
    model.act(given)
    x, e = heard[0][0, 2], int(given["phase"][0, 2])
    alone = torch.nn.functional.silu(bank.first[e] @ x + bank.first_bias[e])
    torch.testing.assert_close(
        chunk.actions_BKA[0, 2], (bank.last[0][e] @ alone + bank.last_bias[e]).clamp(-1, 1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ZooError, match="without a phase"):
        model.act(batch(phase=torch.full((B, K), -1)))
    give(model, None)
    assert not torch.allclose(model.act(given).actions_BKA, chunk.actions_BKA)


def test_supervised_experts_are_the_phases() -> None:
    with pytest.raises(ZooError, match="5 phases"):
        policy("moe_act", **{"head.num_experts": 4})
    assert policy("moe_act", phases=["reach", "push"]).head.moe.num_experts == 2


def test_an_mlp_decides_once_for_a_chunk() -> None:
    model = policy("mlp", head={"name": "robotics/mixture", "balance": {"label_ce": {}}})
    given = batch()
    gate = model.act(given).gate_BKP
    assert gate.shape == (B, K, P) and torch.equal(gate[:, 0], gate[:, -1])
    _, (out,) = model.losses(given)
    assert torch.equal(out.tags.label, given["phase"][:, 0])


# -- AdaMoE: which and how much are two numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_adapter_never_changes_the_choice(seed: int) -> None:
    torch.manual_seed(seed)
    model, inputs = policy("adamoe_tiny").eval(), policy("adamoe_tiny").dummy_inputs(B)
    first = model.stack.layers[0].feed_forward
    before = model(**inputs)
    with torch.no_grad():
        first.router.weigher.weight.normal_(std=10.0)
    after = model(**inputs)
    x_TD = torch.randn(50, 64)
    valid = torch.ones(50, dtype=torch.bool)
    _, _, ctx = first.unit.see(x_TD, model.stack.balancers.context())
    out = first.router(x_TD, valid, ctx)
    p = (x_TD @ first.router.scorer.weight.T).softmax(-1)
    assert torch.equal(out.index_TK[:, 0], p.argmax(-1)), "the choice is the softmax's alone"
    scale = (x_TD @ first.router.weigher.weight.T).gather(1, out.index_TK)
    torch.testing.assert_close(out.weight_TK, p.gather(1, out.index_TK) + scale)
    assert not out.select_TE.requires_grad, "and no gradient comes back through it"
    assert torch.equal(before.routing[0].index_TK, after.routing[0].index_TK)
    assert not torch.allclose(before.velocity_BKA, after.velocity_BKA)


# -- all policies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_padded_actions_teach_nothing(name: str) -> None:
    model, given = policy(name), batch()
    other = {**given, "actions": given["actions"].clone(), "phase": given["phase"].clone()}
    other["actions"][-1, 3:], other["phase"][-1, 3:] = 9.0, -1
    losses = []
    for each in (given, other):
        torch.manual_seed(4)
        terms, routing = model.losses(each)
        balancers = next((m for m in model.modules() if type(m).__name__ == "Balancers"), None)
        losses.append({**terms, **(balancers.loss(routing) if routing else {})})
    assert losses[0].keys() == losses[1].keys()
    for key in losses[0]:
        torch.testing.assert_close(losses[0][key], losses[1][key])


@pytest.mark.parametrize("name", OURS)
def test_what_it_does_is_bounded_and_alone(name: str) -> None:
    model, given = policy(name).eval(), batch()
    chunk = model.act(given, torch.Generator().manual_seed(0))
    assert chunk.actions_BKA.shape == (B, K, A) and not chunk.actions_BKA.requires_grad
    if name != "adamoe_tiny":  # whose noise is drawn for the whole batch
        alone = model.act({key: value[:1] for key, value in given.items()})
        torch.testing.assert_close(alone.actions_BKA[0], chunk.actions_BKA[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    assert model.act(given).actions_BKA.abs().max() == 1


def test_observations_are_normalised_and_clamped() -> None:
    model = policy("mlp")
    mean, std = torch.arange(39.0), torch.full((39,), 2.0)
    model.set_statistics({"observation": {"mean": mean.tolist(), "std": std.tolist()}})
    seen = model.normalised(torch.stack([mean + 3, mean + 1000]))
    torch.testing.assert_close(seen, torch.tensor([1.5, 5.0])[:, None].expand(-1, 39))
    assert torch.equal(policy("mlp").normalised(torch.zeros(1, 39)), torch.zeros(1, 39))
    with pytest.raises(ZooError, match="statistics of 3 numbers do not fit a policy with state=39"):
        model.set_statistics({"observation": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    with pytest.raises(ZooError, match="not above 0"):
        model.set_statistics({"observation": {"mean": [0.0] * 39, "std": [0.0] * 39}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 9}, "execute=9 is more than the chunk=8"),
        ({"ensemble": 0.1, "execute": 4}, "set execute=1"),
        ({"tasks": []}, "one or more different names"),
        ({"binary": [4]}, "places of the 4 numbers"),
        ({"stack.causal": True}, "set stack.causal=false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        policy("act", **settings)


def test_pictures_become_tokens() -> None:
    model = policy("act", **{"eyes.views": 2, "eyes.size": 32})
    inputs = model.dummy_inputs(2)
    terms, _ = model.losses(batch(2) | {"images": inputs["images_BVCHW"]})
    terms["action"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.eyes.parameters())
    other = {**inputs, "images_BVCHW": 255 - inputs["images_BVCHW"]}
    model.eval()
    assert not torch.allclose(model(**inputs).actions_BKA, model(**other).actions_BKA)
    with pytest.raises(ZooError, match="give it images"):
        model.act(batch(2))
    with pytest.raises(ZooError, match=r"images are \(1, 3, 32, 32\)"):
        model.act(batch(2) | {"images": inputs["images_BVCHW"][:, :1]})


def test_published_sizes() -> None:
    """MoE-ACT: card 4.1; an action expert of 300M, with four experts in place of each of its 18 MLPs: card 4.3."""
    surgical = create_model("robotics/moe_act_surgical", device="meta")
    c = surgical.config
    assert (c.chunk, c.latent, c.kl, c.eyes.views, c.stack.hidden_size, c.stack.num_layers) == (10, 32, 100, 2, 512, 4)
    assert len(surgical.decoder) == 7 and surgical.head.moe.num_experts == 5
    head = sum(p.numel() for p in surgical.head.moe.experts.parameters())
    assert head == 5 * (512 * 256 + 256 + 256 * 3 + 3 + 512 * 128 + 128 + 128 * 1 + 1)
    size = measure(create_model("robotics/adamoe", device="meta"))
    mlp = 3 * 1024 * 4096
    assert abs(size.active - 0.311e9) < 0.01e9
    assert size.parameters - size.active == 18 * 3 * mlp
    routers = [m for m in create_model("robotics/adamoe", device="meta").modules() if isinstance(m, Router)]
    assert len(routers) == 18 and all(router.slots == 1 for router in routers)
