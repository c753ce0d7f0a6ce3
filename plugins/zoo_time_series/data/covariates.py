"""What is known of a point beside its value: calendar, columns known in advance, what never changes in a series.

Shapes: S series, N points of all series, T points of one series, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.spec import ZooError

if TYPE_CHECKING:
    from zoo_time_series.data.windows import Panel

CALENDAR = ("hour", "weekday", "day of month", "day of year")
MOST_TEXTS = 32


@dataclass
class Covariates:
    """Plain data that travels with the weights. Channels, in order: the calendar's, ``known``, ``static``.

    ``known`` and numeric ``static`` columns are ``name: [mean, deviation]`` of the train part; a static column of texts
    is ``name: [text, ...]``, a channel a text.
    """

    calendar: bool = False
    known: dict[str, list[float]] = field(default_factory=dict)
    static: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        texts = sum(len(s) if s and isinstance(s[0], str) else 1 for s in self.static.values())
        return len(CALENDAR) * self.calendar + len(self.known) + texts

    def fit(self, panel: Panel, train_end_S: np.ndarray) -> Covariates:
        """The same with the statistics of a panel's own covariates over its train parts. Returns itself."""
        points = np.concatenate([o + np.arange(end) for o, end in zip(panel.offset_S, train_end_S, strict=False)])
        for name, values_N in panel.known.items():
            self.known[name] = _moments(values_N[points], name)
        for name, values_S in panel.static.items():
            if values_S.dtype.kind == "f":
                self.static[name] = _moments(values_S, name)
            else:
                self.static[name] = sorted(set(values_S.tolist()))
                if len(self.static[name]) > MOST_TEXTS:
                    raise ZooError(
                        f"static column '{name}' has {len(self.static[name])} texts, at most {MOST_TEXTS}; leave it out"
                    )
        return self

    def of(self, panel: Panel) -> Tensor | None:
        """(N, C) of every point of a panel; None without channels."""
        if not self.channels:
            return None
        count, first_rows, done = len(panel.values_N), {}, np.zeros((len(panel.values_N), self.channels), np.float32)
        if self.calendar:
            for s in range(len(panel.names)):
                rows = (*panel.rows_S2[s], int(panel.length_S[s]))
                if rows not in first_rows:  # the columns of a wide table share their times
                    first_rows[rows] = calendar(panel.point_times(s))
                done[panel.offset_S[s] : panel.offset_S[s + 1], : len(CALENDAR)] = first_rows[rows]
        column = len(CALENDAR) * self.calendar
        for name, (mean, std) in self.known.items():
            values_N = panel.known[name]
            done[:, column] = (np.where(np.isfinite(values_N), values_N, mean) - mean) / std
            column += 1
        for name, fitted in self.static.items():
            values_S = panel.static[name]
            if fitted and isinstance(fitted[0], str):
                for text in fitted:
                    done[:, column] = (values_S == text).repeat(panel.length_S)
                    column += 1
            else:
                mean, std = fitted
                done[:, column] = ((np.where(np.isfinite(values_S), values_S, mean) - mean) / std).repeat(
                    panel.length_S
                )
                column += 1
        assert column == self.channels and len(done) == count
        return torch.from_numpy(done)


def calendar(times: Sequence[Any]) -> np.ndarray:
    """(T, 4), each from -0.5 to 0.5, as GluonTS and the long-horizon benchmarks' "timeF" have them."""
    import pandas as pd

    index = pd.DatetimeIndex(times)
    columns = (index.hour / 23, index.day_of_week / 6, (index.day - 1) / 30, (index.day_of_year - 1) / 365)
    return np.stack([np.asarray(c, np.float32) - 0.5 for c in columns], axis=1)


def _moments(values: np.ndarray, name: str) -> list[float]:
    seen = values[np.isfinite(values)]
    if len(seen) == 0:
        raise ZooError(f"covariate '{name}' has no value in the train part; leave it out")
    return [float(seen.mean()), float(seen.std()) or 1.0]
