"""How the public UniMoE-Audio checkpoint becomes ours. Plain data; read by `zoo.hub`.

Of foggyforest/UniMoE-Audio-preview the decoder is read: text embedding, layers, codec embeddings and head. The vision
tower and the head over text are left out; with text and sound alone the three sections of its rotary positions are one.
"""

from zoo.spec import Importer

_THEIRS, _OURS = "language_model.layers.{n}", "stack.layers.{n}"
_EXPERT = f"{_THEIRS}.mlp.dynamic_real_moe.deepspeed_moe.experts.deepspeed_experts.{{e}}"
_MOE = f"{_OURS}.feed_forward"
_BANK = f"{_MOE}.experts.banks.0"
_T = "text_config"

UNIMOE_AUDIO = Importer(
    config={
        "text_vocab": f"{_T}.vocab_size",
        "delay": "codec_delay_pattern",
        "max_length": f"{_T}.max_position_embeddings",
        "codebook_size": "codec_eos_value",
        "stack.hidden_size": f"{_T}.hidden_size",
        "stack.num_layers": f"{_T}.num_hidden_layers",
        "stack.norm_eps": f"{_T}.rms_norm_eps",
        "stack.mixer.num_heads": f"{_T}.num_attention_heads",
        "stack.mixer.num_kv_heads": f"{_T}.num_key_value_heads",
        "stack.mixer.rope_theta": "rope_theta",
        "stack.moe.shared.count": f"{_T}.mlp_fixed_expert_num",
        "stack.moe.shared.intermediate_size": f"{_T}.shared_intermediate_size",
        "stack.moe.router.weigher.num_shared": f"{_T}.mlp_fixed_expert_num",
        "stack.moe.router.weigher.jitter": f"{_T}.router_jitter_noise",
        "stack.moe.router.selector.p": f"{_T}.mlp_dynamic_top_p",
        "stack.moe.experts.banks.0.count": f"{_T}.mlp_dynamic_expert_num",
        "stack.moe.experts.banks.0.intermediate_size": f"{_T}.dynamic_intermediate_size",
    },
    fixed={
        "stack.norm": "rms",
        "stack.causal": True,
        "stack.wiring.name": "sequential",
        "stack.wiring.norm": "pre",
        "stack.feed_forward.name": "moe",
        "stack.mixer.name": "attention",
        "stack.mixer.qkv_bias": True,
        "stack.moe.num_experts": 9,
        "stack.moe.router.name": "composed",
        "stack.moe.router.selector.name": "top_p",
        "stack.moe.router.weigher.name": "audio/masked_joint",
        "stack.moe.router.weigher.shares": "winner",
        "stack.moe.shared.name": "audio/side_by_side",
        "stack.moe.experts.name": "mixed",
        "stack.moe.experts.banks.0.name": "swiglu",
        "stack.moe.experts.banks.1.name": "null",
        "stack.moe.experts.banks.1.count": 1,
    },
    expect={
        "model_type": "uni_audio_rvq_qwen2_5vl_moe",
        f"{_T}.mlp_dynamic_expert_num": 8,
        f"{_T}.mlp_dynamic_null_expert_num": 1,
        f"{_T}.token_drop": False,
        f"{_T}.ignore_differentiable_router": True,
    },
    keys={
        "language_model.embed_tokens.weight": "text.weight",
        "language_model.norm.weight": "stack.norm.weight",
        "codec_embed_tokens.{c}.weight": "codes.{c}.weight",
        "codec_head.weight": "head.weight",
        f"{_THEIRS}.input_layernorm.weight": f"{_OURS}.mixer_norm.weight",
        f"{_THEIRS}.post_attention_layernorm.weight": f"{_OURS}.feed_forward_norm.weight",
        **{f"{_THEIRS}.self_attn.{p}_proj.weight": f"{_OURS}.mixer.{p}_proj.weight" for p in "qkvo"},
        **{f"{_THEIRS}.self_attn.{p}_proj.bias": f"{_OURS}.mixer.{p}_proj.bias" for p in "qkv"},
        # One gate over routed, null and shared experts, row by row.
        f"{_THEIRS}.mlp.gate.weight[{{r}}]": f"{_MOE}.router.scorer.weight[{{r}}]",
        f"{_THEIRS}.mlp.gate.weight[{{s}}]": f"{_MOE}.router.weigher.weight"
        f"[{{s - {_T}.mlp_dynamic_expert_num - {_T}.mlp_dynamic_null_expert_num}}]",
        f"{_EXPERT}.gate_proj.weight": f"{_BANK}.gate_up_proj[{{e}}, :half]",
        f"{_EXPERT}.up_proj.weight": f"{_BANK}.gate_up_proj[{{e}}, half:]",
        f"{_EXPERT}.down_proj.weight": f"{_BANK}.down_proj[{{e}}]",
        **{
            f"{_THEIRS}.mlp.fixed_real_moe.{{s}}.{p}_proj.weight": f"{_MOE}.shared.{p}_proj[{{s}}]"
            for p in ("gate", "up", "down")
        },
    },
    ignore=("visual.", "lm_head."),
)
