"""A zoo of mixture-of-experts models. Importing it imports no torch: each public name is fetched when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.hub import create_model, load
    from zoo.registry import broken_plugins, list_datasets, list_models, list_plugins
    from zoo.spec import ZooError

__version__ = "0.1.0"
__all__ = ["ZooError", "broken_plugins", "create_model", "list_datasets", "list_models", "list_plugins", "load"]

_HOME = {
    "ZooError": "zoo.spec",
    "broken_plugins": "zoo.registry",
    "create_model": "zoo.hub",
    "list_datasets": "zoo.registry",
    "list_models": "zoo.registry",
    "list_plugins": "zoo.registry",
    "load": "zoo.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
