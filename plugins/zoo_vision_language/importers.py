"""Public checkpoints of vision-language mixtures of experts. Plain data; read by `zoo.hub`.

The layouts are those of the authors' code: PKU-YuanGroup/MoE-LLaVA (its StableLM and Qwen), AlenjandroWang/MoIIE (its
Llama 3 and Phi-3) and OpenGVLab/Mono-InternVL. Image towers come with the checkpoints of the first two only where those
say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.spec import Importer
from zoo_vision_language.templates import TEMPLATES, saved_template

_OURS = "language.stack.layers.{n}"
_FF = f"{_OURS}.feed_forward"


def _tower(prefix: str, clip: bool) -> dict[str, str]:
    """The vision model of a CLIP or SigLIP of transformers."""
    ours, layer = "tower.model", "encoder.layers.{l}"
    linear = [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + [
        "mlp.fc1",
        "mlp.fc2",
        "layer_norm1",
        "layer_norm2",
    ]
    keys = [f"{layer}.{name}.{kind}" for name in linear for kind in ("weight", "bias")]
    keys += ["embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"]
    keys += [f"post_layernorm.{kind}" for kind in ("weight", "bias")]
    if clip:
        keys += ["embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias"]
    else:
        keys += ["embeddings.patch_embedding.bias"]
    return {f"{prefix}.{key}": f"{ours}.{key}" for key in keys}


def _connector(theirs: str, ours: str = "connector.layers") -> dict[str, str]:
    return {f"{theirs}.{n}.{kind}": f"{ours}.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}


def _norms(layer: str, before: str, after: str, kinds: tuple[str, ...]) -> dict[str, str]:
    pairs = {before: "mixer_norm", after: "feed_forward_norm"}
    return {f"{layer}.{t}.{kind}": f"{_OURS}.{o}.{kind}" for t, o in pairs.items() for kind in kinds}


def _experts(theirs: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> dict[str, str]:
    return {
        f"{theirs}.{gate}.weight": f"{_FF}.experts.gate_up_proj[{{e}}, :half]",
        f"{theirs}.{up}.weight": f"{_FF}.experts.gate_up_proj[{{e}}, half:]",
        f"{theirs}.{down}.weight": f"{_FF}.experts.down_proj[{{e}}]",
    }


def _text(template: str) -> dict[str, Any]:
    """A model that comes with a tokenizer.json can be asked; its dialogues are written as it was trained."""
    return {
        "preprocessing": {
            "vocabulary": {"name": "vision_language/tokenizer", "path": "tokenizer.json", "end": None, "text": None},
            "template": saved_template(TEMPLATES[template]),
            "fit": "pad",
        },
        "files": {"vocabulary.text": "tokenizer.json"},
    }


_DECODER = "vision_language/decoder"
_KV_HEADS = "num_key_value_heads | num_attention_heads"
_STACK: Mapping[str, str] = {
    "language.stack.hidden_size": "hidden_size",
    "language.stack.num_layers": "num_hidden_layers",
    "language.stack.mixer.num_heads": "num_attention_heads",
    "language.stack.mixer.num_kv_heads": _KV_HEADS,
    "language.vocab_size": "vocab_size",
    "language.tie_embeddings": "tie_word_embeddings | false",
}
_TRAINING = ("language.stack.init_std", "language.stack.activation_checkpointing", "language.stack.moe.balance")
_TOPK = {
    "language.stack.feed_forward.name": "moe",
    "language.stack.moe.router.name": "topk",
    "language.stack.moe.router.score": "softmax",
    "language.stack.moe.router.renorm": True,
    "language.stack.moe.experts.name": "swiglu",
}
_EDGES = {"model.embed_tokens.weight": "language.embedding.weight", "lm_head.weight": "language.head.weight"}
_ATTENTION = {f"model.layers.{{n}}.self_attn.{p}_proj.weight": f"{_OURS}.mixer.{p}_proj.weight" for p in "qkvo"}
_QKV_BIAS = {f"model.layers.{{n}}.self_attn.{p}_proj.bias": f"{_OURS}.mixer.{p}_proj.bias" for p in "qkv"}
_DENSE = {f"model.layers.{{n}}.mlp.{p}_proj.weight": f"{_FF}.{p}_proj.weight" for p in ("gate", "up", "down")}

_LLAVA = {
    **_EDGES,
    **_ATTENTION,
    **_DENSE,
    **_norms("model.layers.{n}", "input_layernorm", "post_attention_layernorm", ("weight", "bias")),
    "model.norm.weight": "language.stack.norm.weight",
    "model.norm.bias": "language.stack.norm.bias",
    "model.layers.{n}.mlp.deepspeed_moe.gate.wg.weight": f"{_FF}.router.scorer.weight",
    **_experts("model.layers.{n}.mlp.deepspeed_moe.experts.deepspeed_experts.{e}"),
    **_connector("model.mm_projector.image_spatial_proj"),
}
_CLIP = _tower("model.image_tower.image_tower.vision_model", clip=True)

_MOE_LLAVA = {
    "language.stack.moe.num_experts": "moe.num_experts.0",
    "language.stack.moe.router.k": "moe.top_k_experts",
}
_EVEN = {
    **_TOPK,
    "language.name": _DECODER,
    "language.stack.mixer.name": "attention",
    "language.stack.pattern.0.feed_forward.name": "moe",
    "language.stack.pattern.1.feed_forward.name": "dense",
}
_SPARSE = {"moe.moe_mode": "sparse", "moe.use_residual": False}

MOE_LLAVA = Importer(
    config={
        **_STACK,
        **_MOE_LLAVA,
        "language.stack.norm_eps": "norm_eps",
        "language.stack.mixer.rope_theta": "rope_theta | 10000",
        "language.stack.mixer.rope_fraction": "rope_pct",
        "language.stack.mixer.qkv_bias": "use_qkv_bias | true",
        "language.stack.pattern.1.feed_forward.intermediate_size": "intermediate_size",
        "language.stack.moe.experts.intermediate_size": "intermediate_size",
        "max_length": "tokenizer_model_max_length | max_position_embeddings",
    },
    fixed={**_EVEN, "language.stack.norm": "layer"},
    expect={"model_type": "moe_llava_stablelm", "hidden_act": "silu", **_SPARSE},
    keys={**_LLAVA, **_QKV_BIAS, **_CLIP},
    training=_TRAINING,
    export={"architectures": ["MoELLaVAStablelmForCausalLM"]},
    **_text("stablelm"),
)

_QWEN = "transformer.h.{n}"
_QWEN_MLP = {"gate": "w2", "up": "w1", "down": "c_proj"}
MOE_LLAVA_QWEN = Importer(
    config={
        **{ours: theirs for ours, theirs in _STACK.items() if "num_kv_heads" not in ours},
        **_MOE_LLAVA,
        "language.stack.norm_eps": "layer_norm_epsilon",
        "language.stack.mixer.rope_theta": "rotary_emb_base",
        # The first of Qwen's models: its MLPs are half as wide as its config says.
        "language.stack.pattern.1.feed_forward.intermediate_size": "intermediate_size // 2",
        "language.stack.moe.experts.intermediate_size": "intermediate_size // 2",
        # Beyond seq_length its positions and attention change with the length, which is not built.
        "max_length": "tokenizer_model_max_length | seq_length",
    },
    fixed={**_EVEN, "language.stack.norm": "rms", "language.stack.mixer.qkv_bias": True},
    expect={"model_type": "moe_llava_qwen", "no_bias": True, "rotary_pct": 1.0, **_SPARSE},
    keys={
        "transformer.wte.weight": "language.embedding.weight",
        "transformer.ln_f.weight": "language.stack.norm.weight",
        "lm_head.weight": "language.head.weight",
        **_norms(_QWEN, "ln_1", "ln_2", ("weight",)),
        **{
            f"{_QWEN}.attn.c_attn.{kind}:{p}": f"{_OURS}.mixer.{p}_proj.{kind}"
            for p in "qkv"
            for kind in ("weight", "bias")
        },
        f"{_QWEN}.attn.c_proj.weight": f"{_OURS}.mixer.o_proj.weight",
        **{f"{_QWEN}.mlp.{t}.weight": f"{_FF}.{o}_proj.weight" for o, t in _QWEN_MLP.items()},
        f"{_QWEN}.mlp.deepspeed_moe.gate.wg.weight": f"{_FF}.router.scorer.weight",
        **_experts(f"{_QWEN}.mlp.deepspeed_moe.experts.deepspeed_experts.{{e}}", **_QWEN_MLP),
        **_connector("transformer.mm_projector.image_spatial_proj"),
        **_tower("transformer.image_tower.image_tower.vision_model", clip=True),
    },
    fused={f"{_QWEN}.attn.c_attn.{kind}": ("1", {"q": "1", "k": "1", "v": "1"}) for kind in ("weight", "bias")},
    training=_TRAINING,
    export={"architectures": ["MoELLaVAQWenForCausalLM"]},
    **_text("stablelm"),  # the authors' conversations with Qwen are those with StableLM
)

_MOIIE: dict[str, Any] = {
    "config": {
        **_STACK,
        "language.stack.norm_eps": "rms_norm_eps",
        "language.stack.mixer.rope_theta": "rope_theta | 10000",
        "language.stack.pattern.0.feed_forward.intermediate_size": "intermediate_size",
        "language.stack.moe.experts.intermediate_size": "intermediate_size",
        "language.stack.moe.router.selector.k": "num_experts_per_tok",
        "max_length": "tokenizer_model_max_length | max_position_embeddings",
    },
    "fixed": {
        "language.name": _DECODER,
        "language.stack.norm": "rms",
        "language.stack.mixer.name": "attention",
        "language.stack.feed_forward.name": "moe",
        "language.stack.pattern.0.feed_forward.name": "dense",
        "language.stack.pattern.1.feed_forward.name": "moe",
        "language.stack.moe.num_experts": 4,
        "language.stack.moe.router.name": "composed",
        "language.stack.moe.router.scorer": {"name": "by_modality", "groups": [[0, 1, 2], [1, 2, 3]]},
        "language.stack.moe.router.selector.name": "topk",
        "language.stack.moe.router.weigher": {"name": "gather", "renorm": True},
        "language.stack.moe.experts.name": "swiglu",
    },
    "training": _TRAINING,
}
# With another number of experts the authors' offset of the language experts, 1, is no quarter of them.
_POOLS = {"num_experts": 4, "hidden_act": "silu"}
_MOIIE_KEYS = {
    **_EDGES,
    **_norms("model.layers.{n}", "input_layernorm", "post_attention_layernorm", ("weight",)),
    "model.norm.weight": "language.stack.norm.weight",
    "model.layers.{n}.mlp.gate_vis.weight": f"{_FF}.router.scorer.weight.0",
    "model.layers.{n}.mlp.gate.weight": f"{_FF}.router.scorer.weight.1",
    **_connector("model.mm_projector"),
    **_tower("model.vision_tower.vision_tower.vision_model", clip=False),
}

MOIIE = Importer(
    expect={"model_type": "bunny-mm-llama3-moe-s", **_POOLS},
    keys={**_MOIIE_KEYS, **_ATTENTION, **_DENSE, **_experts("model.layers.{n}.mlp.experts.{e}")},
    export={"architectures": ["BunnyMMSLlamaMoEForCausalLM"]},
    **_MOIIE,
    **_text("llama3"),
)

_PHI3 = "model.layers.{n}"
MOIIE_PHI3 = Importer(
    expect={"model_type": "bunny-mm-phi3-moe-s", "rope_scaling": None, **_POOLS},
    keys={
        **_MOIIE_KEYS,
        **{f"{_PHI3}.self_attn.qkv_proj.weight:{p}": f"{_OURS}.mixer.{p}_proj.weight" for p in "qkv"},
        f"{_PHI3}.self_attn.o_proj.weight": f"{_OURS}.mixer.o_proj.weight",
        **{f"{_PHI3}.mlp.gate_up_proj.weight:{p}": f"{_FF}.{p}_proj.weight" for p in ("gate", "up")},
        f"{_PHI3}.mlp.down_proj.weight": f"{_FF}.down_proj.weight",
        **{f"{_PHI3}.mlp.experts.{{e}}.{p}.weight": f"{_FF}.experts.{p}[{{e}}]" for p in ("gate_up_proj", "down_proj")},
    },
    fused={
        f"{_PHI3}.self_attn.qkv_proj.weight": (
            "1",
            {"q": "num_attention_heads", "k": _KV_HEADS, "v": _KV_HEADS},
        ),
        f"{_PHI3}.mlp.gate_up_proj.weight": ("1", {"gate": "1", "up": "1"}),
    },
    export={"architectures": ["BunnyMMSPhi3MoEForCausalLM"]},
    **{**_MOIIE, "config": {**_MOIIE["config"], "language.stack.mixer.window": "sliding_window | null"}},
    **_text("stablelm"),  # the authors' conversations with Phi-3 are those of MoE-LLaVA with StableLM
)

_INTERN = "language_model.model.layers.{n}"
_LLM = "llm_config"
MONO_INTERNVL = Importer(
    config={
        **{ours: f"{_LLM}.{t.replace(' | ', f' | {_LLM}.')}" for ours, t in _STACK.items() if "tie" not in ours},
        "language.stack.norm_eps": f"{_LLM}.rms_norm_eps",
        "language.stack.mixer.rope_theta": f"{_LLM}.rope_theta | 10000",
        "language.stack.moe.experts.intermediate_size": f"{_LLM}.intermediate_size",
        "tower.width": "vision_config.hidden_size",
        "tower.patch": "vision_config.patch_size",
        "image_size.0": "force_image_size | vision_config.image_size",
        "image_size.1": "force_image_size | vision_config.image_size",
        "connector.hidden": f"{_LLM}.hidden_size",
        "max_length": f"{_LLM}.max_position_embeddings",
    },
    fixed={
        "tower.name": "vision_language/patches",
        "tower.prefix": 1,
        "tower.colours": "imagenet",
        "connector.name": "vision_language/mlp",
        "connector.shuffle": 2,
        "connector.norm": True,
        "connector.depth": 2,
        "language.name": _DECODER,
        "language.tie_embeddings": False,
        "language.stack.norm": "rms",
        "language.stack.mixer.name": "attention",
        "language.stack.feed_forward.name": "moe",
        "language.stack.pattern": [],
        "language.stack.moe.num_experts": 2,
        "language.stack.moe.router": {
            "name": "composed", "scorer": {"name": "none"}, "selector": {"name": "modality"},
            "weigher": {"name": "uniform"},
        },
        "language.stack.moe.experts.name": "swiglu",
    },
    expect={
        "model_type": "internvl_chat",
        "vision_config.model_type": "intern_vit_patch",
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "llm_config.bias": (False, None),
    },
    keys={
        "vision_model.embeddings.patch_embedding.weight": "tower.patch_embedding.weight",
        "vision_model.embeddings.patch_embedding.bias": "tower.patch_embedding.bias",
        "vision_model.embeddings.position_embedding": "tower.position_embedding",
        **{f"mlp1.{n}.{kind}": f"connector.layers.{n}.{kind}" for n in (0, 1, 3) for kind in ("weight", "bias")},
        "language_model.model.tok_embeddings.weight": "language.embedding.weight",
        "language_model.model.norm.weight": "language.stack.norm.weight",
        "language_model.output.weight": "language.head.weight",
        **_norms(_INTERN, "attention_norm", "ffn_norm", ("weight",)),
        **{f"{_INTERN}.attention.wqkv.weight:{p}": f"{_OURS}.mixer.{p}_proj.weight" for p in "qkv"},
        f"{_INTERN}.attention.wo.weight": f"{_OURS}.mixer.o_proj.weight",
        # Expert 0 is the visual one, 1 the text's: what a place holds is its expert's number.
        **{
            f"{_INTERN}.{block}.{name}.weight": f"{_FF}.experts.{place}"
            for e, block in enumerate(("feed_forward_ve", "feed_forward"))
            for name, place in (
                ("w1", f"gate_up_proj[{e}, :half]"), ("w3", f"gate_up_proj[{e}, half:]"), ("w2", f"down_proj[{e}]"),
            )
        },
    },
    fused={
        f"{_INTERN}.attention.wqkv.weight": (
            "llm_config.num_key_value_heads",
            {"q": "llm_config.num_attention_heads // llm_config.num_key_value_heads", "k": "1", "v": "1"},
        )
    },
    # Its place is cut off before the language model, as in the authors' code.
    ignore=("vision_model.embeddings.class_embedding",),
    training=_TRAINING,
    export={"architectures": ["InternVLChatModel"]},
    **_text("internlm2"),
)  # fmt: skip
