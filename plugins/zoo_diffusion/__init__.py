"""Pictures from noise: diffusion transformers with mixtures of experts. Importing the manifest needs no torch."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec, Weights
from zoo_diffusion.data.files import EMOJI, OMNIGLOT
from zoo_diffusion.importers import DIT, DIT_MOE

_DIT = "zoo_diffusion.models.dit:DiT"
_MOE_PAPER, _DENSE_PAPER = "DiT-MoE, arXiv:2407.11633", "DiT, arXiv:2212.09748"
# (name, total, active), as published and as `zoo info` counts.
_SIZES = (
    ("s_8e2a", "199M", "72M"),
    ("s_16e2a", "369M", "72M"),
    ("b_8e2a", "796M", "286M"),
    ("b_16e2a", "1.48B", "286M"),
    ("l_8e2a", "2.8B", "1.0B"),
    ("xl_8e2a", "4.17B", "1.49B"),
    ("g_16e2a", "16.50B", "3.18B"),
)
_DENSE_SIZES = (("s_2", "33M"), ("b_2", "130M"), ("l_2", "458M"), ("xl_2", "675M"))

plugin = Plugin(
    api=API,
    doc="image generation: diffusion transformers with mixtures of experts, DDPM and rectified flow",
    models=(
        ModelSpec(
            "dit_moe_tiny",
            _DIT,
            "generation",
            "DiT-MoE at a size that trains on a laptop",
            _MOE_PAPER,
            pretrained={
                "digits": Weights(
                    "bundled:weights/dit_moe_tiny.digits",
                    "diffusion/dit_moe_digits",
                    "scikit-learn digits",
                    "data: CC BY 4.0 (UCI)",
                )
            },
        ),
        ModelSpec(
            "dit_moe_text",
            _DIT,
            "generation",
            "DiT-MoE for captions, small enough for a laptop",
            _MOE_PAPER,
            pretrained={
                "emoji": Weights(
                    "bundled:weights/dit_moe_text.emoji", "diffusion/dit_moe_emoji", "Noto Emoji", "data: Apache-2.0"
                )
            },
        ),
        *(
            ModelSpec(
                f"dit_moe_{size}",
                _DIT,
                "generation",
                f"{total} parameters, {active} active; latents of 256 x 256 pictures",
                _MOE_PAPER,
                importers={"public": DIT_MOE},
            )
            for size, total, active in _SIZES
        ),
        ModelSpec("dit_tiny", _DIT, "generation", "a dense DiT at a size that trains on a laptop", _DENSE_PAPER),
        *(
            ModelSpec(
                f"dit_{size}",
                _DIT,
                "generation",
                f"{total} parameters, dense; latents of 256 x 256 pictures",
                _DENSE_PAPER,
                importers={"public": DIT},
            )
            for size, total in _DENSE_SIZES
        ),
    ),
    datasets=(
        DatasetSpec(
            "digits",
            "zoo_diffusion.data.digits:Digits",
            "1,797 handwritten digits of 8 x 8; ships with scikit-learn",
            "CC BY 4.0 (UCI)",
            requires=("sklearn",),
        ),
        DatasetSpec(
            "emoji",
            "zoo_diffusion.data.emoji:Emoji",
            "3,545 Noto emoji with their names as captions",
            "Apache-2.0",
            files=(EMOJI,),
        ),
        DatasetSpec(
            "omniglot",
            "zoo_diffusion.data.omniglot:Omniglot",
            "4,840 drawings of the characters of eight alphabets",
            "MIT",
            files=tuple(OMNIGLOT.values()),
        ),
        DatasetSpec(
            "folder", "zoo_diffusion.data.folder:Folder", "your own pictures, with captions or sub-folders as classes"
        ),
    ),
    parts=(
        PartSpec(
            "wiring",
            "adaln_zero",
            "zoo_diffusion.blocks.adaln:AdaLNZero",
            "x + g mixer(n(x) (1 + s) + b), then the same of the feed-forward; g, s, b = W silu(cond)",
            "arXiv:2212.09748",
            "DiT, DiT-MoE",
        ),
        PartSpec("condition", "label", "zoo_diffusion.blocks.conditions:Label", "a row of a table for each class"),
        PartSpec(
            "condition",
            "text",
            "zoo_diffusion.blocks.conditions:Text",
            "MLP(norm(sum of the vectors of words and their parts))",
            "arXiv:1607.04606",
        ),
        PartSpec(
            "objective",
            "rectified_flow",
            "zoo_diffusion.objectives:RectifiedFlow",
            "|v(x_t, t) - (z - x)|^2 with x_t = (1 - t) x + t z",
            "arXiv:2209.03003",
            "DiT-MoE",
        ),
        PartSpec(
            "objective",
            "ddpm",
            "zoo_diffusion.objectives:DDPM",
            "|e(x_t, t) - z|^2, with a learned variance the bound beside it",
            "arXiv:2006.11239",
            "DiT, DiT-MoE",
        ),
        PartSpec("sampler", "euler", "zoo_diffusion.samplers:Euler", "x + (s' - s) slope: DDIM for ddpm"),
        PartSpec(
            "sampler", "heun", "zoo_diffusion.samplers:Heun", "x + (s' - s) (slope + slope') / 2", "arXiv:2206.00364"
        ),
        PartSpec(
            "sampler", "ancestral", "zoo_diffusion.samplers:Ancestral", "DDPM's own chain, fresh noise at each step"
        ),
        PartSpec("space", "pixels", "zoo_diffusion.spaces:Pixels", "the picture itself"),
        PartSpec("space", "diffusers", "zoo_diffusion.spaces:Diffusers", "latents of an AutoencoderKL of diffusers"),
    ),
    tasks=(
        TaskSpec(
            "generation",
            "zoo_diffusion.tasks.generation:Generation",
            "pictures from noise",
            inputs=(
                Input(
                    "prompt", "what to draw: a caption, or one or several classes (3,5); all in turn without", text=True
                ),
                Input("n", "how many pictures", default=16),
                Input("seed", "of the noise: the same seed, the same pictures", default=0),
                Input("steps", "of the sampler; by default as it was trained to be used"),
                Input("guidance", "how much the prompt counts; 1 is none"),
                Input("sampler", "euler, heun or, for ddpm, ancestral"),
                Input("objective", "rectified_flow or ddpm, of weights that came without saying"),
                Input("autoencoder", "folder of an AutoencoderKL of diffusers, for a model of its latents"),
            ),
        ),
    ),
)
