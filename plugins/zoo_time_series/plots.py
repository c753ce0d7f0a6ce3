"""Pictures of forecasts. B windows, L past points, H horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from zoo.report import figure, plots_available, save_figure

if TYPE_CHECKING:
    from zoo_time_series.tasks.forecast import Forecast

MOST = 8


def plot_forecast(forecast: Forecast, path: Path) -> list[Path]:
    """The last part of each series and what is forecast to follow, the first `MOST` series."""
    if not plots_available():
        return []
    context, horizon = forecast.context, forecast.values_SH.shape[1]
    shown = context.names[:MOST]
    fig, axes = figure(len(shown), 1, width=9, height=1.9)
    back = min(context.past.shape[1], max(4 * horizon, 64))
    for s, (axis, name) in enumerate(zip(axes, shown, strict=False)):
        past_L = (context.past[s] * context.std[s] + context.mean[s])[context.past_valid[s]].numpy()[-back:]
        ahead_H = forecast.values_SH[s].numpy()
        axis.plot(np.arange(-len(past_L), 0), past_L, color="0.35", linewidth=1)
        if forecast.quantiles_SQH is not None:
            _fan(axis, forecast.quantiles_SQH[s].numpy())
        axis.plot(np.arange(-1, horizon), np.r_[past_L[-1], ahead_H], color="C1", linewidth=1.5)
        axis.set_title(name, loc="left", fontsize=9)
    axes[-1].set_xlabel(f"points from the end of the table; forecast of {horizon}")
    return save_figure(fig, path)


def plot_windows(
    batch: Mapping[str, Tensor], predicted_BH: Tensor, fan_BQH: Tensor | None, names: Sequence[str], path: Path
) -> list[Path]:
    """Test windows: past, what happened, and the forecast with its fan of quantiles, in standardised units."""
    if not plots_available():
        return []
    fig, axes = figure((len(names) + 1) // 2, 2, width=10, height=2.1)
    horizon = predicted_BH.shape[1]
    back = min(batch["past"].shape[1], 2 * horizon)
    for b, (axis, name) in enumerate(zip(axes, names, strict=False)):
        past_L = np.where(batch["past_valid"][b].numpy(), batch["past"][b].numpy(), np.nan)[-back:]
        future_H = np.where(batch["future_valid"][b].numpy(), batch["future"][b].numpy(), np.nan)
        axis.plot(np.arange(-back, 0), past_L, color="0.35", linewidth=1)
        axis.plot(np.arange(horizon), future_H, color="0.35", linewidth=1, linestyle=":", label="what happened")
        if fan_BQH is not None:
            _fan(axis, fan_BQH[b].numpy())
        axis.plot(np.arange(horizon), predicted_BH[b].numpy(), color="C1", linewidth=1.5, label="forecast")
        axis.axvline(-0.5, color="0.8", linewidth=0.8)
        axis.set_title(name, loc="left", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return save_figure(fig, path)


def _fan(axis: Any, quantile_QH: np.ndarray) -> None:
    """The areas between the first and the last quantile, the second and the last but one, and so on."""
    count = len(quantile_QH)
    for q in range(count // 2):
        low_H, high_H = quantile_QH[q], quantile_QH[count - 1 - q]
        axis.fill_between(np.arange(len(low_H)), low_H, high_H, color="C1", alpha=0.15, linewidth=0)
