"""Encoders over patches of one variate. PatchTST, Seg-MoE and MoHETS are configs of this one model.

- PatchTST (Nie et al., ICLR 2023, arXiv:2211.14730): dense layers, flattened linear head. Here with rotary positions
  and RMSNorm where the paper has learned positions and batch norm.
- Seg-MoE (S039; arXiv:2601.21641): a segment of neighbouring patches gets one decision, and its experts mix them;
  segments of another length in each layer.
- MoHETS (S040): routed Fourier experts beside a shared depthwise convolution, cross-attention to covariates, and a
  convolutional decoder of patches. Neither paper has public code: what the abstracts leave open is our reading.

Shapes: B windows, L past points, H horizon, N past patches, M future patches, P points of a patch, T = L + H,
C covariates, D model width, Q values a point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Routing
from zoo.nn.transformer import initialise
from zoo.spec import ZooError
from zoo_time_series.blocks.encoder import Encoder, EncoderConfig
from zoo_time_series.blocks.patching import PatchEmbedding, cut, fit_context, patch_count
from zoo_time_series.models.base import Forecaster, Prediction


class Output(NamedTuple):
    """``values_BHQ`` and the routing of every mixture."""

    values_BHQ: Tensor
    routing: Routing


class PatchEncoder(Forecaster):
    """Args (config):
    covariates: channels of known covariates (calendar, exogenous, static), patched and attended to by every block.
    quantiles: levels to forecast, increasing; empty for a point forecast.
    """

    @dataclass
    class Config:
        context: int = 512
        horizon: int = 96
        patch: int = 16
        stride: int = 16
        covariates: int = 0
        quantiles: list[float] = field(default_factory=list)
        encoder: EncoderConfig = field(default_factory=EncoderConfig)
        head: Any = zc.part("forecast_head", "time_series/flatten")

        def __post_init__(self) -> None:
            zc.at_least(1, self, "context", "horizon", "patch", "stride")
            zc.at_least(0, self, "covariates")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        if c.context < c.patch:
            raise ZooError(f"context={c.context} holds no patch of {c.patch} points; lower model.patch")
        width = c.encoder.hidden_size
        patches = patch_count(c.context, c.patch, c.stride)
        self.embed = PatchEmbedding(c.patch, width)
        self.encoder = Encoder(c.encoder, cross=c.covariates > 0)
        self.embed_covariates = PatchEmbedding(c.patch, width, c.covariates) if c.covariates else None
        self.head = zc.build("forecast_head", c.head, width, patches, c.patch, c.horizon, max(1, len(c.quantiles)))
        self.query = nn.Parameter(torch.zeros(width)) if self.head.asks else None
        if self.query is not None:
            if c.stride != c.patch:
                raise ZooError(f"a head that decodes patches needs stride={c.patch}, the patch, not stride={c.stride}")
            nn.init.normal_(self.query, std=c.encoder.init_std)
        initialise(self.embed, c.encoder.init_std)

    @property
    def levels(self) -> list[float]:
        return list(self.config.quantiles)

    def forward(
        self,
        x_BL: Tensor,
        valid_BL: Tensor | None = None,
        covariates_BTC: Tensor | None = None,
        horizon: int | None = None,
    ) -> Output:
        """The forecast of a window of ``context`` standardised points (longer ones are cut, shorter ones padded).

        Args:
            covariates_BTC: of past and future points.
            horizon: for a head that serves any; by default the config's.
        """
        c, steps = self.config, horizon or self.config.horizon
        length = x_BL.shape[1]
        patch_BNP = cut(fit_context(x_BL, c.context), c.patch, c.stride)
        tokens, count, valid_BN = self.embed(patch_BNP), patch_BNP.shape[1], None
        if valid_BL is None and length < c.context:
            valid_BL = torch.ones_like(x_BL, dtype=torch.bool)
        if (valid_BL is not None and not bool(valid_BL[:, -c.context :].all())) or length < c.context:
            valid_BN = cut(fit_context(valid_BL, c.context), c.patch, c.stride).any(-1)
        if self.query is not None:
            ahead = -(-steps // c.patch)
            tokens = torch.cat([tokens, self.query.expand(len(tokens), ahead, -1)], dim=1)
            if valid_BN is not None:
                valid_BN = torch.cat([valid_BN, valid_BN.new_ones(len(valid_BN), ahead)], dim=1)
        memory = self._memory(covariates_BTC, length, steps) if self.embed_covariates is not None else None
        states, routing = self.encoder(tokens, valid_BN, memory)
        return Output(self.head(states[:, :count], states[:, count:], steps), routing)

    def _memory(self, covariates_BTC: Tensor | None, length: int, steps: int) -> Tensor:
        """Covariates as patches, in line with those of the values: the past ends, the future starts at a patch."""
        c = self.config
        if covariates_BTC is None or covariates_BTC.shape[-1] != c.covariates:
            found = 0 if covariates_BTC is None else covariates_BTC.shape[-1]
            raise ZooError(
                f"the model takes covariates={c.covariates} channels, the data give {found}; set model.covariates, or "
                "data.calendar, data.known and data.static"
            )
        past = fit_context(covariates_BTC[:, :length], c.context)
        future = covariates_BTC[:, length : length + steps]
        short = -future.shape[1] % c.patch
        future = torch.cat([future, future[:, -1:].expand(-1, short, -1)], dim=1)
        spare = len(past[0]) % c.patch
        both = torch.cat([past[:, spare:], future], dim=1)
        assert self.embed_covariates is not None
        memory: Tensor = self.embed_covariates(both.unflatten(1, (-1, c.patch)))
        return memory

    def training_predictions(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        future_BH: Tensor,
        future_valid_BH: Tensor,
        covariates_BTC: Tensor | None = None,
    ) -> tuple[list[Prediction], Routing]:
        self._check(future_BH.shape[1])
        values_BHQ, routing = self(past_BL, past_valid_BL, covariates_BTC, future_BH.shape[1])
        if not self.levels:
            return [Prediction(values_BHQ[..., 0], future_BH, future_valid_BH)], routing
        target = future_BH[..., None].expand_as(values_BHQ)
        return [Prediction(values_BHQ, target, future_valid_BH[..., None].expand_as(values_BHQ))], routing

    def forecast(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        covariates_BTC: Tensor | None = None,
    ) -> Tensor:
        return self._values(past_BL, past_valid_BL, horizon, covariates_BTC)[..., self._middle()]

    def quantiles(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        levels: list[float],
        covariates_BTC: Tensor | None = None,
    ) -> Tensor | None:
        """(B, Q, H), linear between the model's own levels and constant beyond them; sorted, so that none cross."""
        if not self.levels:
            return None
        own_BHQ = self._values(past_BL, past_valid_BL, horizon, covariates_BTC).sort(dim=-1).values
        return interpolate(own_BHQ, self.levels, levels).transpose(1, 2)

    def _values(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, covariates_BTC: Tensor | None) -> Tensor:
        """(B, H, Q): at once where the head can, else fed back, the middle value standing for the point."""
        if self.query is not None:
            return self(past_BL, past_valid_BL, covariates_BTC, horizon).values_BHQ
        pieces, done, length = [], 0, past_BL.shape[1]
        x_BL, valid_BL, covariates = past_BL, past_valid_BL, covariates_BTC
        while done < horizon:
            if covariates_BTC is not None:
                last = covariates_BTC[:, -1:].expand(-1, self.config.horizon, -1)
                covariates = torch.cat([covariates_BTC, last], dim=1)[:, done : done + length + self.config.horizon]
            pieces.append(self(x_BL, valid_BL, covariates).values_BHQ)
            next_BH = pieces[-1][..., self._middle()]
            done += next_BH.shape[1]
            x_BL = torch.cat([x_BL, next_BH], dim=1)[:, -length:]
            valid_BL = torch.cat([valid_BL, torch.ones_like(next_BH, dtype=torch.bool)], dim=1)[:, -length:]
        return torch.cat(pieces, dim=1)[:, :horizon]

    def _middle(self) -> int:
        return min(range(len(self.levels)), key=lambda q: abs(self.levels[q] - 0.5)) if self.levels else 0

    def _check(self, horizon: int) -> None:
        if self.query is None and horizon != self.config.horizon:
            raise ZooError(f"the model has horizon={self.config.horizon}, the data {horizon}; make them equal")

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        c = self.config
        inputs = {"x_BL": torch.randn(batch_size, c.context)}
        if c.covariates:
            inputs["covariates_BTC"] = torch.randn(batch_size, c.context + c.horizon, c.covariates)
        return inputs


def interpolate(values_BHQ: Tensor, own: list[float], wanted: list[float]) -> Tensor:
    """(B, H, W): values at other levels, linear between the nearest of the model's own."""
    level_Q = torch.tensor(own, device=values_BHQ.device)
    wanted_W = torch.tensor(wanted, device=values_BHQ.device).clamp(own[0], own[-1])
    above_W = torch.searchsorted(level_Q, wanted_W).clamp(1, len(own) - 1) if len(own) > 1 else wanted_W.long() * 0
    if len(own) == 1:
        return values_BHQ[..., above_W]
    low_W, high_W = level_Q[above_W - 1], level_Q[above_W]
    share_W = (wanted_W - low_W) / (high_W - low_W)
    return torch.lerp(values_BHQ[..., above_W - 1], values_BHQ[..., above_W], share_W)
