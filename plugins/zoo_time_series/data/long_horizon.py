"""The long-horizon benchmark's tables beside ETT: electricity (ECL), traffic, exchange rates and weather."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from zoo.download import fetch
from zoo.spec import ZooError
from zoo_time_series.data.files import LONG_HORIZON
from zoo_time_series.data.frame import read_table, to_panel
from zoo_time_series.data.windows import SeriesDataset

# rows and variates, and the dates that the benchmark's own tables carry
TABLES = {
    "electricity": (26304, 321, "2016-07-01 02:00", "h"),
    "traffic": (17544, 862, "2016-07-01 02:00", "h"),
    "exchange_rate": (7588, 8, "1990-01-01", "D"),
    "weather": (52696, 21, "2020-01-01 00:10", "10min"),
}


class LongHorizon(SeriesDataset):
    """Channel-independent, split 70/10/20 in time as the benchmark does (train and test rounded down, val the rest);
    standardised by the train part alone, every val and test window scored.

    Electricity, traffic and exchange rates are fetched from their source (Lai et al. 2018, arXiv:1703.07015); they are
    the benchmark's values without its dates, which are put back. Weather is fetched from the benchmark's own host. Its
    dates name one step twice and leave nine out; the benchmark takes the rows in order, and so do we, as if they were
    a step apart.
    """

    @dataclass
    class Config:
        set: Literal["electricity", "traffic", "exchange_rate", "weather"] = "electricity"
        context: int = 512
        horizon: int = 96
        stride: int = 1
        score_every: int = 1
        calendar: bool = False

    def __init__(self, config: Config) -> None:
        path = fetch(LONG_HORIZON[config.set])
        rows, variates, start, step = TABLES[config.set]
        if path.suffix == ".gz":
            with gzip.open(path, "rt") as stream:
                values = np.loadtxt(stream, delimiter=",", dtype=np.float32, ndmin=2)
            frame = pd.DataFrame(values, columns=[str(i) for i in range(values.shape[1])])
        else:
            frame = read_table(path).drop(columns="date", errors="ignore")
        if frame.shape != (rows, variates):
            found = f"{len(frame)} rows and {frame.shape[1]} variates"
            raise ZooError(
                f"'{path}' has {found}, {config.set} has {rows} and {variates}; delete it and put the whole table there"
            )
        frame.insert(0, "date", pd.date_range(start, periods=rows, freq=step))
        panel = to_panel(frame, time="date", what=f"'{path}'")
        ends = np.array([int(0.7 * rows), rows - int(0.2 * rows), rows])
        super().__init__(
            panel,
            np.tile(ends, (len(panel.names), 1)),
            context=config.context,
            horizon=config.horizon,
            stride=config.stride,
            score_every=config.score_every,
            calendar=config.calendar,
        )
