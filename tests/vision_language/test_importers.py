"""Public layouts: tiny random checkpoints, made of models of transformers whose logits are the reference.

With all experts of a layer equal the published mixtures say what the dense model does, and transformers has those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.hub.convert import convert
from zoo.hub.export import export
from zoo.moe import MoE
from zoo.spec import ZooError
from zoo_vision_language.models.connectors import shuffled
from zoo_vision_language.models.vision_language import IMAGE, TEXT

SIZE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 64}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
NAMES = {
    "moe_llava": "moe_llava_stablelm", "moe_llava_qwen": "moe_llava_qwen", "moiie": "moiie_llama3_8b",
    "moiie_phi3": "moiie_phi3_mini", "mono_internvl": "mono_internvl_2b",
}  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3)
    return model.eval()


def mixed(
    state: dict[str, Tensor], layers: list[int], rename: Any, gates: dict[str, int], under: str = "model.layers"
) -> dict[str, Tensor]:
    """The MLPs of these layers as four equal experts, and gates."""
    found = {}
    for key, value in state.items():
        n = int(key.split(".")[2]) if key.startswith(f"{under}.") else -1
        if n in layers and ".mlp." in key:
            found |= {rename(key, e): value.clone() for e in range(4)}
        else:
            found[key] = value
    for n in layers:
        found |= {f"{under}.{n}.mlp.{gate}.weight": torch.randn(rows, 32) for gate, rows in gates.items()}
    return found


def projector(prefix: str, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
    mlp = randomised(nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 32)))
    return mlp, {f"{prefix}.{key}": value for key, value in mlp.state_dict().items()}


def rope(theta: float, part: float = 1.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": part}


def under(prefix: str, tower: nn.Module) -> dict[str, Tensor]:
    """The tower's tensors as older versions of transformers named them."""
    state = {k: v for k, v in tower.state_dict().items() if "position_ids" not in k}
    return {f"{prefix}.{k if k.startswith('vision_model.') else f'vision_model.{k}'}": v for k, v in state.items()}


Made = tuple[dict[str, Any], dict[str, Tensor], Any, Any]


def moe_llava() -> Made:
    settings = {**SIZE, "num_key_value_heads": 4, "use_qkv_bias": True}
    config = transformers.StableLmConfig(**settings, layer_norm_eps=1e-5, rope_parameters=rope(1e4, 0.25))
    language = randomised(transformers.StableLmForCausalLM(config))
    clip = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, image_size=16)))
    mlp, tensors = projector("model.mm_projector.image_spatial_proj", 16)

    def rename(key: str, e: int) -> str:
        return key.replace(".mlp.", f".mlp.deepspeed_moe.experts.deepspeed_experts.{e}.")

    tensors |= mixed(language.state_dict(), [0, 2], rename, {"deepspeed_moe.gate.wg": 4})
    tensors |= under("model.image_tower.image_tower", clip)
    moe = {"moe_mode": "sparse", "num_experts": [4, 4], "top_k_experts": 2, "use_residual": False}
    foreign = {**settings, "model_type": "moe_llava_stablelm", "hidden_act": "silu", "moe": moe, "norm_eps": 1e-5}
    foreign |= {"rope_pct": 0.25, "rope_theta": 10000}
    return foreign, tensors, language, lambda x: mlp(clip(x, output_hidden_states=True).hidden_states[-2][:, 1:])


QWEN = {
    "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "model.norm": "transformer.ln_f",
    "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj",
    "mlp.gate_proj": "mlp.w2", "mlp.up_proj": "mlp.w1", "mlp.down_proj": "mlp.c_proj",
}  # fmt: skip


def moe_llava_qwen() -> Made:
    settings = {**SIZE, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}
    language = randomised(
        transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings, rope_parameters=rope(1e4)))
    )
    clip = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, image_size=16)))
    mlp, tensors = projector("transformer.mm_projector.image_spatial_proj", 16)
    state = {}
    for key, value in language.state_dict().items():
        for ours, theirs in QWEN.items():
            key = key.replace(ours, theirs)
        if ".self_attn." not in key:
            state[key] = value
    for n, layer in enumerate(language.model.layers):
        parts = [getattr(layer.self_attn, f"{p}_proj") for p in "qkv"]
        for kind in ("weight", "bias"):
            state[f"transformer.h.{n}.attn.c_attn.{kind}"] = torch.cat([getattr(p, kind).data for p in parts])

    def rename(key: str, e: int) -> str:
        return key.replace(".mlp.", f".mlp.deepspeed_moe.experts.deepspeed_experts.{e}.")

    tensors |= mixed(state, [0, 2], rename, {"deepspeed_moe.gate.wg": 4}, "transformer.h")
    tensors |= under("transformer.image_tower.image_tower", clip)
    moe = {"moe_mode": "sparse", "num_experts": [4, 4], "top_k_experts": 2, "use_residual": False}
    sizes = {k: v for k, v in SIZE.items() if k not in ("intermediate_size", "max_position_embeddings")}
    foreign = {
        **sizes,
        "model_type": "moe_llava_qwen",
        "moe": moe,
        "no_bias": True,
        "rotary_pct": 1.0,
        "seq_length": 64,
    }
    foreign |= {"intermediate_size": 48, "layer_norm_epsilon": 1e-5, "rotary_emb_base": 10000}
    return foreign, tensors, language, lambda x: mlp(clip(x, output_hidden_states=True).hidden_states[-2][:, 1:])


def moiie() -> Made:
    return of_moiie("llama", transformers.LlamaForCausalLM, transformers.LlamaConfig, 5e5)


def moiie_phi3() -> Made:
    """Its queries, keys and values, and the two halves of an MLP, are one tensor each."""
    return of_moiie("phi3", transformers.Phi3ForCausalLM, transformers.Phi3Config, 1e4)


def of_moiie(kind: str, model: Any, config: Any, theta: float) -> Made:
    settings = {**SIZE, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    language = randomised(model(config(**settings, rope_parameters=rope(theta))))
    look = {"image_size": 16, "hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}
    siglip = randomised(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, **look)))
    mlp, tensors = projector("model.mm_projector", 16)

    def rename(key: str, e: int) -> str:
        return key.replace(".mlp.", f".mlp.experts.{e}.")

    tensors |= mixed(language.state_dict(), [1, 3], rename, {"gate": 3, "gate_vis": 3})
    tensors |= under("model.vision_tower.vision_tower", siglip)
    foreign = {**settings, "hidden_act": "silu", "rope_theta": theta, "num_experts": 4}
    foreign |= {"model_type": f"bunny-mm-{kind}{'3' * (kind == 'llama')}-moe-s", "num_experts_per_tok": 2}
    return foreign, tensors, language, lambda x: mlp(siglip(x, output_hidden_states=True).hidden_states[-2])


THEIRS = {
    "embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "language_model.lm_head": "language_model.output",
}  # fmt: skip


def mono_internvl() -> Made:
    settings = {**SIZE, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    language = randomised(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, rope_parameters=rope(1e6)))
    )
    tensors = {}
    for key, value in language.state_dict().items():
        if ".self_attn." in key:
            continue
        name = f"language_model.{key}"
        for ours, theirs in THEIRS.items():
            name = name.replace(ours, theirs)
        tensors[name] = value
        if ".feed_forward." in name:
            tensors[name.replace(".feed_forward.", ".feed_forward_ve.")] = value.clone()
    for n, layer in enumerate(language.model.layers):
        q, k, v = (getattr(layer.self_attn, f"{p}_proj").weight.data for p in "qkv")
        # By head of keys: its queries, itself, its values; a head is 8 wide.
        fused = torch.cat([q.view(2, 2, 8, 32), k.view(2, 1, 8, 32), v.view(2, 1, 8, 32)], 1)
        base = f"language_model.model.layers.{n}.attention"
        tensors |= {
            f"{base}.wqkv.weight": fused.reshape(-1, 32),
            f"{base}.wo.weight": layer.self_attn.o_proj.weight.data,
        }
    patch, position = randomised(nn.Conv2d(3, 16, 4, 4)), torch.randn(1, 17, 16)
    mlp = randomised(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32)))
    tensors |= {f"mlp1.{k}": v for k, v in mlp.state_dict().items()}
    seen = {f"patch_embedding.{k}": v for k, v in patch.state_dict().items()}
    seen |= {"position_embedding": position, "class_embedding": torch.randn(1, 1, 16)}
    tensors |= {f"vision_model.embeddings.{k}": v for k, v in seen.items()}
    foreign = {"model_type": "internvl_chat", "force_image_size": 16, "downsample_ratio": 0.5, "ps_version": "v2"}
    foreign["llm_config"] = {**settings, "rope_theta": 1e6, "bias": False}
    foreign["vision_config"] = {"model_type": "intern_vit_patch", "hidden_size": 16, "patch_size": 4, "image_size": 16}
    return foreign, tensors, language, lambda x: mlp(shuffled(patch(x).flatten(2).mT + position[:, 1:], (4, 4), 2))


MAKE = {
    "moe_llava": moe_llava, "moe_llava_qwen": moe_llava_qwen, "moiie": moiie, "moiie_phi3": moiie_phi3,
    "mono_internvl": mono_internvl,
}  # fmt: skip
SMALL_TOWER = {
    "image_size": [16, 16],
    "tower": {"hidden_size": 16, "intermediate_size": 20, "num_layers": 3, "num_heads": 2, "patch": 4},
}


@pytest.fixture(scope="module", params=MAKE)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp(request.param)
    foreign, tensors, language, see = MAKE[request.param]()
    (folder / "config.json").write_text(json.dumps(foreign))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return request.param, folder, language, see


def test_a_checkpoint_becomes_ours(checkpoint: Any, tmp_path: Path) -> None:
    name, folder, language, see = checkpoint
    overrides = {} if name == "mono_internvl" else SMALL_TOWER
    model = convert(str(folder), tmp_path / "ours", f"vision_language/{NAMES[name]}", overrides=overrides)
    again = zoo.load(tmp_path / "ours").model
    P = model.image_tokens
    tokens = torch.randint(40, (2, P + 5))
    modality = torch.tensor([[IMAGE] * P + [TEXT] * 5] * 2)
    pixels = torch.randint(256, (2, 1, 16, 16, 3), dtype=torch.uint8)
    norm = (pixels[:, 0].movedim(-1, 1) / 255 - model.tower.mean_C11) / model.tower.deviation_C11
    with torch.no_grad():
        x = torch.cat([see(norm), language.get_input_embeddings()(tokens[:, P:])], 1)
        wanted = language(inputs_embeds=x).logits
        for ours in (model, again):
            found = ours(tokens, modality, pixels)
            torch.testing.assert_close(found.logits, wanted, rtol=1e-3, atol=2e-3)
    assert len(found.routing) == (4 if name == "mono_internvl" else 2)
    if name != "mono_internvl":
        scorer = next(m for m in model.modules() if isinstance(m, MoE)).router.scorer
        assert all(p.detach().any() for p in scorer.parameters())


def test_what_is_missing_or_left_over_is_named(checkpoint: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    name, folder, *_ = checkpoint
    overrides = {} if name == "mono_internvl" else SMALL_TOWER
    tensors = load_file(folder / "model.safetensors")
    lost = next(key for key in tensors if "feed_forward" in key or ".experts." in key)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors["odd.weight"] = tensors.pop(lost)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ZooError) as told:
        convert(str(tmp_path), tmp_path / "ours", f"vision_language/{NAMES[name]}", overrides=overrides)
    assert lost in str(told.value) and "odd.weight" in str(told.value)


def test_ours_becomes_a_checkpoint_again(checkpoint: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    name, folder, *_ = checkpoint
    overrides = {} if name == "mono_internvl" else SMALL_TOWER
    model = convert(str(folder), tmp_path / "ours", f"vision_language/{NAMES[name]}", overrides=overrides)
    if name != "mono_internvl":
        with pytest.raises(ZooError, match="layout"):  # the tower's sizes are said in another file of theirs
            export(model, tmp_path / "theirs", "_".join(name.split("_")[: 1 + name.startswith("moe")]))
        return
    export(model, tmp_path / "theirs", name)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert before.keys() - after.keys() == {"vision_model.embeddings.class_embedding"}
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_a_layout_that_says_something_else_is_refused(tmp_path: Path) -> None:
    for name, change, told in (
        ("moiie", {"num_experts": 8}, "num_experts=8; only num_experts=4"),
        ("moiie", {"model_type": "bunny-llama3-moe"}, "model_type"),  # the authors' own baseline, without pools
        ("moiie_phi3", {"rope_scaling": {"type": "su"}}, "rope_scaling"),
        ("moe_llava_qwen", {"rotary_pct": 0.5}, "rotary_pct"),
        ("moe_llava", {"moe": {"moe_mode": "dense"}}, "moe.moe_mode"),
        ("mono_internvl", {"ps_version": "v1"}, "ps_version"),
    ):
        foreign, _, *_ = MAKE[name]()
        (tmp_path / "config.json").write_text(json.dumps({**foreign, **change}))
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ZooError, match=told):
            convert(str(tmp_path), tmp_path / "ours", f"vision_language/{NAMES[name]}")
