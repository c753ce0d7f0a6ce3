"""Forecasts for a user's table: beyond its end, or from earlier origins beside what happened then. Imports pandas.

Shapes: S series, L context, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_time_series.data.context import Context, panel_to_context, read_panel
from zoo_time_series.data.windows import Panel, listed, mase_scale
from zoo_time_series.tasks.forecast import Forecast

if TYPE_CHECKING:
    from zoo_time_series.tasks.forecasting import Forecasting

COUNTED = {"windows": "windows", "paths": "sample paths"}
ROWS = 256  # series in one forward pass, so that memory does not grow with the table


def answer(task: Forecasting, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Forecast:
    """What `zoo predict` and `Predictor.predict` give. Raises `ZooError` for inputs that cannot be met."""
    horizon = inputs["horizon"] if inputs["horizon"] is not None else preprocessing["horizon"]
    windows = inputs.get("windows")
    step = inputs.get("step") or horizon
    paths = inputs.get("paths")
    for name, value in (("horizon", horizon), ("windows", windows), ("step", step), ("paths", paths)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ZooError(f"{name}={value} must be a number of {COUNTED.get(name, 'points')}, at least 1")
    levels = _levels(inputs.get("quantiles"))
    panel = read_panel(inputs["input"], preprocessing, time=inputs["time"], columns=_names(inputs["columns"]))
    if windows is not None:
        if paths is not None:
            raise ZooError("paths go with a forecast, not with a backtest; leave paths or windows out")
        return _backtest(task, model, preprocessing, panel, horizon, levels, windows, step)
    context = panel_to_context(panel, preprocessing, horizon)
    found = _forecast(task, model, preprocessing, context, horizon, levels)
    if paths is not None:
        found.paths_SNH = _paths(task, model, context, horizon, paths)
    return found


def _forecast(
    task: Forecasting,
    model: Any,
    preprocessing: Mapping[str, Any],
    context: Context,
    horizon: int,
    levels: list[float],
) -> Forecast:
    from zoo_time_series.tasks.forecasting import known

    given = {"past": context.past, "past_valid": context.past_valid, "season": context.season}
    if context.covariates is not None:
        given["covariates"] = context.covariates
    points, quantiles = [], []
    with torch.inference_mode():
        for rows in torch.arange(len(context.names)).split(ROWS):
            there = {key: value[rows].to(model.device) for key, value in given.items()}
            past, valid, season, more = there["past"], there["past_valid"], there["season"], known(model, there)
            predicted_SH = task.forecast(model, past, valid, horizon, season, **more)
            points.append(predicted_SH.cpu())
            if levels:
                found = task.quantiles(model, past, valid, horizon, levels, season, predicted_SH, **more)
                if found is None:
                    raise ZooError(
                        "the model gives points, and no validation errors were saved with its weights to put "
                        "quantiles around them; train it with `zoo train`, which saves them, or leave quantiles out"
                    )
                quantiles.append(found.cpu())
    if levels and (saved := preprocessing.get("residuals")):
        context.notes.append(
            f"quantiles are the forecast with the errors of {saved['windows']} validation windows around it"
            + (f", those of step {len(saved['steps'])} beyond it" if horizon > len(saved["steps"]) else "")
        )
    std_S1, mean_S1 = context.std[:, None], context.mean[:, None]
    quantiles_SQH = torch.cat(quantiles) * std_S1[..., None] + mean_S1[..., None] if levels else None
    return Forecast.of(context, torch.cat(points) * std_S1 + mean_S1, quantiles_SQH, levels)


def _paths(task: Forecasting, model: Any, context: Context, horizon: int, count: int) -> Tensor:
    """(S, N, H) in original units; the same for the same table, as their seed is fixed."""
    from zoo_time_series.tasks.forecasting import known

    given = {"past": context.past, "past_valid": context.past_valid}
    if context.covariates is not None:
        given["covariates"] = context.covariates
    pieces = []
    with torch.inference_mode():
        for rows in torch.arange(len(context.names)).split(ROWS):
            there = {key: value[rows].to(model.device) for key, value in given.items()}
            more = known(model, there)
            found = task.sample_paths(model, there["past"], there["past_valid"], horizon, count, **more)
            if found is None:
                raise ZooError(
                    "the model has no sample paths: it says nothing of how the points ahead hang together; take "
                    "quantiles, or a model of a distribution, such as time_series/moirai_moe_tiny"
                )
            pieces.append(found.cpu())
    return torch.cat(pieces) * context.std[:, None, None] + context.mean[:, None, None]


def _backtest(
    task: Forecasting,
    model: Any,
    preprocessing: Mapping[str, Any],
    panel: Panel,
    horizon: int,
    levels: list[float],
    windows: int,
    step: int,
) -> Forecast:
    """A rolling origin: the last of ``windows`` origins a horizon before the end, each ``step`` points before the next.
    The model stays as it is. Points with no value are not scored."""
    reach = horizon + (windows - 1) * step
    first_S = np.array([np.flatnonzero(np.isfinite(panel.series(s)))[0] for s in range(len(panel.names))])
    keep = np.flatnonzero(first_S < panel.length_S - reach)
    if len(keep) == 0:
        raise ZooError(
            f"windows={windows} with horizon={horizon} and step={step} want {reach} points after some history, and the "
            f"longest series has {panel.length_S.max()}; lower windows"
        )
    if len(keep) < len(panel.names):
        short = [name for s, name in enumerate(panel.names) if s not in set(keep)]
        panel.notes.append(f"left out of the backtest, as they hold no history before {reach} points: {listed(short)}")
        panel = panel.select(keep)
    models = {"": model, **task.rivals(preprocessing)}
    metrics = {name: task.metrics().to(model.device) for name in models}
    frames = []
    for back in range(reach, horizon - 1, -step):
        end_S = panel.length_S - back
        context = panel_to_context(panel, preprocessing, horizon, end_S)
        frame = _forecast(task, model, preprocessing, context, horizon, levels)
        actual = np.stack([panel.series(s)[end : end + horizon] for s, end in enumerate(end_S)])
        frame.insert(1, "cutoff", [times[-1] for times in context.past_time for _ in range(horizon)])
        frame["actual"] = actual.ravel()
        frames.append(frame)
        batch = _batch(panel, context, actual, end_S)
        with torch.inference_mode():
            for rows in torch.arange(len(panel.names)).split(ROWS):
                there = {key: value[rows].to(model.device) for key, value in batch.items()}
                for name, one in models.items():
                    task.update(metrics[name], one.to(model.device).eval(), there)
    last = frames[-1]
    whole = Forecast(pd.concat(frames, ignore_index=True))
    whole.context, whole.values_SH, whole.quantiles_SQH = last.context, last.values_SH, last.quantiles_SQH
    whole.levels, whole.notes, whole.paths_SNH = last.levels, list(last.notes), None
    scores = {name: {k: float(v) for k, v in m.compute().items()} for name, m in metrics.items()}
    whole.scores = {"model": scores.pop(""), **scores}
    said = ", ".join(f"{name} {found['mase']:.3f}" for name, found in whole.scores.items())
    whole.notes.append(f"backtest of {len(keep)} series from {windows} origins, {step} points apart; MASE: {said}")
    return whole


def _batch(panel: Panel, context: Context, actual: np.ndarray, end_S: np.ndarray) -> dict[str, Tensor]:
    """What the task scores, in the form of a data set's windows."""
    seen = np.isfinite(actual)
    future = torch.from_numpy(np.where(seen, actual, 0.0).astype(np.float32))
    mean_S1, std_S1 = context.mean[:, None], context.std[:, None]
    future_valid = torch.from_numpy(seen)
    scales = []
    for s, end in enumerate(end_S):
        x = panel.series(s)[:end]
        known = np.isfinite(x)
        where = np.flatnonzero(known)
        z = np.interp(np.arange(len(x)), where, (x[where] - float(context.mean[s])) / float(context.std[s]))
        scales.append(mase_scale(z, known, int(context.season[s])))
    batch = {
        "past": context.past,
        "past_valid": context.past_valid,
        "future": ((future - mean_S1) / std_S1) * future_valid,
        "future_valid": future_valid,
        "mean": context.mean,
        "std": context.std,
        "mase_scale": torch.tensor(scales),
        "season": context.season,
    }
    return batch if context.covariates is None else {**batch, "covariates": context.covariates}


def _names(given: Any) -> list[str] | None:
    """Columns from a list, or a text of them with commas between."""
    if given is None:
        return None
    return [str(name).strip() for name in (given.split(",") if isinstance(given, str) else np.atleast_1d(given))]


def _levels(given: Any) -> list[float]:
    """Quantile levels, increasing, from ``0.1,0.5,0.9``, a number or a sequence. Raises `ZooError` outside (0, 1)."""
    if given is None:
        return []
    try:
        levels = sorted({float(q) for q in (given.split(",") if isinstance(given, str) else np.atleast_1d(given))})
    except (TypeError, ValueError):
        levels = [0.0]
    if not all(0 < q < 1 for q in levels):
        raise ZooError(f"quantiles={given} must be levels between 0 and 1, for example quantiles=0.1,0.5,0.9")
    return levels
