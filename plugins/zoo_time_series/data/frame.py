"""Tables of the user's own to a `Panel` of series: what is the time, what are the columns, what was filled or dropped.

Imports pandas: import this module only where a table is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.registry import suggest
from zoo.spec import ZooError
from zoo_time_series.data.frequency import ROWS, Frequency, infer
from zoo_time_series.data.windows import Panel, listed

LONG = ("unique_id", "ds", "y")
TIME_NAMES = ("ds", "date", "datetime", "time", "timestamp", "year", "month", "day", "index", "t", "step")


# -- reading ---------------------------------------------------------------------------------------------------------


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV (comma, semicolon or tab; UTF-8 or Latin-1) or parquet file. Raises `ZooError` for anything else."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ZooError(f"data file '{path}' {'is a folder' if file.is_dir() else 'does not exist'}; check the path")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(file)
            return frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
        with file.open("rb") as stream:
            head = stream.read(65536)
        if b"\0" in head:
            raise ZooError(f"data file '{path}' is binary, not a CSV; export the table as CSV or parquet")
        return _read_csv(file, head)
    except ImportError as error:
        raise ZooError(f"reading '{path}' needs a parquet engine; run: pip install pyarrow") from error
    except pd.errors.EmptyDataError:
        raise ZooError(f"data file '{path}' is empty; give a table with a header and numeric columns") from None
    except (ValueError, OSError) as error:  # ParserError and pyarrow's errors are ValueErrors
        first = str(error).strip().partition("\n")[0]
        raise ZooError(f"data file '{path}' cannot be read as a table: {first}; export it as CSV or parquet") from error


def _read_csv(file: Path, head: bytes) -> pd.DataFrame:
    header = head.partition(b"\n")[0]
    sep = max(",;\t", key=lambda c: header.count(c.encode()))
    options: dict[str, Any] = {"sep": sep, "decimal": "," if sep == ";" and b"," in head else ".", "low_memory": False}
    if all(_is_number(name) for name in header.decode("latin-1").strip().split(sep)):
        options["header"] = None  # the first row holds values
    try:
        frame = pd.read_csv(file, encoding="utf-8-sig", **options)
    except UnicodeDecodeError:
        frame = pd.read_csv(file, encoding="latin-1", **options)
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"').replace(",", "."))
    except ValueError:
        return False
    return True


def parse_times(column: pd.Series) -> pd.Series:
    """Times as datetimes without a zone, or as plain numbers; missing where they cannot be read.

    Numbers are dates when they look like 20240131, seconds or milliseconds of the epoch when they are that large.
    """
    if pd.api.types.is_numeric_dtype(column):
        low, high = column.min(), column.max()
        if low >= 19000101 and high <= 21001231:
            return pd.to_datetime(column.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
        unit = "s" if low >= 1e8 and high < 1e11 else "ms" if low >= 1e11 and high < 1e14 else None
        whole = column.notna().all() and (column % 1 == 0).all()
        return pd.to_datetime(column, unit=unit) if unit else column.astype(int if whole else float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns of formats it tries row by row, which is what is wanted
        try:
            times = pd.to_datetime(column, errors="coerce")
            if times.isna().sum() > column.isna().sum():
                other = pd.to_datetime(column, errors="coerce", dayfirst=True)
                times = other if other.isna().sum() < times.isna().sum() else times
        except ValueError:  # offsets from UTC that change, as with daylight saving
            times = pd.to_datetime(column, errors="coerce", utc=True)
    return times.dt.tz_localize(None) if getattr(times.dt, "tz", None) is not None else times


def _time_column(frame: pd.DataFrame) -> str | None:
    """The first column that is named or reads like a time and is not mostly unreadable."""
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            return name
        named = str(name).lower() in TIME_NAMES or str(name).startswith("Unnamed")
        if pd.api.types.is_numeric_dtype(column):
            if named and column.is_unique and column.notna().all() and (column % 1 == 0).all():
                return name
            continue
        sample = column.dropna().head(200)
        if len(sample) and numeric(sample) is None and parse_times(sample).notna().mean() > (0.5 if named else 0.9):
            return name
    return None


def numeric(column: pd.Series) -> tuple[np.ndarray, int] | None:
    """The column as float64 with NaN where missing or infinite, and how many texts became missing; None if not numeric.

    A column of text counts as numeric when at least nine in ten of its entries are numbers.
    """
    if pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return None
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    lost = int((np.isnan(values) & column.notna().to_numpy()).sum())
    if lost > 0.1 * column.notna().sum():
        return None
    return np.where(np.isfinite(values), values, np.nan), lost


# -- a table as a panel ----------------------------------------------------------------------------------------------


def to_panel(
    frame: pd.DataFrame,
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    known: Sequence[str] = (),
    static: Sequence[str] = (),
    what: str = "the table",
) -> Panel:
    """Series of a wide table (a time column and numeric columns) or of a long one (``unique_id``, ``ds``, ``y``).

    Args:
        frame: any table; a ``DatetimeIndex`` or a named index counts as a column.
        time: the time column; None looks for one and takes the order of the rows when there is none.
        columns: numeric columns (ids of a long table) to keep; None keeps all.
        known: columns that are no series but covariates known in advance.
        static: columns of a long table that say something of a series, numbers or texts; its first entry counts.
        what: name of the table in messages.

    Rows are sorted; of two rows with one time the last counts; gaps become missing values. All of it is noted.
    """
    if not isinstance(frame.index, pd.RangeIndex) and (frame.index.name or frame.index.dtype.kind == "M"):
        frame = frame.reset_index(names=frame.index.name or "time")
    frame = frame.rename(columns=str)
    notes: list[str] = []
    if time is not None and time not in frame.columns:
        raise ZooError(f"{what} has no time column '{time}'; {suggest(time, frame.columns)}")
    for name in (*known, *static):
        if name not in frame.columns:
            raise ZooError(f"{what} has no covariate '{name}'; {suggest(name, frame.columns)}")
    if {"unique_id", "y"} <= set(frame.columns):
        time = time or ("ds" if "ds" in frame.columns else None)
        return _long_panel(frame, time, columns, known, static, what, notes)
    if static:
        raise ZooError(f"{what} is wide, and static covariates want a long one (unique_id, ds, y); set data.static=[]")
    time = time or _time_column(frame)
    if time is None:
        notes.append("no time column: rows are taken in order, no season is known")
    kept = _numeric_columns(frame.drop(columns=[*([time] if time else []), *known]), columns, what, notes)
    order, time_N = _ordered(frame, time, np.zeros(len(frame), np.int64), notes)
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
