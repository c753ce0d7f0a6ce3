"""M4, the fourth Makridakis competition (Makridakis et al. 2020, doi:10.1016/j.ijforecast.2019.04.014).

Shapes: S series, T points of one series, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.download import fetch
from zoo.spec import DataFile, ZooError
from zoo_time_series.data.files import M4_FILES
from zoo_time_series.data.frame import read_table
from zoo_time_series.data.frequency import Frequency
from zoo_time_series.data.windows import Panel, SeriesDataset

# frequency, season and horizon of each group, as the competition fixed them
GROUPS = {
    "Yearly": ("Y", 1, 6),
    "Quarterly": ("Q", 4, 8),
    "Monthly": ("M", 12, 18),
    "Weekly": ("W", 1, 13),
    "Daily": ("D", 1, 14),
    "Hourly": ("h", 24, 48),
}


class M4(SeriesDataset):
    """One group of the competition: series of different length that start when they start, no dates.

    Test is the competition's: one window a series, from the end of its history. Val is the horizon before that, train
    all before it, so every model here is chosen without a look at the test part. MASE is scaled by the whole history,
    as the rules say. `notes` says how many series are too short to be trained on.
    """

    @dataclass
    class Config:
        group: Literal["Yearly", "Quarterly", "Monthly", "Weekly", "Daily", "Hourly"] = "Hourly"
        context: int = 336
        stride: int = 1

    def __init__(self, config: Config) -> None:
        name, season, horizon = GROUPS[config.group]
        train, test = (_rows(part) for part in M4_FILES[config.group])
        if list(train) != list(test) or any(len(x) != horizon for x in test.values()):
            raise ZooError(f"the M4 {config.group} files do not belong together; delete them, so that they are fetched")
        lengths = np.array([len(x) for x in train.values()])
        bounds_S3 = np.stack([lengths - horizon, lengths, lengths + horizon], axis=1)
        values = [np.r_[train[key], test[key]] for key in train]
        panel = Panel(
            np.concatenate(values),
            np.cumsum([0, *bounds_S3[:, 2]]),
            list(train),
            Frequency(name, season, "fixed"),
            None,
            np.empty(0, int),
            np.zeros((len(train), 2), int),
        )
        if short := int((bounds_S3[:, 0] <= horizon).sum()):
            panel.notes.append(f"{short} series are too short to be trained on: they are only scored")
        super().__init__(
            panel, bounds_S3, context=config.context, horizon=horizon, stride=config.stride, scale_end_S=lengths
        )
        pairs = [score(naive2(train[k], season, horizon), train[k], test[k], season) for k in train]
        smape, mase = np.mean(pairs, axis=0)
        self.preprocessing["reference"] = {"smape": float(smape), "mase": float(mase)}


def _rows(part: DataFile) -> dict[str, np.ndarray]:
    """The values of each series of an M4 file: one a row, padded with blanks at the end."""
    frame = read_table(fetch(part))
    values = frame.iloc[:, 1:].to_numpy(np.float64)
    return {str(key): row[np.isfinite(row)] for key, row in zip(frame.iloc[:, 0], values, strict=True)}


def score(forecast_H: np.ndarray, history_T: np.ndarray, future_H: np.ndarray, season: int) -> tuple[float, float]:
    """sMAPE (percent) and MASE of one series, as the competition computes them."""
    error_H = np.abs(forecast_H - future_H)
    scale = np.abs(history_T[season:] - history_T[:-season]).mean()
    return float((200 * error_H / (np.abs(forecast_H) + np.abs(future_H))).mean()), float(error_H.mean() / scale)


def naive2(history_T: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """(H,): the last value of the seasonally adjusted history, seasonally put back: the reference of M4's OWA.

    The season is taken out by the classical multiplicative decomposition, where the autocorrelation at one season
    passes the 90% test.
    """
    if season == 1 or not seasonal(history_T, season):
        return np.full(horizon, history_T[-1])
    kernel = np.r_[0.5, np.ones(season - 1), 0.5] / season
    half = season // 2
    ratio_T = np.full(len(history_T), np.nan)
    if season % 2 == 0:
        ratio_T[half:-half] = history_T[half:-half] / np.convolve(history_T, kernel, "valid")
    else:
        ratio_T[half:-half] = history_T[half:-half] / np.convolve(history_T, np.ones(season) / season, "valid")
    index = np.array([np.nanmean(ratio_T[i::season]) for i in range(season)])
    index /= index.mean()
    at = np.arange(len(history_T), len(history_T) + horizon)
    return history_T[-1] / index[(len(history_T) - 1) % season] * index[at % season]


def seasonal(history_T: np.ndarray, season: int) -> bool:
    """The competition's test: whether the autocorrelation at lag ``season`` is beyond its 90% limit."""
    count = len(history_T)
    if count < 3 * season:
        return False
    centred_T = history_T - history_T.mean()
    total = centred_T @ centred_T
    if total == 0:
        return False
    lag_K = np.array([centred_T[lag:] @ centred_T[:-lag] for lag in range(1, season + 1)]) / total
    limit = 1.645 / np.sqrt(count) * np.sqrt(1 + 2 * (lag_K[:-1] ** 2).sum())
    return bool(abs(lag_K[-1]) > limit)
