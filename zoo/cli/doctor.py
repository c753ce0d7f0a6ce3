"""``zoo doctor``: what this machine has, what is missing, and what is used instead."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

from zoo.cli.common import Json, print_json

OPTIONAL = {"matplotlib": "plots", "tensorboard": "tensorboard", "pandas": "time-series", "statsmodels": "time-series"}


def doctor_command(as_json: Json = False) -> None:
    """Check the installation: versions, devices, kernels, data and cache folders, plugins."""
    import warnings

    import torch

    from zoo import __version__, registry, resources
    from zoo_kernels import ops

    packages = {name: _version(name) for name in ("torch", "triton", "lightning", "transformers", "timm", "omegaconf")}
    optional = {name: _version(name) for name in OPTIONAL}
    devices = ["cpu"] + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says what the warning would
        kernels = ops.backends()
    document: dict[str, Any] = {
        "zoo": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "optional": optional,
        "devices": devices,
        "threads": torch.get_num_threads(),
        "kernels": kernels,
        "data": {"path": str(resources.data_dir()), "exists": resources.data_dir().is_dir()},
        "cache": str(resources.cache_dir()),
        "plugins": {name: plugin.owner for name, plugin in registry.list_plugins().items()},
        "broken": {b.name: f"{b.owner}: {b.cause}" for b in registry.broken_plugins().values()},
    }
    if as_json:
        print_json(document)
        return
    from zoo.report import table

    rows: list[tuple[str, str]] = [("zoo", __version__), ("python", f"{sys.executable} {platform.python_version()}")]
    rows += [(name, version or "missing; run: pip install moe-zoo") for name, version in packages.items()]
    for name, version in optional.items():
        rows.append((name, version or f"not installed; run: pip install 'moe-zoo[{OPTIONAL[name]}]'"))
    rows += [("device", device) for device in devices]
    rows += [
        (f"kernels: {name}", "ready" if state["available"] else f"not used: {state['why_not']}")
        for name, state in kernels.items()
    ]
    rows.append(
        ("data (ZOO_DATA)", f"{document['data']['path']}{'' if document['data']['exists'] else ' (not there yet)'}")
    )
    rows.append(("cache (ZOO_CACHE)", document["cache"]))
    rows += [(f"plugin {name}", owner) for name, owner in document["plugins"].items()]
    rows += [(f"BROKEN plugin {name}", cause) for name, cause in document["broken"].items()]
    table("zoo doctor", ("", ""), rows)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
