"""Experts on single tokens that are no MLP.

Shapes: T tokens, N pairs, E experts, D model width, F inner width, M modes, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe.experts.base import Bank, BankConfig
from zoo.moe.experts.grouped import expert_of, grouped_linear
from zoo.spec import ZooError
from zoo_kernels import ops
from zoo_kernels.plan import Plan


class LoRA(Bank):
    """``alpha / rank * B_e A_e x`` (LoRA, arXiv:2106.09685), the change that an expert makes to a dense layer beside
    it. B is 0 at first, so that nothing changes. With ``rank=1`` every rank is an expert of its own (SMoRA, S121)."""

    stacked = ("lora_a", "lora_b")

    @dataclass
    class Config(BankConfig):
        rank: int = 8
        alpha: float = 16.0

        def __post_init__(self) -> None:
            at_least(1, self, "rank")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.lora_a = nn.Parameter(torch.empty(num_experts, config.rank, hidden_size))
        self.lora_b = nn.Parameter(torch.zeros(num_experts, hidden_size, config.rank))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.lora_a, std=std)
        nn.init.zeros_(self.lora_b)

    def delta(self, e: int) -> Tensor:
        """(D, D): what expert ``e`` adds to the dense matrix."""
        return self.config.alpha / self.config.rank * self.lora_b[e] @ self.lora_a[e]

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        low_NR = grouped_linear(x, self.lora_a, plan) * (self.config.alpha / self.config.rank)
        return grouped_linear(low_NR, self.lora_b, plan)


class Fourier(Bank):
    """``irFFT(W_e * rFFT(x))`` along the features, ``W_e`` complex for the first ``modes`` frequencies and 0 beyond
    (periodic experts of MoHETS, S040, in their smallest form). ``modes=0`` keeps all."""

    stacked = ("weight",)

    @dataclass
    class Config(BankConfig):
        modes: int = 0

        def __post_init__(self) -> None:
            at_least(0, self, "modes")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        most = hidden_size // 2 + 1
        if config.modes > most:
            raise ZooError(f"fourier modes={config.modes}, but {hidden_size} features have {most} frequencies")
        self.weight = nn.Parameter(torch.empty(num_experts, config.modes or most, 2))

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        if not len(x):  # the FFT of nothing is an error
            return x
        weight_NM = torch.view_as_complex(self.weight.float().contiguous())[expert_of(plan)]
        spectrum_NM = torch.fft.rfft(x.float())[:, : weight_NM.shape[1]] * weight_NM
        return torch.fft.irfft(spectrum_NM, n=x.shape[1]).to(x.dtype)


class FiLM(Bank):
    """``W (sum_k w_k ((A_k u) * u + B_k u))`` with ``u = gelu(W_1 x) * W_2 x`` shared: experts that only modulate
    (MoFME, arXiv:2312.16610)."""

    stacked = ("film",)

    @dataclass
    class Config(BankConfig):
        intermediate_size: int = 64

        def __post_init__(self) -> None:
            at_least(1, self, "intermediate_size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        inner = config.intermediate_size
        self.in_weight = nn.Parameter(torch.empty(2 * inner, hidden_size))
        self.film = nn.Parameter(torch.empty(num_experts, 2 * inner, inner))
        self.out_weight = nn.Parameter(torch.empty(hidden_size, inner))

    def by_rows(self, x: Tensor, weight_N: Tensor, plan: Plan, valid_TW: Tensor | None) -> Tensor:
        gate_TF, up_TF = F.linear(x, self.in_weight.to(x.dtype)).chunk(2, -1)
        y_TF = super().by_rows(F.gelu(gate_TF) * up_TF, weight_N, plan, valid_TW)
        return F.linear(y_TF, self.out_weight.to(y_TF.dtype))

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        scale_NF, shift_NF = grouped_linear(x, self.film, plan).chunk(2, -1)
        return scale_NF * x + shift_NF


class AttentionExperts(Bank):
    """Experts of an attention layer: each has its own ``W_q`` and ``W_o``, keys and values belong to the layer
    (JetMoE, arXiv:2404.07413; BAM with shared keys and values, arXiv:2408.08274).

    The layer calls `queries` after `MoE.route`, attends, and gives `outputs` what came back. Called as a bank, every
    token attends to itself alone, with its query as value: ``W_o,e W_q,e x``.
    """

    stacked = ("q_proj", "o_proj")

    @dataclass
    class Config(BankConfig):
        size: int = 64

        def __post_init__(self) -> None:
            at_least(1, self, "size")

    def __init__(self, config: Any, hidden_size: int, num_experts: int) -> None:
        super().__init__(config, hidden_size, num_experts)
        self.q_proj = nn.Parameter(torch.empty(num_experts, config.size, hidden_size))
        self.o_proj = nn.Parameter(torch.empty(num_experts, hidden_size, config.size))

    def queries(self, x_TD: Tensor, plan: Plan, slots: int) -> Tensor:
        """(T, K, size): the query of each of a token's K experts, slot by slot; zero where a slot is not used."""
        rows_NH = grouped_linear(ops.expand(x_TD, plan), self.q_proj, plan)
        slots_NH = torch.zeros_like(rows_NH).index_copy(0, plan.pair_N, rows_NH)
        return slots_NH.view(plan.num_tokens, slots, rows_NH.shape[-1])

    def outputs(self, heads_TKH: Tensor, weight_TK: Tensor, plan: Plan) -> Tensor:
        """(T, D): what each slot's attention found, through its expert's ``W_o``, weighed and added."""
        rows_NH = heads_TKH.flatten(0, 1)[plan.pair_N]
        return ops.combine(grouped_linear(rows_NH, self.o_proj, plan), weight_TK.flatten().to(rows_NH.dtype), plan)

    def rows(self, x: Tensor, plan: Plan, valid_NW: Tensor | None) -> Tensor:
        return grouped_linear(grouped_linear(x, self.q_proj, plan), self.o_proj, plan)
