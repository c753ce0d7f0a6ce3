"""The selective state space of Mamba (arXiv:2312.00752) in plain PyTorch.

Shapes: B sequences, L positions, D model width, I inner width, N states a channel, R rank of the step sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least

State = tuple[Tensor, Tensor]
"""The states (B, I, N), and the last inputs of the convolution, (B, I, K - 1)."""


def selective_scan(
    u_BLI: Tensor,
    step_BLI: Tensor,
    A_IN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    state_BIN: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """``h_l = exp(step_l A) h_(l-1) + step_l B_l u_l``; returns ``C_l . h_l`` (B, L, I), and the last h (B, I, N).

    Decays and inputs are made for ``chunk`` positions at a time, so that memory does not grow with the song; inside,
    the recurrence is run as it stands, which on a CPU is less work than a parallel scan.
    """
    h = u_BLI.new_zeros(*u_BLI[:, 0].shape, A_IN.shape[-1]) if state_BIN is None else state_BIN
    ys = []
    pieces = zip(*(x.split(chunk, 1) for x in (u_BLI, step_BLI, B_BLN, C_BLN)), strict=True)
    for u, step, b, c in pieces:
        decay = torch.exp(step[..., None] * A_IN).unbind(1)
        new = ((step * u)[..., None] * b[:, :, None]).unbind(1)
        hs = []
        for keep, add in zip(decay, new, strict=True):
            h = torch.addcmul(add, keep, h)
            hs.append(h)
        ys.append((torch.stack(hs, 1) @ c[..., None])[..., 0])
    return torch.cat(ys, 1), h


class Mamba(nn.Module):
    """``W_o (scan(silu(conv(x))) * silu(z))``, x and z from one projection; parameters as mamba-ssm names them."""

    @dataclass
    class Config:
        d_state: int = 16
        d_conv: int = 4
        expand: int = 2
        chunk: int = 64

        def __post_init__(self) -> None:
            at_least(1, self, "d_state", "d_conv", "expand", "chunk")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config, inner = config, config.expand * width
        self.rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, config.d_state + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset()

    def reset(self) -> None:
        """Step sizes from 0.001 to 0.1, which linear layers' own initialisation would lose."""
        if self.dt_proj.weight.is_meta:
            return
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        step = torch.exp(torch.rand(len(self.D)) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x_BLD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The outputs (B, L, D) and the state after them; ``state`` is that of the positions before."""
        x_BLI, z_BLI = self.in_proj(x_BLD).chunk(2, -1)
        x_BIL = x_BLI.mT
        if state is None:
            before = x_BIL.new_zeros(*x_BIL.shape[:2], self.config.d_conv - 1)
            h = None
        else:
            h, before = state
        seen = torch.cat([before, x_BIL], -1)
        u_BLI = F.silu(self.conv1d(seen)).mT
        step, b, c = self.x_proj(u_BLI).split([self.rank, self.config.d_state, self.config.d_state], -1)
        step_BLI = F.softplus(self.dt_proj(step))
        y, h = selective_scan(u_BLI, step_BLI, -self.A_log.exp(), b, c, h, self.config.chunk)
        y = (y + self.D * u_BLI) * F.silu(z_BLI)
        kept = seen[..., seen.shape[-1] - (self.config.d_conv - 1) :]
        return self.out_proj(y), (h, kept)
