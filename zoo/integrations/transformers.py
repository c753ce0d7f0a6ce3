"""Our experts inside the mixture-of-experts models of Hugging Face transformers (>= 5).

    from zoo.integrations.transformers import register
    register()
    model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="zoo")
    model.set_experts_implementation("zoo")      # or later, and back with "grouped_mm" or "eager"

A family either computes what its own eager code does, or is refused when it first runs: see `gate_of`.
Weights stored as (E, in, out) (GPT-OSS, Aria) are read as they lie, without a copy.

Legend: T tokens, K slots, E experts, D model width, F inner width, W = 2F (gated) or F, N pairs T * K.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import ZooError
from zoo_kernels import ops

NAME = "zoo"


class Gate(NamedTuple):
    """What the kernels need to know of a family's activation."""

    activation: str
    limit: float | None = None
    interleaved: bool = False


# Activation modules by class name (transformers' own and torch's), and the kernel of the same maths.
_ACTIVATIONS = {
    "SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "ReLU": "relu",
    "ReLUSquaredActivation": "relu2",
}  # fmt: skip
_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}

# Families with a gate of their own, by its qualified name: (kernel or None for that of act_fn, attribute of the
# limit, attribute of alpha, interleaved).
_OWN_GATES: dict[str, tuple[str | None, str, str, bool]] = {
    "BeamExperts._apply_gate": (None, "", "", False),  # the default gate in fp32, as our kernels compute it anyway
    "DeepseekV4Experts._apply_gate": (None, "limit", "", False),
    "Glm5NextTextExperts._apply_gate": ("swiglu", "swiglu_limit", "", False),
    "HYV4Experts._apply_gate": ("swiglu", "swiglu_limit", "", False),
    "GptOssExperts._apply_gate": ("clamped_swiglu", "limit", "alpha", True),
    "MiniMaxM3VLExperts._apply_gate": ("clamped_swiglu", "swiglu_limit", "swiglu_alpha", False),
    "OpenAIPrivacyFilterExperts._apply_gate": ("clamped_swiglu", "limit", "alpha", False),
}
_ALPHA = 1.702


def register() -> None:
    """Make ``experts_implementation="zoo"`` known to transformers; call it before the model is built or switched.

    Raises `ZooError` when the installed transformers has no experts interface.
    """
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError as error:
        raise ZooError(
            f"transformers has no experts interface ({error}); run: pip install 'transformers>=5'"
        ) from error
    ExpertsInterface.register(NAME, experts_forward)


def experts_forward(self: nn.Module, hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """(T, D): the weighted sum of each token's experts; ``self`` is a decorated Experts module of transformers.

    An index of ``num_experts`` or more marks an expert of another rank under expert parallelism and contributes
    nothing. Raises `ZooError` for a family that the kernels do not compute, ValueError for an index out of range.
    """
    module: Any = self
    gate = gate_of(module)
    w_in, w_out = (module.gate_up_proj if module.has_gate else module.up_proj), module.down_proj
    b_in = b_out = None
    if module.has_bias:
        b_in = module.gate_up_proj_bias if module.has_gate else module.up_proj_bias
        b_out = module.down_proj_bias
    if module.is_transposed:
        w_in, w_out = w_in.mT, w_out.mT
    used_TK = None
    if module._is_expert_parallel:
        used_TK = index_TK < module.num_experts
        index_TK = index_TK.clamp(max=module.num_experts - 1)
    plan = ops.plan(index_TK, module.num_experts, used_TK)
    return ops.expert_ffn(
        hidden_TD, weight_TK.reshape(-1), plan, w_in, w_out, activation=gate.activation, b_in=b_in, b_out=b_out,
        limit=gate.limit, interleaved=gate.interleaved,
    )  # fmt: skip


def gate_of(module: Any) -> Gate:
    """The kernel of this module's activation. Raises `ZooError` that names family, flag and remedy if there is none."""
    if module.has_post_expert_norm:
        raise _refusal(module, "has_post_expert_norm=True, a norm inside each expert")
    if not module.has_gate:
        return Gate(_act_fn(module))
    own = _own_gate(module)
    if own is None:
        gate = Gate(_gated(module))
    else:
        activation, limit, alpha, interleaved = own
        if alpha and getattr(module, alpha) != _ALPHA:
            raise _refusal(module, f"{alpha}={getattr(module, alpha)}, not {_ALPHA}")
        gate = Gate(activation or _gated(module), float(getattr(module, limit)) if limit else None, interleaved)
    if module.is_concatenated == gate.interleaved:
        raise _refusal(module, f"is_concatenated={module.is_concatenated}, which its gate does not follow")
    return gate


def _own_gate(module: Any) -> tuple[str | None, str, str, bool] | None:
    """The family's entry above; None for transformers' default gate."""
    name = "" if "_apply_gate" in module.__dict__ else _gate_name(type(module))
    if name == "_default_apply_gate":
        return None
    if name not in _OWN_GATES:
        raise _refusal(module, "an _apply_gate of its own")
    return _OWN_GATES[name]


def _gate_name(family: Any) -> str:
    """Qualified name of transformers' gate of this class; empty when somebody else wrote it."""
    gate = family._apply_gate
    return gate.__qualname__ if gate.__module__.startswith("transformers.") else ""


# What torch.compiler.assume_constant_result sets: dynamo cannot read the name of a function.
_gate_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _act_fn(module: Any) -> str:
    act = module.act_fn
    if act is F.silu:
        return "silu"
    name = type(act).__name__
    if name not in _ACTIVATIONS:
        raise _refusal(module, f"the activation {name}")
    return _ACTIVATIONS[name]


def _gated(module: Any) -> str:
    act = _act_fn(module)
    if act not in _GATED:
        raise _refusal(module, f"a gate of {type(module.act_fn).__name__}")
    return _GATED[act]


def _refusal(module: Any, what: str) -> ZooError:
    return ZooError(
        f"experts_implementation='{NAME}': {type(module).__name__} has {what}, which the kernels do not compute; "
        f"use experts_implementation='grouped_mm'"
    )
