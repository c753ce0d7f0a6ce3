"""The stack: every registered mixer, feed-forward and wiring with plain partners, and what each is for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import config as zc
from zoo import registry
from zoo.moe import MoE, RouteContext
from zoo.nn import Cache, Transformer, TransformerConfig, rotary
from zoo.nn.build import Site
from zoo.nn.size import measure
from zoo.spec import ZooError

D, L = 16, 7
BASE: dict[str, Any] = {
    "hidden_size": D, "num_layers": 3, "init_std": 0.3, "mixer": {"num_heads": 2},
    "moe": {"num_experts": 4, "experts": {"intermediate_size": 6}, "router": {"renorm": True}},
}  # fmt: skip
MLA = {"name": "mla", "num_heads": 2, "kv_rank": 6, "nope_dim": 4, "rope_dim": 2, "v_dim": 3}
CASES: dict[str, dict[str, Any]] = {
    "mixer attention": {},
    "mixer attention grouped": {"mixer": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "qkv_bias": True}},
    "mixer attention head norm": {"mixer": {"qk_norm": "head", "rope_fraction": 0.5}},
    "mixer attention full norm": {"mixer": {"qk_norm": "full", "rope_interleaved": True, "out_bias": True}},
    "mixer attention window": {"mixer": {"window": 3}},
    "mixer attention without positions": {"mixer": {"rope_theta": None}},
    "mixer mla": {"mixer": MLA},
    "mixer mla with query latent": {"mixer": {**MLA, "q_rank": 5, "scale_latents": True}},
    "mixer moe_attention": {"mixer": {"name": "moe_attention", "num_kv_heads": 2, "bias": True}},
    "mixer lightning": {"mixer": {"name": "lightning", "num_heads": 2, "chunk": 3}},
    "mixer lightning among others": {"pattern": [{"count": 2, "mixer": {"name": "lightning", "num_heads": 2}}, {}]},
    "feed_forward moe": {"moe": {"shared": {"name": "bias"}}},
    "feed_forward dense": {"pattern": [{"feed_forward": {"name": "dense", "intermediate_size": 8}}, {}]},
    "feed_forward dense plain": {"first": [{"feed_forward": {"name": "dense", "gated": False, "bias": True}}]},
    "wiring sequential": {"norm": "layer"},
    "wiring sequential post": {"wiring": {"norm": "post", "alpha": 2.0}},
    "wiring sequential output": {"wiring": {"norm": "output"}},
    "wiring sequential sandwich": {"wiring": {"norm": "sandwich"}},
    "wiring pre_gated": {"wiring": {"name": "pre_gated"}},
    "wiring parallel": {"wiring": {"name": "parallel"}},
    "wiring parallel two norms": {"wiring": {"name": "parallel", "two_norms": True}},
    "wiring shortcut": {"wiring": {"name": "shortcut", "dense": {"intermediate_size": 8}}},
    "wiring iterate": {"wiring": {"name": "iterate", "times": 3}},
    "wiring iterate outer": {"wiring": {"name": "iterate", "residual": "outer"}},
    "wiring iterate pre-norm": {"wiring": {"name": "iterate", "residual": "pre_norm"}},
    "wiring mixture_of_depths": {"wiring": {"name": "mixture_of_depths"}},
    "wiring mixture_of_blocks": {"wiring": {"name": "mixture_of_blocks", "router": {"k": 2}}},
    "pool": {"num_layers": 4, "pool": 2},
    "recurrent router": {"moe": {"router": {"name": "composed", "scorer": {"name": "recurrent", "size": 5}}}},
}
# A choice over a sequence looks at later positions while training, and no cache can follow it.
NOT_CAUSAL = {"wiring mixture_of_blocks"}
NO_CACHE = {"wiring mixture_of_blocks", "wiring mixture_of_depths"}
# A window counts places of the row, and a scan over positions has one past: neither can step over a document.
SHARING = sorted(n for n in CASES if n not in NO_CACHE and "lightning" not in n and "window" not in n)


def build(name: str, **more: Any) -> Transformer:
    torch.manual_seed(3)
    return Transformer(zc.make(TransformerConfig, **zc.merge(zc.merge(BASE, CASES[name]), more))).eval()


def x_of(seed: int = 0) -> Tensor:
    return torch.randn(2, L, D, generator=torch.Generator().manual_seed(seed))


def test_every_part_has_a_case() -> None:
    for kind in ("mixer", "feed_forward", "wiring"):
        for entry in (name for name in registry.entries(kind) if "/" not in name):  # a plugin tests its own
            assert any(case.startswith(f"{kind} {entry}") for case in CASES), f"{kind} {entry} has no case here"


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name).train()
    y, routing = model(x_of())
    losses = model.balancers.loss(routing)
    (y.square().sum() + sum(losses.values())).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without and torch.isfinite(y).all() and y.shape == (2, L, D)
    assert [out.num_experts for out in routing] == [4] * sum(isinstance(m, MoE) for m in model.modules())


@pytest.mark.parametrize("name", sorted(set(CASES) - NOT_CAUSAL))
def test_nothing_is_heard_of_later_positions(name: str) -> None:
    model, x, y = build(name), x_of(), x_of(1)
    x[:, :4] = y[:, :4]
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0][:, :4], model(y)[0][:, :4])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    model, x = build(name), x_of()[:, :5]
    noise = x_of(2)[:, :2]
    padded = torch.cat([noise, x] if side == "left" else [x, noise], 1)
    valid = torch.tensor([[False] * 2 + [True] * 5] * 2)
    valid = valid if side == "left" else valid.flip(1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, valid)[0][valid], model(x)[0].flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_CACHE))
def test_a_cache_changes_nothing(name: str) -> None:
    model, x, cache = build(name), x_of(), Cache()
    with torch.no_grad():
        whole = model(x)[0]
        parts = [model(part, cache=cache)[0] for part in x.split([3, 1, 2, 1], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
        cache = Cache()
        last = [model(part, cache=cache, last_only=True)[0] for part in x.split([4, 3], 1)]
    torch.testing.assert_close(torch.cat(last, 1), whole[:, [3, 6]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(NO_CACHE))
def test_a_wiring_without_a_cache_says_so(name: str) -> None:
    with pytest.raises(ZooError, match="has no cache"):
        build(name)(x_of(), cache=Cache())


@pytest.mark.parametrize("name", sorted(set(CASES) - NOT_CAUSAL))
def test_documents_do_not_see_each_other(name: str) -> None:
    model, x = build(name), x_of()
    document = torch.tensor([[0] * 3 + [1] * 4] * 2)
    with torch.no_grad():
        both = model(x, document_BL=document)[0]
        alone = torch.cat([model(x[:, :3])[0], model(x[:, 3:])[0]], 1)
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("padding", [False, True])
def test_documents_share_the_start_of_a_negative_number(name: str, padding: bool) -> None:
    model, x = build(name), x_of()
    document = torch.tensor([[-1] * 3 + [0] * 2 + [1] * 2] * 2)
    valid = torch.tensor([[not padding, *[True] * 6]] * 2)
    first = int(padding)
    with torch.no_grad():
        both = model(x, valid if padding else None, document_BL=document)[0]
        one = model(x[:, first:5])[0]
        other = model(torch.cat([x[:, first:3], x[:, 5:]], 1))[0][:, 3 - first :]
    torch.testing.assert_close(both[:, first:], torch.cat([one, other], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_changes_nothing(name: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = build(name, activation_checkpointing=checkpointing).train()
        torch.manual_seed(5)
        y, routing = model(x_of())
        (y.square().sum() + sum(model.balancers.loss(routing).values())).backward()
        model.balancers.observe(routing)
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("name", CASES)
def test_copied_saved_and_measured(name: str) -> None:
    model = build(name)
    other = build(name)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x_of())[0], model(x_of())[0])
        assert torch.equal(copy.deepcopy(model)(x_of())[0], model(x_of())[0])
    size = measure(model)
    assert 0 < size.active <= size.parameters
    assert model(x_of()[:, :0])[0].shape == (2, 0, D)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"wiring mixture_of_blocks", "wiring mixture_of_depths"}))
def test_compiles_without_a_break(name: str) -> None:
    model, x = build(name), x_of()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], model(x)[0])


def test_interleaved_rotary_is_half_split_rotary_of_sorted_features() -> None:
    x, position = torch.randn(1, 2, L, 8), torch.arange(L)[None]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    wanted = rotary(x[..., order], position, 100.0)
    torch.testing.assert_close(rotary(x, position, 100.0, interleaved=True)[..., order], wanted)


def test_lightning_is_a_recurrence() -> None:
    mixer = build("mixer lightning", num_layers=2).layers[0].mixer
    q, k, v = torch.randn(3, 1, 2, L, 8)
    y, _ = mixer.scan(q, k, v, torch.arange(L)[None], torch.zeros(1, L, dtype=torch.long))
    state, wanted = torch.zeros(1, 2, 8, 8), []
    for t in range(L):
        state = state * torch.exp(-mixer.rate_H)[:, None, None] + k[:, :, t, :, None] * v[:, :, t, None]
        wanted.append((q[:, :, t, None] @ state)[:, :, 0])
    torch.testing.assert_close(y, torch.stack(wanted, 2), rtol=1e-5, atol=1e-5)


def test_a_window_is_a_band() -> None:
    model, x = build("mixer attention window", num_layers=1), x_of()
    other = x.clone()
    other[:, 2] += 1
    with torch.no_grad():
        changed = (model(x)[0] - model(other)[0]).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, True, True, False, False]


def test_sequential_by_hand() -> None:
    x = x_of()
    for norm in ("pre", "post", "output", "sandwich"):
        model = build("wiring sequential", norm="rms", wiring={"norm": norm, "alpha": 1.5}, num_layers=1)
        layer, ctx = model.layers[0], model.balancers.context()
        from zoo.nn.span import span_of

        def mixer(z: Tensor, layer: Any = layer, ctx: Any = ctx) -> Tensor:
            return layer.mixer(z, span_of(z), ctx)[0]

        def moe(z: Tensor, layer: Any = layer, ctx: Any = ctx) -> Tensor:
            return layer.feed_forward(z, ctx)[0]

        wanted = x
        for f, n in ((mixer, layer.mixer_norm), (moe, layer.feed_forward_norm)):
            wanted = {
                "pre": lambda z, f=f, n=n: z + f(n(z)),
                "post": lambda z, f=f, n=n: n(1.5 * z + f(z)),
                "output": lambda z, f=f, n=n: z + n(f(z)),
                "sandwich": lambda z, f=f, n=n: z + F.rms_norm(f(n(z)), (D,), eps=1e-6),
            }[norm](wanted)
        with torch.no_grad():
            torch.testing.assert_close(model(x)[0], model.norm(wanted))


@pytest.mark.parametrize("residual", ["normed", "outer", "pre_norm"])
def test_iterate_by_hand(residual: str) -> None:
    model = build("wiring iterate", wiring={"residual": residual, "times": 2}, num_layers=1)
    layer, x, ctx = model.layers[0], x_of(), model.balancers.context()
    from zoo.nn.span import span_of

    x1 = x + layer.mixer(layer.mixer_norm(x), span_of(x), ctx)[0]
    if residual == "pre_norm":
        h = x1 + layer.feed_forward(layer.feed_forward_norm(x1), ctx)[0]
        wanted = h + layer.again[0](layer.again_norm[0](h), ctx)[0]
    else:
        h = layer.feed_forward_norm(x1)
        h = h + layer.feed_forward(h, ctx)[0]
        h = h + layer.again[0](h, ctx)[0]
        wanted = x1 + h if residual == "outer" else h
    torch.testing.assert_close(model(x)[0], model.norm(wanted))
    assert layer.again[0].bank is layer.feed_forward.experts and layer.again[0].experts is None


def test_pre_gated_routes_by_what_the_layer_below_saw() -> None:
    model, x = build("wiring pre_gated"), x_of()
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.feed_forward_norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    _, routing = model(x)
    for n, source in ((0, 0), (1, 0), (2, 1)):
        moe = model.layers[n].feed_forward
        wanted = moe.route(seen[source], model.balancers.context(layer=n))
        torch.testing.assert_close(routing[n].logits_TE, wanted.logits_TE)


def test_a_pool_is_one_bank_of_neighbours() -> None:
    model = build("pool")
    banks = [layer.feed_forward.bank for layer in model.layers]
    assert banks[0] is banks[1] and banks[2] is banks[3] and banks[0] is not banks[2]
    assert sum("experts" in key for key in model.state_dict()) == 2 * 2


def test_shares_of_mixture_of_depths() -> None:
    model = build("wiring mixture_of_depths", num_layers=1).train()
    seen: list[Tensor] = []
    model.layers[0].inside.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0]))
    y, _ = model(x_of())
    assert seen[0].shape == (2, 4, D)
    same = (y == model.norm(x_of())).all(-1).sum(1)
    assert same.tolist() == [3, 3]


def test_blocks_that_nobody_chose_do_not_run() -> None:
    case = {
        "router": {"name": "composed", "scorer": {"name": "none"}, "selector": {"name": "label", "groups": [[0], [1]]}}
    }
    model = build("wiring mixture_of_blocks", num_layers=1, wiring=case)
    ran: list[int] = []
    for e, block in enumerate(model.layers[0].blocks):
        block.register_forward_hook(lambda *_, e=e: ran.append(e))
    model(x_of(), label=torch.ones(2, L, dtype=torch.long))
    assert ran == [1]


def test_blocks_that_a_tag_chooses_decode_with_a_cache() -> None:
    router = {"name": "composed", "scorer": {"name": "none"}, "selector": {"name": "label"}, "weigher": "uniform"}
    model = build("wiring mixture_of_blocks", wiring={"router": router}).eval()
    x, label_BL = x_of(), torch.tensor([[1] * L, [0] * L])
    cache = Cache()
    with torch.no_grad():
        whole = model(x, label=label_BL)[0]
        parts = [model(x[:, a:b], cache=cache, label=label_BL[:, a:b])[0] for a, b in ((0, 3), (3, 4), (4, L))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": {"num_heads": 3}}, "not a multiple of num_heads=3"),
        ({"mixer": {"num_heads": 4, "num_kv_heads": 3}}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"mixer": {"head_dim": 5}}, "even number"),
        ({"first": [{"mixr": {}}]}, r"unknown config key 'first\[0\].mixr'; did you mean mixer"),
        ({"pattern": ["dense"]}, r"pattern\[0\] is a section"),
        ({"wiring": {"name": "pre_gated"}, "feed_forward": {"name": "dense"}}, "there is no router to move"),
        ({"wiring": {"name": "iterate"}, "feed_forward": {"name": "dense"}}, "no experts to choose again"),
        ({"feed_forward": {"name": "dens"}}, "unknown feed_forward 'dens'"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        Transformer(zc.make(TransformerConfig, **zc.merge(BASE, settings)))


def test_an_encoder_sees_all_and_has_no_cache() -> None:
    config = zc.make(TransformerConfig, **zc.merge(BASE, {"causal": False}))
    model, x, other = Transformer(config), x_of(), x_of()
    other[:, -1] += 1
    assert not torch.allclose(model(x)[0][:, 0], model(other)[0][:, 0])
    with pytest.raises(ZooError, match="causal=false has no cache"):
        model(x, cache=Cache())
    assert replace(config, causal=True).causal


def test_a_stack_may_leave_the_last_norm_to_its_head() -> None:
    x = torch.randn(2, L, D)
    whole = Transformer(zc.make(TransformerConfig, **BASE))
    bare = Transformer(zc.make(TransformerConfig, **BASE, final_norm=False))
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "norm.weight"})
    torch.testing.assert_close(whole.norm(bare(x)[0]), whole(x)[0])


def test_activations_of_a_dense_layer() -> None:
    x = torch.randn(2, L, D)
    for name, function in (("gelu", F.gelu), ("gelu_tanh", lambda u: F.gelu(u, approximate="tanh"))):
        node = {"name": "dense", "activation": name, "gated": False, "intermediate_size": 8, "bias": True}
        layer = zc.build("feed_forward", node, Site(D))
        y = F.linear(function(F.linear(x, layer.up_proj.weight, layer.up_proj.bias)), layer.down_proj.weight)
        torch.testing.assert_close(layer(x, RouteContext())[0], y + layer.down_proj.bias)
