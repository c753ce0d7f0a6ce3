"""The public UniMoE-Audio layout, from its published key list and configuration, and its mathematics in a few lines.

Shapes: L positions, D model width, H heads, E experts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from zoo import registry
from zoo.hub import importer
from zoo.hub.model import instantiate
from zoo.spec import ZooError

D, LAYERS, HEADS, KV, WIDE, SIDE, CHANNELS, CODES = 32, 2, 4, 2, 12, 6, 3, 8
CONFIG = {
    "model_type": "uni_audio_rvq_qwen2_5vl_moe",
    "codec_delay_pattern": [0, 8, 9],
    "codec_channels": CHANNELS,
    "codec_eos_value": CODES,
    "codec_vocab_size": CODES + 3,
    "rope_theta": 1e6,
    "text_config": {
        "vocab_size": 20,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
        "dynamic_intermediate_size": WIDE,
        "shared_intermediate_size": SIDE,
        "mlp_dynamic_expert_num": 8,
        "mlp_dynamic_null_expert_num": 1,
        "mlp_fixed_expert_num": 2,
        "mlp_dynamic_top_p": 0.7,
        "router_jitter_noise": 0.01,
        "token_drop": False,
        "ignore_differentiable_router": True,
    },
}


def public_state() -> dict[str, Tensor]:
    """Random tensors under the public names."""
    head = D // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.embed_tokens.weight": (20, D),
        "language_model.norm.weight": (D,),
        "codec_head.weight": (CHANNELS * (CODES + 3), D),
        "lm_head.weight": (20, D),
        "visual.patch_embed.proj.weight": (3, 3),
        **{f"codec_embed_tokens.{c}.weight": (CODES + 3, D) for c in range(CHANNELS)},
    }
    for n in range(LAYERS):
        at = f"language_model.layers.{n}"
        for p, rows in (("q", HEADS), ("k", KV), ("v", KV)):
            shapes |= {
                f"{at}.self_attn.{p}_proj.weight": (rows * head, D),
                f"{at}.self_attn.{p}_proj.bias": (rows * head,),
            }
        shapes |= {f"{at}.self_attn.o_proj.weight": (D, D), f"{at}.mlp.gate.weight": (11, D)}
        shapes |= {f"{at}.{norm}_layernorm.weight": (D,) for norm in ("input", "post_attention")}
        each = {f"{at}.mlp.dynamic_real_moe.deepspeed_moe.experts.deepspeed_experts.{e}": WIDE for e in range(8)}
        each |= {f"{at}.mlp.fixed_real_moe.{s}": SIDE for s in range(2)}
        for expert, inner in each.items():
            shapes |= {f"{expert}.{p}_proj.weight": (inner, D) for p in ("gate", "up")}
            shapes[f"{expert}.down_proj.weight"] = (D, inner)
    return {key: torch.randn(shape) * 0.4 + ("norm" in key) for key, shape in shapes.items()}


def public_forward(w: dict[str, Tensor], text: Tensor, codes: Tensor) -> Tensor:
    """What the published code computes without padding, token by token: (S, C, V)."""

    def norm(h: Tensor, key: str) -> Tensor:
        return w[f"{key}.weight"] * h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def swiglu(h: Tensor, key: str) -> Tensor:
        gate, up, down = (w[f"{key}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return (F.silu(h @ gate.T) * (h @ up.T)) @ down.T

    def turn(h_HLC: Tensor) -> Tensor:
        length, width = h_HLC.shape[-2:]
        angle = torch.outer(torch.arange(length).float(), 1e6 ** -(torch.arange(0, width, 2).float() / width))
        angle = torch.cat([angle, angle], -1)
        return h_HLC * angle.cos() + torch.cat([-h_HLC[..., width // 2 :], h_HLC[..., : width // 2]], -1) * angle.sin()

    def mixture(h: Tensor, key: str) -> Tensor:
        logits = w[f"{key}.gate.weight"] @ h
        routed, fixed = logits[:9], logits[9:]
        share, order = routed.softmax(0).sort(descending=True)
        k = int((share.cumsum(0) < 0.7).sum()) + 1
        left, weight = routed.clone(), torch.zeros(9)
        for e in order[:k]:
            best = left.max()
            far = (best - routed) / routed.abs().clamp(min=best.abs()) > 0.02
            weight[e] = left.masked_fill(far, -torch.inf).softmax(0)[e]
            left[e] = -torch.inf
        weight = weight / (weight.sum() + 1e-6)
        joint = torch.cat([routed.masked_fill(weight == 0, -torch.inf), fixed]).softmax(0)
        weight = weight * joint[:9].sum()
        experts = f"{key}.dynamic_real_moe.deepspeed_moe.experts.deepspeed_experts"
        y = sum(weight[e] * swiglu(h, f"{experts}.{e}") for e in range(8))
        return y + sum(joint[9 + s] * swiglu(h, f"{key}.fixed_real_moe.{s}") for s in range(2))

    sound = sum(w[f"codec_embed_tokens.{c}.weight"][codes[:, c]] for c in range(CHANNELS))
    x, head = torch.cat([w["language_model.embed_tokens.weight"][text], sound]), D // HEADS
    for n in range(LAYERS):
        at = f"language_model.layers.{n}"
        h = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            (h @ w[f"{at}.self_attn.{p}_proj.weight"].T + w[f"{at}.self_attn.{p}_proj.bias"]).unflatten(-1, (-1, head))
            for p in "qkv"
        )
        k, v = (t.repeat_interleave(HEADS // KV, 1) for t in (k, v))
        q, k, v = turn(q.transpose(0, 1)), turn(k.transpose(0, 1)), v.transpose(0, 1)
        score = (q @ k.mT / head**0.5).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        x = x + (score.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"{at}.self_attn.o_proj.weight"].T
        h = norm(x, f"{at}.post_attention_layernorm")
        x = x + torch.stack([mixture(token, f"{at}.mlp") for token in h])
    y = norm(x, "language_model.norm")[len(text) :] @ w["codec_head.weight"].T
    return y.unflatten(-1, (CHANNELS, CODES + 3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    state = public_state()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path, state


def test_a_public_checkpoint_says_what_it_said(checkpoint):
    folder, state = checkpoint
    entry = registry.find("model", "audio/unimoe_audio")
    model = instantiate(entry.name, importer.read(folder, entry, "preview"), None)
    text, codes = torch.randint(20, (5,)), torch.randint(CODES + 3, (9, CHANNELS))
    with torch.no_grad():
        ours = model(text[None], codes[None]).logits_BSCV[0]
    torch.testing.assert_close(ours, public_forward(state, text, codes), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named(checkpoint):
    folder, state = checkpoint
    entry = registry.find("model", "audio/unimoe_audio")
    state.pop("language_model.layers.1.mlp.gate.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ZooError, match=r"missing: language_model.layers.1.mlp.gate.weight"):
        instantiate(entry.name, importer.read(folder, entry, "preview"), None)
    odd = {**CONFIG, "text_config": {**CONFIG["text_config"], "token_drop": True}}
    (folder / "config.json").write_text(json.dumps(odd))
    with pytest.raises(ZooError, match=r"token_drop=True; only text_config\.token_drop=False"):
        importer.read(folder, entry, "preview")
