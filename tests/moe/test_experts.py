"""The contract of every registered bank of experts and shared expert, and what is particular to some.

Shapes: B batch, L length, T tokens, W tokens of a unit, D model width, E experts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import config as zc
from zoo import registry
from zoo.moe import MoE, MoEConfig, RouteContext
from zoo.moe.experts import Bank, Taps
from zoo.spec import ZooError
from zoo_kernels import ops

B, L, D, E, W = 2, 9, 8, 4, 3
INNER = {"name": "swiglu", "intermediate_size": 6}
MIXED = [
    {"name": "swiglu", "count": 1, "intermediate_size": 6},
    {"name": "null", "count": 1},
    {"name": "copy", "count": 1},
    {"name": "constant", "count": 1},
]
SETTINGS: dict[str, dict[str, Any]] = {
    "slices": {"intermediate_size": 24},
    "gelu": {"intermediate_size": 6, "bias": True},
    "ragged": {"widths": [1, 5, 3, 2]},
    "bottleneck": {"rank": 5, "experts": INNER},
    "latent": {"rank": 5, "experts": INNER},
    "mixed": {"banks": MIXED},
    "lora": {"rank": 2},
    "fourier": {"modes": 4},
    "segment_mlp": {"length": W, "intermediate_size": 6},
    "gru": {"size": 5},
    "attention": {"size": 4},
    "attention_heads": {"size": 4},
} | {name: {"intermediate_size": 6} for name in ("swiglu", "relu", "ternary", "film")}
EXPERTS = list(registry.entries("experts"))
SHARED: dict[str, dict[str, Any]] = {
    "bias": {},
    "swiglu": {"intermediate_size": 6, "gate": "mix", "norm": True},
    "gelu": {"intermediate_size": 6, "gate": "sigmoid"},
    "depthwise_conv": {"kernel": 3},
}
every_bank = pytest.mark.parametrize("name", EXPERTS)
every_shared = pytest.mark.parametrize("name", list(registry.entries("shared")))


def random_(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def bank(name: str, num_experts: int = E, **settings: Any) -> Bank:
    made: Bank = zc.build("experts", {"name": name, **{**SETTINGS.get(name, {}), **settings}}, D, num_experts)
    made.reset_parameters(0.5)
    random_(made)
    return made


def layer(experts: str = "swiglu", shared: str | None = None, **settings: Any) -> MoE:
    whole = bank(experts).whole_units
    node = None if shared is None else {"name": shared, **SHARED.get(shared, {})}
    config = zc.make(
        MoEConfig,
        num_experts=E,
        unit={"name": "segment", "length": W} if whole else {"name": "token"},
        experts={"name": experts, **{**SETTINGS.get(experts, {}), **settings}},
        shared=node,
    )
    made = MoE(config, D)
    random_(made)
    return made


def padded() -> RouteContext:
    valid = torch.ones(B, L, dtype=torch.bool)
    valid[1, 5:] = False
    return RouteContext(valid=valid)


def assignments(made: Bank, tokens: int = 7, k: int = 2) -> tuple[Tensor, Tensor, Any]:
    """Inputs of a bank: no token for the expert before the last, and one slot unused."""
    shape = (tokens, W, D) if made.whole_units else (tokens, D)
    index_TK = torch.stack([torch.randperm(made.num_experts)[:k] for _ in range(tokens)])
    used_TK = index_TK != made.num_experts - 2
    used_TK[-1, 0] = False
    plan = ops.plan(index_TK, made.num_experts, used_TK)
    return torch.randn(shape), torch.rand(tokens, k).masked_fill(~used_TK, 0), (index_TK, used_TK, plan)


@every_bank
def test_equals_a_naive_loop_and_reaches_every_parameter(name: str) -> None:
    made = bank(name)
    x, weight_TK, (index_TK, used_TK, plan) = assignments(made, 12)
    y = made(x, weight_TK, plan)
    wanted = torch.zeros_like(x)
    for t in range(len(x)):
        for slot in range(index_TK.shape[1]):
            if used_TK[t, slot]:
                alone = ops.plan(index_TK[t : t + 1, slot : slot + 1], E)
                wanted[t] += weight_TK[t, slot] * made(x[t : t + 1], torch.ones(1, 1), alone)[0].detach()
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    everything = ops.plan(torch.arange(E).expand(len(x), E), E)
    given = torch.rand(len(x), E, requires_grad=True)
    made(x, given, everything).mul(torch.randn_like(x)).sum().backward() if name != "null" else None
    for parameter_name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        each = parameter.grad.flatten(1).any(1) if parameter_name in made.stacked else parameter.grad.any()
        assert each.all(), parameter_name


@every_bank
def test_row_by_row_is_the_same_and_shows_its_rows(name: str) -> None:
    made = bank(name)
    x, weight_TK, (_, _, plan) = assignments(made)
    seen: list[str] = []
    taps = Taps(
        input=lambda rows, plan: seen.append("input"),
        atomic=lambda rows, plan: seen.append("atomic"),
        output=lambda rows, plan: seen.append("output"),
    )
    fused = made(x, weight_TK, plan)
    with made.tapped(taps):
        torch.testing.assert_close(made(x, weight_TK, plan), fused, rtol=1e-4, atol=1e-5)
    assert seen[0] == "input" and seen[-1] == "output"
    with made.tapped(Taps(output=lambda rows, plan: torch.zeros_like(rows))):
        assert not made(x, weight_TK, plan).any()
    torch.testing.assert_close(made(x, weight_TK, plan), fused)


@every_bank
def test_permuted_experts_permute(name: str) -> None:
    if name == "mixed":
        pytest.skip("its experts are of different kinds; test_a_mixed_bank_is_its_banks covers it")
    made = bank(name)
    x, weight_TK, (index_TK, used_TK, plan) = assignments(made)
    order = torch.tensor([2, 0, 3, 1])
    turned = made.resize(order)
    assert [member.id for member in turned.members] == order.tolist()
    place = order.argsort()
    torch.testing.assert_close(
        turned(x, weight_TK, ops.plan(place[index_TK], E, used_TK)), made(x, weight_TK, plan), rtol=1e-4, atol=1e-5
    )


@every_bank
def test_grows_and_shrinks(name: str) -> None:
    made = bank(name)
    x, weight_TK, _ = assignments(made)
    views = [made.view(E - 1)]
    if name == "slices":
        assert made.append(views).config.intermediate_size == 30
    grown = made.append(views, origin="copy of the last")
    assert grown.num_experts == E + 1
    assert (grown.members[-1].id, grown.members[-1].origin) == (E, "copy of the last")
    last, copy = (ops.plan(torch.full((len(x), 1), e), E + 1) for e in (E - 1, E))
    torch.testing.assert_close(grown(x, weight_TK[:, :1], last), grown(x, weight_TK[:, :1], copy))
    small = grown.resize(torch.tensor([1, 4]))
    assert [member.id for member in small.members] == [1, 4]
    torch.testing.assert_close(
        small(x, weight_TK[:, :1], ops.plan(torch.ones(len(x), 1, dtype=torch.int64), 2)),
        grown(x, weight_TK[:, :1], copy),
    )
    small.write(0, {n: t.clone() for n, t in small.view(0).items()})
    with pytest.raises(ZooError, match="cannot write expert"):
        small.write(0, {"nonsense": torch.zeros(1)})


@every_bank
def test_in_a_layer(name: str) -> None:
    """Padding, nothing to do, checkpointing, saving, half precision."""
    made, ctx, x = layer(name), padded(), torch.randn(B, L, D)
    y, out = made(x, ctx)
    assert y.shape == x.shape and y.isfinite().all()
    other, _ = made(torch.where(ctx.valid[..., None], x, 9.0), ctx)  # type: ignore[index]
    torch.testing.assert_close(y[ctx.valid], other[ctx.valid])
    again, _ = checkpoint(made, x, ctx, use_reentrant=False)
    torch.testing.assert_close(again, y)
    twin = layer(name)
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin(x, ctx)[0], y)
    for lead in ((0, L), (2, 0)):
        empty = torch.randn(*lead, D, requires_grad=True)
        nothing, out = made(empty, RouteContext())
        assert nothing.shape == empty.shape
        (nothing.sum() + out.scores_TE.sum()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(x, ctx)[0].isfinite().all()
    assert 0 <= made.inactive_parameters() <= sum(p.numel() for p in made.experts.parameters())


@every_bank
def test_traces_without_a_break(name: str) -> None:
    made = bank(name)
    x, weight_TK, (_, _, plan) = assignments(made)
    torch.compiler.reset()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight_TK, plan), made(x, weight_TK, plan))


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in ("experts", "shared") for n in registry.entries(k)])
def test_says_what_it_is(kind: str, name: str) -> None:
    entry = registry.find(kind, name)
    doc = entry.load().__doc__
    assert entry.spec.doc and len(doc) > 20
    assert entry.spec.paper.partition(",")[0] in doc


# -- what is particular ------------------------------------------------------------------------------------------------


def test_slices_add_up_to_the_dense_layer() -> None:
    made, x = bank("slices"), torch.randn(5, D)
    y = made(x, torch.ones(5, E), ops.plan(torch.arange(E).expand(5, E), E))
    gate, up = (weight.flatten(0, 1) for weight in made.gate_up_proj.chunk(2, 1))
    down = made.down_proj.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(y, F.linear(F.silu(x @ gate.T) * (x @ up.T), down), rtol=1e-4, atol=1e-5)


def test_a_mixed_bank_is_its_banks() -> None:
    made, x = bank("mixed"), torch.randn(3, D)
    mlp, _, _, constant = made.banks
    every = ops.plan(torch.arange(E).expand(3, E), E)
    for e, wanted in enumerate([None, torch.zeros_like(x), x, None]):
        weight_TK = torch.zeros(3, E)
        weight_TK[:, e] = 2.0
        y = made(x, weight_TK, every)
        if e == 0:
            wanted = mlp(x, torch.ones(3, 1), ops.plan(torch.zeros(3, 1, dtype=torch.int64), 1))
        if e == 3:
            share = (x @ constant.weight[0].T).softmax(-1)
            wanted = share[:, :1] * x + share[:, 1:] * constant.constant[0]
        torch.testing.assert_close(y, 2 * wanted, rtol=1e-4, atol=1e-5)


def test_single_tokens_and_whole_units_in_one_bank() -> None:
    banks = [{"name": "gelu", "count": 2, "intermediate_size": 6}, {"name": "gru", "count": 2, "size": 5}]
    made, x = bank("mixed", banks=banks), torch.randn(4, W, D)
    index_TK = torch.tensor([[0, 2], [3, 1], [2, 3], [1, 0]])
    weight_TK, valid_TW = torch.rand(4, 2), torch.ones(4, W, dtype=torch.bool)
    y = made(x, weight_TK, ops.plan(index_TK, 4), valid_TW)
    mlp, gru = made.banks
    for t in range(4):
        wanted = torch.zeros(W, D)
        for e, weight in zip(index_TK[t], weight_TK[t], strict=True):
            if e < 2:
                one = mlp(x[t], torch.ones(W, 1), ops.plan(e.expand(W, 1), 2))
            else:
                one = gru(x[t : t + 1], torch.ones(1, 1), ops.plan(e.view(1, 1) - 2, 2))[0]
            wanted += weight * one
        torch.testing.assert_close(y[t], wanted, rtol=1e-4, atol=1e-5)


def test_gru_is_that_of_torch_and_padding_leaves_it_as_it_is() -> None:
    made, x = bank("gru"), torch.randn(1, 6, D)
    plain = nn.GRU(D, 5, batch_first=True)
    with torch.no_grad():
        plain.weight_ih_l0.copy_(made.in_weight[1]), plain.weight_hh_l0.copy_(made.hidden_weight[1])
        plain.bias_ih_l0.copy_(made.in_bias[1]), plain.bias_hh_l0.copy_(made.hidden_bias[1])
    plan = ops.plan(torch.ones(1, 1, dtype=torch.int64), E)
    y = made(x, torch.ones(1, 1), plan)
    torch.testing.assert_close(y, plain(x)[0] @ made.out_weight[1].T, rtol=1e-4, atol=1e-5)
    left = F.pad(x, (0, 0, 2, 0), value=7.0)
    valid_TW = torch.arange(8)[None] >= 2
    torch.testing.assert_close(made(left, torch.ones(1, 1), plan, valid_TW)[:, 2:], y)


def test_attention_looks_back_and_never_at_padding() -> None:
    made, x = bank("attention", shared_kv=False), torch.randn(1, 6, D)
    plan, one = ops.plan(torch.ones(1, 1, dtype=torch.int64), E), torch.ones(1, 1)
    y = made(x, one, plan)
    later = x.clone()
    later[:, 4:] = 3.0
    torch.testing.assert_close(made(later, one, plan)[:, :4], y[:, :4])
    valid_TW = torch.arange(8)[None] >= 2
    left = F.pad(x, (0, 0, 2, 0), value=7.0)
    torch.testing.assert_close(made(left, one, plan, valid_TW)[:, 2:], y)


def test_attention_heads_between_the_verbs() -> None:
    made, x_TD = bank("attention_heads"), torch.randn(5, D)
    index_TK, weight_TK = torch.tensor([[0, 1], [3, 2], [1, 3], [2, 0], [0, 3]]), torch.rand(5, 2)
    plan = ops.plan(index_TK, E)
    query_TKH = made.queries(x_TD, plan, 2)
    torch.testing.assert_close(query_TKH, torch.einsum("tkhd,td->tkh", made.q_proj[index_TK], x_TD))
    wanted = torch.einsum("tkdh,tkh,tk->td", made.o_proj[index_TK], query_TKH, weight_TK)
    torch.testing.assert_close(made.outputs(query_TKH, weight_TK, plan), wanted)


def test_depthwise_convolution() -> None:
    made, x = bank("depthwise_conv", causal=True), torch.randn(1, 6, D)
    y = made(x, torch.ones(1, 1), ops.plan(torch.ones(1, 1, dtype=torch.int64), E))
    wanted = F.conv1d(F.pad(x.mT, (2, 0)), made.weight[1, :, None], made.bias[1], groups=D).mT
    torch.testing.assert_close(y, wanted)


def test_fourier_with_all_modes_at_one_is_the_input() -> None:
    made, x = bank("fourier", modes=0), torch.randn(5, D)
    made.weight.data.copy_(torch.tensor([1.0, 0.0]).expand_as(made.weight))
    torch.testing.assert_close(made(x, torch.ones(5, 1), ops.plan(torch.zeros(5, 1, dtype=torch.int64), E)), x)


def test_lora_is_its_delta() -> None:
    made, x = bank("lora"), torch.randn(5, D)
    y = made(x, torch.ones(5, 1), ops.plan(torch.full((5, 1), 2), E))
    torch.testing.assert_close(y, x @ made.delta(2).T, rtol=1e-4, atol=1e-5)
    made.reset_parameters(0.1)
    assert not made(x, torch.ones(5, 1), ops.plan(torch.full((5, 1), 2), E)).any(), "nothing changes at first"


def test_ternary_has_three_values() -> None:
    w_in, w_out, _, _ = bank("ternary").weights()
    for matrix in (*w_in.unflatten(1, (2, -1)).flatten(0, 1), *w_out):
        values = matrix.detach().unique()
        assert len(values) <= 3 and torch.allclose(values, -values.flip(0))


def test_bottleneck_is_its_experts_between_two_projections() -> None:
    made, x = bank("bottleneck"), torch.randn(5, D)
    plan, weight_TK = ops.plan(torch.tensor([[0], [3], [1], [1], [2]]), E), torch.rand(5, 1)
    low = x @ made.down_weight.T
    torch.testing.assert_close(made(x, weight_TK, plan), made.experts(low, weight_TK, plan) @ made.up_weight.T)


def test_cutting_inner_units_equals_silencing_them() -> None:
    made = bank("swiglu")
    x, weight_TK, (_, _, plan) = assignments(made)
    widths = torch.tensor([6, 2, 4, 1])
    ragged = made.resize(torch.arange(E), widths)
    assert sum(p.numel() for p in ragged.parameters()) == 3 * D * int(widths.sum())
    with torch.no_grad():
        for e, width in enumerate(widths.tolist()):
            made.down_proj[e, :, width:] = 0
    torch.testing.assert_close(ragged(x, weight_TK, plan), made(x, weight_TK, plan), rtol=1e-4, atol=1e-5)
    again = ragged.resize(torch.tensor([2, 0]), torch.tensor([3, 5]))
    assert again.config.widths == [3, 5] and [member.id for member in again.members] == [2, 0]


def test_members_come_back_from_the_config() -> None:
    kept = bank("swiglu").append([bank("swiglu").view(0)], origin="english").resize(torch.tensor([4, 1]))
    node = {"name": "swiglu", "intermediate_size": 6, "members": kept.config.members}
    again = zc.build("experts", node, D, 2)
    assert again.members == kept.members and again.members[0].origin == "english"


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("slices", {"intermediate_size": 25}, "equal slices"),
        ("ragged", {"widths": [1, 2]}, "widths"),
        ("mixed", {"banks": [{"name": "copy", "count": 1}]}, "add up"),
        ("mixed", {"banks": [{"name": "copy"}]}, "count"),
        ("fourier", {"modes": 9}, "frequencies"),
        ("swiglu", {"members": [{"id": 0}]}, "members"),
    ],
)
def test_impossible_settings_are_told(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ZooError, match=match):
        bank(name, **settings)


# -- shared experts ----------------------------------------------------------------------------------------------------


@every_shared
def test_shared_expert_in_a_layer(name: str) -> None:
    made, ctx, x = layer(shared=name), padded(), torch.randn(B, L, D)
    y, _ = made(x, ctx)
    again, _ = checkpoint(made, x, ctx, use_reentrant=False)
    torch.testing.assert_close(again, y)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.shared.parameters())  # type: ignore[union-attr]
    twin = layer(shared=name)
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin(x, ctx)[0], y)
    assert made(x[:, :0], RouteContext())[0].shape == (B, 0, D)


@pytest.mark.parametrize("gate", ["none", "sigmoid", "mix"])
def test_how_shared_and_routed_come_together(gate: str) -> None:
    made = zc.build("shared", {"name": "swiglu", "intermediate_size": 6, "gate": gate}, D)
    random_(made)
    x, y = torch.randn(3, D), torch.randn(3, D)
    own = made.down_proj(F.silu(made.gate_proj(x)) * made.up_proj(x))
    wanted = {"none": lambda: y + own, "sigmoid": lambda: y + own * (x @ made.gate.weight.T).sigmoid()}
    share = (x @ made.gate.weight.T).softmax(-1) if gate == "mix" else None
    expected = wanted[gate]() if share is None else share[:, :1] * own + share[:, 1:] * y
    torch.testing.assert_close(made(x, y), expected)


def test_a_frozen_shared_expert_is_not_trained() -> None:
    made = zc.build("shared", {"name": "gelu", "intermediate_size": 6, "gate": "sigmoid", "frozen": True}, D)
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {"gate.weight"}


def test_a_shared_convolution_that_looks_back() -> None:
    made = zc.build("shared", {"name": "depthwise_conv", "kernel": 3, "causal": True}, D)
    x, y = torch.randn(1, 6, D), torch.zeros(1, 6, D)
    later = x.clone()
    later[:, 4:] = 3.0
    torch.testing.assert_close(made(later, y)[:, :4], made(x, y)[:, :4])
