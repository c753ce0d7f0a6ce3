"""Language: one decoder from which the mixture-of-experts language models of the literature are composed in YAML."""

from __future__ import annotations

from zoo.spec import DatasetSpec, ModelSpec, Plugin, TaskSpec

DECODER = "zoo_language.models.decoder:Decoder"

plugin = Plugin(
    api=1,
    doc="mixture-of-experts language models",
    models=(ModelSpec("mixtral_tiny", DECODER, "modeling", "Mixtral at a size that trains here", "arXiv:2401.04088"),),
    datasets=(
        DatasetSpec(
            "bytes",
            "zoo_language.data.bytes:Bytes",
            "four domains of bytes that every PyTorch installation contains: Python, C++, prose, records",
            "BSD-3-Clause and the licences of the installed packages",
        ),
    ),
    tasks=(TaskSpec("modeling", "zoo_language.tasks.modeling:Modeling", "next-token prediction"),),
)
