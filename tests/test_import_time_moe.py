"""The public Time-MoE layout, written here from its published key list alone, and its mathematics in a few lines.

Shapes: B windows, L points, D model width, H heads, C head width.
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

import zoo
from zoo import registry
from zoo.hub import sources
from zoo.spec import ZooError

CONFIG = {
    "model_type": "time_moe",
    "hidden_act": "silu",
    "input_size": 1,
    "hidden_size": 24,
    "intermediate_size": 32,
    "horizon_lengths": [1, 8, 32],
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "router_aux_loss_factor": 0.02,
    "apply_aux_loss": True,
    "use_dense": False,
    "max_position_embeddings": 1024,
    "rope_theta": 5000,
    "rms_norm_eps": 1e-5,
}
State = dict[str, Tensor]


def public_state() -> State:
    """Random tensors under the public names."""
    d, i = 24, 32
    shapes: dict[str, tuple[int, ...]] = {f"model.embed_layer.{part}_layer.weight": (d, 1) for part in ("emb", "gate")}
    for n in range(2):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (d, d) for p in "qkvo"}
        shapes |= {f"{layer}.self_attn.{p}_proj.bias": (d,) for p in "qkv"}
        shapes |= {f"{layer}.{norm}_layernorm.weight": (d,) for norm in ("input", "post_attention")}
        shapes |= {f"{layer}.ffn_layer.gate.weight": (4, d), f"{layer}.ffn_layer.shared_expert_gate.weight": (1, d)}
        inner = {f"{layer}.ffn_layer.experts.{e}": i // 2 for e in range(4)} | {f"{layer}.ffn_layer.shared_expert": i}
        for expert, width in inner.items():
            shapes |= {f"{expert}.{p}_proj.weight": (width, d) for p in ("gate", "up")}
            shapes[f"{expert}.down_proj.weight"] = (d, width)
    shapes["model.norm.weight"] = (d,)
    shapes |= {f"lm_heads.{h}.out_layer.weight": (points, d) for h, points in enumerate((1, 8, 32))}
    return {key: torch.randn(shape) * 0.3 + ("norm" in key) for key, shape in shapes.items()}


def public_forward(w: State, x_BL: Tensor) -> list[Tensor]:
    """What the published model computes: one point a token, top-2 of 4 experts unnormalised, gated shared expert."""
    heads, k, theta, eps = 3, 2, 5000.0, 1e-5

    def norm(h: Tensor, key: str) -> Tensor:
        return w[key] * h / (h.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def swiglu(h: Tensor, key: str) -> Tensor:
        gate, up, down = (w[f"{key}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return (F.silu(h @ gate.T) * (h @ up.T)) @ down.T

    def turn(h_BHLC: Tensor) -> Tensor:
        length, width = h_BHLC.shape[-2:]
        angle = torch.outer(torch.arange(length).float(), theta ** -(torch.arange(0, width, 2).float() / width))
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        turned = torch.cat([-h_BHLC[..., width // 2 :], h_BHLC[..., : width // 2]], -1)
        return h_BHLC * cos + turned * sin

    x = x_BL[..., None]
    h = F.silu(x @ w["model.embed_layer.gate_layer.weight"].T) * (x @ w["model.embed_layer.emb_layer.weight"].T)
    b, length, d = h.shape
    for n in range(2):
        layer = f"model.layers.{n}"
        a = norm(h, f"{layer}.input_layernorm.weight")
        q, key, v = (
            (a @ w[f"{layer}.self_attn.{p}_proj.weight"].T + w[f"{layer}.self_attn.{p}_proj.bias"])
            .view(b, length, heads, d // heads)
            .transpose(1, 2)
            for p in "qkv"
        )
        scores = turn(q) @ turn(key).transpose(-1, -2) / (d // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, length, d)
        h = h + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        a = norm(h, f"{layer}.post_attention_layernorm.weight")
        probabilities = (a @ w[f"{layer}.ffn_layer.gate.weight"].T).softmax(-1)
        y = swiglu(a, f"{layer}.ffn_layer.shared_expert")
        y = y * (a @ w[f"{layer}.ffn_layer.shared_expert_gate.weight"].T).sigmoid()
        threshold = probabilities.topk(k).values[..., -1:]
        for e in range(4):
            p = torch.where(probabilities[..., e : e + 1] >= threshold, probabilities[..., e : e + 1], 0.0)
            y = y + p * swiglu(a, f"{layer}.ffn_layer.experts.{e}")
        h = h + y
    h = norm(h, "model.norm.weight")
    return [h @ w[f"lm_heads.{i}.out_layer.weight"].T for i in range(3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's download would lie, with the config."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path))
    return tmp_path


def load(name: str = "time_series/time_moe_base.maple728") -> Any:
    return zoo.load(name)


def test_our_model_computes_what_the_published_one_does(folder: Path) -> None:
    state = public_state()
    save_file(state, folder / "model.safetensors")
    model = load().model
    x_BL = torch.randn(3, 40)
    with torch.no_grad():
        ours, theirs = model(x_BL).heads, public_forward(state, x_BL)
    assert [h.shape[-1] for h in ours] == [1, 8, 32]
    for mine, other in zip(ours, theirs, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_every_setting_comes_from_the_public_config(folder: Path) -> None:
    save_file(public_state(), folder / "model.safetensors")
    model = load().model
    config, stack, moe = model.config, model.config.stack, model.config.stack.moe
    assert (config.horizons, config.max_length) == ([1, 8, 32], 1024)
    assert (stack.hidden_size, stack.num_layers, stack.mixer["num_heads"], stack.mixer["num_kv_heads"]) == (24, 2, 3, 3)
    assert (stack.mixer["rope_theta"], stack.norm_eps, stack.mixer["qkv_bias"]) == (5000.0, 1e-5, True)
    assert (moe.num_experts, moe.router["k"], moe.router["renorm"]) == (4, 2, False)
    assert (moe.experts["intermediate_size"], moe.shared["intermediate_size"]) == (16, 32)
    assert moe.shared["gate"] == "sigmoid"


def test_bf16_shards_become_fp32(folder: Path) -> None:
    state = {key: value.bfloat16() for key, value in public_state().items()}
    names = sorted(state)
    index = {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        part = {key: state[key] for key in names[shard::3]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name in ("time_series/time_moe_large.maple728", "hf-hub:Maple728/TimeMoE-50M"):
        parameters = dict(load(name).model.named_parameters())
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        gate_up, layer = (
            parameters["stack.layers.1.feed_forward.experts.gate_up_proj"],
            "model.layers.1.ffn_layer.experts",
        )
        for e in range(4):
            assert torch.equal(gate_up[e, :16], state[f"{layer}.{e}.gate_proj.weight"].float())
            assert torch.equal(gate_up[e, 16:], state[f"{layer}.{e}.up_proj.weight"].float())


def test_a_key_too_few_or_too_many_is_named(folder: Path) -> None:
    file, state = folder / "model.safetensors", public_state()
    save_file(state, file)
    model = load().model
    saved = sources.pretrained(registry.find("model", "time_series/time_moe_base"))
    saved.fill(model)
    for key in state:
        save_file({k: v for k, v in state.items() if k != key}, file)
        with pytest.raises(ZooError, match=rf"missing: {key}\. "):
            saved.fill(model)
    for key in (
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.1.ffn_layer.experts.4.up_proj.weight",
        "lm_heads.3.out_layer.weight",
        "unheard_of",
    ):
        save_file({**state, key: torch.ones(1)}, file)
        with pytest.raises(ZooError, match=rf"left over: {key}\. "):
            load()


def test_another_shape_names_both_keys(folder: Path) -> None:
    key = "model.layers.0.ffn_layer.experts.3.gate_proj.weight"
    save_file({**public_state(), key: torch.ones(17, 24)}, folder / "model.safetensors")
    ours = r"stack\.layers\.0\.feed_forward\.experts\.gate_up_proj\[3, :half\]"
    with pytest.raises(ZooError, match=rf"{key} \(17, 24\), wanted \(16, 24\) for {ours}"):
        load()


@pytest.mark.parametrize(("setting", "value"), [("use_dense", True), ("input_size", 7), ("hidden_act", "gelu")])
def test_what_the_model_cannot_be_is_refused(folder: Path, setting: str, value: Any) -> None:
    save_file(public_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, setting: value}))
    with pytest.raises(ZooError, match=rf"its config says {setting}={value!r}"):
        load()


def test_an_imported_model_forecasts_a_table(folder: Path, tmp_path: Path) -> None:
    save_file(public_state(), folder / "model.safetensors")
    pd = pytest.importorskip("pandas")
    table = tmp_path / "table.csv"
    days = pd.date_range("2024-01-01", periods=90, freq="D")
    pd.DataFrame({"day": days, "sales": range(90)}).to_csv(table, index=False)
    forecast = load().predict(input=table, horizon=12)
    assert forecast.values_SH.shape == (1, 12) and forecast.values_SH.isfinite().all()
