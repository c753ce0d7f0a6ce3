"""The manifest of the core's own parts: same form as a plugin's, names without a prefix."""

from zoo.spec import API, PartSpec, Plugin

plugin = Plugin(
    api=API,
    parts=(
        PartSpec("router", "topk", "zoo.moe.router:TopK", "linear scores, top-k, every gate convention as a flag"),
        PartSpec("router", "composed", "zoo.moe.router:Router", "any scorer, activation, hooks, selector and weigher"),
        PartSpec("scorer", "linear", "zoo.moe.scorers:Linear", "W x"),
        PartSpec("activation", "softmax", "zoo.moe.activations:Softmax", "softmax(z / temperature)"),
        PartSpec("activation", "sigmoid", "zoo.moe.activations:Sigmoid", "sigmoid(z)", "arXiv:2412.19437, eq. 15"),
        PartSpec("activation", "identity", "zoo.moe.activations:Identity", "z"),
        PartSpec("selector", "topk", "zoo.moe.selectors:TopK", "the k highest"),
        PartSpec("weigher", "gather", "zoo.moe.weighers:Gather", "s_e, renormalised, scaled"),
        PartSpec("weigher", "chosen_softmax", "zoo.moe.weighers:ChosenSoftmax", "softmax over the chosen logits"),
        PartSpec("weigher", "chosen_sigmoid", "zoo.moe.weighers:ChosenSigmoid", "sigmoid of the chosen logits"),
        PartSpec("experts", "swiglu", "zoo.moe.experts:SwiGLU", "down(silu(gate x) * up x)", "arXiv:2002.05202"),
        PartSpec("shared", "swiglu", "zoo.moe.shared:SwiGLU", "one dense SwiGLU beside the routed experts"),
        PartSpec("balancer", "switch", "zoo.moe.balance:Switch", "E * sum_e f_e P_e", "arXiv:2101.03961, eq. 4"),
        PartSpec("balancer", "z_loss", "zoo.moe.balance:ZLoss", "mean logsumexp(logits)^2", "arXiv:2202.08906, eq. 5"),
    ),
)
