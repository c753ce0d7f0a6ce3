"""Mixtures of distributions as a forecast head (Moirai, arXiv:2402.02592, section 3.2.2).

Shapes: K components, P points of a patch, D model width; ... any leading shape.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, LogNormal, Normal, constraints

from zoo.spec import ZooError

FIXED_SCALE = 1e-3
NAMES = {
    "student_t": ("df", "loc", "scale"),
    "normal": ("loc",),
    "negative_binomial": ("total_count", "logits"),
    "log_normal": ("loc", "scale"),
}
"""The components that a head may have, and the parameters of each. ``normal`` has the fixed scale 1e-3: a spike."""


class NegativeBinomial(Distribution):
    """Counts, with the density continued to all values from 0 on, as scaled targets are no whole numbers."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.nonnegative

    def __init__(self, total_count: Tensor, logits: Tensor) -> None:
        self.total_count, self.logits = total_count, logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r, z = self.total_count, self.logits
        choose = torch.lgamma(r + value) - torch.lgamma(r) - torch.lgamma(value + 1)
        return choose + r * F.logsigmoid(-z) + value * F.logsigmoid(z)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            rate = Gamma(self.total_count, (-self.logits).exp(), validate_args=False)
            return torch.poisson(rate.sample(sample_shape))


class HeavyTailed(Distribution):
    """Student's t with a place and a scale. torch's own checks its arguments whether asked to or not, which costs a
    pass over them and fails on the meta device."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = df, loc, scale
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        half, z = self.df / 2, (value - self.loc) / self.scale
        constant = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (math.pi * self.df).log() - self.scale.log()
        return constant - (half + 0.5) * torch.log1p(z.square() / self.df)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            chi2 = 2 * Gamma(self.df / 2, torch.ones_like(self.df), validate_args=False).sample(sample_shape)
            return self.loc + self.scale * torch.randn_like(chi2) * (self.df / chi2).sqrt()


class Mixture(Distribution):
    """``sum_k softmax(logits)_k p_k((y - loc) / scale) / scale``. A component counts only where its support is.

    Args:
        logits: (..., K).
        loc, scale: of the values themselves; the components are about standardised ones. They broadcast to (...).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, logits: Tensor, components: list[Distribution], loc: Tensor, scale: Tensor) -> None:
        self.logits, self.components, self.loc, self.scale = logits, components, loc, scale
        super().__init__(logits.shape[:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        each = []
        for part in self.components:
            inside = part.support.check(z)  # type: ignore[union-attr]
            # 1 lies in every support: the gradient of what is masked out must be finite too.
            each.append(torch.where(inside, part.log_prob(torch.where(inside, z, 1.0)), -torch.inf))
        both = self.logits.log_softmax(-1) + torch.stack(each, dim=-1)
        return both.logsumexp(-1) - self.scale.log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            drawn = torch.stack([part.sample(sample_shape) for part in self.components], dim=-1)
            below = self.logits.softmax(-1).cumsum(-1)[..., :-1]
            chosen = (torch.rand_like(drawn[..., :1]) > below).sum(-1, keepdim=True)
            return self.loc + self.scale * drawn.gather(-1, chosen)[..., 0]


class MixtureHead(nn.Module):
    """A mixture for each of ``patch`` points from a state; every parameter of every component is a linear map of it."""

    def __init__(self, hidden_size: int, patch: int, components: list[str]) -> None:
        super().__init__()
        if not components or (unknown := [name for name in components if name not in NAMES]):
            what = unknown[0] if components else "none"
            raise ZooError(f"components: '{what}' is no distribution; choose from {', '.join(NAMES)}")
        self.names, self.patch = list(components), patch
        self.weights = nn.Linear(hidden_size, len(components) * patch)
        self.components = nn.ModuleList(
            nn.ModuleDict({key: nn.Linear(hidden_size, patch) for key in NAMES[name]}) for name in components
        )

    def forward(self, states: Tensor) -> list[Tensor]:
        """From states (..., D) what `distribution` wants: logits (..., P, K), then every parameter, (..., P)."""
        logits = self.weights(states).unflatten(-1, (len(self.names), self.patch)).transpose(-1, -2)
        return [logits, *(one(states) for maps in self.components for one in maps.values())]  # type: ignore[operator,union-attr]

    def distribution(self, parameters: list[Tensor], loc: Tensor, scale: Tensor) -> Mixture:
        """Of shape (..., P); ``loc`` and ``scale`` of the values are (..., 1)."""
        logits, *raw = parameters
        parts = []
        for name in self.names:
            given = {key: _domain(key, raw.pop(0)) for key in NAMES[name]}
            parts.append(_make(name, given))
        return Mixture(logits, parts, loc, scale)


def _domain(key: str, raw: Tensor) -> Tensor:
    if key == "df":
        return 2 + F.softplus(raw)
    if key in ("scale", "total_count"):
        return F.softplus(raw).clamp(min=torch.finfo(raw.dtype).eps)
    return raw


def _make(name: str, given: dict[str, Tensor]) -> Distribution:
    if name == "student_t":
        return HeavyTailed(**given)
    if name == "normal":
        return Normal(given["loc"], torch.full_like(given["loc"], FIXED_SCALE), validate_args=False)
    if name == "negative_binomial":
        return NegativeBinomial(**given)
    return LogNormal(**given, validate_args=False)
