"""Forecasting: the objective, the field's metrics, the naive rivals, and forecasts for a user's file.

Shapes: B windows, L past points, H horizon, S sample paths, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from zoo.hub import create_model
from zoo.metrics import MASE, SMAPE
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Batch, Loss, Task
from zoo_time_series.blocks.probabilistic import pinball

if TYPE_CHECKING:
    import pandas as pd

    from zoo_time_series.data.context import Context
    from zoo_time_series.models.base import Prediction


@dataclass
class Forecast:
    """The forecasts of a table's series beside the context they continue; ``values_SH`` in original units."""

    context: Context
    values_SH: Tensor

    @property
    def notes(self) -> list[str]:
        """What was inferred, filled or dropped on reading the table."""
        return self.context.notes

    @property
    def frame(self) -> pd.DataFrame:
        """Long form: ``unique_id``, ``ds``, ``y``."""
        import pandas as pd

        pieces = zip(self.context.names, self.context.future_time, self.values_SH.numpy(), strict=True)
        return pd.concat(
            [pd.DataFrame({"unique_id": name, "ds": time, "y": values}) for name, time, values in pieces],
            ignore_index=True,
        )


class Forecasting(Task):
    """Args (config):
    objective: ``huber`` (delta below) or ``mse``, averaged over heads, each over its valid targets. A model of
        quantiles is trained with the pinball loss instead, one of a distribution with its negative log-likelihood.
    window_norm: give the model windows standardised by their own valid past points, and undo it on what it says.
    rivals: models beside ours in every evaluation.
    """

    monitor = "mse"

    @dataclass
    class Config:
        objective: Literal["huber", "mse"] = "huber"
        delta: float = 2.0
        window_norm: bool = True
        rivals: list[str] = field(default_factory=lambda: ["time_series/naive", "time_series/seasonal_naive"])

    def loss(self, model: Any, batch: Batch) -> Loss:
        past, valid = batch["past"], batch["past_valid"]
        shift_B1, scale_B1 = self._window_scale(past, valid)
        heads, routing = model.training_predictions(
            _standardise(past, shift_B1, scale_B1, valid),
            valid,
            _standardise(batch["future"], shift_B1, scale_B1, batch["future_valid"]),
            batch["future_valid"],
            **known(model, batch),
        )
        losses = []
        for head in heads:
            each = self._each(head, model.levels)
            losses.append(torch.where(head.valid, each, 0.0).sum() / head.valid.sum().clamp(min=1))
        return Loss(torch.stack(losses).mean(), routing)

    def _each(self, head: Prediction, levels: list[float]) -> Tensor:
        """The loss of every target of a head."""
        if isinstance(head.predicted, Distribution):
            return -head.predicted.log_prob(head.target)
        if levels:
            return pinball(head.predicted, head.target, levels)
        if self.config.objective == "huber":
            return F.huber_loss(head.predicted, head.target, reduction="none", delta=self.config.delta)
        return F.mse_loss(head.predicted, head.target, reduction="none")

    def metrics(self) -> MetricCollection:
        """MSE and MAE of standardised values; MASE per window's own scale; sMAPE in the data's units, percent."""
        return MetricCollection(
            {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "mase": MASE(), "smape": SMAPE()},
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        future_BH, valid_BH = batch["future"], batch["future_valid"]
        more = known(model, batch)
        predicted_BH = self.forecast(
            model, batch["past"], batch["past_valid"], future_BH.shape[1], batch["season"], **more
        )
        predicted, target = predicted_BH[valid_BH], future_BH[valid_BH]
        metrics["mse"].update(predicted, target)
        metrics["mae"].update(predicted, target)
        metrics["mase"].update(predicted, target, batch["mase_scale"][:, None].expand_as(valid_BH)[valid_BH])
        mean_B1, std_B1 = batch["mean"][:, None], batch["std"][:, None]
        metrics["smape"].update((predicted_BH * std_B1 + mean_B1)[valid_BH], (future_BH * std_B1 + mean_B1)[valid_BH])

    def forecast(
        self,
        model: Any,
        past_BL: Tensor,
        valid_BL: Tensor,
        horizon: int,
        season_B: Tensor | None = None,
        **covariates: Tensor,
    ) -> Tensor:
        """(B, horizon) in the units of ``past_BL``."""
        shift_B1, scale_B1 = self._window_scale(past_BL, valid_BL)
        window_BL = _standardise(past_BL, shift_B1, scale_B1, valid_BL)
        predicted: Tensor = model.forecast(window_BL, valid_BL, horizon, season_B, **covariates)
        return predicted * scale_B1 + shift_B1

    def quantiles(
        self, model: Any, past_BL: Tensor, valid_BL: Tensor, horizon: int, levels: list[float], **covariates: Tensor
    ) -> Tensor | None:
        """(B, Q, horizon) in the units of ``past_BL``; None for a model of points."""
        shift_B1, scale_B1 = self._window_scale(past_BL, valid_BL)
        window_BL = _standardise(past_BL, shift_B1, scale_B1, valid_BL)
        found: Tensor | None = model.quantiles(window_BL, valid_BL, horizon, levels, **covariates)
        return None if found is None else found * scale_B1[..., None] + shift_B1[..., None]

    def sample_paths(
        self,
        model: Any,
        past_BL: Tensor,
        valid_BL: Tensor,
        horizon: int,
        count: int,
        seed: int = 0,
        **covariates: Tensor,
    ) -> Tensor | None:
        """(B, count, horizon) in the units of ``past_BL``; None for a model of points or of quantiles."""
        shift_B1, scale_B1 = self._window_scale(past_BL, valid_BL)
        window_BL = _standardise(past_BL, shift_B1, scale_B1, valid_BL)
        found: Tensor | None = model.sample_paths(window_BL, valid_BL, horizon, count, seed, **covariates)
        return None if found is None else found * scale_B1[..., None] + shift_B1[..., None]

    def rivals(self, preprocessing: Mapping[str, Any]) -> dict[str, nn.Module]:
        return {name.rpartition("/")[2]: create_model(name) for name in self.config.rivals}

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Forecast:
        """Forecast every column (or series) of a table beyond its last row."""
        from zoo_time_series.data.context import frame_to_context

        horizon = inputs["horizon"] if inputs["horizon"] is not None else preprocessing["horizon"]
        if not isinstance(horizon, int) or horizon < 1:
            raise ZooError(f"horizon={horizon} must be a number of points, at least 1")
        columns = inputs["columns"]
        columns = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
        window = frame_to_context(inputs["input"], preprocessing, horizon, time=inputs["time"], columns=columns)
        pieces = []
        with torch.inference_mode():
            for rows in torch.arange(len(window.names)).split(256):
                past, valid, season = window.past[rows], window.past_valid[rows], window.season[rows]
                predicted = self.forecast(
                    model, past.to(model.device), valid.to(model.device), horizon, season.to(model.device)
                )
                pieces.append(predicted.cpu())
        return Forecast(window, torch.cat(pieces) * window.std[:, None] + window.mean[:, None])

    def write(self, result: Forecast, out: Path) -> list[Path]:
        """``forecast.csv`` (unique_id, ds, y) and ``forecast.png``."""
        from zoo_time_series.plots import plot_forecast

        result.frame.to_csv(out / "forecast.csv", index=False)
        return [out / "forecast.csv", *plot_forecast(result, out / "forecast.png")]

    def plot(self, model: Any, data: Any, out: Path) -> list[Path]:
        """``windows.png``: forecasts of a few test windows beside what happened."""
        from zoo_time_series.plots import plot_windows

        dataset = data.split("test")
        batch = dataset.batch(torch.tensor(spread(len(dataset), 6)))
        past, valid, season = (batch[key].to(model.device) for key in ("past", "past_valid", "season"))
        with torch.inference_mode():
            predicted_BH = self.forecast(model, past, valid, batch["future"].shape[1], season).cpu()
        names = [data.preprocessing["columns"][i] for i in batch["series"]]
        return plot_windows(batch, predicted_BH, names, out / "windows.png")

    def _window_scale(self, past_BL: Tensor, valid_BL: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.window_norm:
            return past_BL.new_zeros(len(past_BL), 1), past_BL.new_ones(len(past_BL), 1)
        count_B1 = valid_BL.sum(1, keepdim=True).clamp(min=1)
        shift_B1 = past_BL.sum(1, keepdim=True) / count_B1
        centred_BL = torch.where(valid_BL, past_BL - shift_B1, 0.0)
        # A constant window has no scale of its own: it keeps the data's.
        scale_B1 = (centred_BL.square().sum(1, keepdim=True) / count_B1).sqrt()
        return shift_B1, torch.where(scale_B1 < 1e-4, 1.0, scale_B1)


def known(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The covariates of a batch, as the keyword that a model which takes some wants. Raises `ZooError` without them."""
    if not getattr(model, "covariates", 0):
        return {}
    if "covariates" not in batch:
        raise ZooError(
            f"the model takes covariates={model.covariates} channels, and the data give none; set data.calendar=true, "
            "or model.covariates=0"
        )
    return {"covariates_BTC": batch["covariates"]}


def _standardise(x: Tensor, shift: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, (x - shift) / scale, 0.0)
