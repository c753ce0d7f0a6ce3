"""The one unpickler: numbers, texts, lists, dictionaries and numpy arrays come out of a pickle, and nothing runs.

A pickle is a program. This one may call exactly what numpy needs to put an array together; whatever else it names is
refused before it is looked up.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from zoo.spec import ZooError

MOST_BYTES = 1 << 31
_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (found := _ALLOWED.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for something outside itself")


def _array(kind: Any, shape: Any, dtype: Any) -> Any:
    """What numpy calls ``_reconstruct``: an empty array, whose content the pickle then sets."""
    if kind is not np.ndarray or shape not in ((0,), 0):
        raise pickle.UnpicklingError("it asks for an array of an odd kind")
    return np.ndarray.__new__(np.ndarray, (0,), dtype)


def _scalar(dtype: Any, content: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError("it asks for a number of an odd kind")
    return np.frombuffer(content, dtype)[0]


def _buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array of the bytes that stand beside it, which protocol 5 writes."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it asks for an array of an odd kind")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def _bytes(text: Any, coding: Any = "latin1") -> bytes:
    """Python 3 writes bytes into old pickles as ``codecs.encode(text, "latin1")``."""
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the coding {coding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    **{(core, "_reconstruct"): _array for core in _CORES},
    **{(core, "scalar"): _scalar for core in _CORES},
    ("numpy.core.numeric", "_frombuffer"): _buffer,
    ("numpy._core.numeric", "_frombuffer"): _buffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _bytes,
}


def read_pickle(path: Path) -> Any:
    """The content of a pickle, or of a ``.npy`` file with a pickle in it, or of a plain ``.npy`` or ``.npz`` file.

    Raises:
        ZooError: it cannot be read, or it wants more than numbers, texts and arrays. Nothing in it has been run.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ZooError(f"'{path}' is larger than 2 GiB, which no motion is; check the path")
        content = path.read_bytes()
    except OSError as error:
        raise ZooError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    try:
        if content[:2] == b"PK":
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if not archive[name].dtype.hasobject}
        if content[:6] != b"\x93NUMPY":
            return _Unpickler(io.BytesIO(content), encoding="latin1").load()
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(content), allow_pickle=False)
        found = _Unpickler(stream, encoding="latin1").load()
        return found.item() if isinstance(found, np.ndarray) and found.size == 1 and shape == () else found
    except ZooError:
        raise
    except Exception as error:  # a hostile or broken file may fail in any way
        cause = (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
        raise ZooError(
            f"'{path}' is refused: it is broken or more than numbers and arrays ({cause}); nothing in it was run. "
            "Ask its author for BVH or plain arrays"
        ) from error
