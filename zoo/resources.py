"""Where a plugin's ``configs`` and ``model_cards`` live: in its own package, in the installed zoo, or in a checkout."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

_ZOO = Path(__file__).parent


def resource_dir(kind: str) -> Path:
    """``zoo/<kind>`` of an installed wheel, or the top-level ``<kind>/`` of a checkout."""
    installed = _ZOO / kind
    return installed if installed.is_dir() else _ZOO.parent / kind


def package_dir(package: str) -> Path | None:
    """Folder of an importable package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def plugin_configs(plugin: str, package: str) -> Path:
    """Recipes of a plugin: ``<package>/configs``, as third parties have them, else the zoo's ``configs/<plugin>``."""
    own = package_dir(package)
    return own / "configs" if own and (own / "configs").is_dir() else resource_dir("configs") / plugin


def card_path(plugin: str, package: str, model: str) -> Path:
    """Model card of ``<plugin>/<model>``; the file need not exist."""
    own = package_dir(package)
    if own and (own / "model_cards").is_dir():
        return own / "model_cards" / f"{plugin}_{model}.md"
    return resource_dir("model_cards") / f"{plugin}_{model}.md"


def cache_dir() -> Path:
    """``ZOO_CACHE``, by default ``~/.cache/moe-zoo``: downloads, unpacked archives, compiled kernels."""
    base = os.environ.get("ZOO_CACHE")
    return Path(base).expanduser() if base else Path.home() / ".cache" / "moe-zoo"


def data_dir() -> Path:
    """``ZOO_DATA``, by default the cache's ``data`` folder. It may be read-only: archives unpack into the cache."""
    base = os.environ.get("ZOO_DATA")
    return Path(base).expanduser() if base else cache_dir() / "data"
