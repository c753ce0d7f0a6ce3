"""The systems of the literature that are the decoder with a YAML. Plain data; read by the manifest."""

from __future__ import annotations

from zoo.spec import Importer, ModelSpec, Weights
from zoo_language import importers

DECODER = "zoo_language.models.decoder:Decoder"

# Name, what it is, paper. Every one is the decoder with a YAML of its own; ``_tiny`` trains in a minute or two.
SYSTEMS = (
    ("llama", "Llama, one dense model: what upcycling starts from", "arXiv:2302.13971"),
    (
        "switch_base_128",
        "Switch-Base of 128 experts as one decoder: top-1, capacity",
        "arXiv:2101.03961",
    ),
    ("switch_tiny", "Switch at a size that trains here", "arXiv:2101.03961"),
    ("gshard_600b", "GShard MoE(2048E, 36L) as one decoder: top-2, capacity, every other layer", "arXiv:2006.16668"),
    ("gshard_tiny", "GShard at a size that trains here", "arXiv:2006.16668"),
    ("mixtral_8x7b", "Mixtral 8x7B: renormalised top-2 of 8", "arXiv:2401.04088"),
    ("mixtral_tiny", "Mixtral at a size that trains here", "arXiv:2401.04088"),
    ("olmoe_7b", "OLMoE-1B-7B: top-8 of 64, QK-norm", "arXiv:2409.02060"),
    ("olmoe_tiny", "OLMoE at a size that trains here", "arXiv:2409.02060"),
    ("qwen3_30b_a3b", "Qwen3-30B-A3B: renormalised top-8 of 128, grouped queries, QK-norm", "arXiv:2505.09388"),
    ("qwen3_moe_tiny", "Qwen3-MoE at a size that trains here", "arXiv:2505.09388"),
    ("deepseek_moe_16b", "DeepSeekMoE 16B: fine-grained experts beside shared ones", "arXiv:2401.06066"),
    ("deepseek_moe_tiny", "DeepSeekMoE at a size that trains here", "arXiv:2401.06066"),
    ("deepseek_v3", "DeepSeek-V3 671B without MTP: latent attention, sigmoid bias groups", "arXiv:2412.19437"),
    ("deepseek_v3_tiny", "DeepSeek-V3 at a size that trains here", "arXiv:2412.19437"),
    ("openmoe_8b", "OpenMoE-8B/32E: a mixture beside a dense MLP every sixth layer", "arXiv:2402.01739"),
    ("openmoe_tiny", "OpenMoE at a size that trains here", "arXiv:2402.01739"),
    ("jetmoe_8b", "JetMoE-8B: mixtures of attention heads and of MLPs", "arXiv:2404.07413"),
    ("jetmoe_tiny", "JetMoE at a size that trains here", "arXiv:2404.07413"),
    ("pangu_72b", "Pangu Pro MoE 72B: one expert in each of eight groups", "arXiv:2505.21411"),
    ("pangu_tiny", "Pangu's grouped experts at a size that trains here", "arXiv:2505.21411"),
    ("coe_64", "Chain-of-Experts in the shape of its paper: two passes through one bank", "arXiv:2506.18945"),
    ("coe_tiny", "Chain-of-Experts at a size that trains here", "arXiv:2506.18945"),
    ("rexmoe_tiny", "ReXMoE: two layers choose from the experts of both", ""),
    ("moe_pp_7b", "MoE++ 7B: experts that cost nothing, gating residuals", "arXiv:2410.07348"),
    ("moe_pp_tiny", "MoE++ at a size that trains here", "arXiv:2410.07348"),
    ("adamoe_tiny", "AdaMoE: null experts, as many true ones as a token needs", "arXiv:2406.13233"),
    ("rmoe_tiny", "RMoE: a router that is recurrent over depth", "arXiv:2408.06793"),
    ("bigmac_tiny", "BigMac: tokens go down before they are sent", "arXiv:2502.16927"),
    ("longcat_560b", "LongCat-Flash 560B: shortcut mixtures, free experts, PID bias", "arXiv:2509.01322"),
    ("longcat_tiny", "LongCat-Flash at a size that trains here", "arXiv:2509.01322"),
    ("flexolmo_7x7b", "FlexOlmo 7x7B: experts of several owners around a public one", "arXiv:2507.07024"),
    ("flexolmo_tiny", "FlexOlmo at a size that trains here", "arXiv:2507.07024"),
    ("sigma_moe_20b", "Sigma-MoE-Tiny 20B: one of 96 experts, progressive sparsification", "arXiv:2512.16248"),
    ("sigma_moe_tiny", "Sigma-MoE at a size that trains here", "arXiv:2512.16248"),
    ("ling_lite", "Ling-Lite 16.8B: stochastic routing warm-up, normed head", "arXiv:2503.05139"),
    ("ling_tiny", "Ling at a size that trains here", "arXiv:2503.05139"),
)
IMPORTERS: dict[str, dict[str, Importer]] = {
    "mixtral_8x7b": {"mixtral": importers.MIXTRAL},
    "olmoe_7b": {"olmoe": importers.OLMOE},
    "qwen3_30b_a3b": {"qwen3_moe": importers.QWEN3_MOE},
    "deepseek_v3": {"deepseek_v3": importers.DEEPSEEK_V3},
    "jetmoe_8b": {"jetmoe": importers.JETMOE},
    "flexolmo_7x7b": {"flex_olmo": importers.FLEX_OLMO},
    "llama": {"llama": importers.LLAMA},
}
PRETRAINED: dict[str, dict[str, Weights]] = {
    "mixtral_tiny": {
        "shakespeare": Weights(
            "bundled:weights/mixtral_tiny.shakespeare", "language/shakespeare", "tinyshakespeare", "data: public domain"
        )
    },
}
MODELS = tuple(
    ModelSpec(name, DECODER, "modeling", doc, paper, PRETRAINED.get(name, {}), IMPORTERS.get(name, {}))
    for name, doc, paper in SYSTEMS
)
