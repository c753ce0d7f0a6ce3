"""Moirai-MoE (Liu et al., arXiv:2410.10469): a probabilistic decoder of mixture layers over patches of any variates.

The variates of a sample are laid end to end into one sequence of patches, and several samples may be packed into one
row: three ids say to which sample, time and variate a patch belongs. A patch sees those of its sample that are not
later, of all variates; rotary positions stand for time, a learned bias per head for the same or another variate. Each
layer routes a patch to 2 of 32 experts by its distance to fixed centroids (``scorer: centroid``; the released
checkpoints take the farthest, ``sign: 1``). Every patch says the distribution of the next one of its variate.

The scale of a forecast stays that of the past; the authors' script takes it anew after each patch that it has drawn.

Shapes: B windows, R rows, N patches of a row, P points of a patch, L past points, H horizon, S sample paths, A heads,
C head width, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import at_least
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext, RouterOutput, Routing
from zoo.nn import Cache
from zoo.nn.transformer import initialise
from zoo.spec import ZooError
from zoo_time_series.blocks.attention import Attention
from zoo_time_series.blocks.distributions import Mixture, MixtureHead
from zoo_time_series.blocks.probabilistic import quantiles_of
from zoo_time_series.models.base import Forecaster, Prediction

MOST_ROWS = 4096  # windows times paths that are drawn at once


class Packed(NamedTuple):
    """Patches ``x_RNP`` with ``seen_RNP`` False where nothing was observed. Ids (R, N) of the sample (0 is padding),
    the time and the variate; ``ahead_RN`` marks patches of the future, which the scale must not see."""

    x_RNP: Tensor
    seen_RNP: Tensor
    sample_RN: Tensor
    time_RN: Tensor
    variate_RN: Tensor
    ahead_RN: Tensor

    def visible_RNN(self) -> Tensor:
        """Which patch (last) each patch sees: those of its sample, of any variate, that are not later."""
        same = self.sample_RN[:, :, None] == self.sample_RN[:, None]
        return same & (self.time_RN[:, None] <= self.time_RN[:, :, None])

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (R, N, 1) of what was observed of the same sample and variate before the forecast."""
        same_RNN = (self.sample_RN[:, :, None] == self.sample_RN[:, None]) & (
            self.variate_RN[:, :, None] == self.variate_RN[:, None]
        )
        counts_RNP = (self.seen_RNP & ~self.ahead_RN[..., None]).double()
        same_RNN, x_RNP = same_RNN.double(), self.x_RNP.double()
        count_RN1 = same_RNN @ counts_RNP.sum(-1, keepdim=True)
        loc_RN1 = same_RNN @ (x_RNP * counts_RNP).sum(-1, keepdim=True) / count_RN1.clamp(min=1)
        square_RN1 = same_RNN @ ((x_RNP - loc_RN1).square() * counts_RNP).sum(-1, keepdim=True)
        free_RN1 = torch.where(count_RN1 == 1, 1.0, count_RN1 - 1)
        scale_RN1 = (square_RN1 / free_RN1 + 1e-5).sqrt()
        padding_RN1 = (self.sample_RN == 0)[..., None]
        loc_RN1, scale_RN1 = loc_RN1.masked_fill(padding_RN1, 0.0), scale_RN1.masked_fill(padding_RN1, 1.0)
        return loc_RN1.to(self.x_RNP.dtype), scale_RN1.to(self.x_RNP.dtype)


class Output(NamedTuple):
    """The distribution of the patch after each one, (R, N, P), the ``parameters`` it is made of, and the routing."""

    parameters: list[Tensor]
    distribution: Mixture
    routing: Routing


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + MoE(norm x)``; ``bias_2A`` for another and the same variate."""

    def __init__(self, hidden_size: int, heads: int, norm_eps: float, moe: MoEConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.attention = Attention(hidden_size, heads, qk_norm=norm_eps)
        self.variate_bias = nn.Parameter(torch.zeros(2, heads))
        self.moe_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.moe = MoE(moe, hidden_size)

    def forward(
        self, x: Tensor, packed: Packed, theta: float, ctx: RouteContext, state: Any, cache: Cache | None
    ) -> tuple[Tensor, RouterOutput]:
        q, k, v = self.attention.project(
            self.attention_norm(x), turn=lambda each: rotate(each, packed.time_RN[:, -each.shape[2] :], theta)
        )
        if cache is not None:
            k, v = cache.extend(ctx.layer, k, v)
        new, variate = x.shape[1], packed.variate_RN
        same_RNN = (variate[:, -new:, None] == variate[:, None]).unsqueeze(1)
        bias_RANN = torch.where(same_RNN, *(self.variate_bias[i][:, None, None] for i in (1, 0)))
        mask = bias_RANN.masked_fill(~packed.visible_RNN()[:, None, -new:], -torch.inf)
        x = x + self.attention.attend(q, k, v, mask)
        y, out = self.moe(self.moe_norm(x), ctx, state)
        return x + y, out


class MoiraiMoE(Forecaster):
    """Args (config):
    context: points of a window that are used. num_heads: by default one for 64 units.
    components: of the distribution of each point, see `zoo_time_series.blocks.distributions`.
    paths: sample paths behind quantiles and the point forecast, their median.
    """

    @dataclass
    class Config:
        context: int = 512
        hidden_size: int = 384
        num_layers: int = 6
        num_heads: int | None = None
        patch: int = 16
        scaling: bool = True
        rope_theta: float = 10000.0
        norm_eps: float = 1e-5
        init_std: float = 0.02
        components: list[str] = field(
            default_factory=lambda: ["student_t", "normal", "negative_binomial", "log_normal"]
        )
        paths: int = 100
        moe: MoEConfig = field(default_factory=MoEConfig)

        def __post_init__(self) -> None:
            at_least(1, self, "context", "hidden_size", "num_layers", "num_heads", "patch", "paths")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        heads = c.num_heads or c.hidden_size // 64
        if heads < 1 or c.hidden_size % heads or c.hidden_size // heads % 4:
            raise ZooError(
                f"hidden_size={c.hidden_size} over num_heads={heads} must be a multiple of 4, as half of a head is "
                "turned by pairs; set num_heads"
            )
        self.in_proj = nn.Linear(c.patch, c.hidden_size)
        self.feat_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.res_proj = nn.Linear(c.patch, c.hidden_size)
        self.layers = nn.ModuleList(Block(c.hidden_size, heads, c.norm_eps, c.moe) for _ in range(c.num_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
        self.head = MixtureHead(c.hidden_size, c.patch, c.components)
        self.router_common = self.layers[0].moe.router.common()
        self.balancers = Balancers(c.moe.balance, c.num_layers, c.moe.num_experts)
        initialise(self, c.init_std)

    def forward(
        self,
        x_RNP: Tensor,
        seen_RNP: Tensor | None = None,
        sample_RN: Tensor | None = None,
        time_RN: Tensor | None = None,
        variate_RN: Tensor | None = None,
        ahead_RN: Tensor | None = None,
    ) -> Output:
        """The released forward pass over packed rows; see `Packed`. Alone, ``x_RNP`` is one variate a row."""
        shape, device = x_RNP.shape[:2], x_RNP.device
        packed = Packed(
            x_RNP,
            torch.ones_like(x_RNP, dtype=torch.bool) if seen_RNP is None else seen_RNP,
            torch.ones(shape, dtype=torch.long, device=device) if sample_RN is None else sample_RN,
            torch.arange(shape[1], device=device).expand(shape) if time_RN is None else time_RN,
            torch.zeros(shape, dtype=torch.long, device=device) if variate_RN is None else variate_RN,
            torch.zeros(shape, dtype=torch.bool, device=device) if ahead_RN is None else ahead_RN,
        )
        return self._encode(packed, *self._scale(packed))

    def _scale(self, packed: Packed) -> tuple[Tensor, Tensor]:
        if self.config.scaling:
            return packed.scale()
        return torch.zeros_like(packed.x_RNP[..., :1]), torch.ones_like(packed.x_RNP[..., :1])

    def _encode(
        self, packed: Packed, loc_RN1: Tensor, scale_RN1: Tensor, cache: Cache | None = None, new: int = 0
    ) -> Output:
        """All patches, or with a cache the last ``new`` ones; the scale is theirs."""
        new = new or packed.x_RNP.shape[1]
        z = (packed.x_RNP[:, -new:] - loc_RN1) / scale_RN1
        x = self.feat_proj(F.silu(self.in_proj(z))) + self.res_proj(z)
        ctx = self.balancers.context(valid=packed.sample_RN[:, -new:] > 0, common=self.router_common)
        routing, state = [], None
        for index, block in enumerate(self.layers):
            x, out = block(x, packed, self.config.rope_theta, ctx.at(index), state, cache)
            state = out.state
            routing.append(out)
        parameters = self.head(self.norm(x))
        return Output(parameters, self.head.distribution(parameters, loc_RN1, scale_RN1), tuple(routing))

    # -- windows -------------------------------------------------------------------------------------------------------

    def pack(
        self, past_BL: Tensor, valid_BL: Tensor, future_BH: Tensor, future_valid_BH: Tensor, variates: int = 1
    ) -> Packed:
        """Windows as rows; ``variates`` neighbouring windows are one sample. Time 0 is the first patch with a value
        of any of them."""
        p = self.config.patch
        past_BL, valid_BL = past_BL[:, -self.config.context :], valid_BL[:, -self.config.context :]
        front, back = -past_BL.shape[1] % p, -future_BH.shape[1] % p
        x_BT = F.pad(torch.cat([past_BL, future_BH], dim=1), (front, back))
        seen_BT = F.pad(torch.cat([valid_BL, future_valid_BH], dim=1), (front, back))
        x_BNP, seen_BNP = x_BT.unflatten(1, (-1, p)), seen_BT.unflatten(1, (-1, p))
        count, past = x_BNP.shape[1], (past_BL.shape[1] + front) // p
        if len(past_BL) % variates:
            raise ZooError(f"{len(past_BL)} windows cannot be samples of {variates} variates; give whole samples")
        begun_BN = seen_BNP.any(-1).unflatten(0, (-1, variates)).any(1).cummax(1).values.repeat_interleave(variates, 0)
        begun_BN[:, past:] = True  # a future that nobody has seen yet has its place in time too
        time_BN = (begun_BN.long().cumsum(1) - 1).clamp(min=0)
        row = (len(past_BL) // variates, variates * count)
        variate_BN = torch.arange(len(past_BL), device=past_BL.device)[:, None] % variates
        ahead_N = torch.arange(count, device=past_BL.device) >= past
        return Packed(
            x_BNP.reshape(*row, p),
            seen_BNP.reshape(*row, p),
            begun_BN.long().reshape(row),
            time_BN.reshape(row),
            variate_BN.expand(-1, count).reshape(row),
            ahead_N.expand(len(past_BL), -1).reshape(row),
        )

    def training_predictions(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        future_BH: Tensor,
        future_valid_BH: Tensor,
        variates: int = 1,
        **covariates: Tensor,
    ) -> tuple[list[Prediction], Routing]:
        """The distribution of every patch but the first, as in the paper: it learns from past and future alike."""
        packed = self.pack(past_BL, past_valid_BL, future_BH, future_valid_BH, variates)
        _, distribution, routing = self._encode(packed, *self._scale(packed))
        follows_RN = (packed.variate_RN.roll(-1, 1) == packed.variate_RN) & (packed.sample_RN > 0)
        follows_RN[:, -1] = False
        valid_RNP = packed.seen_RNP.roll(-1, 1) & follows_RN[..., None]
        return [Prediction(distribution, packed.x_RNP.roll(-1, 1), valid_RNP)], routing

    def sample_paths(
        self,
        past_BL: Tensor,
        past_valid_BL: Tensor,
        horizon: int,
        count: int,
        seed: int = 0,
        variates: int = 1,
        **covariates: Tensor,
    ) -> Tensor:
        """(B, count, H): patch after patch, each drawn from its distribution given those before it."""
        pieces = []
        with torch.random.fork_rng(devices=[past_BL.device] if past_BL.is_cuda else []):
            # Pieces of a power of two, each with the same noise: larger batches do not change what a window gets.
            step = 2 ** int(math.log2(max(1, MOST_ROWS // (count * variates)))) * variates
            for past, valid in zip(past_BL.split(step), past_valid_BL.split(step), strict=True):
                torch.manual_seed(seed)
                pieces.append(self._draw(past, valid, horizon, count, variates))
        return torch.cat(pieces)

    def _draw(self, past_BL: Tensor, valid_BL: Tensor, horizon: int, count: int, variates: int) -> Tensor:
        nothing = past_BL.new_zeros(len(past_BL), 0)
        packed = self.pack(past_BL, valid_BL, nothing, nothing.bool(), variates)
        loc, scale = self._scale(packed)
        cache = Cache()
        rows, last = len(packed.x_RNP), packed.x_RNP.shape[1] // variates
        ends = torch.arange(1, variates + 1, device=past_BL.device) * last - 1
        drawn_SRN1P = self._encode(packed, loc, scale, cache).distribution.sample((count,))
        next_TVP = drawn_SRN1P[:, :, ends].transpose(0, 1).flatten(0, 1)  # T = rows * paths, the paths inside
        packed = Packed(*(value.repeat_interleave(count, 0) for value in packed))
        loc, scale = (value[:, ends].repeat_interleave(count, 0) for value in (loc, scale))
        cache.kept = {n: tuple(kv.repeat_interleave(count, 0) for kv in both) for n, both in cache.kept.items()}
        time, sample, variate = packed.time_RN[:, ends], packed.sample_RN[:, ends], packed.variate_RN[:, ends]
        path = [next_TVP]
        for ahead in range(1, math.ceil(horizon / self.config.patch)):
            fresh = Packed(next_TVP, next_TVP == next_TVP, sample.clamp(min=1), time + ahead, variate, sample > 0)
            packed = Packed(*(torch.cat(both, dim=1) for both in zip(packed, fresh, strict=True)))
            next_TVP = self._encode(packed, loc, scale, cache, variates).distribution.sample()
            path.append(next_TVP)
        values_RSVH = torch.cat(path, dim=-1)[..., :horizon].unflatten(0, (rows, count))
        return values_RSVH.transpose(1, 2).flatten(0, 1)

    def forecast(
        self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None, **more: Any
    ) -> Tensor:
        return self.sample_paths(past_BL, past_valid_BL, horizon, self.config.paths, **more).median(dim=1).values

    def quantiles(
        self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, levels: list[float], **more: Any
    ) -> Tensor:
        """(B, Q, H): those of the ``paths`` of a point forecast."""
        return quantiles_of(self.sample_paths(past_BL, past_valid_BL, horizon, self.config.paths, **more), levels)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x_RNP": torch.randn(batch_size, 4, self.config.patch)}


def rotate(x_RANC: Tensor, position_RN: Tensor, theta: float) -> Tensor:
    """Rotary embedding of the first half of each head, neighbouring pairs turned together; computed in fp32."""
    half = x_RANC.shape[-1] // 2
    frequency = theta ** (-torch.arange(0, half, 2, device=x_RANC.device, dtype=torch.float32) / half)
    angle = position_RN[:, None, :, None].float() * frequency
    cos, sin = angle.cos().to(x_RANC.dtype), angle.sin().to(x_RANC.dtype)
    even, odd = x_RANC[..., :half:2], x_RANC[..., 1:half:2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, x_RANC[..., half:]], dim=-1)
