"""Init actions of stages. Plain data: see `zoo.spec.PartSpec`."""

from zoo.spec import PartSpec

PARTS = (
    PartSpec(
        "init action",
        "clone",
        "zoo.surgery.actions:Clone",
        "one expert of a layer, or the shared one, becomes all of them",
        "arXiv:2212.05055",
        "MoE-LLaVA, MoTE",
    ),
    PartSpec("init action", "load", "zoo.surgery.actions:Load", "parts of another trained model, by name"),
    PartSpec("init action", "silence", "zoo.surgery.actions:Silence", "experts that say 0 at first", "", "MoTE"),
)
