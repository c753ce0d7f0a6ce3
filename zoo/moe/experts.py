"""Expert banks: E experts in one tensor a matrix, computed together by `zoo_kernels.ops`.

Shapes: T tokens, K slots, E experts, D model width, F expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo_kernels import ops
from zoo_kernels.plan import Plan


class SwiGLU(nn.Module):
    """``down(silu(gate x) * up x)`` (Shazeer, arXiv:2002.05202). Layout as transformers': gate above up."""

    @dataclass
    class Config:
        intermediate_size: int = 256

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Config, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, inner))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.gate_up_proj, std=std)
        nn.init.normal_(self.down_proj, std=std)

    def first_EFD(self) -> Tensor:
        """The matrix before the activation, for scorers that look at it."""
        return self.gate_up_proj[:, : self.gate_up_proj.shape[1] // 2]

    def forward(self, x_TD: Tensor, weight_TK: Tensor, plan: Plan) -> Tensor:
        weight_N = weight_TK.flatten().to(x_TD.dtype)
        w_in, w_out = self.gate_up_proj.to(x_TD.dtype), self.down_proj.to(x_TD.dtype)
        return ops.expert_ffn(x_TD, weight_N, plan, w_in, w_out, activation="swiglu")
