"""Models that see and speak: mixtures of experts over image patches and words. The manifest; it needs no torch."""

from __future__ import annotations

from zoo.spec import API, DatasetSpec, Input, PartSpec, Plugin, TaskSpec
from zoo_vision_language.data.files import NLVR, VQA_RAD
from zoo_vision_language.systems import MODELS

_DATA, _MODELS = "zoo_vision_language.data", "zoo_vision_language.models"

plugin = Plugin(
    api=API,
    doc="models that answer questions about images",
    models=MODELS,
    datasets=(
        DatasetSpec(
            "easy_vqa",
            f"{_DATA}.public:EasyVqa",
            "5,000 pictures of one coloured shape and 48,248 questions, in the package easy-vqa",
            "MIT",
            requires=("easy_vqa",),
        ),
        DatasetSpec(
            "vqa_rad",
            f"{_DATA}.public:VqaRad",
            "VQA-RAD: 315 radiology images, 3,515 questions of clinicians",
            "CC0 1.0, as a card of the OSF release states",
            files=tuple(VQA_RAD.values()),
        ),
        DatasetSpec(
            "nlvr",
            f"{_DATA}.public:Nlvr",
            "NLVR: sentences that are true or false of three boxes of shapes; trained on its dev part",
            "CC BY 4.0",
            files=(NLVR,),
        ),
        DatasetSpec("llava", f"{_DATA}.own:Llava", "your own dialogues about images, in the format of LLaVA"),
        DatasetSpec("captions", f"{_DATA}.own:Captions", "your own folder of images with captions"),
    ),
    parts=(
        PartSpec("tower", "conv", f"{_MODELS}.towers:Conv", "strided 3x3 convolutions, to train from nothing"),
        PartSpec(
            "tower", "patches", f"{_MODELS}.towers:Patches", "one convolution into patches", "arXiv:2410.08202",
            "Mono-InternVL",
        ),
        PartSpec("tower", "timm", f"{_MODELS}.towers:Timm", "any image model of timm, by its name"),
        PartSpec(
            "tower", "transformers", f"{_MODELS}.towers:Transformers", "the vision model of a CLIP or SigLIP", "",
            "MoE-LLaVA, MoIIE",
        ),
        PartSpec(
            "connector", "mlp", f"{_MODELS}.connectors:MLP", "W_n gelu(... W_1 x), pixel shuffle before it",
            "arXiv:2310.03744", "LLaVA-1.5, MoE-LLaVA, InternVL",
        ),
        PartSpec("language_model", "decoder", f"{_MODELS}.language:Decoder", "the transformer stack of the zoo"),
        PartSpec(
            "language_model", "transformers", f"{_MODELS}.language:Transformers",
            "any causal language model of transformers, mixtures in place of its MLPs",
        ),
        PartSpec("vocabulary", "words", f"{_DATA}.vocabulary:Words", "words of the train split, others in bytes"),
        PartSpec(
            "vocabulary", "tokenizer", f"{_DATA}.vocabulary:Tokenizer", "your tokenizer.json", requires=("tokenizers",)
        ),
        PartSpec(
            "vocabulary", "smollm2", f"{_DATA}.vocabulary:SmolLM2", "the tokenizer of SmolLM2", requires=("tokenizers",)
        ),
        PartSpec(
            "init action", "pretrained", "zoo_vision_language.pretrained:Pretrained",
            "trained weights for the tower and the language model",
        ),
    ),
    tasks=(
        TaskSpec(
            "answering",
            "zoo_vision_language.tasks.answering:Answering",
            "answers to questions about images",
            inputs=(
                Input("image", "a PNG, JPEG or WebP file; several: [A,B]", required=True),
                Input("prompt", "the question", required=True, text=True),
                Input("max_tokens", "tokens of the answer at most", default=64),
                Input("temperature", "0 takes the likeliest token, 1 draws from the model's distribution", default=0.0),
                Input("seed", "of the draws", default=0),
            ),
        ),
    ),
)  # fmt: skip
