"""From encoded patches to forecasts. A head is a named part, ``forecast_head``, of every patch model.

Shapes: B windows, N patches of the past, M of the future, P points of a patch, D model width, H horizon, Q values a
point (1, or one a quantile).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.config import at_least


class Flatten(nn.Module):
    """``W vec(h_1 ... h_N) + b``: all horizons at once from the states of the past (PatchTST, arXiv:2211.14730). One
    horizon a model; more points come from feeding forecasts back."""

    asks = False

    @dataclass
    class Config:
        dropout: float = 0.0

        def __post_init__(self) -> None:
            at_least(0, self, "dropout")

    def __init__(self, config: Config, hidden_size: int, patches: int, patch: int, horizon: int, values: int) -> None:
        super().__init__()
        self.values, self.horizon = values, horizon
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(patches * hidden_size, horizon * values)

    def forward(self, past_BND: Tensor, future_BMD: Tensor | None, horizon: int) -> Tensor:
        """(B, H, Q) with the horizon it was built for."""
        return self.project(self.dropout(past_BND.flatten(1))).unflatten(-1, (self.horizon, self.values))


class ConvPatch(nn.Module):
    """Each future patch is decoded by itself: a depthwise convolution over neighbouring states, then a transposed
    convolution of kernel and stride P (a linear map from a state to the P points of its patch). One model serves every
    horizon (MoHETS, S040). The encoder gets a learned query for each future patch, as ``asks`` says."""

    asks = True

    @dataclass
    class Config:
        kernel: int = 3

        def __post_init__(self) -> None:
            at_least(1, self, "kernel")

    def __init__(self, config: Config, hidden_size: int, patches: int, patch: int, horizon: int, values: int) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(hidden_size, hidden_size, config.kernel, padding="same", groups=hidden_size)
        self.unpatch = nn.ConvTranspose1d(hidden_size, values, patch, stride=patch)

    def forward(self, past_BND: Tensor, future_BMD: Tensor | None, horizon: int) -> Tensor:
        """(B, H, Q) for any horizon that the M future patches cover."""
        assert future_BMD is not None
        states_BDN = torch.cat([past_BND, future_BMD], dim=1).mT
        states_BDM = (states_BDN + self.smooth(states_BDN))[..., -future_BMD.shape[1] :]
        return self.unpatch(states_BDM).mT[:, :horizon]
