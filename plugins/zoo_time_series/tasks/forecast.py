"""What a user gets: a data frame that remembers the series it continues. Imports pandas.

Shapes: S series, N sample paths, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from zoo_time_series.data.context import Context


class Forecast(pd.DataFrame):
    """Long form, a row a forecast point: ``unique_id``, ``ds``, ``y``, and a column a quantile, named by its level
    (``0.1``). A plain data frame in all that pandas does with it; what comes out of that is one.

    Attributes:
        context: the ends of the series, standardised, as the model saw them.
        values_SH: the forecasts as a tensor, in original units; ``quantiles_SQH`` beside them, or None.
        levels: of the quantiles.
        paths_SNH: N sample paths of every series, where they were asked for; else None.
        notes: what was inferred, filled or dropped on reading the table, and where quantiles come from.
        scores: of a backtest, the metrics of the model and its rivals by name; else None. A backtest also has columns
            ``cutoff``, the last time known to the forecast, and ``actual``, what happened.
    """

    _metadata: ClassVar[list[str]] = ["context", "values_SH", "quantiles_SQH", "levels", "notes", "scores", "paths_SNH"]
    context: Context
    values_SH: Tensor
    quantiles_SQH: Tensor | None
    levels: list[float]
    paths_SNH: Tensor | None
    notes: list[str]
    scores: dict[str, dict[str, float]] | None

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    @classmethod
    def of(
        cls, context: Context, values_SH: Tensor, quantiles_SQH: Tensor | None = None, levels: Sequence[float] = ()
    ) -> Forecast:
        horizon = values_SH.shape[1]
        columns: dict[str, Any] = {
            "unique_id": np.repeat(np.array(context.names, object), horizon),
            "ds": [time for times in context.future_time for time in times],
            "y": values_SH.numpy().ravel(),
        }
        for q, level in enumerate(levels):
            assert quantiles_SQH is not None
            columns[f"{level:g}"] = quantiles_SQH[:, q].numpy().ravel()
        frame = cls(columns)
        frame.context, frame.values_SH, frame.quantiles_SQH = context, values_SH, quantiles_SQH
        frame.levels, frame.notes, frame.scores = list(levels), list(context.notes), None
        frame.paths_SNH = None
        return frame

    def paths_frame(self) -> pd.DataFrame:
        """The sample paths, a row a forecast point and a column a path: ``unique_id``, ``ds``, ``0``, ``1``, ..."""
        assert self.paths_SNH is not None
        values = pd.DataFrame(self.paths_SNH.transpose(1, 2).flatten(0, 1).numpy())
        return pd.concat([pd.DataFrame(self[["unique_id", "ds"]]), values], axis=1)
