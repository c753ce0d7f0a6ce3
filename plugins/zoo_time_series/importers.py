"""How public checkpoints of this modality become ours. Plain data; read by `zoo.hub`."""

from zoo.spec import Importer

_THEIRS, _OURS = "model.layers.{n}", "stack.layers.{n}"
_FFN, _MOE = f"{_THEIRS}.ffn_layer", f"{_OURS}.feed_forward"

TIME_MOE = Importer(
    expect={"model_type": "time_moe", "hidden_act": "silu", "input_size": 1, "use_dense": False},
    config={
        "stack.hidden_size": "hidden_size",
        "stack.num_layers": "num_hidden_layers",
        "stack.mixer.num_heads": "num_attention_heads",
        "stack.mixer.num_kv_heads": "num_key_value_heads",
        "stack.mixer.rope_theta": "rope_theta",
        "stack.norm_eps": "rms_norm_eps",
        "stack.moe.num_experts": "num_experts",
        "stack.moe.router.k": "num_experts_per_tok",
        # The k experts of a token together are as wide as the dense layer they replace.
        "stack.moe.experts.intermediate_size": "intermediate_size // num_experts_per_tok",
        "stack.moe.shared.intermediate_size": "intermediate_size",
        "horizons": "horizon_lengths",
        "max_length": "max_position_embeddings",
    },
    fixed={
        "stack.mixer.name": "attention",
        "stack.mixer.qkv_bias": True,
        "stack.moe.router.name": "topk",
        "stack.moe.router.score": "softmax",
        "stack.moe.router.order": "score_then_topk",
        "stack.moe.router.renorm": False,
        "stack.moe.router.scale": 1.0,
        "stack.moe.experts.name": "swiglu",
        "stack.moe.shared.name": "swiglu",
        "stack.moe.shared.gate": "sigmoid",
    },
    # The published evaluation sees 512 points to forecast 96; of the training series nothing is kept.
    preprocessing={
        "context": 512,
        "horizon": 96,
        "columns": [],
        "mean": [],
        "std": [],
        "season": 1,
        "frequency": "many frequencies",
    },
    keys={
        "model.embed_layer.emb_layer.weight": "embed.emb.weight",
        "model.embed_layer.gate_layer.weight": "embed.gate.weight",
        **{
            f"{_THEIRS}.self_attn.{key}": f"{_OURS}.mixer.{key}"
            for key in (*(f"{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")), "o_proj.weight")
        },
        f"{_THEIRS}.input_layernorm.weight": f"{_OURS}.mixer_norm.weight",
        f"{_THEIRS}.post_attention_layernorm.weight": f"{_OURS}.feed_forward_norm.weight",
        f"{_FFN}.gate.weight": f"{_MOE}.router.scorer.weight",
        f"{_FFN}.experts.{{e}}.gate_proj.weight": f"{_MOE}.experts.gate_up_proj[{{e}}, :half]",
        f"{_FFN}.experts.{{e}}.up_proj.weight": f"{_MOE}.experts.gate_up_proj[{{e}}, half:]",
        f"{_FFN}.experts.{{e}}.down_proj.weight": f"{_MOE}.experts.down_proj[{{e}}]",
        **{f"{_FFN}.shared_expert.{p}_proj.weight": f"{_MOE}.shared.{p}_proj.weight" for p in ("gate", "up", "down")},
        f"{_FFN}.shared_expert_gate.weight": f"{_MOE}.shared.gate.weight",
        "model.norm.weight": "stack.norm.weight",
        "lm_heads.{h}.out_layer.weight": "heads.{h}.weight",
    },
)
