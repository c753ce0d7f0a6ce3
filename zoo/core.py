"""The manifest of the core's own parts: same form as a plugin's, names without a prefix."""

from zoo.spec import API, PartSpec, Plugin

plugin = Plugin(
    api=API,
    parts=(
        PartSpec("router", "topk", "zoo.moe.router:TopK", "linear scores, top-k, every gate convention as a flag"),
        PartSpec("experts", "swiglu", "zoo.moe.experts:SwiGLU", "down(silu(gate x) * up x)", "arXiv:2002.05202"),
        PartSpec("shared", "swiglu", "zoo.moe.shared:SwiGLU", "one dense SwiGLU beside the routed experts"),
        PartSpec("balancer", "switch", "zoo.moe.balance:Switch", "E * sum_e f_e P_e", "arXiv:2101.03961, eq. 4"),
        PartSpec("balancer", "z_loss", "zoo.moe.balance:ZLoss", "mean logsumexp(logits)^2", "arXiv:2202.08906, eq. 5"),
    ),
)
