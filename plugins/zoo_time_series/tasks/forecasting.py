"""Forecasting: the objective, the field's metrics, the naive rivals, and forecasts for a user's file.

Shapes: B windows, L past points, H horizon, S sample paths, Q quantiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Subset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from zoo.hub import create_model
from zoo.metrics import CRPS, MASE, SMAPE, Coverage
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Batch, Loss, Task
from zoo_time_series.blocks.probabilistic import pinball
from zoo_time_series.data.covariates import Covariates
from zoo_time_series.tasks import residuals

if TYPE_CHECKING:
    from zoo_time_series.models.base import Prediction
    from zoo_time_series.tasks.forecast import Forecast


LEVELS = [q / 10 for q in range(1, 10)]
"""Of the quantiles that are scored."""


class Forecasting(Task):
    """Args (config):
    objective: ``huber`` (delta below), ``mse``, ``mae``, or ``smape`` (of values in the data's own units, from 0 to 2),
        averaged over heads, each over its valid targets. A model of quantiles is trained with the pinball loss
        instead, one of a distribution with its negative log-likelihood.
    window_norm: give the model windows standardised by their own valid past points, and undo it on what it says.
    rivals: models beside ours in every evaluation.
    monitor: the validation metric that decides which checkpoint is kept.
    """

    @dataclass
    class Config:
        objective: Literal["huber", "mse", "mae", "smape"] = "huber"
        delta: float = 2.0
        window_norm: bool = True
        rivals: list[str] = field(default_factory=lambda: ["time_series/naive", "time_series/seasonal_naive"])
        monitor: Literal["mse", "mae", "mase", "smape", "crps"] = "mse"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.monitor = config.monitor

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Refuse data that are no series, or without the covariates that the model takes."""
        if "horizon" not in data.preprocessing:
            raise ZooError(f"data {type(data).__name__} hold no series to forecast; choose others: zoo list")
        wanted = getattr(model, "covariates", 0)
        found = Covariates(**data.preprocessing.get("covariates", {})).channels
        if wanted and found != wanted:
            remedy = f"set model.covariates={found}" if found else "set data.calendar=true, which gives 4"
            raise ZooError(
                f"the model takes covariates={wanted} channels, and the data give {found or 'none'}; {remedy}, "
                "or change data.calendar, data.known and data.static"
            )

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
            if self.config.objective == "smape" and not model.levels:
                head = _in_units(head, shift_B1, scale_B1)
                head = _in_units(head, batch["mean"], batch["std"])
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
        if self.config.objective == "smape":
            size = (head.predicted.abs() + head.target.abs()).clamp(min=1e-3)
            return 2 * (head.predicted - head.target).abs() / size
        loss = F.mse_loss if self.config.objective == "mse" else F.l1_loss
        return loss(head.predicted, head.target, reduction="none")

    def metrics(self) -> MetricCollection:
        """MSE and MAE of standardised values; MASE per window's own scale; in the data's units sMAPE (percent), the
        CRPS over nine quantiles, and how often the truth lies between the first and the last of them."""
        return MetricCollection(
            {
                "mse": MeanSquaredError(),
                "mae": MeanAbsoluteError(),
                "mase": MASE(),
                "smape": SMAPE(),
                "crps": CRPS(),
                "coverage80": Coverage(),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        future_BH, valid_BH = batch["future"], batch["future_valid"]
        past, valid, season, horizon = batch["past"], batch["past_valid"], batch["season"], future_BH.shape[1]
        more = known(model, batch)
        predicted_BH = self.forecast(model, past, valid, horizon, season, **more)
        predicted, target = predicted_BH[valid_BH], future_BH[valid_BH]
        metrics["mse"].update(predicted, target)
        metrics["mae"].update(predicted, target)
        metrics["mase"].update(predicted, target, batch["mase_scale"][:, None].expand_as(valid_BH)[valid_BH])
        mean_B1, std_B1 = batch["mean"][:, None], batch["std"][:, None]
        target = (future_BH * std_B1 + mean_B1)[valid_BH]
        metrics["smape"].update((predicted_BH * std_B1 + mean_B1)[valid_BH], target)
        found_BQH = self.quantiles(model, past, valid, horizon, LEVELS, season, predicted_BH, **more)
        if found_BQH is None:  # scored as what it says: that point, and no doubt
            found_BQH = predicted_BH[:, None].expand(-1, len(LEVELS), -1)
        found_NQ = (found_BQH * std_B1[..., None] + mean_B1[..., None]).transpose(1, 2)[valid_BH]
        metrics["crps"].update(found_NQ, target, torch.tensor(LEVELS, device=target.device))
        metrics["coverage80"].update(found_NQ[:, 0], found_NQ[:, -1], target)

    def conclude(
        self, results: dict[str, dict[str, float]], preprocessing: Mapping[str, Any], split: str
    ) -> dict[str, dict[str, float]]:
        """On M4's test part also OWA: sMAPE and MASE over those of Naive2, in the mean."""
        reference = preprocessing.get("reference")
        if reference is None or split != "test":
            return results
        return {
            name: {**found, "owa": sum(found[key] / reference[key] for key in ("smape", "mase")) / 2}
            for name, found in results.items()
        }

    def calibrate(self, model: Any, data: Any, most: int) -> dict[str, Any]:
        """The errors of a model of points, for the quantiles around what it says; see `residuals`."""
        windows, errors, valid = data.split("val"), [], []
        loader = DataLoader(Subset(windows, spread(len(windows), most)), 64, collate_fn=getattr(data, "collate", None))
        with torch.inference_mode():
            for batch in loader:
                batch = {key: value.to(model.device) for key, value in batch.items()}
                past, there, more = batch["past"], batch["past_valid"], known(model, batch)
                if model.quantiles(past[:1], there[:1], 1, LEVELS, **{k: v[:1] for k, v in more.items()}) is not None:
                    return {}
                horizon = batch["future"].shape[1]
                predicted_BH = self.forecast(model, past, there, horizon, batch["season"], **more)
                errors.append(((batch["future"] - predicted_BH) / self._window_scale(past, there)[1]).cpu())
                valid.append(batch["future_valid"].cpu())
        return {"residuals": residuals.learn(torch.cat(errors), torch.cat(valid))}

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
        self,
        model: Any,
        past_BL: Tensor,
        valid_BL: Tensor,
        horizon: int,
        levels: list[float],
        season_B: Tensor | None = None,
        predicted_BH: Tensor | None = None,
        **covariates: Tensor,
    ) -> Tensor | None:
        """(B, Q, horizon) in the units of ``past_BL``: what the model says itself; for a model of points its forecast
        (``predicted_BH`` where it is at hand) with the validation errors saved with it, or with the spread that the
        naive methods know. None where nothing tells."""
        shift_B1, scale_B1 = self._window_scale(past_BL, valid_BL)
        window_BL = _standardise(past_BL, shift_B1, scale_B1, valid_BL)
        found: Tensor | None = model.quantiles(window_BL, valid_BL, horizon, levels, **covariates)
        if found is not None:
            return found * scale_B1[..., None] + shift_B1[..., None]
        saved = getattr(model, "saved_with", {}).get("preprocessing", {}).get("residuals")
        spread_BH = None if saved else model.spread(window_BL, valid_BL, horizon, season_B)
        if saved:
            around_BQH = residuals.apply(saved, levels, horizon, past_BL)[None]
        elif spread_BH is not None:
            level_Q = torch.tensor(levels, dtype=past_BL.dtype, device=past_BL.device)
            around_BQH = torch.special.ndtri(level_Q)[:, None] * spread_BH[:, None]
        else:
            return None
        if predicted_BH is None:
            predicted_BH = self.forecast(model, past_BL, valid_BL, horizon, season_B, **covariates)
        return predicted_BH[:, None] + around_BQH * scale_B1[..., None]

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
        """Forecast every column (or series) of a table beyond its last row, or from earlier ones; see `answer`."""
        from zoo_time_series.tasks.answer import answer

        return answer(self, model, preprocessing, inputs)

    def write(self, result: Forecast, out: Path) -> list[Path]:
        """``forecast.csv`` (unique_id, ds, y, a column a quantile) and ``forecast.png``, a fan where there are any;
        ``paths.csv`` where sample paths were asked for. Of a backtest ``backtest.csv``, with what happened, and
        ``backtest.json``."""
        from zoo_time_series.plots import plot_forecast

        if result.scores is not None:
            result.to_csv(out / "backtest.csv", index=False)
            (out / "backtest.json").write_text(json.dumps(result.scores, indent=2))
            return [out / "backtest.csv", out / "backtest.json"]
        result.to_csv(out / "forecast.csv", index=False)
        if result.paths_SNH is not None:
            result.paths_frame().to_csv(out / "paths.csv", index=False)
        more = [] if result.paths_SNH is None else [out / "paths.csv"]
        return [out / "forecast.csv", *more, *plot_forecast(result, out / "forecast.png")]

    def plot(self, model: Any, data: Any, out: Path) -> list[Path]:
        """``windows.png``: forecasts of a few test windows beside what happened, as fans of quantiles."""
        from zoo_time_series.plots import plot_windows

        dataset = data.split("test")
        batch = dataset.batch(torch.tensor(spread(len(dataset), 6)))
        there = {key: value.to(model.device) for key, value in batch.items()}
        past, valid, season, horizon = there["past"], there["past_valid"], there["season"], batch["future"].shape[1]
        more = known(model, there)
        with torch.inference_mode():
            predicted_BH = self.forecast(model, past, valid, horizon, season, **more)
            fan_BQH = self.quantiles(model, past, valid, horizon, LEVELS, season, predicted_BH, **more)
        names = [data.preprocessing["columns"][i] for i in batch["series"]]
        fan_BQH = fan_BQH if fan_BQH is None else fan_BQH.cpu()
        return plot_windows(batch, predicted_BH.cpu(), fan_BQH, names, out / "windows.png")

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


def _in_units(head: Prediction, shift_B: Tensor, scale_B: Tensor) -> Prediction:
    """Points of a head and their targets before they were standardised; quantiles and distributions as they are."""
    if isinstance(head.predicted, Distribution):
        return head
    ones = (-1,) + (1,) * (head.predicted.dim() - 1)
    shift, scale = shift_B.view(ones), scale_B.view(ones)
    return head._replace(predicted=head.predicted * scale + shift, target=head.target * scale + shift)


def _standardise(x: Tensor, shift: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, (x - shift) / scale, 0.0)
