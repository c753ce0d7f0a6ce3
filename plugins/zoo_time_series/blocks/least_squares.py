"""Linear maps in closed form from second moments: every penalty from one decomposition, exact errors without the data.

Shapes: B windows, L inputs, H outputs, Z = L + 1 + H a window [x, 1, y]; S phases of a season, N seasons of the inputs,
O of the outputs, F features of a phase, P penalties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoo.train.task import Batch


def outer(x_BL: Tensor, y_BH: Tensor) -> Tensor:
    """(Z, Z): the sum over windows of the outer products of [x, 1, y], in float64."""
    window_BZ = torch.cat([x_BL, torch.ones_like(x_BL[:, :1]), y_BH], dim=1).double()
    return window_BZ.T @ window_BZ


def centred(moments_ZZ: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Means (Z,) and moments about them, from moments of [x, 1, y] with ``length`` inputs."""
    count = moments_ZZ[length, length].clamp(min=1)
    mean_Z = moments_ZZ[length] / count
    return mean_Z, moments_ZZ - count * torch.outer(mean_Z, mean_Z)


def solve(
    moments_ZZ: Tensor, length: int, penalties: Sequence[float], priors_LH: Sequence[Tensor | float] = (0.0,)
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(penalty, W (L, H), b (H,)) of ridge regressions ``y = x W + b``, for every penalty from one eigendecomposition
    of the centred moments. A penalty, on how far W is from its prior, is in units of the mean variance of an input;
    the bias is free. Several priors follow each other, each with all penalties."""
    mean_Z, centred_ZZ = centred(moments_ZZ, length)
    inputs_LL, cross_LH = centred_ZZ[:length, :length], centred_ZZ[:length, length + 1 :]
    value_L, vector_LL, scale = _decompose(inputs_LL)
    for prior_LH in priors_LH:
        rest_LH = cross_LH - inputs_LL @ prior_LH if isinstance(prior_LH, Tensor) else cross_LH
        target_LH = vector_LL.T @ rest_LH
        for penalty in penalties:
            map_LH = prior_LH + vector_LL @ (target_LH / (value_L + penalty * scale)[:, None])
            yield penalty, map_LH, mean_Z[length + 1 :] - mean_Z[:length] @ map_LH


def shared(moments_ZZ: Tensor, length: int, season: int, penalties: Sequence[float]) -> Iterator[Tensor]:
    """(L, H): ridge maps that all phases of a season share, for every penalty.

    The forecast of a phase, some seasons ahead, is a sum over the seasons of the window: of the same phase less the
    season's mean, and of this mean. So at 24 hours a day and two weeks there are 28 numbers for every day ahead where
    an unrestricted map has 336 for every hour. Points in front of the first whole season are left out.

    Related: SparseTSF (Lin et al. 2024, arXiv:2405.00946), which shares a map among phases without a mean of its own.
    """
    _, centred_ZZ = centred(moments_ZZ, length)
    inputs_LL, cross_LH = centred_ZZ[:length, :length], centred_ZZ[:length, length + 1 :]
    horizon, seasons = cross_LH.shape[1], length // season
    point_NSL = torch.eye(length, dtype=inputs_LL.dtype)[length - seasons * season :].unflatten(0, (seasons, season))
    level_NL = point_NSL.mean(1)
    feature_SFL = torch.cat([point_NSL.transpose(0, 1) - level_NL, level_NL.expand(season, -1, -1)], dim=1)
    whole = horizon // season
    groups = [(season, range(whole))] if whole else []
    if horizon % season:  # a last season of fewer phases
        groups.append((horizon % season, range(whole, whole + 1)))
    maps_PLH = [torch.zeros_like(cross_LH) for _ in penalties]
    for phases, ahead in groups:
        used_SFL = feature_SFL[:phases]
        each_FO = [torch.einsum("sfl,ls->f", used_SFL, cross_LH[:, o * season : o * season + phases]) for o in ahead]
        target_FO = torch.stack(each_FO, dim=1)
        value_F, vector_FF, scale = _decompose((used_SFL @ inputs_LL @ used_SFL.mT).sum(0))
        for map_LH, penalty in zip(maps_PLH, penalties, strict=True):
            weight_FO = vector_FF @ ((vector_FF.T @ target_FO) / (value_F + penalty * scale)[:, None])
            for column, o in enumerate(ahead):
                map_LH[:, o * season : o * season + phases] = (weight_FO[:, column] @ used_SFL).T
    yield from maps_PLH


def _decompose(moments_LL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, eigenvectors, and the mean eigenvalue, never 0."""
    value_L, vector_LL = torch.linalg.eigh(moments_LL)
    value_L = value_L.clamp(min=0)
    return value_L, vector_LL, value_L.mean().clamp(min=torch.finfo(value_L.dtype).tiny)


def squared_error(moments_ZZ: Tensor, map_LH: Tensor, bias_H: Tensor) -> float:
    """Sum of ``(y - x W - b)^2`` over all windows behind the moments."""
    length = len(map_LH)
    inputs_LL, cross_LH = moments_ZZ[:length, :length], moments_ZZ[:length, length + 1 :]
    count, sum_L, sum_H = moments_ZZ[length, length], moments_ZZ[length, :length], moments_ZZ[length, length + 1 :]
    of_map = (map_LH * (inputs_LL @ map_LH - 2 * cross_LH)).sum()
    of_bias = bias_H @ (count * bias_H - 2 * sum_H + 2 * sum_L @ map_LH)
    return float(moments_ZZ[length + 1 :, length + 1 :].trace() + of_map + of_bias)


def complete_future(batch: Batch, last_B1: Tensor) -> Tensor:
    """(B, H): the targets, a missing one the valid value before it, and that of the past where there is none."""
    future_BH, valid_BH = batch["future"], batch["future_valid"]
    if valid_BH.all():
        return future_BH
    known = torch.cat([last_B1, future_BH], dim=1)
    before_BH = (valid_BH * torch.arange(1, future_BH.shape[1] + 1)).cummax(dim=1).values
    return known.gather(1, before_BH)
