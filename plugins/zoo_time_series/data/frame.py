"""Tables of the user's own to a `Panel` of series: what is the time, what are the columns, what was filled or dropped.

Imports pandas: import this module only where a table is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from zoo.registry import suggest
from zoo.spec import ZooError
from zoo_time_series.data.frequency import ROWS, Frequency, infer
from zoo_time_series.data.table import distinct, numeric, parse_times, read_table, time_column, unnamed
from zoo_time_series.data.windows import Panel, listed

__all__ = ["read_table", "to_panel"]

GLUONTS = {"item_id": "unique_id", "timestamp": "ds", "target": "y"}
"""What GluonTS and AutoGluon call the columns of a long table."""
MOST_AGAIN = 0.25
"""Share of the rows of a wide table that may repeat a time."""


def to_panel(
    frame: pd.DataFrame,
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    known: Sequence[str] = (),
    static: Sequence[str] = (),
    what: str = "the table",
) -> Panel:
    """Series of a wide table (a time column and numeric columns) or of a long one (``unique_id``, ``ds``, ``y``; or
    ``item_id``, ``timestamp``, ``target``).

    Args:
        frame: any table; a ``DatetimeIndex`` or a named index counts as a column.
        time: the time column; None looks for one and takes the order of the rows when there is none.
        columns: numeric columns (ids of a long table) to keep; None keeps all.
        known: columns that are no series but covariates known in advance.
        static: columns of a long table that say something of a series, numbers or texts; its first entry counts.
        what: name of the table in messages.

    Rows are sorted; of two rows with one time the last counts; gaps become missing values. All of it is noted.
    """
    dates = isinstance(frame.index, (pd.DatetimeIndex, pd.PeriodIndex))
    if isinstance(frame.index, pd.MultiIndex):
        frame = frame.reset_index()
    elif not isinstance(frame.index, pd.RangeIndex) and (frame.index.name or dates):
        frame = frame.reset_index(names=frame.index.name or "time")
    notes: list[str] = []
    names, again = distinct(frame.columns)
    frame = frame.set_axis(names, axis=1)
    if again:
        notes.append(f"columns of one name were told apart: {listed(again)}")
    if {"item_id", "target"} <= set(names) and not {"unique_id", "y"} & set(names):
        frame, time = frame.rename(columns=GLUONTS), GLUONTS.get(time or "", time)
    if time is not None and time not in frame.columns:
        raise ZooError(f"{what} has no time column '{time}'; {suggest(time, frame.columns)}")
    for name in (*known, *static):
        if name not in frame.columns:
            raise ZooError(f"{what} has no covariate '{name}'; {suggest(name, frame.columns)}")
    if {"unique_id", "y"} <= set(frame.columns):
        told = [name for name in ("unique_id", "y", *known, *static)]
        time = time or ("ds" if "ds" in frame.columns else time_column(frame.drop(columns=told)))
        return _long_panel(frame, time, columns, known, static, what, notes)
    if static:
        raise ZooError(f"{what} is wide, and static covariates want a long one (unique_id, ds, y); set data.static=[]")
    time = time or time_column(frame.drop(columns=[*known]))
    if time is None:
        notes.append("no time column: rows are taken in order, no season is known")
    elif numbers := [name for name in frame.columns[:1] if unnamed(name) and name != time and name not in known]:
        frame = frame.drop(columns=numbers)
        notes.append(f"dropped the row numbers in the first column, '{numbers[0]}'")
    kept = _numeric_columns(frame.drop(columns=[*([time] if time else []), *known]), columns, what, notes)
    order, time_N = _ordered(frame, time, np.zeros(len(frame), np.int64), notes)
    if len(frame) - len(order) > MOST_AGAIN * len(frame):
        raise ZooError(
            f"{what}: {len(frame) - len(order)} of {len(frame)} rows repeat a time of '{time}' or have none; name the "
            "columns of a long table unique_id, ds and y, or name another time column"
        )
    frequency, slot_N = _slots(time_N, np.zeros(len(order), np.int64), notes)
    rows = int(slot_N[-1]) + 1
    values = np.full((len(kept), rows), np.nan)
    for row, column in zip(values, kept.values(), strict=True):
        row[slot_N] = column[order]
    _report_missing(values.ravel(), len(order), rows, list(kept), np.isnan(values).mean(axis=1), notes)
    offset, rows_S2 = np.arange(len(kept) + 1) * rows, np.tile([0, len(order)], (len(kept), 1))
    told = {}
    for name in known:
        row = np.full(rows, np.nan)
        row[slot_N] = _covariate(frame, name, what)[order]
        told[name] = np.tile(row, len(kept))
    return Panel(values.ravel(), offset, list(kept), frequency, time_N, slot_N, rows_S2, notes, told)


def _covariate(frame: pd.DataFrame, name: str, what: str) -> np.ndarray:
    read = numeric(frame[name])
    if read is None:
        raise ZooError(f"{what}: covariate '{name}' holds no numbers; leave it out, or make it numbers")
    return read[0]


def _numeric_columns(
    frame: pd.DataFrame, wanted: Sequence[str] | None, what: str, notes: list[str]
) -> dict[str, np.ndarray]:
    for name in wanted or ():
        if name not in frame.columns:
            raise ZooError(f"{what} has no column '{name}'; {suggest(name, frame.columns)}")
    kept, text, empty = {}, [], []
    for name in wanted or frame.columns:
        read = numeric(frame[name])
        if frame[name].notna().sum() == 0 or (read and np.isnan(read[0]).all()):
            empty.append(name)
        elif read is None:
            text.append(name)
        else:
            kept[name] = read[0]
            if read[1]:
                notes.append(f"column '{name}': {read[1]} entries are not numbers and count as missing")
    for names, fault in ((empty, "no value at all"), (text, "no numbers")):
        if names and wanted:
            raise ZooError(f"{what}: column '{names[0]}' holds {fault}; leave it out of columns, or mend the file")
        if names:
            notes.append(f"dropped columns that hold {fault}: {listed(names)}")
    if not kept:
        found = f"no value at all in: {listed(empty)}" if empty else f"found: {listed(text) or 'nothing'}"
        raise ZooError(f"{what} has no numeric column with values ({found}); give a table with a column of numbers")
    return kept


def _long_panel(
    frame: pd.DataFrame,
    time: str | None,
    ids: Sequence[str] | None,
    known: Sequence[str],
    static: Sequence[str],
    what: str,
    notes: list[str],
) -> Panel:
    read = numeric(frame["y"])
    if read is None or np.isnan(read[0]).all():
        raise ZooError(
            f"{what}: column 'y' {'is not numeric' if read is None else 'has no value at all'}; mend the file"
        )
    group_N, names = pd.factorize(frame["unique_id"].astype(str))
    for name in ids or ():
        if name not in names:
            raise ZooError(f"{what} has no series '{name}' in unique_id; {suggest(name, names)}")
    order, time_N = _ordered(frame, time, group_N, notes)
    value_N, group_N = read[0][order], group_N[order]
    alive = np.bincount(group_N, np.isfinite(value_N), minlength=len(names)) > 0
    wanted = alive & (np.isin(names, list(ids)) if ids else True)
    if ids and not wanted[np.isin(names, list(ids))].all():
        dead = next(n for n in ids if not alive[list(names).index(n)])
        raise ZooError(f"{what}: series '{dead}' has no value at all; leave it out of columns, or mend the file")
    if not alive.all():
        notes.append(f"dropped, with no value at all: {listed(list(names[~alive]))}")
    rows = wanted[group_N]
    order = order[rows]
    value_N, group_N = value_N[rows], np.cumsum(wanted)[group_N[rows]] - 1
    time_N = time_N[rows].reset_index(drop=True) if time_N is not None else None
    frequency, slot_N = _slots(time_N, group_N, notes)
    ends = np.flatnonzero(np.r_[group_N[1:] != group_N[:-1], True])
    offset = np.r_[0, np.cumsum(slot_N[ends] + 1)]
    values = np.full(offset[-1], np.nan)
    values[offset[group_N] + slot_N] = value_N
    kept = [str(name) for name in names[wanted]]
    counts = np.diff(offset)
    share = np.add.reduceat(np.isnan(values), offset[:-1]) / counts
    _report_missing(values, len(value_N), len(values), kept, share, notes)
    rows_S2 = np.stack([np.r_[0, ends[:-1] + 1], ends + 1], axis=1)
    told = {name: np.full(offset[-1], np.nan) for name in known}
    for name, row in told.items():
        row[offset[group_N] + slot_N] = _covariate(frame, name, what)[order]
    of_series = {name: _static(frame[name].iloc[order[rows_S2[:, 0]]]) for name in static}
    return Panel(values, offset, kept, frequency, time_N, slot_N, rows_S2, notes, told, of_series)


def _static(column: pd.Series) -> np.ndarray:
    """Numbers as float64 with NaN where missing, anything else as texts."""
    read = numeric(column)
    return column.astype(str).to_numpy(dtype=object) if read is None else read[0]


def _ordered(
    frame: pd.DataFrame, time: str | None, group_N: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, pd.Series | None]:
    """Row numbers sorted by group and time without unreadable and duplicate times, and those times."""
    if time is None:
        return np.argsort(group_N, kind="stable"), None
    times = parse_times(frame[time])
    if bad := int(times.isna().sum()):
        if bad > len(times) // 2:
            raise ZooError(
                f"time column '{time}' cannot be read: '{frame[time].iloc[0]}' is no date; name another column"
            )
        notes.append(f"dropped {bad} rows with an unreadable time in '{time}'")
    rows = np.flatnonzero(times.notna())
    key = times.to_numpy()[rows]
    order = rows[np.lexsort((key, group_N[rows]))]
    if (order != rows[np.argsort(group_N[rows], kind="stable")]).any():
        notes.append("rows were not in the order of time and were sorted")
    times = times.iloc[order].reset_index(drop=True)
    group = group_N[order]
    again = np.r_[(group[1:] == group[:-1]) & (times[1:].to_numpy() == times[:-1].to_numpy()), False]
    if again.any():
        notes.append(f"{int(again.sum())} duplicate times: the last row of each counts")
    return order[~again], times[~again].reset_index(drop=True)


def _slots(time_N: pd.Series | None, group_N: np.ndarray, notes: list[str]) -> tuple[Frequency, np.ndarray]:
    if time_N is None:
        first_N = np.r_[True, group_N[1:] != group_N[:-1]]
        index = np.arange(len(group_N))
        return ROWS, index - np.maximum.accumulate(np.where(first_N, index, 0))
    frequency, slot_N, note = infer(time_N, group_N)
    if note:
        notes.append(note)
    return frequency, slot_N


def _report_missing(
    values: np.ndarray, rows: int, slots: int, names: list[str], share_S: np.ndarray, notes: list[str]
) -> None:
    if slots > rows:
        notes.append(f"{slots - rows} of {slots} time slots had no row and count as missing")
    if missing := int(np.isnan(values).sum()):
        worst = [f"{names[s]} {share_S[s]:.1%}" for s in np.argsort(-share_S, kind="stable") if share_S[s] > 0]
        notes.append(f"{missing} missing values, interpolated as input and never scored: {listed(worst)}")
