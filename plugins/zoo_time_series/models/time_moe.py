"""Time-MoE (Shi et al., ICLR 2025, arXiv:2409.16040): a decoder of mixture layers over single points.

Every point is a token, embedded by a gated unit; each layer routes it to 2 of 8 experts beside a shared one; linear
heads of several horizons predict from every position at once. A forecast takes the largest head that fits, appends
what it says, and goes on.

Shapes: B windows, L points, D model width, H horizon, P points a head predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe import Routing
from zoo.nn import Cache, Transformer, TransformerConfig, initialise
from zoo.spec import ZooError
from zoo_time_series.models.base import Forecaster, Prediction


class Output(NamedTuple):
    """``states_BLD`` after the final norm, what each head predicts from every position, (B, L, P), and the routing."""

    states_BLD: Tensor
    heads: list[Tensor]
    routing: Routing


class PointEmbedding(nn.Module):
    """``silu(W_g x) * (W_e x)``: a scalar to a state, no bias."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.emb = nn.Linear(1, hidden_size, bias=False)
        self.gate = nn.Linear(1, hidden_size, bias=False)

    def forward(self, x_BL: Tensor) -> Tensor:
        x_BL1 = x_BL[..., None]
        return F.silu(self.gate(x_BL1)) * self.emb(x_BL1)


class TimeMoE(Forecaster):
    """Decoder-only Time-MoE. Its parts are those of the paper unless a config says otherwise."""

    @dataclass
    class Config:
        stack: TransformerConfig = field(
            default_factory=lambda: TransformerConfig(mixer={"name": "attention", "qkv_bias": True})
        )
        horizons: list[int] = field(default_factory=lambda: [1, 8, 32, 64])
        max_length: int = 4096

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.horizons or min(config.horizons) < 1:
            raise ZooError(f"horizons={config.horizons} must be one or more positive numbers of points")
        self.embed = PointEmbedding(config.stack.hidden_size)
        self.stack = Transformer(config.stack)
        self.heads = nn.ModuleList(nn.Linear(config.stack.hidden_size, p, bias=False) for p in config.horizons)
        initialise(self.embed, config.stack.init_std)
        initialise(self.heads, config.stack.init_std)

    def forward(self, x_BL: Tensor, valid_BL: Tensor | None = None, cache: Cache | None = None) -> Output:
        """All heads at all positions.

        Args:
            x_BL: standardised values; with a cache, the new ones.
            valid_BL: False on padding and on points that are missing.
        """
        states_BLD, routing = self.stack(self.embed(x_BL), valid_BL, cache)
        return Output(states_BLD, [head(states_BLD) for head in self.heads], routing)

    def training_predictions(
        self, past_BL: Tensor, past_valid_BL: Tensor, future_BH: Tensor, future_valid_BH: Tensor
    ) -> tuple[list[Prediction], Routing]:
        """Every head at every position, trained on past and future as one sequence."""
        x_BL = torch.cat([past_BL, future_BH], dim=1)
        valid_BL = torch.cat([past_valid_BL, future_valid_BH], dim=1)
        length = x_BL.shape[1] - 1
        out = self(x_BL[:, :-1], None if bool(valid_BL.all()) else valid_BL[:, :-1])
        predictions = []
        for predicted_BLP in out.heads:
            points = predicted_BLP.shape[-1]
            target_BLP = F.pad(x_BL, (0, points))[:, 1:].unfold(1, points, 1)[:, :length]
            counts_BLP = F.pad(valid_BL, (0, points))[:, 1:].unfold(1, points, 1)[:, :length]
            predictions.append(Prediction(predicted_BLP, target_BLP, counts_BLP & valid_BL[:, :length, None]))
        return predictions, out.routing

    def forecast(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Autoregressive in chunks: the largest head that fits what is left, or the smallest one, cut."""
        if past_BL.shape[1] + horizon > self.config.max_length:
            raise ZooError(
                f"context {past_BL.shape[1]} and horizon {horizon} exceed max_length={self.config.max_length}; "
                "lower one of them"
            )
        cache = Cache() if use_cache else None
        valid_BL = None if bool(past_valid_BL.all()) else past_valid_BL
        x_BL, new_BL, done = past_BL, past_BL, 0
        while done < horizon:
            head = self._head_for(horizon - done)
            if cache is None:
                states_BLD, _ = self.stack(self.embed(x_BL), valid_BL, last_only=True)
            else:
                states_BLD, _ = self.stack(self.embed(new_BL), valid_BL if done == 0 else None, cache, True)
            new_BL = head(states_BLD[:, -1])[:, : horizon - done]
            x_BL, done = torch.cat([x_BL, new_BL], dim=1), done + new_BL.shape[1]
            if valid_BL is not None:
                valid_BL = F.pad(valid_BL, (0, new_BL.shape[1]), value=True)
        return x_BL[:, -horizon:]

    def _head_for(self, remaining: int) -> nn.Module:
        fitting = [i for i, points in enumerate(self.config.horizons) if points <= remaining]
        pick = max if fitting else min
        best = pick(fitting or range(len(self.config.horizons)), key=lambda i: self.config.horizons[i])
        return self.heads[best]
