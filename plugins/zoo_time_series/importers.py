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

_LAYER, _OUR_LAYER = "encoder.layers.{n}", "layers.{n}"
_PARAMETERS = {0: ("df", "loc", "scale"), 1: ("loc",), 2: ("total_count", "logits"), 3: ("loc", "scale")}

MOIRAI_MOE = Importer(
    # One patch size; the checkpoint's keys say which distributions are mixed.
    expect={"patch_sizes": [16], "scaling": True},
    config={"hidden_size": "d_model", "num_layers": "num_layers", "moe.experts.intermediate_size": "d_ff"},
    fixed={
        "patch": 16,
        "scaling": True,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "components": ["student_t", "normal", "negative_binomial", "log_normal"],
        "moe.num_experts": 32,
        "moe.router.name": "composed",
        # The released gate takes the two centroids that are farthest.
        "moe.router.scorer": {"name": "centroid", "sign": 1},
        "moe.router.activation": {"name": "identity"},
        "moe.router.selector": {"name": "topk", "k": 2},
        "moe.router.weigher": {"name": "chosen_softmax"},
        "moe.experts.name": "swiglu",
    },
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
        **{
            f"{part}.{kind}[0]": f"{part}.{kind}"
            for part in ("in_proj", "feat_proj", "res_proj")
            for kind in ("weight", "bias")
        },
        **{
            f"{_LAYER}.self_attn.{theirs}.weight": f"{_OUR_LAYER}.attention.{ours}.weight"
            for theirs, ours in (
                ("q_proj", "q_proj"),
                ("k_proj", "k_proj"),
                ("v_proj", "v_proj"),
                ("out_proj", "o_proj"),
                ("q_norm", "q_norm"),
                ("k_norm", "k_norm"),
            )
        },
        f"{_LAYER}.self_attn.var_attn_bias.emb.weight": f"{_OUR_LAYER}.variate_bias",
        f"{_LAYER}.norm1.weight": f"{_OUR_LAYER}.attention_norm.weight",
        f"{_LAYER}.norm2.weight": f"{_OUR_LAYER}.moe_norm.weight",
        "encoder.centroid[{n}]": f"{_OUR_LAYER}.moe.router.scorer.centroid_ED",
        f"{_LAYER}.ffn.experts.{{e}}.fc_gate.weight": f"{_OUR_LAYER}.moe.experts.gate_up_proj[{{e}}, :half]",
        f"{_LAYER}.ffn.experts.{{e}}.fc1.weight": f"{_OUR_LAYER}.moe.experts.gate_up_proj[{{e}}, half:]",
        f"{_LAYER}.ffn.experts.{{e}}.fc2.weight": f"{_OUR_LAYER}.moe.experts.down_proj[{{e}}]",
        "encoder.norm.weight": "norm.weight",
        **{f"param_proj.proj.weights_logits.{kind}[0]": f"head.weights.{kind}" for kind in ("weight", "bias")},
        **{
            f"param_proj.proj.components.{k}.{name}.{kind}[0]": f"head.components.{k}.{name}.{kind}"
            for k, names in _PARAMETERS.items()
            for name in names
            for kind in ("weight", "bias")
        },
    },
)
