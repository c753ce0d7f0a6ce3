"""How public checkpoints of diffusion transformers become ours. Plain data; read by `zoo.hub`.

The files are state dicts without a config, so the model is named by the user, or by the file. The position table is
read with the rest, so that weights of another resolution are refused.
"""

from zoo.spec import Importer

_THEIRS, _OURS = "blocks.{n}", "stack.layers.{n}"
_FF = f"{_OURS}.feed_forward"

_EDGES = {
    "pos_embed": "positions",
    "y_embedder.embedding_table.weight": "condition.table.weight",
}
for _kind in ("weight", "bias"):
    _EDGES |= {
        f"x_embedder.proj.{_kind}": f"embed.{_kind}",
        f"t_embedder.mlp.{{n}}.{_kind}": f"time_mlp.{{n}}.{_kind}",
        f"final_layer.linear.{_kind}": f"head.linear.{_kind}",
        f"final_layer.adaLN_modulation.1.{_kind}": f"head.modulation.{_kind}",
        f"{_THEIRS}.adaLN_modulation.1.{_kind}": f"{_OURS}.modulation.{_kind}",
    }
_NORMS = {
    f"{_THEIRS}.attn.{part}_norm.{kind}": f"{_OURS}.mixer.{part}_norm.{kind}"
    for part in "qk"
    for kind in ("weight", "bias")
}
_MOE = {
    f"{_THEIRS}.moe.gate.weight": f"{_FF}.router.scorer.weight",
    f"{_THEIRS}.moe.experts.{{e}}.gate_proj.weight": f"{_FF}.experts.gate_up_proj[{{e}}, :half]",
    f"{_THEIRS}.moe.experts.{{e}}.up_proj.weight": f"{_FF}.experts.gate_up_proj[{{e}}, half:]",
    f"{_THEIRS}.moe.experts.{{e}}.down_proj.weight": f"{_FF}.experts.down_proj[{{e}}]",
    **{
        f"{_THEIRS}.moe.shared_experts.{part}_proj.weight": f"{_FF}.shared.{part}_proj.weight"
        for part in ("gate", "up", "down")
    },
}
_DENSE = {
    f"{_THEIRS}.mlp.fc{place}.{kind}": f"{_FF}.{ours}_proj.{kind}"
    for place, ours in ((1, "up"), (2, "down"))
    for kind in ("weight", "bias")
}


def _attention(qkv: str, out: str) -> dict[str, str]:
    """Queries, keys and values are one matrix there."""
    keys = {}
    for kind in ("weight", "bias"):
        keys[f"{_THEIRS}.attn.{out}.{kind}"] = f"{_OURS}.mixer.o_proj.{kind}"
        for place, part in enumerate("qkv"):
            keys[f"{_THEIRS}.attn.{qkv}.{kind}[{place}/3]"] = f"{_OURS}.mixer.{part}_proj.{kind}"
    return keys


_TIMM, _FLASH = _attention("qkv", "proj"), _attention("Wqkv", "out_proj")

DIT_MOE = Importer(
    config={},
    keys={**_EDGES, **_NORMS, **_MOE, **_TIMM},
    dialects={"flash": {**_EDGES, **_NORMS, **_MOE, **_FLASH}},
)
"""DiT-MoE (github feizhengcong/DiT-MoE): S and B name their attention as timm does, XL and G as flash-attention."""

DIT = Importer(config={}, keys={**_EDGES, **_NORMS, **_DENSE, **_TIMM})
"""DiT (github facebookresearch/DiT)."""
