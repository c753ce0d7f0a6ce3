"""The manifest: what this plugin offers, as plain data. It imports no torch; targets are followed when used."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec

plugin = Plugin(
    api=API,
    doc="an example: short tones, told apart by the way their pitch moves",
    models=(
        ModelSpec(
            "patch_moe",
            "zoo_birdsong.models.patch_moe:PatchMoE",
            task="classification",
            doc="a small transformer over patches of a waveform, with experts for feed-forward layers",
        ),
    ),
    datasets=(
        DatasetSpec(
            "chirps",
            "zoo_birdsong.data.chirps:Chirps",
            doc="rising, falling and trilling tones in noise, generated",
            licence="none needed: generated",
        ),
    ),
    tasks=(
        TaskSpec(
            "classification",
            "zoo_birdsong.tasks.classification:Classification",
            doc="one label for a recording",
            inputs=(Input("input", "a WAV file, mono, 16 bit", required=True),),
        ),
    ),
    parts=(
        PartSpec(
            "scorer",
            "cosine",
            "zoo_birdsong.scorers:Cosine",
            doc="cosines to expert embeddings over a learned temperature",
            paper="arXiv:2204.09179",
        ),
    ),
)
