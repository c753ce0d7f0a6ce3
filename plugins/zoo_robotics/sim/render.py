"""Pictures of a MuJoCo scene without a screen, fast: no multisampling, no shadows, no reflections."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import warnings
from ctypes.util import find_library
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

OFFSCREEN = (("egl", "EGL"), ("osmesa", "OSMesa"))
"""How MuJoCo draws without a window, and the library which that takes."""
_said = False


def choose_backend() -> None:
    """Let MuJoCo, which decides at its import, draw by what this machine has, unless ``MUJOCO_GL`` says by what."""
    if "MUJOCO_GL" not in os.environ:
        found = next((name for name, library in OFFSCREEN if find_library(library)), None)
        if found is not None:
            os.environ["MUJOCO_GL"] = found


def no_pictures(cause: object) -> None:
    """Say once that all is done by states alone, and why."""
    global _said
    if not _said:
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        print(
            f"no pictures: MuJoCo cannot draw here ({reason}), so all is done by states alone; "
            "install libegl1 or libosmesa6, or set MUJOCO_GL",
            file=sys.stderr,
        )
    _said = True


class Camera:
    """Meta-World's ``corner2`` camera, which hangs upside down: its pictures are turned by 180 degrees."""

    def __init__(self, env: Any) -> None:
        self.model, self.data = env.unwrapped.model, env.unwrapped.data
        self.renderers: dict[int, Any] = {}

    def picture(self, size: int) -> Pixels | None:
        """(size, size, 3) in 8 bits, or None where nothing can be drawn."""
        if size not in self.renderers:
            self.renderers[size] = self._renderer(size)
        renderer = self.renderers[size]
        if renderer is None:
            return None
        renderer.update_scene(self.data, camera="corner2")
        return np.ascontiguousarray(renderer.render()[::-1, ::-1])

    def _renderer(self, size: int) -> Any:
        mujoco = importlib.import_module("mujoco")
        quality, screen = self.model.vis.quality, self.model.vis.global_
        quality.offsamples = quality.shadowsize = 0  # must be set before a renderer is made
        screen.offwidth, screen.offheight = max(screen.offwidth, size), max(screen.offheight, size)
        told = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: None  # of what one that is half made says as it goes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of windows that cannot be opened
                renderer = mujoco.Renderer(self.model, size, size)
        # Which of these it is depends on the library that is missing or has no device.
        except (ImportError, AttributeError, RuntimeError, ValueError, OSError, mujoco.FatalError) as error:
            no_pictures(error)
            return None
        finally:
            sys.unraisablehook = told
        atexit.register(renderer.close)  # later, while the interpreter goes, it would complain
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        return renderer
