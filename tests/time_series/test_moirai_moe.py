"""Moirai-MoE: the public layout, written here from its published key list, its mathematics in a few lines, and packing.

Shapes: N patches, P points of a patch, D model width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.distributions import LogNormal, NegativeBinomial, Normal, StudentT

import zoo
from zoo import create_model
from zoo.hub import sources
from zoo.spec import ZooError
from zoo_time_series.blocks.distributions import HeavyTailed, Mixture, MixtureHead
from zoo_time_series.models.moirai_moe import MoiraiMoE, rotate

D, FF, LAYERS, HEADS, EXPERTS, P = 128, 24, 2, 2, 32, 16
CONFIG = {
    "d_model": D,
    "d_ff": FF,
    "num_layers": LAYERS,
    "patch_sizes": [P],
    "max_seq_len": 512,
    "attn_dropout_p": 0.0,
    "dropout_p": 0.0,
    "scaling": True,
}
State = dict[str, Tensor]
COMPONENTS = [("df", "loc", "scale"), ("loc",), ("total_count", "logits"), ("loc", "scale")]


def public_state() -> State:
    """Random tensors under the public names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, width in (("in_proj", P), ("res_proj", P), ("feat_proj", D)):
        shapes |= {f"{part}.weight": (1, D, width), f"{part}.bias": (1, D)}
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (D, D) for p in ("q", "k", "v", "out")}
        shapes |= {f"{layer}.self_attn.{p}_norm.weight": (D // HEADS,) for p in "qk"}
        shapes |= {f"{layer}.self_attn.var_attn_bias.emb.weight": (2, HEADS)}
        shapes |= {f"{layer}.norm{i}.weight": (D,) for i in (1, 2)}
        for e in range(EXPERTS):
            shapes |= {f"{layer}.ffn.experts.{e}.{p}.weight": (FF, D) for p in ("fc1", "fc_gate")}
            shapes[f"{layer}.ffn.experts.{e}.fc2.weight"] = (D, FF)
    shapes["encoder.norm.weight"] = (D,)
    heads = {"weights_logits": 4} | {
        f"components.{k}.{name}": 1 for k, names in enumerate(COMPONENTS) for name in names
    }
    for name, size in heads.items():
        shapes |= {f"param_proj.proj.{name}.weight": (1, size * P, D), f"param_proj.proj.{name}.bias": (1, size * P)}
    state = {key: torch.randn(shape) * 0.2 + ("norm" in key) for key, shape in shapes.items()}
    state["encoder.centroid"] = torch.randn(LAYERS, EXPERTS, D, dtype=torch.float64)
    return state


def public_forward(
    w: State,
    x_NP: Tensor,
    seen_NP: Tensor,
    time: list[int],
    variate: list[int],
    ahead: list[bool],
    farthest: bool = True,
) -> tuple[Tensor, Tensor]:
    """What the published model computes for one sample: the log density of scaled 0.3 at every point, and that value in
    its own units. Patch by patch, with loops instead of masks."""
    count = len(time)

    def norm(h: Tensor, key: str) -> Tensor:
        return w[key] * h / (h.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    loc, scale = torch.zeros(count, 1), torch.ones(count, 1)
    for n in range(count):
        mine = [m for m in range(count) if variate[m] == variate[n] and not ahead[m]]
        values = torch.cat([x_NP[m][seen_NP[m]] for m in mine])
        loc[n], scale[n] = values.mean(), (values.var() + 1e-5).sqrt()
    z = (x_NP - loc) / scale
    h = F.silu(z @ w["in_proj.weight"][0].T + w["in_proj.bias"][0])
    h = h @ w["feat_proj.weight"][0].T + w["feat_proj.bias"][0]
    h = h + z @ w["res_proj.weight"][0].T + w["res_proj.bias"][0]
    width = D // HEADS
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}"
        a = norm(h, f"{layer}.norm1.weight")
        q, k, v = ((a @ w[f"{layer}.self_attn.{p}_proj.weight"].T).view(count, HEADS, width) for p in "qkv")
        q, k = norm(q, f"{layer}.self_attn.q_norm.weight"), norm(k, f"{layer}.self_attn.k_norm.weight")
        for each in (q, k):
            for i, t in enumerate(time):
                for pair in range(width // 4):  # half of the head, by neighbouring pairs
                    angle = torch.tensor(t * 10000.0 ** (-4 * pair / width))
                    one, other = each[i, :, 2 * pair].clone(), each[i, :, 2 * pair + 1].clone()
                    each[i, :, 2 * pair] = one * angle.cos() - other * angle.sin()
                    each[i, :, 2 * pair + 1] = one * angle.sin() + other * angle.cos()
        mixed = torch.zeros(count, HEADS, width)
        bias = w[f"{layer}.self_attn.var_attn_bias.emb.weight"]
        for i in range(count):
            for head in range(HEADS):
                seen = [m for m in range(count) if time[m] <= time[i]]
                score = torch.stack([q[i, head] @ k[m, head] / width**0.5 for m in seen])
                score = score + torch.stack([bias[int(variate[m] == variate[i]), head] for m in seen])
                mixed[i, head] = score.softmax(0) @ v[seen, head]
        h = h + mixed.flatten(1) @ w[f"{layer}.self_attn.out_proj.weight"].T
        a = norm(h, f"{layer}.norm2.weight")
        y = torch.zeros_like(h)
        for i in range(count):
            distance = (a[i] - w["encoder.centroid"][n].float()).norm(dim=-1)
            best = distance.topk(2, largest=farthest)
            for weight, e in zip(best.values.softmax(0), best.indices.tolist(), strict=True):
                up, gate, down = (w[f"{layer}.ffn.experts.{e}.{p}.weight"] for p in ("fc1", "fc_gate", "fc2"))
                y[i] += weight * (F.silu(a[i] @ gate.T) * (a[i] @ up.T)) @ down.T
        h = h + y
    h = norm(h, "encoder.norm.weight")

    def parameter(name: str) -> Tensor:
        return h @ w[f"param_proj.proj.{name}.weight"][0].T + w[f"param_proj.proj.{name}.bias"][0]

    logits = parameter("weights_logits").view(count, 4, P).transpose(1, 2).log_softmax(-1)
    value = torch.full((count, P), 0.3)
    parts = [
        StudentT(
            2 + F.softplus(parameter("components.0.df")),
            parameter("components.0.loc"),
            F.softplus(parameter("components.0.scale")),
        ).log_prob(value),
        Normal(parameter("components.1.loc"), 1e-3).log_prob(value),
        NegativeBinomial(
            F.softplus(parameter("components.2.total_count")),
            logits=parameter("components.2.logits"),
            validate_args=False,
        ).log_prob(value),
        LogNormal(parameter("components.3.loc"), F.softplus(parameter("components.3.scale"))).log_prob(value),
    ]
    return (logits + torch.stack(parts, -1)).logsumexp(-1) - scale.log(), loc + 0.3 * scale


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's download would lie, with the config."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path))
    return tmp_path


def load(name: str = "time_series/moirai_moe_small.salesforce") -> Any:
    return zoo.load(name).model


def test_our_model_computes_what_the_published_one_does(folder: Path) -> None:
    state = public_state()
    save_file(state, folder / "model.safetensors")
    model = load()
    assert (model.config.hidden_size, model.config.num_layers) == (D, LAYERS)
    x, seen = torch.randn(6, P) * 3 + 5, torch.rand(6, P) < 0.8
    time, variate, ahead = [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], [False, False, True] * 2
    expected, value = public_forward(state, x, seen, time, variate, ahead)
    with torch.no_grad():
        out = model(x[None], seen[None], None, *(torch.tensor([ids]) for ids in (time, variate, ahead)))
        found = out.distribution.log_prob(value[None])[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    other, _ = public_forward(state, x, seen, time, variate, ahead, farthest=False)
    assert not torch.allclose(other, expected, atol=1e-2), "nearest centroids would be another model"


@pytest.mark.parametrize(("name", "trunk", "total"), [("small", 116.8, 117.0), ("base", 934.3, 935.1)])
def test_published_sizes(name: str, trunk: float, total: float) -> None:
    model = create_model(f"time_series/moirai_moe_{name}", device="meta")
    count = sum(p.numel() for part in (model.layers, model.norm) for p in part.parameters())
    assert round(count / 1e6, 1) == trunk and round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == total


def test_a_key_too_few_or_too_many_is_named(folder: Path) -> None:
    state = public_state()
    wrong = {
        "missing: encoder.centroid\\[1\\]": {**state, "encoder.centroid": state["encoder.centroid"][:1]},
        "left over: in_proj.weight\\[1\\]": {**state, "in_proj.weight": state["in_proj.weight"].repeat(2, 1, 1)},
        "missing: param_proj.proj.components.3.loc.bias": {
            key: value for key, value in state.items() if "components.3.loc.bias" not in key
        },
        "left over: encoder.layers.0.ffn.experts.32.fc1.weight": {
            **state,
            "encoder.layers.0.ffn.experts.32.fc1.weight": torch.ones(1),
        },
    }
    for message, tensors in wrong.items():
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ZooError, match=message):
            load()


def tiny(**overrides: Any) -> MoiraiMoE:
    small = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "patch": 4, "context": 24, "paths": 8}
    model = create_model("time_series/moirai_moe_tiny", **{**small, **overrides}).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, MoiraiMoE)
    return model


def test_samples_packed_into_a_row_do_not_see_each_other() -> None:
    model, x = tiny(), torch.randn(3, 5, 4)
    value = torch.randn(3, 5, 4)
    row = x.reshape(1, 15, 4)
    sample, time = (torch.arange(15) // 5 + 1)[None], (torch.arange(15) % 5)[None]
    padding = torch.cat([row, torch.full((1, 2, 4), 9.0)], 1)
    with torch.no_grad():
        apart = model(x).distribution.log_prob(value)
        packed = model(padding, None, F.pad(sample, (0, 2)), F.pad(time, (0, 2)))
    torch.testing.assert_close(
        packed.distribution.log_prob(F.pad(value.view(1, 15, 4), (0, 0, 0, 2)))[0, :15],
        apart.flatten(0, 1),
        atol=1e-5,
        rtol=1e-4,
    )
    assert all(int(out.counts_E().sum()) == 30 for out in packed.routing), "padding is not routed"


def test_a_patch_sees_other_variates_and_nothing_later() -> None:
    model, past, valid = tiny(), torch.randn(4, 24), torch.ones(4, 24, dtype=torch.bool)
    future, known = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)

    def says(past: Tensor, future: Tensor, variates: int) -> Tensor:
        (head,), _ = model.training_predictions(past, valid, future, known, variates)
        # Without what the value itself does to its density: the density of zero.
        return head.predicted.log_prob(torch.zeros_like(head.target)).unflatten(0, (-1, 1)).reshape(4, 8, 4)

    with torch.no_grad():
        apart, joint = says(past, future, 1), says(past, future, 2)
        assert not torch.allclose(apart, joint, atol=1e-3)
        later = future.clone()
        later[:, 4:] += 1
        changed = says(past, later, 2)
        torch.testing.assert_close(
            changed[:, :7], joint[:, :7], atol=1e-3, rtol=1e-3
        )  # the last patch alone sees the last patch
        assert not torch.allclose(changed[:, 7], joint[:, 7], atol=1e-3)
        neighbour = past.clone()
        neighbour[1] += torch.randn(24)
        assert not torch.allclose(says(neighbour, future, 2)[0], joint[0], atol=1e-3)
        torch.testing.assert_close(says(neighbour, future, 2)[2:], joint[2:], atol=1e-3, rtol=1e-3)
        swapped = says(past[[1, 0, 3, 2]], future[[1, 0, 3, 2]], 2)
        torch.testing.assert_close(swapped[[1, 0, 3, 2]], joint, atol=1e-3, rtol=1e-3)


def test_targets_are_the_next_patch_of_the_same_variate() -> None:
    model, past = tiny(), torch.arange(48.0).view(2, 24)
    valid = torch.ones_like(past, dtype=torch.bool)
    valid[0, :9] = False
    (head,), _ = model.training_predictions(past, valid, past[:, :4] + 100, valid[:, 12:16], 2)
    assert head.predicted.batch_shape == (1, 14, 4)
    assert head.target[0, 7 + 5].tolist() == [124, 125, 126, 127] and head.target[0, 5].tolist() == [100, 101, 102, 103]
    assert head.valid[0, :7].any(-1).tolist() == [False, True, True, True, True, True, False]
    assert head.valid[0, 7:].all(-1).tolist() == [True] * 6 + [False]
    assert bool(head.predicted.log_prob(head.target).isfinite().all())


@pytest.mark.parametrize("variates", [1, 2])
def test_cached_drawing_equals_a_pass_over_everything(variates: int) -> None:
    """With one spike for a distribution a draw is its place, so the whole chain can be computed without a cache."""
    model = tiny(components=["normal"])
    past, valid = torch.randn(4, 22), torch.ones(4, 22, dtype=torch.bool)
    valid[0, :7] = False
    with torch.no_grad():
        drawn = model.sample_paths(past, valid, 12, 3, variates=variates)
        assert drawn.shape == (4, 3, 12) and drawn.std(dim=1).max() < 0.1
        future = torch.zeros(4, 12)
        known = torch.ones(4, 12, dtype=torch.bool)
        for step in range(3):
            packed = model.pack(past, valid, future, known, variates)
            where = model._encode(packed, *model._scale(packed)).distribution
            place = where.loc + where.scale * where.components[0].mean
            future[:, 4 * step : 4 * step + 4] = place.reshape(4, 9, 4)[:, 5 + step]
    torch.testing.assert_close(drawn.mean(1), future, atol=0.05, rtol=0.05)


def test_paths_repeat_with_their_seed_and_cover_what_they_should() -> None:
    model, past = tiny(components=["student_t", "log_normal"]), torch.randn(3, 24)  # without counts: no ties
    valid = torch.ones_like(past, dtype=torch.bool)
    with torch.no_grad():
        one = model.sample_paths(past, valid, 10, 50)
        assert torch.equal(one, model.sample_paths(past, valid, 10, 50))
        assert not torch.equal(one, model.sample_paths(past, valid, 10, 50, seed=1))
        quantiles = model.quantiles(past, valid, 10, [0.1, 0.9])
        many = model.sample_paths(past, valid, 4, 2000, seed=5)
    assert quantiles is not None and quantiles.shape == (3, 2, 10) and bool((quantiles[:, 0] <= quantiles[:, 1]).all())
    with torch.no_grad():
        first = model._encode(*(lambda p: (p, *model._scale(p)))(model.pack(past, valid, past[:, :0], valid[:, :0])))
    exact = torch.stack([first.distribution.sample() for _ in range(2000)])[:, :, -1]
    middle, level = exact.quantile(0.5, dim=0)[:, None], torch.tensor(0.5)
    share = (many < middle).float().mean(1)
    torch.testing.assert_close(share, level.expand_as(share), atol=0.06, rtol=0)


def test_more_windows_in_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo_time_series.models.moirai_moe.MOST_ROWS", 47)  # with 9 paths pieces of 4 windows
    model, past = tiny(), torch.randn(8, 24)
    valid = torch.ones_like(past, dtype=torch.bool)
    with torch.no_grad():
        whole = model.sample_paths(past, valid, 10, 9)
        parts = [model.sample_paths(past[rows], valid[rows], 10, 9) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-4, rtol=1e-4)


def test_a_mixture_is_the_sum_of_its_components() -> None:
    logits = torch.log(torch.tensor([0.2, 0.8]))
    mixture = Mixture(logits, [Normal(0.0, 1.0), LogNormal(0.0, 1.0)], torch.tensor(1.0), torch.tensor(2.0))
    for value in (5.0, 0.0):
        z = torch.tensor((value - 1) / 2)
        expected = 0.2 * Normal(0.0, 1.0).log_prob(z).exp()
        expected = expected + (0.8 * LogNormal(0.0, 1.0).log_prob(z).exp() if z > 0 else 0)
        torch.testing.assert_close(mixture.log_prob(torch.tensor(value)).exp(), expected / 2)
    drawn = mixture.sample((20000,))
    assert abs(drawn.median() - 1 - 2 * 0.83) < 0.06, "0.2 Phi(0.83) + 0.8 Phi(log 0.83) = 0.5"
    with pytest.raises(ZooError, match="components: 'cauchy' is no distribution"):
        MixtureHead(8, 4, ["cauchy"])


def test_heavy_tails_are_those_of_student() -> None:
    df, loc, scale = torch.tensor(3.0), torch.tensor(1.0), torch.tensor(2.0)
    value = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(HeavyTailed(df, loc, scale).log_prob(value), StudentT(df, loc, scale).log_prob(value))
    drawn = HeavyTailed(df, loc, scale).sample((40000,))
    assert abs(drawn.median() - 1) < 0.05 and abs(drawn.quantile(0.9) - (1 + 2 * 1.638)) < 0.15


def test_gradients_are_finite_where_a_component_has_no_support() -> None:
    head = MixtureHead(8, 4, ["student_t", "normal", "negative_binomial", "log_normal"])
    states = torch.randn(2, 3, 8, requires_grad=True)
    target = torch.tensor([-3.0, 0.0, 0.5, 200.0]).expand(2, 3, 4)
    head.distribution(head(states), torch.zeros(2, 3, 1), torch.ones(2, 3, 1)).log_prob(target).sum().backward()
    assert states.grad is not None and bool(states.grad.isfinite().all())


def test_half_of_a_head_is_turned() -> None:
    x = torch.randn(1, 1, 3, 8)
    turned = rotate(x, torch.tensor([[0, 1, 2]]), 10000.0)
    assert torch.equal(turned[..., 4:], x[..., 4:]) and torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    with pytest.raises(ZooError, match="hidden_size=24 over num_heads=4 must be a multiple of 4"):
        tiny(hidden_size=24, num_heads=4)
