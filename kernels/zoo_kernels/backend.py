"""Which backend computes: the one that was asked for, else the fastest for the device; told once if it is not there."""

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

BACKENDS = ("reference", "cpu", "triton")
_forced: str | None = None


@functools.cache
def _find(name: str) -> tuple[ModuleType | None, str]:
    """(backend module, "") or (None, why it cannot be used here)."""
    try:
        module = importlib.import_module(f"zoo_kernels.{name}")
    except ImportError as error:
        return None, f"import failed: {error}"
    why: str = module.unavailable()
    return (None, why) if why else (module, "")


def module_of(name: str) -> Any:
    """The backend of this name, which `resolve` found to be there."""
    return _find(name)[0]


def backends() -> dict[str, dict[str, object]]:
    """For each backend: `available`, and `why_not` when it is not; building the CPU path if that was not done yet."""
    return {name: {"available": _find(name)[0] is not None, "why_not": _find(name)[1]} for name in BACKENDS}


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run the ops inside the block on one backend (None: automatic). Process-wide, like a global default."""
    global _forced
    check("backend", name, (*BACKENDS, None))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def resolve(asked: str | None, device: str) -> str:
    """The backend for a device: `asked`, that of `use_backend`, of ZOO_KERNELS_BACKEND, or the fastest there is."""
    return _resolve(asked or _forced, device)  # the global is read here, where torch.compile guards it


def _resolve(asked: str | None, device: str) -> str:
    asked = asked or os.environ.get("ZOO_KERNELS_BACKEND") or None
    check("backend", asked, (*BACKENDS, None))
    wanted = asked or {"cuda": "triton", "cpu": "cpu"}.get(device, "reference")
    module, why = _find(wanted)
    if module is None and asked:
        raise RuntimeError(f"zoo_kernels: backend '{wanted}' is not available: {why}")
    if module is None:
        _warn_once(f"zoo_kernels: backend '{wanted}' is not available ({why}); using plain PyTorch, which is slower")
        return "reference"
    return wanted


# What torch.compiler.assume_constant_result sets; calling it would import dynamo, 1.5 s for everybody.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check(what: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"zoo_kernels: unknown {what} {value!r}; known: {', '.join(map(str, known))}")
