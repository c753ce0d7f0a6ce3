"""How large a model is: parameters, the active part of them, FLOPs and memory, measured on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.moe import MoE


@dataclass(frozen=True)
class Size:
    """``active`` parameters and ``flops`` (a multiply-add is 2) are per token of the model's ``dummy_inputs``, forward
    only; ``tokens`` is how many those are. Memory is that of the parameters, in bytes."""

    parameters: int
    active: int
    flops: float
    tokens: int
    bytes_fp32: int
    bytes_bf16: int


def measure(model: Any) -> Size:
    """Size of a model that was built on the meta device; nothing is computed."""
    total = sum(p.numel() for p in model.parameters())
    inactive = sum(m.inactive_parameters() for m in model.modules() if isinstance(m, MoE))
    inputs = {name: value.to("meta") for name, value in model.dummy_inputs(1).items()}
    tokens: list[int] = []
    handles = [
        m.register_forward_pre_hook(lambda _m, args: tokens.append(args[0].shape[:-1].numel()))
        for m in model.modules()
        if isinstance(m, MoE)
    ]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**inputs)
    for handle in handles:
        handle.remove()
    count = tokens[0] if tokens else next(iter(inputs.values())).numel()
    return Size(total, total - inactive, counter.get_total_flops() / max(1, count), count, 4 * total, 2 * total)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of each direct child."""
    return {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
