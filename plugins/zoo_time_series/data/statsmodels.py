"""Real series that come with statsmodels: nothing to download."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from zoo_time_series.data.frame import to_panel
from zoo_time_series.data.windows import SeriesDataset, split_rows

SEASON = {"co2": 52, "elnino": 12, "sunspots": 11}


class Statsmodels(SeriesDataset):
    """``co2``: CO2 at Mauna Loa, weekly, 1958-2001, with missing weeks. ``elnino``: sea surface temperature, monthly,
    1950-2010. ``sunspots``: yearly, 1700-2008, whose season is the solar cycle of about 11 years."""

    @dataclass
    class Config:
        series: Literal["co2", "elnino", "sunspots"] = "co2"
        context: int = 104
        horizon: int = 26
        stride: int = 1
        score_every: int = 1
        calendar: bool = False
        split: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])

    def __init__(self, config: Config) -> None:
        frame = importlib.import_module(f"statsmodels.datasets.{config.series}").load_pandas().data
        if config.series == "co2":
            frame = frame.rename_axis("time").reset_index()
        elif config.series == "elnino":
            frame = frame.melt("YEAR", var_name="month", value_name="elnino")
            day = frame["YEAR"].astype(int).astype(str) + "-" + frame["month"]
            frame = pd.DataFrame({"time": pd.to_datetime(day, format="%Y-%b"), "elnino": frame["elnino"]})
            frame = frame.sort_values("time", ignore_index=True)
        else:
            day = pd.to_datetime(frame["YEAR"].astype(int).astype(str), format="%Y")
            frame = pd.DataFrame({"time": day, "sunspots": frame["SUNACTIVITY"]})
        panel, bounds_S3 = split_rows(
            to_panel(frame, time="time", what=config.series), config.split, config.horizon, config.series
        )
        super().__init__(
            panel,
            bounds_S3,
            context=config.context,
            horizon=config.horizon,
            stride=config.stride,
            score_every=config.score_every,
            calendar=config.calendar,
            season=SEASON[config.series],
        )
