"""The diffusion transformer against the arithmetic of the public checkpoints, and its published sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.hub import layout
from zoo.hub.convert import opened
from zoo.hub.export import _whole
from zoo.nn.size import measure
from zoo.spec import ZooError
from zoo_diffusion.importers import DIT_MOE
from zoo_diffusion.models.dit import sincos, waves

# Total and active parameters in millions: DiT-MoE as its code makes them, DiT as its paper's table 1.
PUBLISHED = {
    "dit_moe_s_8e2a": (199, 72), "dit_moe_s_16e2a": (369, 72), "dit_moe_b_8e2a": (796, 286),
    "dit_moe_b_16e2a": (1480, 286), "dit_moe_xl_8e2a": (4170, 1490), "dit_moe_g_16e2a": (16500, 3180),
    "dit_s_2": (33, 33), "dit_b_2": (130, 130), "dit_l_2": (458, 458), "dit_xl_2": (675, 675),
}  # fmt: skip
D, HEADS, EXPERTS, DEPTH, SIDE, CLASSES = 32, 2, 4, 2, 4, 7
SMALL = {
    "image_size": 2 * SIDE, "condition": {"num_classes": CLASSES},
    "stack": {
        "hidden_size": D, "num_layers": DEPTH, "mixer": {"num_heads": HEADS},
        "moe": {
            "num_experts": EXPERTS,
            "experts": {"intermediate_size": 4 * D},
            "shared": {"intermediate_size": 2 * D},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    size, (total, active) = measure(zoo.create_model(f"diffusion/{name}", device="meta")), PUBLISHED[name]
    assert size.parameters / 1e6 == pytest.approx(total, rel=0.006)
    assert size.active / 1e6 == pytest.approx(active, rel=0.006)


def public(flash: bool = False, dense: bool = False) -> dict[str, Tensor]:
    """A tiny random checkpoint with the names that the public files have."""
    shapes = {
        "x_embedder.proj.weight": (D, 4, 2, 2), "x_embedder.proj.bias": (D,),
        "t_embedder.mlp.0.weight": (D, 256), "t_embedder.mlp.0.bias": (D,),
        "t_embedder.mlp.2.weight": (D, D), "t_embedder.mlp.2.bias": (D,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, D),
        "final_layer.linear.weight": (32, D), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * D, D), "final_layer.adaLN_modulation.1.bias": (2 * D,),
    }  # fmt: skip
    qkv, out = ("Wqkv", "out_proj") if flash else ("qkv", "proj")
    for n in range(DEPTH):
        at = f"blocks.{n}"
        shapes |= {
            f"{at}.attn.{qkv}.weight": (3 * D, D), f"{at}.attn.{qkv}.bias": (3 * D,),
            f"{at}.attn.{out}.weight": (D, D), f"{at}.attn.{out}.bias": (D,),
            f"{at}.adaLN_modulation.1.weight": (6 * D, D), f"{at}.adaLN_modulation.1.bias": (6 * D,),
        }  # fmt: skip
        if flash:
            shapes |= {f"{at}.attn.{p}_norm.{k}": (D // HEADS,) for p in "qk" for k in ("weight", "bias")}
        if dense:
            shapes |= {f"{at}.mlp.fc1.weight": (4 * D, D), f"{at}.mlp.fc1.bias": (4 * D,)}
            shapes |= {f"{at}.mlp.fc2.weight": (D, 4 * D), f"{at}.mlp.fc2.bias": (D,)}
            continue
        shapes[f"{at}.moe.gate.weight"] = (EXPERTS, D)
        for name, inner in (*((f"experts.{e}", 4 * D) for e in range(EXPERTS)), ("shared_experts", 2 * D)):
            shapes |= {f"{at}.moe.{name}.{p}_proj.weight": (inner, D) for p in ("gate", "up")}
            shapes[f"{at}.moe.{name}.down_proj.weight"] = (D, inner)
    generator = torch.Generator().manual_seed(0)
    tensors = {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    tensors["pos_embed"] = sincos(D, SIDE)[None]
    return tensors


def reference(
    w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, flash: bool = False, dense: bool = False
) -> Tensor:
    """The card's arithmetic, token by token where that is clearer."""
    qkv, out = ("Wqkv", "out_proj") if flash else ("qkv", "proj")
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], 2).flatten(2).transpose(1, 2)
    h = h + w["pos_embed"]
    freq = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = torch.cat([torch.cos(t[:, None] * freq), torch.sin(t[:, None] * freq)], -1)
    time = F.silu(time @ w["t_embedder.mlp.0.weight"].T + w["t_embedder.mlp.0.bias"])
    c = time @ w["t_embedder.mlp.2.weight"].T + w["t_embedder.mlp.2.bias"] + w["y_embedder.embedding_table.weight"][y]

    def swiglu(v: Tensor, name: str) -> Tensor:
        gate, up, down = (w[f"{name}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return (F.silu(v @ gate.T) * (v @ up.T)) @ down.T

    def norm(v: Tensor) -> Tensor:
        return (v - v.mean(-1, keepdim=True)) / (v.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    for n in range(DEPTH):
        at = f"blocks.{n}"
        b1, s1, g1, b2, s2, g2 = F.linear(
            F.silu(c), w[f"{at}.adaLN_modulation.1.weight"], w[f"{at}.adaLN_modulation.1.bias"]
        )[:, None].chunk(6, -1)
        v = norm(h) * (1 + s1) + b1
        q, k, u = F.linear(v, w[f"{at}.attn.{qkv}.weight"], w[f"{at}.attn.{qkv}.bias"]).chunk(3, -1)
        q, k, u = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (q, k, u))
        if flash:
            q, k = (
                norm(z) * w[f"{at}.attn.{p}_norm.weight"] + w[f"{at}.attn.{p}_norm.bias"]
                for z, p in ((q, "q"), (k, "k"))
            )
        a = ((q @ k.transpose(-1, -2)) / math.sqrt(D // HEADS)).softmax(-1) @ u
        h = h + g1 * F.linear(a.transpose(1, 2).flatten(2), w[f"{at}.attn.{out}.weight"], w[f"{at}.attn.{out}.bias"])
        v = norm(h) * (1 + s2) + b2
        if dense:
            m = F.gelu(F.linear(v, w[f"{at}.mlp.fc1.weight"], w[f"{at}.mlp.fc1.bias"]), approximate="tanh")
            m = F.linear(m, w[f"{at}.mlp.fc2.weight"], w[f"{at}.mlp.fc2.bias"])
        else:
            m = swiglu(v, f"{at}.moe.shared_experts")
            scores = (v @ w[f"{at}.moe.gate.weight"].T).softmax(-1)
            for place in range(v.shape[0] * v.shape[1]):
                b, i = divmod(place, v.shape[1])
                for e in scores[b, i].topk(2).indices.tolist():  # the weights are those of the softmax over all
                    m[b, i] = m[b, i] + scores[b, i, e] * swiglu(v[b, i], f"{at}.moe.experts.{e}")
        h = h + g2 * m
    shift, scale = F.linear(
        F.silu(c), w["final_layer.adaLN_modulation.1.weight"], w["final_layer.adaLN_modulation.1.bias"]
    )[:, None].chunk(2, -1)
    v = F.linear(norm(h) * (1 + scale) + shift, w["final_layer.linear.weight"], w["final_layer.linear.bias"])
    picture = torch.zeros(len(x), 8, 2 * SIDE, 2 * SIDE)
    for place in range(SIDE * SIDE):
        row, column = divmod(place, SIDE)
        patch = v[:, place].view(-1, 2, 2, 8).permute(0, 3, 1, 2)
        picture[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    return picture


CASES = {
    "timm": ("dit_moe_s_8E2A.pt", {}, {}),
    "flash": ("dit_moe_xl_8E2A.pt", {"flash": True}, {}),
    "dense": ("dit_s_2.pt", {"dense": True}, {"feed_forward": {"intermediate_size": 4 * D}}),
}


@pytest.mark.parametrize("case", CASES)
def test_public_checkpoints_follow_the_cards_arithmetic(case: str, tmp_path: Path) -> None:
    file, kind, more = CASES[case]
    weights = public(**kind)
    torch.save(weights, tmp_path / file)
    small = {**SMALL, "stack": {**SMALL["stack"], **more}}
    if "dense" in kind:
        small["stack"].pop("moe")
    model = opened(str(tmp_path / file), overrides=small)  # the model by the file's name, the layout by its keys
    assert model.zoo_name == f"diffusion/{Path(file).stem.lower()}"
    x, t, y = torch.randn(3, 4, 2 * SIDE, 2 * SIDE), torch.tensor([0.0, 0.4, 731.0]), torch.tensor([0, 5, CLASSES])
    with torch.no_grad():
        found = model(x, t, y).prediction_BCHW
    torch.testing.assert_close(found, reference(weights, x, t, y, **kind), rtol=2e-4, atol=2e-4)
    with torch.no_grad():  # nothing known is the table's last row
        torch.testing.assert_close(model(x[2:], t[2:]).prediction_BCHW, found[2:], rtol=1e-4, atol=1e-4)


def test_a_layout_is_written_as_it_was_read(tmp_path: Path) -> None:
    weights = public()
    torch.save(weights, tmp_path / "a.pt")
    model = opened(str(tmp_path / "a.pt"), "diffusion/dit_moe_s_8e2a", overrides=SMALL)
    places = layout.places(DIT_MOE.keys, model, {})
    back = _whole({key: place for key, (_, place) in places.items()})
    assert back.keys() == weights.keys() and all(torch.equal(back[key], weights[key]) for key in back)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = public()
    torch.save({k: v for k, v in weights.items() if "experts.3.up" not in k}, tmp_path / "a.pt")
    with pytest.raises(ZooError, match=r"missing: blocks.0.moe.experts.3.up_proj.weight"):
        opened(str(tmp_path / "a.pt"), "diffusion/dit_moe_s_8e2a", overrides=SMALL)
    torch.save({**weights, "pos_embed": sincos(D, 2 * SIDE)[None]}, tmp_path / "a.pt")
    with pytest.raises(ZooError, match=r"another shape: pos_embed \(1, 64, 32\), wanted \(1, 16, 32\)"):
        opened(str(tmp_path / "a.pt"), "diffusion/dit_moe_s_8e2a", overrides=SMALL)


def test_positions_and_times() -> None:
    table = sincos(8, 3)  # 2 frequencies: 1 and 1 / 100; sines, then cosines, of the column, then of the row
    column, row = 2, 1
    wanted = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100)]
    wanted += [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
    assert table[row * 3 + column].tolist() == pytest.approx(wanted, abs=1e-6)
    assert waves(torch.tensor([2.0]))[0, [0, 127, 128]].tolist() == pytest.approx(
        [math.cos(2), math.cos(2 * 10_000 ** (-127 / 128)), math.sin(2)], abs=1e-6
    )


def test_a_new_model_predicts_nothing_and_its_layers_are_the_identity() -> None:
    model = zoo.create_model("diffusion/dit_moe_tiny")
    inputs = model.dummy_inputs(2)
    assert model(**inputs).prediction_BCHW.abs().max() == 0
    states = torch.randn(2, 16, 96)
    torch.testing.assert_close(model.stack(states, cond=torch.randn(2, 96))[0], states)
    with pytest.raises(ZooError, match="wants a vector that steers it"):
        model.stack(states)
    with pytest.raises(ZooError, match="image_size=9 is not a multiple of patch_size=2"):
        zoo.create_model("diffusion/dit_moe_tiny", image_size=9)
