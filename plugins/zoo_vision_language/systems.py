"""The systems of the literature that are the model with a YAML. Plain data; read by the manifest."""

from __future__ import annotations

from zoo.spec import Importer, ModelSpec, Weights

TARGET = "zoo_vision_language.models.vision_language:VisionLanguage"

SYSTEMS = (
    ("llava_tiny", "LLaVA at a size that trains here: one dense model, what MoE-LLaVA starts from", "arXiv:2310.03744"),
    ("moe_llava_tiny", "MoE-LLaVA at a size that trains here: two of four experts in every other", "arXiv:2401.15947"),
    ("moiie_tiny", "MoIIE at a size that trains here: experts of images, of words, and of both", "arXiv:2508.09779"),
    ("mono_internvl_tiny", "Mono-InternVL at a size that trains here: no tower, visual experts", "arXiv:2410.08202"),
    ("mote_tiny", "MoTE at a size that trains here: ternary experts beside a frozen dense layer", "arXiv:2506.14435"),
)  # fmt: skip
PRETRAINED: dict[str, dict[str, Weights]] = {}
IMPORTERS: dict[str, dict[str, Importer]] = {}
MODELS = tuple(
    ModelSpec(name, TARGET, "answering", doc, paper, PRETRAINED.get(name, {}), IMPORTERS.get(name, {}))
    for name, doc, paper in SYSTEMS
)
