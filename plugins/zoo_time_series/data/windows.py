"""Forecasting windows over many series: views computed on the fly, never materialised copies.

Shapes: S series, N points of all series laid end to end, B batch, L context, H horizon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.spec import ZooError
from zoo_time_series.data.covariates import Covariates

if TYPE_CHECKING:
    import pandas as pd

    from zoo_time_series.data.frequency import Frequency

Split = Literal["train", "val", "test"]


@dataclass
class Panel:
    """Series of any length laid end to end: series s is ``values_N[offset_S[s]:offset_S[s + 1]]``, NaN where missing.

    ``times`` are those of the table's rows, sorted within a series, and ``slots`` the points that they fill; series s
    has the rows ``rows_S2[s]``. ``times`` is None where the table has no time. ``known`` holds covariates of every
    point, (N,) each and NaN where missing; ``static`` those of every series, (S,) each, numbers or texts.
    """

    values_N: np.ndarray
    offset_S: np.ndarray
    names: list[str]
    frequency: Frequency
    times: pd.Series | None
    slots: np.ndarray
    rows_S2: np.ndarray
    notes: list[str] = field(default_factory=list)
    known: dict[str, np.ndarray] = field(default_factory=dict)
    static: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def length_S(self) -> np.ndarray:
        return np.diff(self.offset_S)

    def series(self, s: int) -> np.ndarray:
        return self.values_N[self.offset_S[s] : self.offset_S[s + 1]]

    def select(self, keep: Sequence[int]) -> Panel:
        """The panel of these series alone."""
        pieces = [self.series(s) for s in keep]
        values_N, offset_S = np.concatenate(pieces), np.cumsum([0, *map(len, pieces)])
        names = [self.names[s] for s in keep]
        points = np.concatenate([np.arange(*self.offset_S[s : s + 2]) for s in keep])
        known = {name: values[points] for name, values in self.known.items()}
        static = {name: values[keep] for name, values in self.static.items()}
        return replace(
            self,
            values_N=values_N,
            offset_S=offset_S,
            names=names,
            rows_S2=self.rows_S2[keep],
            known=known,
            static=static,
        )

    def point_times(self, s: int) -> list[Any]:
        """The dates of a series' points, worked out where a row is missing. Raises `ZooError` where there are none."""
        if self.times is None or self.times.dtype.kind != "M":
            raise ZooError(
                "the table has no dates, which calendar covariates need; name its time column, or set calendar=false"
            )
        if self.frequency.kind == "fixed":
            first = self.times.iloc[self.rows_S2[s, 0]]
            return list(first + self.frequency.step * np.arange(self.length_S[s]))
        return self.last_times(s, int(self.length_S[s]))

    def last_times(self, s: int, count: int) -> list[Any]:
        """Times of a series' last ``count`` points, worked out where a row is missing; row numbers without times."""
        length = int(self.length_S[s])
        if self.times is None:
            return list(range(length - min(count, length), length))
        rows = slice(max(self.rows_S2[s, 0], self.rows_S2[s, 1] - count), self.rows_S2[s, 1])
        known = dict(zip(self.slots[rows].tolist(), self.times.iloc[rows], strict=True))
        found: list[Any] = []
        for slot in range(min(known), length):
            found.append(known[slot] if slot in known else self.frequency.after(found[-1], 1)[0])
        return found[-count:]


class WindowDataset(Dataset):
    """Every window of a split. An item holds, float32 unless said:

    ``past (L,)``, ``past_valid (L,)`` bool, ``future (H,)``, ``future_valid (H,)`` bool: standardised by the series'
    train statistics, 0 where invalid; ``mean``, ``std`` to return to the original units; ``mase_scale``, ``season``
    (int64), ``series`` (int64): scalars; ``covariates (L + H, C)`` where the data set has any. A gap in the
    past is filled by interpolation between its ends, one that reaches the forecast origin by the last value seen, so
    nothing later than the origin leaks into ``past``.
    """

    def __init__(self, store: Store, origin_S: np.ndarray, count_S: np.ndarray, stride: int) -> None:
        self.store, self.stride = store, stride
        self.origin_S = torch.from_numpy(origin_S)  # first forecast origin of each series
        self.end_S = torch.from_numpy(np.cumsum(count_S))  # windows up to and including each series

    def __len__(self) -> int:
        return int(self.end_S[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        batch = self.batch(torch.as_tensor(indices))
        columns = [value.unbind() for value in batch.values()]
        return [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]

    def batch(self, index_B: Tensor) -> dict[str, Tensor]:
        """The windows of these indices, stacked. Raises IndexError outside ``[-len, len)``."""
        total = len(self)
        index_B = torch.where(index_B < 0, index_B + total, index_B)
        if index_B.numel() and not (index_B.min() >= 0 and index_B.max() < total):
            raise IndexError(f"window index out of range, there are {total}")
        store = self.store
        series_B = torch.searchsorted(self.end_S, index_B, right=True)
        before_B = torch.where(series_B > 0, self.end_S[series_B - 1], 0)
        origin_B = store.offset_S[series_B] + self.origin_S[series_B] + (index_B - before_B) * self.stride
        past_BL = origin_B[:, None] + torch.arange(-store.context, 0)
        past_valid_BL = past_BL >= store.first_S[series_B, None]
        if store.seen_N is not None:
            past_BL = torch.minimum(past_BL, store.seen_N[origin_B - 1, None].long())
        future_BH = origin_B[:, None] + torch.arange(store.horizon)
        future_valid_BH = store.observed_N[future_BH]
        covariates = {}
        if store.covariates_NC is not None:
            every_BT = torch.cat([origin_B[:, None] + torch.arange(-store.context, 0), future_BH], dim=1)
            inside_BT = torch.nn.functional.pad(past_valid_BL, (0, store.horizon), value=True)
            covariates["covariates"] = store.covariates_NC[every_BT.clamp(min=0)] * inside_BT[..., None]
        return {
            "past": store.values_N[past_BL.clamp(min=0)] * past_valid_BL,
            "past_valid": past_valid_BL,
            "future": store.values_N[future_BH] * future_valid_BH,
            "future_valid": future_valid_BH,
            "mean": store.mean_S[series_B],
            "std": store.std_S[series_B],
            "mase_scale": store.scale_S[series_B],
            "season": torch.full_like(series_B, store.season),
            "series": series_B,
            **covariates,
        }


@dataclass
class Store:
    """Standardised series as flat tensors, shared by the three splits."""

    context: int
    horizon: int
    season: int
    values_N: Tensor
    observed_N: Tensor
    seen_N: Tensor | None  # last observed position at or before each one; None when nothing is missing
    offset_S: Tensor
    first_S: Tensor  # position of the first observed point
    mean_S: Tensor
    std_S: Tensor
    scale_S: Tensor
    covariates_NC: Tensor | None = None


class SeriesDataset:
    """A windowed panel with its three splits in time: base of every source of series.

    Args:
        panel: the series; notes of what was filled or dropped on reading are carried on.
        bounds_S3: for each series the row at which train, val and test end.
        context, horizon: points before and after a forecast origin.
        stride: rows between two train windows.
        score_every: rows between two val and two test windows: 1 scores every window, the horizon those that do not
            overlap.
        season: rows a season; None takes the frequency's own.
        calendar: give every point its hour, weekday, day of month and day of year, for models that take covariates.
        scale_end_S: where the history ends that scales MASE; by default with the train part.

    Val and test windows look back into the split before them. Train windows start where the context is full, or, in
    a train part shorter than context + horizon, from half of what is left of it, left-padded with invalid points.

    Statistics are those of the train part's observed points (population standard deviation; 1 for a constant series).
    ``mase_scale`` is the mean absolute seasonal difference of the standardised train part, at lag 1 where no pair of
    points is a season apart, and 1 where that is 0 (constant series), so MASE stays finite.
    """

    def __init__(
        self,
        panel: Panel,
        bounds_S3: np.ndarray,
        *,
        context: int,
        horizon: int,
        stride: int = 1,
        season: int | None = None,
        calendar: bool = False,
        scale_end_S: np.ndarray | None = None,
        score_every: int = 1,
    ) -> None:
        counts = {"context": context, "horizon": horizon, "stride": stride, "season": season or 1}
        for name, value in {**counts, "score_every": score_every}.items():
            if value < 1:
                raise ZooError(f"data setting {name}={value} must be at least 1")
        self.notes = list(panel.notes)
        blank = [s for s, end in enumerate(bounds_S3[:, 0]) if not np.isfinite(panel.series(s)[:end]).any()]
        if blank:
            names = listed([panel.names[s] for s in blank])
            if len(blank) == len(panel.names):
                raise ZooError(f"no series has a value in its train part ({names}); give earlier rows or other columns")
            self.notes.append(f"dropped, no value in the train part: {names}")
            keep = [s for s in range(len(panel.names)) if s not in set(blank)]
            panel, bounds_S3 = panel.select(keep), bounds_S3[keep]
            scale_end_S = None if scale_end_S is None else scale_end_S[keep]
        if scale_end_S is None:
            scale_end_S = bounds_S3[:, 0]
        self.store = self._standardise(
            panel, bounds_S3, scale_end_S, context, horizon, season or panel.frequency.season
        )
        covariates = Covariates(calendar=calendar).fit(panel, bounds_S3[:, 0])
        self.store.covariates_NC = covariates.of(panel)
        self._windows = {
            name: self._window(name, bounds_S3, stride if name == "train" else score_every)
            for name in ("train", "val", "test")
        }
        for name, windows in self._windows.items():
            if len(windows) == 0:
                raise ZooError(f"the {name} part holds no window of horizon {horizon}; lower horizon or give more rows")
        rows = int(bounds_S3[:, 0].min())
        if rows < context + horizon:
            self.notes.append(
                f"train parts of {rows} rows and more cannot fill context={context}: it is left-padded there"
            )
        store = self.store
        self.preprocessing: dict[str, Any] = {
            "context": context,
            "horizon": horizon,
            "frequency": panel.frequency.name,
            "season": store.season,
            "columns": panel.names,
            "mean": store.mean_S.tolist(),
            "std": store.std_S.tolist(),
            "covariates": asdict(covariates),
        }

    def split(self, name: Split) -> WindowDataset:
        """The windows of ``"train"``, ``"val"`` or ``"test"``."""
        return self._windows[name]

    def _standardise(
        self, panel: Panel, bounds_S3: np.ndarray, scale_end_S: np.ndarray, context: int, horizon: int, season: int
    ) -> Store:
        count = len(panel.names)
        values_N = np.zeros(len(panel.values_N), np.float32)
        observed_N = np.isfinite(panel.values_N)
        first_S = panel.offset_S[:-1].copy()
        mean_S, std_S, scale_S = np.zeros(count), np.ones(count), np.ones(count)
        constant = []
        for s, train_end in enumerate(bounds_S3[:, 0]):
            start, stop = panel.offset_S[s : s + 2]
            x, known = panel.values_N[start:stop], observed_N[start:stop]
            seen = x[:train_end][known[:train_end]]
            mean_S[s], spread = seen.mean(), seen.std()
            if spread <= 1e-12 * max(1.0, abs(mean_S[s])):
                constant.append(panel.names[s])
            else:
                std_S[s] = spread
            where = np.flatnonzero(known)
            z = np.interp(np.arange(len(x)), where, (x[where] - mean_S[s]) / std_S[s])
            values_N[start:stop] = z
            first_S[s] += where[0]
            scale_end = scale_end_S[s]
            scale_S[s] = mase_scale(z[:scale_end], known[:scale_end], season)
        if constant:
            self.notes.append(f"constant in the train part, so only centred: {listed(constant)}")
        seen_N = None
        if not observed_N.all():
            seen_N = np.where(observed_N, np.arange(len(observed_N)), panel.offset_S[:-1].repeat(panel.length_S))
            seen_N = torch.from_numpy(np.maximum.accumulate(seen_N).astype(np.int32))
        mean, std, scale = (torch.from_numpy(a.astype(np.float32)) for a in (mean_S, std_S, scale_S))
        values, observed = torch.from_numpy(values_N), torch.from_numpy(observed_N)
        offset, first = torch.from_numpy(panel.offset_S[:-1].copy()), torch.from_numpy(first_S)
        return Store(context, horizon, season, values, observed, seen_N, offset, first, mean, std, scale)

    def _window(self, name: Split, bounds_S3: np.ndarray, stride: int) -> WindowDataset:
        context, horizon = self.store.context, self.store.horizon
        first_S = (self.store.first_S - self.store.offset_S).numpy()
        train_S, val_S, test_S = bounds_S3.T
        if name == "train":
            spare_S = np.maximum(1, (train_S - first_S - horizon) // 2)
            origin_S, stop_S = first_S + np.minimum(context, spare_S), train_S
        else:
            origin_S, stop_S = (train_S, val_S) if name == "val" else (val_S, test_S)
        count_S = np.maximum(0, (stop_S - horizon - origin_S) // stride + 1)
        return WindowDataset(self.store, origin_S, count_S, stride)


def split_rows(panel: Panel, fractions: Sequence[float], horizon: int, what: str) -> tuple[Panel, np.ndarray]:
    """Bounds of the three parts of each series in time, val and test lengthened to hold at least one horizon.

    Returns the panel without the series that are too short, and ``bounds_S3``. Raises `ZooError` when none is left.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ZooError(f"data setting split={list(fractions)} must be three positive fractions that sum to 1")
    needed = 3 * horizon + 1
    keep = np.flatnonzero(panel.length_S >= needed)
    if len(keep) == 0:
        rows = int(panel.length_S.max(initial=0))
        longest = (rows - 1) // 3
        remedy = f"lower horizon to at most {longest}" if longest >= 1 else "give a longer file"
        raise ZooError(f"{what}: {rows} rows are too few for horizon={horizon}, which needs {needed}; {remedy}")
    if dropped := len(panel.names) - len(keep):
        short = [name for name, rows in zip(panel.names, panel.length_S, strict=True) if rows < needed]
        panel.notes.append(f"dropped {dropped} series shorter than {needed} rows (3 x horizon + 1): {listed(short)}")
    if dropped:
        panel = panel.select(keep)
    rows_S = panel.length_S
    train_S, test_S = ((rows_S * fractions[i] + 1e-9).astype(np.int64) for i in (0, 2))
    val_S = rows_S - train_S - test_S
    if (val_S < horizon).any() or (test_S < horizon).any():
        panel.notes.append(f"val and test parts were lengthened to hold the horizon of {horizon} rows")
    val_S, test_S = np.maximum(val_S, horizon), np.maximum(test_S, horizon)
    return panel, np.stack([rows_S - val_S - test_S, rows_S - test_S, rows_S], axis=1)


def mase_scale(z: np.ndarray, known: np.ndarray, season: int) -> float:
    """Mean absolute error of the seasonal naive in sample (Hyndman & Koehler 2006, eq. 3); see `SeriesDataset`."""
    for lag in (season, 1):
        pair = known[lag:] & known[:-lag]
        if pair.any():
            scale = float(np.abs(z[lag:] - z[:-lag])[pair].mean())
            return scale if scale > 1e-6 else 1.0
    return 1.0


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in one line, shortened."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
