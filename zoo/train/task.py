"""What a task is: an objective, its metrics, and how a trained model answers a user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection

from zoo.moe import Routing
from zoo.spec import ZooError

Batch = Mapping[str, Tensor]


class Loss(NamedTuple):
    """What `Task.loss` returns: the task's own loss, the routing behind it (the trainer adds the balance losses),
    further scalars to log, and further losses by name, coefficients applied, which the trainer adds and a stage may
    scale or switch off."""

    loss: Tensor
    routing: Routing = ()
    logs: Mapping[str, Tensor] = {}
    terms: Mapping[str, Tensor] = {}


class Data(Protocol):
    """A data set, built from its ``Config``.

    Attributes:
        preprocessing: plain JSON data that travels with the weights (scaler, season, vocabulary, ...).
        notes: what was filled, dropped or inferred, told to the user once.

    One that is costly to make may have a method ``few()``, called for ``--fast-dev-run``: a tiny part will do.
    """

    preprocessing: dict[str, Any]
    notes: list[str]

    def split(self, name: str) -> Dataset[Any]:
        """The map-style data set of ``train``, ``val`` or ``test``; its items collate by default."""
        ...


class Task:
    """Base of all tasks. A plugin overrides what its objective needs; the loops are Lightning's."""

    monitor: str
    """The validation metric that decides which checkpoint is the best; lower is better."""
    sampled: tuple[str, ...] = ()
    """Metrics of what a model draws: other machines round otherwise, so they are not the same to the last digit."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    def match(self, model: nn.Module, data: Data, trained: Mapping[str, Any]) -> None:
        """Called once before a training or an evaluation: make the data speak as the model was trained, or refuse them.

        Args:
            trained: the preprocessing saved with the model's weights; empty for a new model.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The training loss of a batch, with the routing that led to it."""
        raise TypeError(f"{type(self).__name__} defines no loss, so its models cannot be trained")

    def metrics(self) -> MetricCollection:
        """Fresh metrics. Their names are what logs, tables and cards show."""
        return MetricCollection({})

    def update(self, metrics: MetricCollection, model: nn.Module, batch: Batch) -> None:
        """Score the model on an evaluation batch."""
        raise TypeError(f"{type(self).__name__} defines no evaluation")

    def assess(self, model: nn.Module, data: Data, split: str, most: int | None) -> dict[str, float]:
        """Further numbers of an evaluation, which no batch of its loop gives: of what the model generates, say.

        Args:
            most: score no more items than this; None for as many as the task thinks right.
        """
        return {}

    def rivals(self, preprocessing: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Models that need no training and stand beside ours in every evaluation. Those with a ``fit(train, val)``
        are fitted to the data's splits first."""
        return {}

    def conclude(
        self, results: dict[str, dict[str, float]], preprocessing: Mapping[str, Any], split: str
    ) -> dict[str, dict[str, float]]:
        """The results of an evaluation with what follows from them: by model, our own under the empty name."""
        return results

    def calibrate(self, model: nn.Module, data: Data, most: int) -> dict[str, Any]:
        """Plain data to save with the weights, learned from what a trained model says on at most ``most`` items of the
        validation split."""
        return {}

    def predict(self, model: nn.Module, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        """Answer a user's inputs (those of the `TaskSpec`)."""
        raise TypeError(f"{type(self).__name__} defines no prediction")

    def stream(
        self, model: nn.Module, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Iterator[str] | None:
        """Like `predict`, for answers that come as text in pieces: a generator whose value is `predict`'s result."""
        return None

    def write(self, result: Any, out: Path) -> list[Path]:
        """Write what `predict` returned into a folder; returns the files."""
        raise TypeError(f"{type(self).__name__} defines no prediction")

    def show(self, model: nn.Module, data: Data, out: Path) -> list[Path]:
        """Pictures of what a model has learned, written when its training is done."""
        return []

    def plot(self, model: nn.Module, data: Data, out: Path) -> list[Path]:
        """Pictures of the model at work on a data set, written after an evaluation."""
        return []


def match(task: Task, model: nn.Module, data: Data, trained: Mapping[str, Any]) -> None:
    """`Task.match`, where data of another plugin that do not say what the task asks are refused in a line."""
    try:
        task.match(model, data, trained)
    except (KeyError, AttributeError) as error:
        ours, theirs = (type(thing).__module__.partition(".")[0] for thing in (task, data))
        if ours == theirs:
            raise
        what = f"{type(data).__name__} of {theirs}", f"{type(task).__name__} of {ours}"
        raise ZooError(
            f"data {what[0]} are not of the kind that task {what[1]} takes; choose others: zoo list"
        ) from error
