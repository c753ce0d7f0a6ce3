"""The base class of every model, and `create_model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.hub import sources
from zoo.spec import ZooError

M = TypeVar("M", bound="Model")


class Model(nn.Module, PyTorchModelHubMixin, library_name="moe-zoo", tags=["mixture-of-experts"]):  # type: ignore[call-arg]
    """A plain module that is built from a ``Config`` and knows how to save itself.

    Attributes:
        config: what it was built from.
        zoo_name: the registered name that it was created under, if any.
        saved_with: task and preprocessing that came with its weights; they are saved again with it.
    """

    @dataclasses.dataclass
    class Config:
        """Each model declares its own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.zoo_name: str | None = None
        self.saved_with: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((t.device for t in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Small valid arguments of ``forward``, by name; each model gives its own."""
        raise TypeError(f"{type(self).__name__} does not say what its inputs are; define dummy_inputs")

    @classmethod
    def registered_name(cls) -> str | None:
        """A registered name whose target is this class."""
        target = f"{cls.__module__}:{cls.__qualname__}"
        return next((n for n, e in registry.entries("model").items() if e.spec.target == target), None)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and, if there is none, a card ``README.md``. See `zoo.hub.save`.

        With ``push_to_hub`` the result also goes to ``repo_id`` (default: the folder's name); returns its address.
        """
        folder = Path(save_directory)
        fmt.save(folder, self)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(model_card_kwargs or {})).save(folder / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[M],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        **overrides: Any,
    ) -> M:
        """This class from a saved folder, or from the Hugging Face hub (``org/name``), in eval mode. Of the base class
        itself: the registered model that was saved.

        Args:
            overrides: settings of the config to change, like `create_model`'s; they may not change the weights' shapes.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.exists():
            folder = sources.from_hub(str(pretrained_model_name_or_path), revision)
        saved = fmt.read(folder)
        if cls is Model and saved.name:
            return instantiate(saved.name, saved, device, nested(overrides))  # type: ignore[return-value]
        tree = zc.resolve(cls.Config, zc.merge(saved.model, nested(overrides)), "model")
        with on_device(device):
            model = cls(zc.to_object(cls.Config, tree))
        return finish(model, saved, saved.name)


def create_model(
    name: str, /, pretrained: bool = False, *, device: str | torch.device | None = None, **overrides: Any
) -> Model:
    """Build a registered model.

    Args:
        name: ``plugin/model``, or ``plugin/model.tag`` to say which weights ``pretrained`` means.
        pretrained: load the weights of the tag; of the model's first tag when the name has none.
        device: where to build it; ``"meta"`` allocates nothing.
        overrides: settings to change: ``stack={"num_layers": 2}``, or dotted, ``**{"stack.moe.router.k": 1}``.

    Returns:
        The module, in training mode; with weights, in eval mode.

    Raises:
        ZooError: an unknown name, tag or setting (with the near miss), or overrides that the weights do not fit.
    """
    entry, tag = registry.find_model(name)
    if pretrained:
        saved = sources.pretrained(entry, tag)
        return instantiate(entry.name, saved, device, nested(overrides))
    node = zc.resolve_part("model", zc.merge({"name": entry.name}, nested(overrides)), "model")
    assert node is not None
    with on_device(device):
        model: Model = zc.build("model", node)
    model.zoo_name = entry.name
    return model


def instantiate(
    name: str, saved: fmt.Saved, device: str | torch.device | None, overrides: Mapping[str, Any] | None = None
) -> Model:
    """The registered model ``name`` with what was saved, in eval mode."""
    target = registry.find("model", name).load()
    tree = zc.resolve(target.Config, zc.merge(saved.model, overrides or {}), "model")
    with on_device(device):
        model: Model = target(zc.to_object(target.Config, tree))
    return finish(model, saved, name)


def finish(model: M, saved: fmt.Saved, name: str | None) -> M:
    """Give a freshly built model its weights and what else came with them."""
    saved.fill(model)
    model.zoo_name = name
    model.saved_with = {"task": saved.task, "preprocessing": saved.preprocessing}
    return model.eval()


def nested(overrides: Mapping[str, Any]) -> zc.Tree:
    """Dotted keys as a tree: ``{"a.b": 1}`` to ``{"a": {"b": 1}}``."""
    tree: zc.Tree = {}
    for key, value in overrides.items():
        for step in reversed(key.split(".")):
            value = {step: value}
        tree = zc.merge(tree, value)
    return zc.refuse_interpolation(tree, "the overrides")  # type: ignore[no-any-return]


def on_device(device: str | torch.device | None) -> Any:
    """A context in which tensors are created there. Raises `ZooError` for a device that this machine does not have."""
    if device is None:
        return nullcontext()
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ZooError(f"device '{device}' cannot be used here: {reason}; use device=cpu") from error
    return chosen
