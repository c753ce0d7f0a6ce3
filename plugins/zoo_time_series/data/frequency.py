"""Frequency of a series: inferred from its times, with the season that goes with it, and the times that come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from zoo.spec import ZooError

DAY = 86400.0


@dataclass(frozen=True)
class Frequency:
    """``name`` is as pandas writes it (``"h"``, ``"15min"``, ``"D"``, ``"W"``, ``"B"``, ``"M"``, ``"Q"``, ``"Y"``), or
    ``"step"`` for numbers and ``"row"`` for the order of the rows alone. ``season`` is in rows."""

    name: str
    season: int
    kind: Literal["fixed", "months", "business", "row"]
    step: Any = 1  # Timedelta, number of months, or number
    month_end: bool = False

    def after(self, last: Any, count: int) -> list[Any]:
        """The ``count`` times that follow ``last``. Raises `ZooError` where no two dates say the step."""
        if self is ROWS and isinstance(last, pd.Timestamp):
            raise ZooError("one row a series does not say how far apart its times are; give at least two rows")
        steps = range(1, count + 1)
        if self.kind == "months":
            offset = pd.offsets.MonthEnd if self.month_end else lambda months: pd.DateOffset(months=months)
            return [last + offset(self.step * k) for k in steps]
        if self.kind == "business":
            return [last + pd.offsets.BDay(k) for k in steps]
        return [last + self.step * k for k in steps]


ROWS = Frequency("row", 1, "row")


def season_of(step_s: float) -> int:
    """Rows a season for a step in seconds: those of an hour, a day, a week or a year, the longer the step."""
    if step_s < 60:
        return max(1, round(3600 / step_s))
    if step_s < DAY:
        return max(1, round(DAY / step_s))
    return 7 if step_s == DAY else max(1, round(365.25 * DAY / step_s))


def infer(time_N: pd.Series, group_N: np.ndarray) -> tuple[Frequency, np.ndarray, str]:
    """Frequency and slot of each row in its group, from times sorted within groups and without duplicates.

    A slot counts steps from the group's first time, so a missing row is a slot that nobody takes. Returns a note, empty
    when the times are regular. Times that fit no grid (more than 5% of the rows off by a quarter of a step, or a grid
    more than twice as long as the rows) are kept as ordered rows.
    """
    first_N = np.r_[True, group_N[1:] != group_N[:-1]]
    start_N = np.maximum.accumulate(np.where(first_N, np.arange(len(first_N)), 0))
    rank_N = np.arange(len(first_N)) - start_N
    if first_N.all():
        return ROWS, rank_N, "one row a series: no frequency"
    dated = not pd.api.types.is_numeric_dtype(time_N)
    t_N = time_N.to_numpy("datetime64[us]").astype(np.int64) / 1e6 if dated else time_N.to_numpy(np.float64)
    gaps, counts = np.unique(np.diff(t_N)[~first_N[1:]], return_counts=True)
    step, middle = float(gaps[counts.argmax()]), float(np.median(gaps.repeat(counts)))
    if not dated:
        number = int(step) if step.is_integer() else step
        frequency, slot_N = Frequency("step", 1, "fixed", number), (t_N - t_N[start_N]) / step
    elif middle >= 28 * DAY and not np.allclose(gaps % step, 0):
        month_N = (time_N.dt.year * 12 + time_N.dt.month).to_numpy()
        months, counts = np.unique(np.diff(month_N)[~first_N[1:]], return_counts=True)
        step = max(1, int(months[counts.argmax()]))
        name = {1: "M", 3: "Q", 12: "Y"}.get(step, f"{step}M")
        month_end = bool(time_N.dt.is_month_end.all())
        frequency = Frequency(name, max(1, round(12 / step)), "months", step, month_end)
        slot_N = (month_N - month_N[start_N]) / step
    elif step == DAY and (time_N.dt.day_of_week < 5).all() and len(time_N) >= 10:
        day_N = time_N.to_numpy("datetime64[D]")
        frequency, slot_N = Frequency("B", 5, "business"), np.busday_count(day_N[start_N], day_N).astype(float)
    else:
        delta = pd.Timedelta(seconds=step)
        days = f"{step / DAY:g}D".removeprefix("1D") or "D"
        name = "W" if step == 7 * DAY else days if step % DAY == 0 else pd.tseries.frequencies.to_offset(delta).freqstr
        frequency, slot_N = Frequency(name, season_of(step), "fixed", delta), (t_N - t_N[start_N]) / step
    rounded_N = np.rint(slot_N).astype(np.int64)
    off = np.abs(slot_N - rounded_N) > 0.25
    grid = int(rounded_N[np.r_[first_N[1:], True]].sum()) + int(first_N.sum())
    if off.mean() > 0.05 or grid > 2 * len(rank_N):
        delta = pd.Timedelta(seconds=round(middle, 3)) if dated else middle
        note = f"times are irregular ({delta} apart in the middle): rows are taken in order, no season is known"
        return Frequency("row", 1, "row", delta), rank_N, note
    note = (
        f"{int(off.sum())} times lie off the {frequency.name} grid and were moved to the nearest slot"
        if off.any()
        else ""
    )
    return frequency, rounded_N, note
