"""The systems of the literature that are the model with a YAML. Plain data; read by the manifest."""

from __future__ import annotations

from zoo.spec import Importer, ModelSpec, Weights
from zoo_vision_language import importers

TARGET = "zoo_vision_language.models.vision_language:VisionLanguage"

SYSTEMS = (
    ("llava_tiny", "LLaVA at a size that trains here: one dense model, what MoE-LLaVA starts from", "arXiv:2310.03744"),
    ("moe_llava_tiny", "MoE-LLaVA at a size that trains here: two of four experts a token", "arXiv:2401.15947"),
    ("moiie_tiny", "MoIIE at a size that trains here: experts of images, of words, and of both", "arXiv:2508.09779"),
    ("mono_internvl_tiny", "Mono-InternVL at a size that trains here: no tower, visual experts", "arXiv:2410.08202"),
    ("moe_llava_stablelm", "MoE-LLaVA-StableLM-1.6B-4e: CLIP ViT-L/14, 12 of 24 layers", "arXiv:2401.15947"),
    ("moe_llava_qwen", "MoE-LLaVA-Qwen-1.8B-4e: CLIP ViT-L/14, 12 of 24 layers", "arXiv:2401.15947"),
    ("moe_llava_smollm2", "MoE-LLaVA of EfficientNet-Lite0 and SmolLM2-135M, trained ones", "arXiv:2401.15947"),
    ("moiie_llama3_8b", "MoIIE of SigLIP so400m at 384 pixels and Llama 3 8B", "arXiv:2508.09779"),
    ("moiie_phi3_mini", "MoIIE of SigLIP so400m at 384 pixels and Phi-3 mini", "arXiv:2508.09779"),
    ("mono_internvl_2b", "Mono-InternVL-2B of InternLM2-1.8B: tiles of 448 pixels, no tower", "arXiv:2410.08202"),
    ("mote_tiny", "MoTE at a size that trains here: ternary experts beside a frozen dense layer", "arXiv:2506.14435"),
)  # fmt: skip
PRETRAINED: dict[str, dict[str, Weights]] = {
    "moe_llava_tiny": {
        "easy_vqa": Weights(
            "bundled:weights/moe_llava_tiny.easy_vqa", "vision_language/moe_llava_easy_vqa", "easy-VQA", "data: MIT"
        )
    },
}
IMPORTERS: dict[str, dict[str, Importer]] = {
    "moe_llava_stablelm": {"moe_llava": importers.MOE_LLAVA},
    "moe_llava_qwen": {"moe_llava": importers.MOE_LLAVA_QWEN},
    "moiie_llama3_8b": {"moiie": importers.MOIIE},
    "moiie_phi3_mini": {"moiie": importers.MOIIE_PHI3},
    "mono_internvl_2b": {"mono_internvl": importers.MONO_INTERNVL},
}
MODELS = tuple(
    ModelSpec(name, TARGET, "answering", doc, paper, PRETRAINED.get(name, {}), IMPORTERS.get(name, {}))
    for name, doc, paper in SYSTEMS
)
