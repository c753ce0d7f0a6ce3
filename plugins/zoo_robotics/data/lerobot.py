"""Demonstrations as a LeRobotDataset (https://github.com/huggingface/lerobot): v3.0 is written, v2.0 to v3.0 is read.

    meta/info.json           codebase_version, fps, features, totals, and where the data lie
    meta/stats.json          min, max, mean, std and count of every feature
    meta/tasks.parquet       text of a task to task_index          (v2: tasks.jsonl)
    meta/episodes/chunk-000/file-000.parquet   length, tasks and rows of every episode     (v2: episodes.jsonl)
    data/chunk-000/file-000.parquet            the frames of all episodes                  (v2: a file for each episode)

Columns: ``observation.state``, ``action``, ``timestamp``, ``frame_index``, ``episode_index``, ``index``, and
``task_index``; of our own ``phase`` and ``seed``, and pictures as PNG in ``observation.images.camera0`` and so on.
Videos are not read.

Shapes: T steps of an episode, S numbers of an observation, A of an action, V cameras.
"""

from __future__ import annotations

import glob
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.spec import ZooError
from zoo_robotics.data.demonstrations import Demonstration
from zoo_robotics.sim.world import PHASES

VERSION = "v3.0"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_FRAME = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def write(folder: Path, demonstrations: Sequence[Demonstration], fps: int, robot: str) -> Path:
    """Write a data set, whole or not at all: it is made beside ``folder`` and then gets its name. What an earlier
    writer that was killed left there is removed.

    Raises:
        ZooError: there is something at ``folder`` already, or the disk refuses.
    """
    if folder.exists():
        raise ZooError(f"'{folder}' is there already; choose another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            new = Path(temporary) / folder.name
            _write(new, demonstrations, fps, robot)
            os.replace(new, folder)
    except OSError as error:
        raise ZooError(f"cannot write '{folder}': {error.strerror or error}; free some space there") from error
    return folder


def _write(folder: Path, demonstrations: Sequence[Demonstration], fps: int, robot: str) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tasks = sorted({d.task for d in demonstrations})
    lengths = [len(d) for d in demonstrations]
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    columns: dict[str, NDArray[Any]] = {
        STATE: np.concatenate([d.observation_TS for d in demonstrations]),
        ACTION: np.concatenate([d.action_TA for d in demonstrations]),
        "phase": np.concatenate([d.phase_T for d in demonstrations]),
        "seed": np.repeat([d.seed for d in demonstrations], lengths),
        "frame_index": np.concatenate([np.arange(n) for n in lengths]),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(total),
        "task_index": np.repeat([tasks.index(d.task) for d in demonstrations], lengths),
    }
    columns["timestamp"] = (columns["frame_index"] / fps).astype(np.float32)
    arrays: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for name, values in columns.items():
        width = values.shape[1] if values.ndim > 1 else 1
        kind = "float32" if values.dtype == np.float32 else "int64"
        features[name] = {"dtype": kind, "shape": [width], "names": None}
        item = pa.float32() if kind == "float32" else pa.int64()
        flat = pa.array(values.ravel(), item)
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, width) if values.ndim > 1 else flat
    features["phase"]["names"] = list(PHASES)
    pictures = demonstrations[0].image_TVHWC
    if pictures is not None:
        for camera in range(pictures.shape[1]):
            name = f"{IMAGES}camera{camera}"
            features[name] = {
                "dtype": "image",
                "shape": list(pictures.shape[2:]),
                "names": ["height", "width", "channels"],
            }
            arrays[name] = pa.array(
                [
                    {"bytes": _png(frame[camera]), "path": None}
                    for d in demonstrations
                    for frame in d.image_TVHWC  # type: ignore[union-attr]
                ],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
    file = _FILE.format(chunk_index=0, file_index=0)
    for part in (f"data/{file}", f"meta/episodes/{file}"):
        (folder / part).parent.mkdir(parents=True)
    pq.write_table(pa.table(arrays), folder / f"data/{file}.parquet")
    episodes = {
        "episode_index": list(range(len(lengths))),
        "tasks": [[d.task] for d in demonstrations],
        "length": lengths,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
        "dataset_from_index": (ends - lengths).tolist(),
        "dataset_to_index": ends.tolist(),
        "meta/episodes/chunk_index": [0] * len(lengths),
        "meta/episodes/file_index": [0] * len(lengths),
    }
    pq.write_table(pa.table(episodes), folder / f"meta/episodes/{file}.parquet")
    pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task")).to_parquet(
        folder / "meta/tasks.parquet"
    )
    info = {
        "codebase_version": VERSION,
        "robot_type": robot,
        "total_episodes": len(lengths),
        "total_frames": total,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": f"data/{_FILE}.parquet",
        "video_path": None,
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info, indent=4) + "\n", encoding="utf-8")
    stats = {name: _statistics(values) for name, values in columns.items()}
    (folder / "meta/stats.json").write_text(json.dumps(stats, indent=4) + "\n", encoding="utf-8")


def _statistics(values: NDArray[Any]) -> dict[str, list[float]]:
    rows = values.reshape(len(values), -1).astype(np.float64)
    numbers = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {name: value.tolist() for name, value in numbers.items()} | {"count": [len(rows)]}


def _png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


# -- reading -----------------------------------------------------------------------------------------------------------


def is_lerobot(folder: Path) -> bool:
    return (folder / "meta" / "info.json").is_file()


def read(folder: Path, notes: list[str], pictures: bool = False) -> list[Demonstration]:
    """All episodes of a data set, in their order.

    Args:
        notes: what was left out, for the user.
        pictures: read those that are kept as images, too.

    Raises:
        ZooError: no such data set, another version, a file that is missing, cut off or does not fit what the meta data
            say, or values that are not finite.
    """
    info = _info(folder)
    features = info["features"]
    for name in (STATE, ACTION):
        if name not in features:
            raise ZooError(f"'{folder}' has no feature '{name}' (it has {', '.join(sorted(features)[:12])}); rename it")
    cameras = sorted(name for name, f in features.items() if f.get("dtype") == "image") if pictures else []
    if videos := sorted(name for name, f in features.items() if f.get("dtype") == "video"):
        notes.append(f"videos are not read: {', '.join(videos)}")
    tasks, lengths = _tasks(folder, info), _lengths(folder, info)
    wanted = [STATE, ACTION, "episode_index", "task_index", *(n for n in ("phase", "seed") if n in features), *cameras]
    names = features["phase"].get("names") if "phase" in features else None
    rows: dict[int, dict[str, list[Any]]] = {}
    for path in _files(folder, info, lengths):
        table = _table(path, wanted)
        of_row = _numbers(table, "episode_index", path).astype(np.int64).ravel()
        for episode in np.unique(of_row).tolist():
            places = np.flatnonzero(of_row == episode)
            part = table.slice(int(places[0]), len(places))
            kept = rows.setdefault(episode, {})
            for name in wanted:
                values = _pixels(part, name, path) if name in cameras else _numbers(part, name, path)
                kept.setdefault(name, []).append(values)
    found = []
    for episode in sorted(lengths):
        joined = {name: np.concatenate(parts) for name, parts in rows.get(episode, {}).items()}
        there = len(joined[ACTION]) if joined else 0
        if there != lengths[episode]:
            raise ZooError(
                f"episode {episode} of '{folder}' has {there} frames, its meta data say {lengths[episode]}: a file is "
                "cut off or missing; record or download it again"
            )
        if not (np.isfinite(joined[STATE]).all() and np.isfinite(joined[ACTION]).all()):
            raise ZooError(f"episode {episode} of '{folder}' has numbers that are not finite; leave it out")
        number = int(joined["task_index"].ravel()[0])
        found.append(
            Demonstration(
                tasks.get(number, str(number)),
                joined[STATE].astype(np.float32),
                joined[ACTION].astype(np.float32),
                _phases(joined.get("phase"), names, there),
                np.stack([joined[name] for name in cameras], 1) if cameras else None,
                int(joined["seed"].ravel()[0]) if "seed" in joined else -1,
            )
        )
    if not found:
        raise ZooError(f"'{folder}' holds no episode; record some")
    return found


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = str(info["codebase_version"]), info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"'{path}' cannot be read ({error}); name the folder of a LeRobotDataset") from error
    if version.partition(".")[0] not in ("v2", "v3") or not isinstance(features, dict):
        raise ZooError(
            f"'{folder}' is a LeRobotDataset {version}; v2.0 to v3.0 are read: convert it with lerobot's tools"
        )
    return dict(info)


def _tasks(folder: Path, info: Mapping[str, Any]) -> dict[int, str]:
    meta = folder / "meta"
    if (meta / "tasks.jsonl").is_file():
        return {int(row["task_index"]): str(row["task"]) for row in _lines(meta / "tasks.jsonl")}
    path = meta / "tasks.parquet"
    table = _table(path, None).to_pandas()
    texts = table.get("task", table.index)
    return {int(n): str(text) for n, text in zip(table["task_index"], texts, strict=True)}


def _lengths(folder: Path, info: Mapping[str, Any]) -> dict[int, int]:
    """Frames of each episode."""
    meta = folder / "meta"
    if (meta / "episodes.jsonl").is_file():
        found = {int(row["episode_index"]): int(row["length"]) for row in _lines(meta / "episodes.jsonl")}
    else:
        found = {}
        for path in sorted((meta / "episodes").glob("*/*.parquet")):
            table = _table(path, ["episode_index", "length"])
            numbers, lengths = (_numbers(table, name, path).ravel() for name in ("episode_index", "length"))
            found |= {int(n): int(length) for n, length in zip(numbers, lengths, strict=True)}
    if len(found) != info.get("total_episodes", len(found)):
        raise ZooError(
            f"'{meta}' lists {len(found)} episodes and its info.json says {info['total_episodes']}: a file is cut off "
            "or missing; record or download it again"
        )
    return found


def _files(folder: Path, info: Mapping[str, Any], lengths: Mapping[int, int]) -> list[Path]:
    if str(info["codebase_version"]).startswith("v2"):
        size, pattern = int(info.get("chunks_size", 1000)), str(info["data_path"])
        paths = [folder / pattern.format(episode_chunk=n // size, episode_index=n) for n in sorted(lengths)]
    else:
        paths = sorted((folder / "data").glob("*/*.parquet"))
    if absent := [path for path in paths if not path.is_file()]:
        raise ZooError(f"episode file '{absent[0]}' is missing; record or download it again")
    return paths


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ZooError(f"'{path}' is damaged ({error}); record or download it again") from error


def _table(path: Path, columns: list[str] | None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if missing := [name for name in columns or () if name not in names]:
            raise ZooError(
                f"episode file '{path}' has no column '{missing[0]}' (it has {', '.join(names[:12])}); record or "
                "download it again"
            )
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ZooError(
            f"episode file '{path}' is cut off or damaged ({reason}); record or download it again"
        ) from error


def _numbers(table: Any, name: str, path: Path) -> NDArray[Any]:
    """A column as (rows, width)."""
    import pyarrow as pa

    if name not in table.column_names:
        raise ZooError(f"episode file '{path}' has no column '{name}'; record or download it again")
    column = table.column(name).combine_chunks()
    try:
        flat = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
        values = flat.to_numpy(zero_copy_only=False).astype(np.float64 if name in (STATE, ACTION) else np.int64)
        return values.reshape(len(column), -1)
    except (ValueError, TypeError, pa.ArrowException) as error:  # rows of several lengths, texts
        raise ZooError(f"column '{name}' of '{path}' is no table of numbers ({error}); leave it out") from error


def _pixels(table: Any, name: str, path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        rows = [
            np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table.column(name).to_pylist()
        ]
        return np.stack(rows)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ZooError(f"pictures '{name}' of '{path}' cannot be read ({error}); set data.pictures=false") from error


def _phases(phase: NDArray[Any] | None, names: Any, count: int) -> NDArray[np.int64]:
    """Places in `PHASES`: by the feature's own names where it has them, else as they are numbered."""
    if phase is None:
        return np.full(count, -1, np.int64)
    flat = phase.astype(np.int64).ravel()
    if isinstance(names, list) and len(names) > 1:
        places = np.array([PHASES.index(name) if name in PHASES else -1 for name in names] + [-1])
        return places[np.where((flat >= 0) & (flat < len(names)), flat, -1)]
    return np.where((flat >= 0) & (flat < len(PHASES)), flat, -1)
