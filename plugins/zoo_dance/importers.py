"""How the public weights of MEGADance become ours. Plain data; read by `zoo.hub`.

``model.pth`` (github XulongT/MEGADance) holds a state dict and no config, so the model is named by the user. The
convolutions are Jukebox's, the state spaces mamba-ssm's. Masks, the judge of genres and SMPL's buffers are left out;
means and spreads lie in files of their own, which ``zoo predict ... stats=FOLDER`` reads.
"""

from zoo.spec import Importer

LAYERS, GENRES = 8, 16
_STREAMS = ("UP", "DOWN")


def _codec() -> dict[str, str]:
    keys = {}
    for n, stream in enumerate(_STREAMS):
        for kind in ("weight", "bias"):
            encoder, decoder = f"fsq.Pose_{stream}_Encoder.encoders.0", f"fsq.Pose_{stream}_Decoder.decoders.0"
            theirs, ours = f"{encoder}.level_blocks.0.model", f"codec.encoders.{n}.model"
            keys |= {
                f"{theirs}.{{i}}.0.{kind}": f"{ours}.{{i}}.0.{kind}",
                f"{theirs}.{{i}}.1.model.{{j}}.model.{{c}}.{kind}": f"{ours}.{{i}}.1.model.{{j}}.{{c}}.{kind}",
                f"{theirs}.{{i}}.{kind}": f"{ours}.{{i}}.{kind}",
            }
            theirs, ours = f"{decoder}.level_blocks.0.model", f"codec.decoders.{n}.model"
            keys |= {
                f"{theirs}.{{i}}.0.model.{{j}}.model.{{c}}.{kind}": f"{ours}.{{i}}.0.model.{{j}}.{{c}}.{kind}",
                f"{theirs}.{{i}}.1.{kind}": f"{ours}.{{i}}.1.{kind}",
                f"{theirs}.{{i}}.{kind}": f"{ours}.{{i}}.{kind}",
                f"{decoder}.out.{kind}": f"codec.decoders.{n}.out.{kind}",
            }
            for part in ("project_in", "project_out"):
                theirs = f"fsq.Pose_{stream}_Quantizer.bottleneck.{part}.{kind}"
                keys[theirs] = f"codec.quantisers.{n}.{part}.{kind}"
    return keys


def _block(theirs: str, ours: str) -> dict[str, str]:
    """Attention and MLP with their norms."""
    keys = {}
    for kind in ("weight", "bias"):
        for part, place in (("key", "k"), ("query", "q"), ("value", "v"), ("proj", "o")):
            keys[f"{theirs}.attn.{part}.{kind}"] = f"{ours}.mixer.{place}_proj.{kind}"
        for place, part in ((0, "up"), (2, "down")):
            keys[f"{theirs}.mlp.{place}.{kind}"] = f"{ours}.feed_forward.{part}_proj.{kind}"
        for n in range(3):
            keys[f"{theirs}.ln1.ln{n + 1}.{kind}"] = f"{ours}.mixer_norms.{n}.{kind}"
            keys[f"{theirs}.ln2.ln{n + 1}.{kind}"] = f"{ours}.feed_forward_norms.{n}.{kind}"
    return keys


def _decoder() -> dict[str, str]:
    root = "gpt.dance_decoder"
    keys = {}
    for kind in ("weight", "bias"):
        keys[f"{root}.music_MLP.{{n}}.{kind}"] = f"music_in.{{n}}.{kind}"
        keys[f"{root}.MLP_Output.{{n}}.{kind}"] = f"head.{{n}}.{kind}"
    for n, stream in enumerate(_STREAMS):
        keys[f"{root}.pose_{stream.lower()}_emb.{{d}}.weight"] = f"embed.{n}.{{d}}.weight"
    for layer in range(LAYERS):
        theirs, universal = f"{root}.decoder_layers.{layer}", f"stack.layers.{2 * layer}"
        for n in range(3):
            mamba = f"{theirs}.global_mamba.mamba{n + 1}"
            for name in ("A_log", "D", "conv1d.weight", "conv1d.bias", "dt_proj.weight", "dt_proj.bias"):
                keys[f"{mamba}.{name}"] = f"{universal}.mambas.{n}.{name}"
            for name in ("in_proj.weight", "x_proj.weight", "out_proj.weight"):
                keys[f"{mamba}.{name}"] = f"{universal}.mambas.{n}.{name}"
            for kind in ("weight", "bias"):
                keys[f"{theirs}.global_mamba.norm{n + 1}.{kind}"] = f"{universal}.mamba_norms.{n}.{kind}"
        keys |= _block(f"{theirs}.global_swab", universal)
        keys |= _block(f"{theirs}.genre_swab.{{g}}", f"stack.layers.{2 * layer + 1}.blocks.{{g}}")
    return keys


def _masks() -> tuple[str, ...]:
    blocks = ("global_swab", *(f"genre_swab.{genre}" for genre in range(GENRES)))
    return tuple(
        f"gpt.dance_decoder.decoder_layers.{layer}.{block}.attn.mask" for layer in range(LAYERS) for block in blocks
    )


MEGADANCE = Importer(
    config={},
    keys={**_codec(), **_decoder()},
    ignore=(
        *_masks(),
        "cls_model.",
        "fsq.smpl.",
        "gpt.smpl.",
        *(f"fsq.Pose_{stream}_Quantizer.bottleneck.{name}" for stream in _STREAMS for name in ("layers.", "scales")),
    ),
)
"""MEGADance as released, 16 genres."""
