"""How public checkpoints of language models become ours, and ours public ones. Plain data; read by `zoo.hub`.

Every layout is that of the class of the same name in `transformers`, whose logits are the reference.
"""

from collections.abc import Mapping
from typing import Any

from zoo.spec import Importer

_THEIRS, _OURS = "model.layers.{n}", "stack.layers.{n}"
_MOE = f"{_OURS}.feed_forward"

_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings | false",
    "stack.hidden_size": "hidden_size",
    "stack.num_layers": "num_hidden_layers",
    "stack.norm_eps": "rms_norm_eps",
}
_ROTARY = "rope_parameters.rope_theta | rope_theta | 10000.0"
_ATTENTION = {
    "stack.mixer.num_heads": "num_attention_heads",
    "stack.mixer.num_kv_heads": "num_key_value_heads | num_attention_heads",
    "stack.mixer.rope_theta": _ROTARY,
}
_K = {"stack.moe.router.k": "num_experts_per_tok"}
_BIAS = {f"stack.mixer.{which}_bias": "attention_bias | false" for which in ("qkv", "out")}
_FIXED: dict[str, Any] = {
    "head": "linear",
    "stack.norm": "rms",
    "stack.causal": True,
    "stack.wiring.name": "sequential",
    "stack.wiring.norm": "pre",
    "stack.feed_forward.name": "moe",
}
_SOFTMAX = {
    "stack.moe.router.name": "topk",
    "stack.moe.router.score": "softmax",
    "stack.moe.router.order": "score_then_topk",
    "stack.moe.router.scale": 1.0,
    "stack.moe.experts.name": "swiglu",
}
# Long-context scalings of the rotary angles are other functions, quantised weights another type.
_PLAIN = {"rope_parameters.rope_type": ("default", None), "rope_scaling": None, "quantization_config": None}
_TRAINING = ("stack.init_std", "stack.activation_checkpointing", "stack.moe.balance")

# The special tokens are the tokenizer's; left out, a class would take those of its first public checkpoint.
_TOKENS = {f"{which}_token_id": None for which in ("bos", "eos", "pad")}
_TOKENIZER: dict[str, Any] = {
    "preprocessing": {
        "vocabulary": {"name": "language/tokenizer", "path": "tokenizer.json", "end": None, "text": None}
    },
    "files": {"vocabulary.text": "tokenizer.json"},
}

_EDGES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "stack.norm.weight",
    "lm_head.weight": "head.weight",
}
_PRE_NORMS = {
    f"{_THEIRS}.input_layernorm.weight": f"{_OURS}.mixer_norm.weight",
    f"{_THEIRS}.post_attention_layernorm.weight": f"{_OURS}.feed_forward_norm.weight",
}
_QKVO = {
    f"{_THEIRS}.self_attn.{part}_proj.{kind}": f"{_OURS}.mixer.{part}_proj.{kind}"
    for part in "qkvo"
    for kind in ("weight", "bias")
}
_QK_NORMS = {f"{_THEIRS}.self_attn.{part}_norm.weight": f"{_OURS}.mixer.{part}_norm.weight" for part in "qk"}
_DENSE = {f"{_THEIRS}.mlp.{part}_proj.weight": f"{_MOE}.{part}_proj.weight" for part in ("gate", "up", "down")}


def _experts(block: str, gate: str, up: str, down: str) -> dict[str, str]:
    """An expert a tensor, as checkpoints on the hub have it."""
    return {
        f"{_THEIRS}.{block}.gate.weight": f"{_MOE}.router.scorer.weight",
        f"{_THEIRS}.{block}.experts.{{e}}.{gate}.weight": f"{_MOE}.experts.gate_up_proj[{{e}}, :half]",
        f"{_THEIRS}.{block}.experts.{{e}}.{up}.weight": f"{_MOE}.experts.gate_up_proj[{{e}}, half:]",
        f"{_THEIRS}.{block}.experts.{{e}}.{down}.weight": f"{_MOE}.experts.down_proj[{{e}}]",
    }


_BY_EXPERT = _experts("mlp", "gate_proj", "up_proj", "down_proj")
_FUSED = {
    f"{_THEIRS}.mlp.gate.weight": f"{_MOE}.router.scorer.weight",
    **{f"{_THEIRS}.mlp.experts.{part}_proj": f"{_MOE}.experts.{part}_proj" for part in ("gate_up", "down")},
}


def _layout(
    model_type: str,
    architecture: str,
    config: Mapping[str, str],
    fixed: Mapping[str, Any],
    keys: Mapping[str, str],
    experts: Mapping[str, str],
    expect: Mapping[str, Any],
    export: Mapping[str, Any] | None = None,
    **others: Any,
) -> Importer:
    """``experts`` are the keys of the mixtures as on the hub; transformers 5 can also write its own, fused ones."""
    keys = {**_EDGES, **keys}
    return Importer(
        config={**_CONFIG, **config},
        fixed={**_FIXED, **fixed},
        expect={"model_type": model_type, **_PLAIN, **expect},
        keys={**keys, **experts},
        dialects={"fused": {**keys, **_FUSED}},
        export={**_TOKENS, "architectures": [architecture], **(export or {})},
        training=_TRAINING,
        **_TOKENIZER,
        **others,
    )


MIXTRAL = _layout(
    "mixtral",
    "MixtralForCausalLM",
    {
        **_ATTENTION,
        **_K,
        "stack.mixer.head_dim": "head_dim | null",
        "stack.mixer.window": "sliding_window | null",
        "stack.moe.num_experts": "num_local_experts",
        "stack.moe.experts.intermediate_size": "intermediate_size",
    },
    {**_SOFTMAX, "stack.mixer.name": "attention", "stack.moe.router.renorm": True},
    {**_PRE_NORMS, **_QKVO},
    _experts("block_sparse_moe", "w1", "w3", "w2"),
    {"hidden_act": "silu"},
)

OLMOE = _layout(
    "olmoe",
    "OlmoeForCausalLM",
    {
        **_ATTENTION,
        **_K,
        **_BIAS,
        "stack.moe.num_experts": "num_experts | num_local_experts",
        "stack.moe.router.renorm": "norm_topk_prob | false",
        "stack.moe.experts.intermediate_size": "intermediate_size",
    },
    {**_SOFTMAX, "stack.mixer.name": "attention", "stack.mixer.qk_norm": "full"},
    {**_PRE_NORMS, **_QKVO, **_QK_NORMS},
    _BY_EXPERT,
    {"hidden_act": "silu", "clip_qkv": None},
)

QWEN3_MOE = _layout(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    {
        **_ATTENTION,
        **_K,
        **_BIAS,
        "stack.mixer.head_dim": "head_dim | hidden_size // num_attention_heads",
        "stack.moe.num_experts": "num_experts | num_local_experts",
        "stack.moe.router.renorm": "norm_topk_prob | false",
        "stack.moe.experts.intermediate_size": "moe_intermediate_size",
    },
    {**_SOFTMAX, "stack.mixer.name": "attention", "stack.mixer.qk_norm": "head"},
    {**_PRE_NORMS, **_QKVO, **_QK_NORMS},
    _BY_EXPERT,
    {
        "hidden_act": "silu",
        "use_sliding_window": (False, None),
        "decoder_sparse_step": 1,
        "mlp_only_layers": ([], None),
    },
)

FLEX_OLMO = _layout(
    "flex_olmo",
    "FlexOlmoForCausalLM",
    {
        **_ATTENTION,
        **_K,
        **_BIAS,
        "stack.moe.num_experts": "num_experts | num_local_experts",
        "stack.moe.router.renorm": "norm_topk_prob | false",
        "stack.moe.experts.intermediate_size": "intermediate_size",
    },
    {**_SOFTMAX, "stack.mixer.name": "attention", "stack.mixer.qk_norm": "full", "stack.wiring.norm": "output"},
    {
        f"{_THEIRS}.post_attention_layernorm.weight": f"{_OURS}.mixer_norm.weight",
        f"{_THEIRS}.post_feedforward_layernorm.weight": f"{_OURS}.feed_forward_norm.weight",
        **_QKVO,
        **_QK_NORMS,
    },
    _BY_EXPERT,
    {"hidden_act": "silu"},
)

_SHARED = {
    f"{_THEIRS}.mlp.shared_experts.{p}_proj.weight": f"{_MOE}.shared.{p}_proj.weight" for p in ("gate", "up", "down")
}

DEEPSEEK_V3 = _layout(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    {
        "stack.mixer.num_heads": "num_attention_heads",
        "stack.mixer.q_rank": "q_lora_rank | null",
        "stack.mixer.kv_rank": "kv_lora_rank",
        "stack.mixer.nope_dim": "qk_nope_head_dim",
        "stack.mixer.rope_dim": "qk_rope_head_dim",
        "stack.mixer.v_dim": "v_head_dim",
        "stack.mixer.rope_theta": _ROTARY,
        "stack.mixer.rope_interleaved": "rope_interleave | true",
        "stack.first.0.count": "first_k_dense_replace",
        "stack.first.0.feed_forward.intermediate_size": "intermediate_size",
        "stack.moe.num_experts": "n_routed_experts | num_local_experts",
        "stack.moe.router.selector.k": "num_experts_per_tok",
        "stack.moe.router.hooks.group_limit.groups": "n_group",
        "stack.moe.router.hooks.group_limit.keep": "topk_group",
        "stack.moe.router.weigher.renorm": "norm_topk_prob",
        "stack.moe.router.weigher.scale": "routed_scaling_factor",
        "stack.moe.experts.intermediate_size": "moe_intermediate_size",
        "stack.moe.shared.intermediate_size": "moe_intermediate_size * n_shared_experts",
    },
    {
        "stack.mixer.name": "mla",
        "stack.mixer.norm_eps": 1e-6,
        "stack.first.0.feed_forward.name": "dense",
        "stack.moe.router.name": "composed",
        "stack.moe.router.activation.name": "sigmoid",
        "stack.moe.router.selector.name": "topk",
        "stack.moe.router.hooks.group_limit.top": 2,
        "stack.moe.router.weigher.name": "gather",
        "stack.moe.experts.name": "swiglu",
        "stack.moe.shared.name": "swiglu",
        "stack.moe.balance.loss_free": {},
    },
    {
        **_PRE_NORMS,
        **_DENSE,
        **_SHARED,
        **{
            f"{_THEIRS}.self_attn.{theirs}.weight": f"{_OURS}.mixer.{ours}.weight"
            for theirs, ours in {
                "q_proj": "q_proj",
                "q_a_proj": "q_down",
                "q_a_layernorm": "q_norm",
                "q_b_proj": "q_up",
                "kv_a_proj_with_mqa": "kv_down",
                "kv_a_layernorm": "kv_norm",
                "kv_b_proj": "kv_up",
                "o_proj": "o_proj",
            }.items()
        },
        # The selection bias of all MoE layers is the balancer's; the first of them lies above the dense layers.
        f"{_THEIRS}.mlp.gate.e_score_correction_bias": (
            "stack.balancers.each.loss_free.bias_NE[{n - first_k_dense_replace}]"
        ),
    },
    _BY_EXPERT,
    {"hidden_act": "silu", "attention_bias": (False, None), "moe_layer_freq": (1, None)},
    # Layers above the last predict further tokens in training; transformers leaves them out, too.
    ignore=("model.layers.{num_hidden_layers}.",),
    export={"num_nextn_predict_layers": 0, "num_key_value_heads": "=num_attention_heads"},
)

_ATTENTION_EXPERTS, _MLP_EXPERTS = f"{_THEIRS}.self_attention.experts", f"{_THEIRS}.mlp"

JETMOE = Importer(
    config={
        **{key: theirs for key, theirs in _CONFIG.items() if key != "stack.norm_eps"},
        # In transformers the norms of the layers keep their default; only the last one reads the setting.
        "stack.final_norm_eps": "rms_norm_eps",
        "stack.mixer.num_kv_heads": "num_key_value_heads",
        **_K,
        "stack.mixer.head_dim": "kv_channels",
        "stack.mixer.rope_theta": _ROTARY,
        "stack.moe.num_experts": "num_local_experts",
        "stack.moe.experts.intermediate_size": "intermediate_size",
    },
    fixed={
        **_FIXED,
        **_SOFTMAX,
        "stack.norm_eps": 1e-6,
        "stack.mixer.name": "moe_attention",
        "stack.mixer.bias": True,
        "stack.moe.router.order": "topk_then_score",
        "stack.moe.router.renorm": False,
        "stack.moe.shared.name": "bias",
    },
    expect={"model_type": "jetmoe", **_PLAIN, "activation_function": "silu"},
    keys={
        **_EDGES,
        **_PRE_NORMS,
        f"{_THEIRS}.self_attention.kv_proj.weight": f"{_OURS}.mixer.kv_proj.weight",
        f"{_ATTENTION_EXPERTS}.bias": f"{_OURS}.mixer.bias",
        f"{_ATTENTION_EXPERTS}.router.layer.weight": f"{_OURS}.mixer.moe.router.scorer.weight",
        f"{_ATTENTION_EXPERTS}.input_linear.weight": f"{_OURS}.mixer.moe.experts.q_proj",
        f"{_ATTENTION_EXPERTS}.output_linear.weight": f"{_OURS}.mixer.moe.experts.o_proj",
        f"{_MLP_EXPERTS}.bias": f"{_MOE}.shared.bias",
        f"{_MLP_EXPERTS}.router.layer.weight": f"{_MOE}.router.scorer.weight",
        f"{_MLP_EXPERTS}.input_linear.weight": f"{_MOE}.experts.gate_up_proj",
        f"{_MLP_EXPERTS}.output_linear.weight": f"{_MOE}.experts.down_proj",
    },
    export={**_TOKENS, "architectures": ["JetMoeForCausalLM"]},
    training=_TRAINING,
    **_TOKENIZER,
)

LLAMA = Importer(
    config={
        **_CONFIG,
        **_ATTENTION,
        **_BIAS,
        "stack.mixer.head_dim": "head_dim | null",
        "stack.feed_forward.intermediate_size": "intermediate_size",
        "stack.feed_forward.bias": "mlp_bias | false",
    },
    fixed={
        **_FIXED,
        "stack.mixer.name": "attention",
        "stack.feed_forward.name": "dense",
        "stack.feed_forward.activation": "silu",
        "stack.feed_forward.gated": True,
        # A model whose own config has balancers may become a dense one here.
        "stack.moe.balance": {},
    },
    expect={"model_type": "llama", **_PLAIN, "hidden_act": "silu"},
    keys={
        **_EDGES,
        **_PRE_NORMS,
        **_QKVO,
        **_DENSE,
        **{f"{_THEIRS}.mlp.{part}_proj.bias": f"{_MOE}.{part}_proj.bias" for part in ("gate", "up", "down")},
    },
    export={**_TOKENS, "architectures": ["LlamaForCausalLM"]},
    training=_TRAINING,
    **_TOKENIZER,
)
