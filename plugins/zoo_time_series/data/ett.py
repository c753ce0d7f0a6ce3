"""ETT: electricity transformer temperature, the long-horizon benchmark (Zhou et al. 2021, arXiv:2012.07436)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.download import fetch
from zoo.spec import ZooError
from zoo_time_series.data.files import ETT
from zoo_time_series.data.frame import read_table, to_panel
from zoo_time_series.data.windows import SeriesDataset

MONTH = 30 * 24  # hourly rows
COLUMNS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]


class Ett(SeriesDataset):
    """Seven variates, channel-independent, 12/4/4 months: 8640/2880/2880 rows (four times as many in the minute sets).

    Standardised by the train part alone; every val and test window is scored, none dropped.
    """

    @dataclass
    class Config:
        set: Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2"] = "ETTh1"
        context: int = 512
        horizon: int = 96
        stride: int = 1
        score_every: int = 1
        calendar: bool = False

    def __init__(self, config: Config) -> None:
        path = fetch(ETT[config.set])
        scale = 4 if config.set.startswith("ETTm") else 1
        ends = np.array([12, 16, 20]) * MONTH * scale
        frame = read_table(path)
        if len(frame) < ends[-1]:
            raise ZooError(f"'{path}' has {len(frame)} rows, {config.set} has at least {ends[-1]}; download it again")
        panel = to_panel(frame[: ends[-1]], time="date", columns=COLUMNS, what=f"'{path}'")
        bounds_S3 = np.tile(ends, (len(COLUMNS), 1))
        super().__init__(
            panel,
            bounds_S3,
            context=config.context,
            horizon=config.horizon,
            stride=config.stride,
            score_every=config.score_every,
            calendar=config.calendar,
        )
