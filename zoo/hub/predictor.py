"""`load`: a model with its weights, its task and its preprocessing, ready to be used."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.hub import sources
from zoo.hub.model import Model, instantiate
from zoo.spec import ModelSpec, TaskSpec, ZooError


class Predictor:
    """A trained model together with what makes sense of its inputs and outputs.

    Attributes:
        name: what was loaded, for example ``time_series/time_moe_tiny.etth1``.
        model: the plain module, in eval mode.
        task: the task object; its `TaskSpec` declares the inputs of `predict`.
        preprocessing: plain data saved with the weights.
    """

    def __init__(self, name: str, model: Model, task: Any, task_spec: TaskSpec, preprocessing: zc.Tree) -> None:
        self.name, self.model, self.task, self.preprocessing = name, model, task, preprocessing
        self.inputs = {i.name: i for i in task_spec.inputs}

    def predict(self, *ordered: Any, **inputs: Any) -> Any:
        """The task's result for its inputs, by name, or in the order in which the task declares them. Raises `ZooError`
        for an input that is unknown, missing or given twice."""
        given = self._given(ordered, inputs)
        with torch.no_grad():
            return self.task.predict(self.model, self.preprocessing, given)

    def stream(self, *ordered: Any, **inputs: Any) -> Iterator[str] | None:
        """Pieces of text as they come, of a generator whose value is the result of `predict`; None when the task has no
        text to stream. Raises like `predict`."""
        given = self._given(ordered, inputs)
        pieces: Iterator[str] | None = self.task.stream(self.model, self.preprocessing, given)
        return pieces

    def _given(self, ordered: Sequence[Any], inputs: dict[str, Any]) -> dict[str, Any]:
        if len(ordered) > len(self.inputs):
            raise ZooError(f"{self.name} has {len(self.inputs)} inputs ({', '.join(self.inputs)}), not {len(ordered)}")
        for key, value in zip(self.inputs, ordered, strict=False):
            if key in inputs:
                raise ZooError(f"input '{key}' of {self.name} is given twice; give it once")
            inputs[key] = value
        for key in inputs:
            if key not in self.inputs:
                raise ZooError(f"unknown input '{key}' of {self.name}; {registry.suggest(key, self.inputs)}")
        if missing := [i for i in self.inputs.values() if i.required and i.name not in inputs]:
            what = ", ".join(f"{i.name}=... ({i.doc})" if i.doc else f"{i.name}=..." for i in missing)
            raise ZooError(f"{self.name} needs {what}")
        for key, value in inputs.items():
            default = self.inputs[key].default
            if type(default) is int and not isinstance(value, numbers.Integral):
                raise ZooError(f"{key}={value!r} must be a whole number, such as {default}")
            if type(default) is float and not isinstance(value, numbers.Real):
                raise ZooError(f"{key}={value!r} must be a number, such as {default}")
        return {name: inputs.get(name, i.default) for name, i in self.inputs.items()}

    def write(self, result: Any, out: str | Path) -> list[Path]:
        """Write a result of `predict` as files into the folder ``out``; returns their paths."""
        paths: list[Path] = self.task.write(result, Path(out))
        return paths


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A pretrained model in eval mode.

    Args:
        name_or_path: ``plugin/model.tag`` (``plugin/model`` means its first tag), a saved folder, a run folder of
            ``zoo train``, ``local-dir:FOLDER`` or ``hf-hub:ORG/NAME@REVISION``.

    Raises:
        ZooError: nothing of that name, or weights that are missing, damaged, pickled or of another model.
    """
    source = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or source.startswith((".", "/", "~")) or Path(source).expanduser().exists()
    if source.startswith(("local-dir:", "hf-hub:")):
        found = sources.registered(source)
        saved = sources.pretrained(*found, source) if found else fmt.read(sources.locate(source))
    elif is_path and registry.split_tag(source)[0] not in registry.entries("model"):
        saved, found = fmt.read(Path(source).expanduser()), None
    else:
        found = registry.find_model(source)
        saved = sources.pretrained(*found)
    if saved.name is None:
        raise ZooError(f"'{source}' was saved from a class that is not registered; use CLASS.from_pretrained")
    entry = found[0] if found else registry.find("model", saved.name)
    model = instantiate(entry.name, saved, device)
    return _predictor(source if found else saved.name, model, saved, entry)


def _predictor(name: str, model: Model, saved: fmt.Saved, entry: registry.Entry) -> Predictor:
    node = zc.resolve_part("task", saved.task or {"name": registry.full_task(entry)}, "task")
    assert node is not None and isinstance(entry.spec, ModelSpec)
    task_spec = registry.find("task", node["name"]).spec
    assert isinstance(task_spec, TaskSpec)
    return Predictor(name, model, zc.build("task", node), task_spec, saved.preprocessing)
