"""The user's own series, from a CSV or parquet file."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from zoo_time_series.data.frame import read_table, to_panel
from zoo_time_series.data.windows import SeriesDataset, split_rows


class Csv(SeriesDataset):
    """A wide table (time and numeric columns of any name) or a long one (``unique_id``, ``ds``, ``y``), split in time.

    Any frequency or none, gaps, duplicates and missing values: `notes` says what was inferred, filled and dropped.
    """

    @dataclass
    class Config:
        path: str = MISSING
        time: str | None = None  # None: found, or the order of the rows
        columns: list[str] | None = None  # None: every numeric column (every id of a long table)
        context: int = 512
        horizon: int = 96
        stride: int = 1
        score_every: int = 1
        calendar: bool = False
        known: list[str] = field(default_factory=list)  # columns known in advance: covariates, no series
        static: list[str] = field(default_factory=list)  # columns of a long table that say something of a series
        season: int | None = None  # rows; None: by the frequency
        split: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])

    def __init__(self, config: Config) -> None:
        what = f"'{config.path}'"
        panel = to_panel(
            read_table(config.path),
            time=config.time,
            columns=config.columns,
            known=config.known,
            static=config.static,
            what=what,
        )
        panel, bounds_S3 = split_rows(panel, config.split, config.horizon, what)
        super().__init__(
            panel,
            bounds_S3,
            context=config.context,
            horizon=config.horizon,
            stride=config.stride,
            score_every=config.score_every,
            calendar=config.calendar,
            season=config.season,
        )
