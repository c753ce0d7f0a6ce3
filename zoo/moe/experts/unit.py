"""Experts that see all tokens of a unit at once: a segment or a sequence.

Shapes: T units, W tokens of a unit, N pairs, E experts, D model width, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.experts.base import Bank, BankConfig
from zoo.moe.experts.grouped import expert_of, grouped_linear
from zoo.moe.experts.mlp import MLP, Weights
from zoo.spec import ZooError
from zoo_kernels.plan import Plan


class SegmentMLP(MLP):
    """``down(act(up vec(x_1 ... x_w)))``, back to w tokens: positions mix inside the expert (Seg-MoE,
    arXiv:2601.21641). ``length`` must be that of the unit; tokens of padding are seen as 0."""

    whole_units = True
    stacked = ("up_proj", "down_proj")

    @dataclass
    class Config(BankConfig):
        length: int = 8
        intermediate_size: int = 256
        activation: Literal["gelu", "relu", "silu"] = "gelu"

        def __post_init__(self) -> None:
            at_least(1, self, "length", "intermediate_size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.activation, wide = config.activation, config.length * hidden_size
        self.up_proj = nn.Parameter(torch.empty(num_experts, config.intermediate_size, wide))
        self.down_proj = nn.Parameter(torch.empty(num_experts, wide, config.intermediate_size))

    def weights(self) -> Weights:
        return self.up_proj, self.down_proj, None, None

    def forward(self, x: Tensor, weight_TK: Tensor, plan: Plan, valid_TW: Tensor | None = None) -> Tensor:
        if x.shape[1] != self.config.length:
            raise ZooError(f"segment_mlp length={self.config.length}, but the unit has {x.shape[1]} tokens; set both")
        return super().forward(x, weight_TK, plan, valid_TW)


class DepthwiseConv(Bank):
    """``y_td = sum_j w_edj x_(t+j)d + b_ed`` along the unit, a kernel for each feature of each expert; ``causal`` looks
    back only. Beyond the unit, and on padding, x is 0."""

    whole_units = True
    stacked = ("weight", "bias")

    @dataclass
    class Config(BankConfig):
        kernel: int = 3
        causal: bool = False

        def __post_init__(self) -> None:
            at_least(1, self, "kernel")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, config.kernel))
        self.bias = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        kernel, expert_N = self.config.kernel, expert_of(plan)
        before = kernel - 1 if self.config.causal else kernel // 2
        weight_NDJ, width = self.weight[expert_N].to(x.dtype), x.shape[1]
        wide = F.pad(x, (0, 0, before, kernel - 1 - before))
        y = self.bias[expert_N, None].to(x.dtype).expand_as(x)
        for j in range(kernel):
            y = y + wide[:, j : j + width] * weight_NDJ[:, None, :, j]
        return y


class GRU(Bank):
    """``W_e h_t``, ``h_t = GRU_e(x_t, h_(t-1))``, h_0 = 0, along the unit (GRU, arXiv:1406.1078; Hecto, S084, with
    ``unit.name=sequence``). A step on padding leaves h as it is."""

    whole_units = True
    stacked = ("in_weight", "in_bias", "hidden_weight", "hidden_bias", "out_weight")

    @dataclass
    class Config(BankConfig):
        size: int = 64

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        size = config.size
        self.in_weight = nn.Parameter(torch.empty(num_experts, 3 * size, hidden_size))
        self.in_bias = nn.Parameter(torch.zeros(num_experts, 3 * size))
        self.hidden_weight = nn.Parameter(torch.empty(num_experts, 3 * size, size))
        self.hidden_bias = nn.Parameter(torch.zeros(num_experts, 3 * size))
        self.out_weight = nn.Parameter(torch.empty(num_experts, hidden_size, size))

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        seen_NWH = _tokens(x, self.in_weight, plan, self.in_bias)
        h_NH = seen_NWH.new_zeros(len(x), self.config.size)
        states = []
        for t in range(x.shape[1]):
            reset_in, update_in, new_in = seen_NWH[:, t].chunk(3, -1)
            reset_h, update_h, new_h = grouped_linear(h_NH, self.hidden_weight, plan, self.hidden_bias).chunk(3, -1)
            update = torch.sigmoid(update_in + update_h)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_h) * new_h)
            next_NH = (1 - update) * new + update * h_NH
            h_NH = next_NH if valid_NW is None else torch.where(valid_NW[:, t, None], next_NH, h_NH)
            states.append(h_NH)
        return _tokens(torch.stack(states, 1), self.out_weight, plan)


class Attention(Bank):
    """``W_o,e softmax(Q K^T / sqrt(H)) V`` over the tokens of the unit, one head an expert, with ``W_q,e`` its own and
    keys and values shared or its own (BAM, arXiv:2408.08274: all experts, softmax weights). ``causal`` looks back only.
    Tokens that choose their own experts but attend to all: `AttentionExperts`."""

    whole_units = True

    @dataclass
    class Config(BankConfig):
        size: int = 64
        shared_kv: bool = True
        causal: bool = True

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        own = 1 if config.shared_kv else num_experts
        self.q_proj = nn.Parameter(torch.empty(num_experts, config.size, hidden_size))
        self.kv_proj = nn.Parameter(torch.empty(own, 2 * config.size, hidden_size))
        self.o_proj = nn.Parameter(torch.empty(num_experts, hidden_size, config.size))
        self.stacked = ("q_proj", "o_proj") if config.shared_kv else ("q_proj", "kv_proj", "o_proj")

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        width = x.shape[1]
        query_NWH = _tokens(x, self.q_proj, plan)
        if self.config.shared_kv:
            key_value = F.linear(x, self.kv_proj[0].to(x.dtype))
        else:
            key_value = _tokens(x, self.kv_proj, plan)
        key_NWH, value_NWH = key_value.to(query_NWH.dtype).chunk(2, -1)
        seen = torch.ones(width, width, dtype=torch.bool, device=x.device)
        seen_NWW = (seen.tril() if self.config.causal else seen).expand(len(x), -1, -1)
        if valid_NW is not None:
            # A token always sees itself: a row of padding alone would be 0 / 0.
            itself = torch.eye(width, dtype=torch.bool, device=x.device)
            seen_NWW = seen_NWW & (valid_NW[:, None] | itself)
        heads_NWH = F.scaled_dot_product_attention(query_NWH, key_NWH, value_NWH, attn_mask=seen_NWW)
        return _tokens(heads_NWH, self.o_proj, plan)


def _tokens(x: Tensor, weight_EFD: Tensor, plan: Plan, bias_EF: Tensor | None = None) -> Tensor:
    """`grouped_linear` of every token of the units' rows, (N, W, F)."""
    wide = plan._replace(offset_E1=plan.offset_E1 * x.shape[1])
    if bias_EF is None:
        return grouped_linear(x.flatten(0, 1), weight_EFD, wide).unflatten(0, x.shape[:2])
    return _tokens(x, weight_EFD, plan) + bias_EF[expert_of(plan), None].to(x.dtype)
