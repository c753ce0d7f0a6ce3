"""The public ops. Nothing else is imported from outside."""

from zoo_kernels.backend import backends, use_backend
from zoo_kernels.experts import combine, expand, expert_ffn, expert_ffn_quantised
from zoo_kernels.plan import Plan, Widths
from zoo_kernels.quant import dequantise, quantise_int8, quantise_ternary
from zoo_kernels.routing import ORDERS, SCORES, plan, plan_pairs, round_tokens, route

__all__ = [
    "ORDERS",
    "SCORES",
    "Plan",
    "Widths",
    "backends",
    "combine",
    "dequantise",
    "expand",
    "expert_ffn",
    "expert_ffn_quantised",
    "plan",
    "plan_pairs",
    "quantise_int8",
    "quantise_ternary",
    "round_tokens",
    "route",
    "use_backend",
]
