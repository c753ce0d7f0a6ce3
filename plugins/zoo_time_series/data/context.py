"""What a forecaster needs to continue the series of a user's table. Imports pandas: import it only where one is read.

Shapes: S series, L context, H horizon, C covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_time_series.data.covariates import CALENDAR, Covariates, calendar
from zoo_time_series.data.frame import read_table, to_panel
from zoo_time_series.data.windows import Panel, listed


@dataclass
class Context:
    """What a forecaster needs to continue the series of a table. S series, L context.

    ``past (S, L)`` is standardised and 0 where ``past_valid`` is false; ``mean (S,)`` and ``std (S,)`` lead back.
    ``past_time[s]`` holds the times of the valid past points alone, ``future_time[s]`` those to forecast: series of a
    long table end at times of their own. ``covariates (S, L + H, C)`` where the model takes any.
    """

    past: Tensor
    past_valid: Tensor
    mean: Tensor
    std: Tensor
    season: Tensor
    names: list[str]
    past_time: list[pd.Index]
    future_time: list[pd.Index]
    notes: list[str]
    covariates: Tensor | None = None


def frame_to_context(
    source: pd.DataFrame | str | Path,
    preprocessing: Mapping[str, Any],
    horizon: int,
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
) -> Context:
    """The last points of every series of a new table, prepared as a data set's ``preprocessing`` says; see
    `panel_to_context`. Raises `ZooError` for a table that cannot be read."""
    return panel_to_context(read_panel(source, preprocessing, time=time, columns=columns), preprocessing, horizon)


def read_panel(
    source: pd.DataFrame | str | Path,
    preprocessing: Mapping[str, Any],
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
) -> Panel:
    """A user's table with the covariates that a model was trained with. Raises `ZooError` where it cannot be read."""
    what = f"'{source}'" if isinstance(source, (str, Path)) else "the table"
    frame = read_table(source) if isinstance(source, (str, Path)) else source
    if isinstance(frame, pd.Series):
        frame = frame.to_frame("y" if frame.name is None else frame.name)
    if not isinstance(frame, pd.DataFrame):
        raise ZooError(f"input must be a file or a pandas data frame, not {type(frame).__name__}")
    told = Covariates(**preprocessing.get("covariates", {}))
    return to_panel(frame, time=time, columns=columns, known=list(told.known), static=list(told.static), what=what)


def panel_to_context(
    panel: Panel, preprocessing: Mapping[str, Any], horizon: int, end_S: np.ndarray | None = None
) -> Context:
    """What comes before row ``end_S`` of every series, by default before its end.

    A series that the data set knew by name is standardised by the train statistics; another by its own observed
    points before the end, and that is noted. The season is the data set's where the frequency is the same, else the
    table's own. Series shorter than the context are left-padded.
    """
    told = Covariates(**preprocessing.get("covariates", {}))
    length, count = preprocessing["context"], len(panel.names)
    trained = dict(
        zip(preprocessing["columns"], zip(preprocessing["mean"], preprocessing["std"], strict=True), strict=True)
    )
    past, valid = np.zeros((count, length), np.float32), np.zeros((count, length), bool)
    mean, std = np.zeros(count), np.ones(count)
    past_time, future_time = [], []
    if end_S is None:
        end_S = _ends(panel) if told.known else panel.length_S
    for s, name in enumerate(panel.names):
        x = panel.series(s)[: end_S[s]]
        where = np.flatnonzero(np.isfinite(x))
        mean[s], std[s] = trained.get(name, (x[where].mean(), x[where].std() or 1.0))
        z = np.interp(np.arange(where[0], len(x)), where, (x[where] - mean[s]) / std[s])[-length:]
        past[s, length - len(z) :], valid[s, length - len(z) :] = z, True
        ahead = int(panel.length_S[s] - end_S[s])
        past_time.append(pd.Index(panel.last_times(s, len(z) + ahead)[: len(z)]))
        future_time.append(pd.Index(panel.frequency.after(past_time[-1][-1], horizon)))
    notes = list(panel.notes)
    if strange := [name for name in panel.names if name not in trained]:
        notes.append(f"standardised by their own history, as the model was not trained on them: {listed(strange)}")
    season, trained_on = preprocessing["season"], preprocessing["frequency"]
    if panel.frequency.name != trained_on:
        season = panel.frequency.season
        notes.append(f"the table's frequency is {panel.frequency.name}, the model was trained on {trained_on}")
    past, valid, mean, std = (torch.from_numpy(a) for a in (past, valid, mean.astype("f4"), std.astype("f4")))
    season_S = torch.full((count,), season)
    covariates = None
    if told.channels:
        covariates = _covariates(panel, told, end_S, length, horizon, [times[-1] for times in past_time])
    return Context(past, valid, mean, std, season_S, panel.names, past_time, future_time, notes, covariates)


def _ends(panel: Panel) -> np.ndarray:
    """Where each series ends and the rows begin that only say what is known of its future: behind its last value; in a
    wide table, whose series share their rows, behind the last value of any."""
    end_S = np.array([np.flatnonzero(np.isfinite(panel.series(s)))[-1] + 1 for s in range(len(panel.names))])
    shared = len(panel.names) > 1 and bool((panel.rows_S2 == panel.rows_S2[0]).all())
    return np.full_like(end_S, end_S.max()) if shared else end_S


def _covariates(
    panel: Panel, told: Covariates, end_S: np.ndarray, length: int, horizon: int, last_S: Sequence[Any]
) -> Tensor:
    """(S, L + H, C) around the end of each series; 0 before its first point."""
    ahead_S = panel.length_S - end_S
    if told.known and (short := np.flatnonzero(ahead_S < horizon)).size:
        raise ZooError(
            f"the table says what is known of the future of '{panel.names[short[0]]}' for {ahead_S[short[0]]} rows, "
            f"and horizon={horizon} wants as many; add rows with {', '.join(told.known)} and no value"
        )
    before = told.of(panel)
    assert before is not None
    both = torch.zeros(len(end_S), length + horizon, told.channels)
    for s, (start, end) in enumerate(zip(panel.offset_S[:-1], end_S, strict=True)):
        own = before[start : start + end + (horizon if told.known else 0)]
        if not told.known:
            own = torch.cat([own, own[-1:].expand(horizon, -1)])
            if told.calendar:
                times = panel.frequency.after(last_S[s], horizon)
                own[-horizon:, : len(CALENDAR)] = torch.from_numpy(calendar(times))
        own = own[-(length + horizon) :]
        both[s, -len(own) :] = own
    return both
