"""Dance: motion from music, with whole blocks as experts for genres. Importing the manifest needs no torch."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec, Weights
from zoo_dance.data.files import AMP, BANDAI_NAMCO_1, DEEPMIMIC
from zoo_dance.importers import MEGADANCE

_MEGADANCE, _CODEC = "zoo_dance.models.megadance:MEGADance", "zoo_dance.models.codec:MotionCodec"
_PAPER = "MEGADance, arXiv:2505.17543"
_SETS = "zoo_dance.data.sets"

plugin = Plugin(
    api=API,
    doc="dance: motion from music, with whole blocks as experts for genres",
    models=(
        ModelSpec(
            "megadance_tiny",
            _MEGADANCE,
            "dancing",
            "MEGADance at a size that trains on a laptop",
            _PAPER,
            pretrained={
                "mimic": Weights(
                    "bundled:weights/megadance_tiny.mimic",
                    "dance/megadance_mimic",
                    "DeepMimic and AMP",
                    "data: MIT and BSD-3-Clause; from CMU's motion capture (mocap.cs.cmu.edu)",
                )
            },
        ),
        ModelSpec("megadance_styles", _MEGADANCE, "dancing", "the same for 15 styles and 16 contents", _PAPER),
        ModelSpec(
            "megadance",
            _MEGADANCE,
            "dancing",
            "510M parameters, 16 genres, as released for FineDance",
            _PAPER,
            importers={"public": MEGADANCE},
        ),
        ModelSpec("fsq_tiny", _CODEC, "coding", "the tokeniser alone: finite scalar quantisation", _PAPER),
        ModelSpec("vq_tiny", _CODEC, "coding", "its rival: a learned code book", "arXiv:1711.00937"),
    ),
    datasets=(
        DatasetSpec(
            "mimic",
            f"{_SETS}:Mimic",
            "25 motions of DeepMimic and AMP, of eight kinds; music is made for them",
            "MIT and BSD-3-Clause",
            files=(DEEPMIMIC, AMP),
        ),
        DatasetSpec(
            "bandai_namco",
            f"{_SETS}:BandaiNamco",
            "Bandai-Namco-Research-Motiondataset 1 (174 clips, 15 styles), or 2 as downloaded; no music",
            "CC BY-NC 4.0: research only",
            files=(BANDAI_NAMCO_1,),
        ),
        DatasetSpec(
            "aist", f"{_SETS}:AISTpp", "AIST++ as you downloaded it: ten genres of dance, with music", "CC BY 4.0"
        ),
        DatasetSpec(
            "finedance", f"{_SETS}:FineDance", "FineDance as you downloaded it: 16 genres, with music", "CC BY-NC 4.0"
        ),
        DatasetSpec(
            "own", f"{_SETS}:Own", "your own motion and music: a folder for every genre", requires=("soundfile",)
        ),
    ),
    parts=(
        PartSpec(
            "wiring",
            "stream_block",
            "zoo_dance.models.blocks:StreamBlock",
            "x = n(x + mamba_s(x)) for each stream s; x + attention(n_s(x)); x + mlp(n_s(x))",
            _PAPER,
            "MEGADance",
        ),
        PartSpec(
            "mixer",
            "window_attention",
            "zoo_dance.models.blocks:WindowAttention",
            "causal attention over all streams of the last w times",
            _PAPER,
            "MEGADance",
        ),
        PartSpec(
            "state space",
            "mamba",
            "zoo_dance.models.mamba:Mamba",
            "h_t = exp(d_t A) h_(t-1) + d_t B_t u_t; y_t = C_t h_t + D u_t",
            "arXiv:2312.00752",
            "MEGADance",
        ),
        PartSpec(
            "quantiser",
            "fsq",
            "zoo_dance.models.quantisers:FSQ",
            "round((L - 1) / 2 tanh z) for each of a few numbers, straight through",
            "arXiv:2309.15505",
            "MEGADance",
        ),
        PartSpec(
            "quantiser",
            "vq",
            "zoo_dance.models.quantisers:VQ",
            "the nearest of K learned vectors, straight through",
            "arXiv:1711.00937",
            "Bailando",
        ),
    ),
    tasks=(
        TaskSpec(
            "dancing",
            "zoo_dance.tasks.dancing:Dancing",
            "a dance to music",
            inputs=(
                Input(
                    "music",
                    "a sound file (wav, flac, ogg, mp3), or what a small band plays: house@124",
                    required=True,
                    text=True,
                ),
                Input("genre", "one genre, or several over time: NAME,OTHER@12.5 (seconds)", text=True),
                Input("content", "what is danced, for models that know contents", text=True),
                Input("start", "a motion file to begin with, for models without a start token", text=True),
                Input("stats", "the folder of mean.pt and std.pt of MEGADance, for its converted weights", text=True),
                Input("seed", "the same seed, the same dance", default=0),
                Input("temperature", "0 always takes the likeliest; by default as the model was made"),
                Input("top_p", "draw from the likeliest that hold this share"),
                Input("seconds", "dance to so much of the music"),
                Input("gif", "how many seconds the picture shows; 0 for none", default=12),
            ),
            requires=("soundfile",),
        ),
        TaskSpec(
            "coding",
            "zoo_dance.tasks.coding:Coding",
            "motion into codes and back",
            inputs=(Input("motion", "a motion file: BVH, AIST++ or SMPL pickle, AMP .npy", required=True, text=True),),
        ),
    ),
)
