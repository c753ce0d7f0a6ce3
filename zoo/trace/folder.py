"""The folder of a trace: written row by row into a folder beside, and put into place whole or not at all.

Shapes: N tokens of a layer, K slots, E experts, B tokens of one forward pass.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo import __version__
from zoo.spec import ZooError
from zoo.trace.trace import FIELDS, FORMAT, HEADER, Array, LayerTrace, RoutingTrace


def open_trace(folder: str | Path) -> RoutingTrace:
    """Read a trace, its arrays memory-mapped. Raises `ZooError` when the folder holds none, or a damaged one."""
    folder = Path(folder)
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header.get("format") != FORMAT:
            raise ZooError(f"'{folder}' is a trace in format {header.get('format')!r}, this zoo reads {FORMAT}")
        layers = tuple(
            LayerTrace(
                entry["name"], entry["num_experts"], entry["stream"],
                *(_array(folder, f"layer{n}.{kind}") for kind in ("index", "weight", "used")),
                _array(folder, f"layer{n}.logits") if entry["logits"] else None,
            )
            for n, entry in enumerate(header["layers"])
        )  # fmt: skip
        streams = tuple(
            {name: _array(folder, f"stream{s}.{name}") for name in names} for s, names in enumerate(header["streams"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"'{folder}' cannot be read as a trace: {error}; write it again with zoo trace") from error
    for n, layer in enumerate(layers):
        sizes = {len(layer.index_NK), len(layer.weight_NK), len(layer.used_NK)}
        sizes |= {len(value) for value in streams[layer.stream].values()}
        if len(sizes) > 1:
            raise ZooError(f"'{folder}': the arrays of layer {n} differ in length; write it again with zoo trace")
    return RoutingTrace(layers, streams, header["info"])


def _array(folder: Path, name: str) -> Array:
    array: Array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def check_folder(folder: Path) -> None:
    """Raises `ZooError` when a trace cannot be written there: a file, or a folder with something else in it."""
    if folder.exists() and not folder.is_dir():
        raise ZooError(f"'{folder}' is a file; name a folder for the trace")
    if folder.is_dir() and (other := sorted(p.name for p in folder.iterdir() if not _ours(p))):
        raise ZooError(f"'{folder}' holds something else than a trace ({other[0]}); name another folder")


def _ours(path: Path) -> bool:
    return path.name == HEADER or (path.suffix == ".npy" and path.name.startswith(("layer", "stream")))


class Column:
    """A ``.npy`` file that grows by rows, written as they come."""

    def __init__(self, path: Path, dtype: Any, width: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self.width, self.rows = path, np.dtype(dtype), width, 0
        self._file = path.open("wb")
        self._header()
        self._start = self._file.tell()

    def _header(self) -> None:
        # numpy leaves room in the header for the first axis to grow.
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.width)}
        np.lib.format.write_array_header_1_0(self._file, about)

    def append(self, rows: Array) -> None:
        """Rows of the column's width; narrower ones are filled with zeros, wider ones widen the whole file."""
        if self.width and rows.shape[1] != self.width[0]:
            if rows.shape[1] > self.width[0]:
                self._widen(rows.shape[1])
            rows = np.pad(rows, ((0, 0), (0, self.width[0] - rows.shape[1])))
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.rows += len(rows)

    def _widen(self, width: int) -> None:
        self.close()
        old = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self.path.unlink()  # the map keeps the old bytes until it is gone
        wide = Column(self.path, self.dtype, (width,))
        for start in range(0, len(old), 65536):
            wide.append(old[start : start + 65536])
        self.__dict__.update(wide.__dict__)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._start:
            raise RuntimeError(f"numpy changed the length of the header of {self.path}")
        self._file.close()


class Recorder:
    """Writes a trace: `decision` for every layer of a forward pass, then `step`. As a context manager it puts the
    folder into place at the end, and leaves nothing behind after an error. ``trace`` is then the trace.

    Args:
        logits: keep the router's logits too, in half precision.
        info: plain data to keep in the header.
    """

    def __init__(self, folder: str | Path, logits: bool = True, info: Mapping[str, Any] | None = None) -> None:
        self.folder, self.keep_logits, self.info = Path(folder), logits, dict(info or {})
        check_folder(self.folder)
        self.trace: RoutingTrace | None = None
        self._layers: dict[str, dict[str, Any]] = {}
        self._streams: list[dict[str, Column]] = []
        self._calls: dict[str, int] = {}
        self._sequences = 0
        self._seen: dict[int, Mapping[str, Array]] = {}  # the side information of this step by stream

    def __enter__(self) -> Recorder:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=".tracing-", dir=self.folder.parent))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        columns = [column for entry in (*self._layers.values(), *self._streams) for column in entry.values()]
        for column in columns:
            if isinstance(column, Column):
                column.close()
        try:
            if kind is None:
                self._place()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def decision(
        self,
        name: str,
        num_experts: int,
        index_BK: Array,
        weight_BK: Array,
        used_BK: Array,
        logits_BE: Array | None,
        fields: Mapping[str, Array],
    ) -> None:
        """What a layer decided for the tokens of a forward pass, padding left out. A layer that is called again in the
        same pass is a layer of its own in the trace, ``name#2``. ``fields`` need ``seq_id``, counted from 0 within the
        pass, and ``position``."""
        call = self._calls[name] = self._calls.get(name, 0) + 1
        name = name if call == 1 else f"{name}#{call}"
        if name not in self._layers:
            self._open(name, num_experts, index_BK.shape[1], logits_BE is not None, fields)
        layer = self._layers[name]
        before = self._seen.setdefault(layer["stream"], fields)
        if not _same(before, fields):
            raise ZooError(
                f"layer {name} sees other tokens than the layers that it shared them with before; trace it alone"
            )
        layer["index"].append(index_BK)
        layer["weight"].append(weight_BK)
        layer["used"].append(used_BK)
        if "logits" in layer:
            with np.errstate(over="ignore"):
                layer["logits"].append(logits_BE.astype(np.float16))  # type: ignore[union-attr]

    def _open(self, name: str, num_experts: int, slots: int, logits: bool, fields: Mapping[str, Array]) -> None:
        n = len(self._layers)
        stream = next((s for s, seen in self._seen.items() if _same(seen, fields)), len(self._streams))
        if stream == len(self._streams):
            files = {f: self._temporary / f"stream{stream}.{f}.npy" for f in FIELDS if f in fields}
            self._streams.append({f: Column(path, np.int64) for f, path in files.items()})
        place = {kind: self._temporary / f"layer{n}.{kind}.npy" for kind in ("index", "weight", "used", "logits")}
        self._layers[name] = {
            "num_experts": num_experts,
            "stream": stream,
            "index": Column(place["index"], np.int32, (slots,)),
            "weight": Column(place["weight"], np.float32, (slots,)),
            "used": Column(place["used"], bool, (slots,)),
        }
        if logits and self.keep_logits:
            self._layers[name]["logits"] = Column(place["logits"], np.float16, (num_experts,))

    def step(self) -> None:
        """End a forward pass."""
        if not self._seen:
            raise ZooError("no MoE layer ran in a forward pass; there is nothing to trace")
        first = self._sequences
        for stream, fields in self._seen.items():
            for name, column in self._streams[stream].items():
                column.append(fields[name] + (first if name == "seq_id" else 0))
            self._sequences = max(self._sequences, first + 1 + int(fields["seq_id"].max(initial=-1)))
        self._seen, self._calls = {}, {}

    def _place(self) -> None:
        if self._seen or not self._layers:
            raise ZooError(f"there is nothing to write to '{self.folder}'; give the trace at least one batch")
        for name, entry in self._layers.items():
            if entry["index"].rows != self._streams[entry["stream"]]["seq_id"].rows:
                raise ZooError(f"layer {name} did not run in every forward pass; trace it alone")
        layers = [
            {"name": name, "num_experts": e["num_experts"], "stream": e["stream"], "logits": "logits" in e}
            for name, e in self._layers.items()
        ]
        header = {"format": FORMAT, "zoo": __version__, "layers": layers, "streams": [list(s) for s in self._streams]}
        (self._temporary / HEADER).write_text(json.dumps(header | {"info": self.info}, indent=2) + "\n")
        check_folder(self.folder)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._temporary.rename(self.folder)
        self.folder.chmod(0o755)  # mkdtemp makes a private one
        self.trace = open_trace(self.folder)


def _same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("seq_id", "position"))
