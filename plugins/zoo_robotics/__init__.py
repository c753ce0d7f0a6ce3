"""Robotics: policies with mixtures of experts, in simulation. Importing the manifest needs no torch."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec, Weights

_ACT, _FLOW = "zoo_robotics.models.act:ACT", "zoo_robotics.models.flow:FlowPolicy"
_MOE_ACT, _ADAMOE = "MoE-ACT, arXiv:2601.21971", "AdaMoE-VLA, arXiv:2510.14300"
_HEADS = "zoo_robotics.models.heads"

# -- policies --
MODELS = (
    ModelSpec("mlp", "zoo_robotics.models.mlp:MLPPolicy", "imitation", "the plain rival: an MLP to a chunk of actions"),
    ModelSpec("act", _ACT, "imitation", "ACT at a size that trains on one core", "arXiv:2304.13705"),
    ModelSpec(
        "moe_act",
        _ACT,
        "imitation",
        "ACT with a head for every phase, mixed by a router",
        _MOE_ACT,
        pretrained={
            "mt4": Weights(
                "bundled:weights/moe_act.mt4",
                "robotics/moe_act_mt4",
                "Meta-World's scripts on four tasks",
                "Apache-2.0",
            )
        },
    ),
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

# -- worlds --
_SETS = "zoo_robotics.data.sets"
DATASETS = (
    DatasetSpec("synthetic", f"{_SETS}:Synthetic", "a point that grasps and carries: nothing to install", "Apache-2.0"),
    DatasetSpec(
        "meta_world",
        f"{_SETS}:MetaWorldData",
        "Meta-World's scripts, recorded here on first use: four tasks unless told otherwise",
        "MIT (Meta-World); what is recorded is yours",
        requires=("metaworld", "mujoco", "pyarrow"),
    ),
    DatasetSpec(
        "own", f"{_SETS}:Own", "your own demonstrations: a LeRobotDataset or .npz files", requires=("pyarrow", "pandas")
    ),
)
TASKS = (
    TaskSpec(
        "imitation",
        "zoo_robotics.tasks.imitation:Imitation",
        "what to do, learned from demonstrations, and acted out",
        inputs=(
            Input("task", "which of the policy's tasks to act out", text=True),
            Input("seed", "another one, another layout of the scene", default=0),
            Input("size", "side of the film's pictures; 0 for none", default=320),
            Input("steps", "time of the episode, unless it is solved before; else the world's limit"),
            Input("world", "where to act, for a policy of your own data: meta_world or synthetic", text=True),
            Input("input", "instead of acting: an .npz file of observations to say actions for", text=True),
        ),
    ),
)

plugin = Plugin(
    api=API,
    doc="robotics: policies with mixtures of experts, in simulation",
    models=MODELS,
    datasets=DATASETS,
    tasks=TASKS,
    parts=PARTS,
)
