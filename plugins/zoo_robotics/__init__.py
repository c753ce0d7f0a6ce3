"""Robotics: policies with mixtures of experts, in simulation. Importing the manifest needs no torch."""

from zoo.spec import API, ModelSpec, PartSpec, Plugin

_ACT, _FLOW = "zoo_robotics.models.act:ACT", "zoo_robotics.models.flow:FlowPolicy"
_MOE_ACT, _ADAMOE = "MoE-ACT, arXiv:2601.21971", "AdaMoE-VLA, arXiv:2510.14300"
_HEADS = "zoo_robotics.models.heads"

# -- policies --
MODELS = (
    ModelSpec("mlp", "zoo_robotics.models.mlp:MLPPolicy", "imitation", "the plain rival: an MLP to a chunk of actions"),
    ModelSpec("act", _ACT, "imitation", "ACT at a size that trains on one core", "arXiv:2304.13705"),
    ModelSpec("moe_act", _ACT, "imitation", "ACT with a head for every phase, mixed by a router", _MOE_ACT),
    ModelSpec("moe_act_surgical", _ACT, "imitation", "MoE-ACT as published: stereo pictures, five phases", _MOE_ACT),
    ModelSpec("adamoe_tiny", _FLOW, "imitation", "a flow-matching action expert with mixtures, tiny", _ADAMOE),
    ModelSpec("adamoe", _FLOW, "imitation", "the published action expert: 18 layers, one of four experts", _ADAMOE),
)
PARTS = (
    PartSpec("head", "dense", f"{_HEADS}:DenseHead", "W_2 silu(W_1 x + b_1) + b_2 for each group of outputs"),
    PartSpec("head", "mixture", f"{_HEADS}:MixtureHead", "sum_p w_p head_p(x), w from a router", _MOE_ACT, "MoE-ACT"),
    PartSpec(
        "experts",
        "action_head",
        f"{_HEADS}:ActionHead",
        "W_2 silu(W_1 x + b_1) + b_2 for each group of outputs",
        "arXiv:2601.21971",
        "MoE-ACT",
    ),
    PartSpec(
        "activation",
        "learned_temperature",
        f"{_HEADS}:LearnedTemperature",
        "softmax(z / tau), tau learned",
        "arXiv:2601.21971",
        "MoE-ACT",
    ),
)

plugin = Plugin(api=API, doc="robotics: policies with mixtures of experts, in simulation", models=MODELS, parts=PARTS)
