"""Our own format: a folder with ``config.json`` and ``model.safetensors``, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo import config as zc
from zoo.moe.ternary import packed, unpacked
from zoo.spec import ZooError

if TYPE_CHECKING:
    from zoo.hub.model import Model

FORMAT = 1
CONFIG, WEIGHTS, PREPROCESSING = "config.json", "model.safetensors", "preprocessing.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What lies in a folder, read and checked, with no weight in memory yet. ``fill`` copies them into a model."""

    name: str | None
    model: zc.Tree
    fill: Callable[[nn.Module], None]
    task: zc.Tree | None = None
    preprocessing: zc.Tree = dataclasses.field(default_factory=dict)


def save(
    folder: str | Path,
    model: Model,
    *,
    task: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    pack: bool = False,
) -> None:
    """Write a model so that `zoo.load` and ``from_pretrained`` find all they need. Other files of the folder stay.

    Args:
        task: resolved config of the task it was trained for; default: what the model was loaded with.
        preprocessing: plain data that turns raw input into the model's (scaler, vocabulary); default: likewise. A
            tensor in it (of a codec, say) is written to ``preprocessing.safetensors``.
        extra: anything else worth keeping, plain data; nobody reads it back.
        pack: write ternary experts at five weights a byte (`zoo.moe.ternary`): for use, not for training on.

    Raises:
        ZooError: something is not plain data, there is nothing to pack, or the disk refuses.
    """
    folder = Path(folder)
    given = preprocessing if preprocessing is not None else model.saved_with.get("preprocessing", {})
    apart: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "zoo": zoo.__version__,
        "name": model.zoo_name or model.registered_name(),
        "model": dataclasses.asdict(model.config),
        "task": task if task is not None else model.saved_with.get("task"),
        "preprocessing": _without_tensors(given, "", apart),
    }
    try:
        text = json.dumps(document | ({"extra": extra} if extra else {}), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ZooError(f"cannot save the model's config to '{folder}': it must be plain data ({error})") from error
    state = {key: value.detach() for key, value in unique_state(model).items()}
    tensors = {key: value.cpu().contiguous() for key, value in (packed(model, state) if pack else state).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            new = Path(temporary)
            save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
            (new / CONFIG).write_text(text, encoding="utf-8")
            # Without its config a folder is refused: at no moment do new weights stand beside an old config.
            (folder / CONFIG).unlink(missing_ok=True)
            (folder / PREPROCESSING).unlink(missing_ok=True)
            if apart:
                save_file(apart, new / PREPROCESSING)
                os.replace(new / PREPROCESSING, folder / PREPROCESSING)
            os.replace(new / WEIGHTS, folder / WEIGHTS)
            os.replace(new / CONFIG, folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise ZooError(f"cannot save to '{folder}': {error}; free some space or choose another folder") from error


def read(folder: Path) -> Saved:
    """Read a folder of ours, or a run folder of ``zoo train``. Raises `ZooError` naming the fault and the remedy."""
    folder = saved_folder(folder)
    document = read_json(folder / CONFIG)
    found = document.get("format")
    if found is None:
        raise ZooError(
            f"'{folder / CONFIG}' has no format number: this is not a model saved by the zoo; "
            "turn a public checkpoint into one: zoo convert SOURCE --to FOLDER --model NAME"
        )
    if found != FORMAT:
        raise ZooError(f"'{folder}' is in format {found!r}, this zoo reads {FORMAT}; install the zoo that wrote it")
    name, model, task = document.get("name"), document.get("model"), document.get("task")
    preprocessing = document.get("preprocessing") or {}
    if not (isinstance(name, str | None) and isinstance(model, dict) and isinstance(task, dict | None)):
        raise ZooError(f"'{folder / CONFIG}': name, model or task is missing or of the wrong kind; save it again")
    if not isinstance(preprocessing, dict):
        raise ZooError(f"'{folder / CONFIG}': preprocessing must be a mapping; save it again")
    zc.refuse_interpolation({"model": model, "task": task}, str(folder / CONFIG))
    preprocessing = _with_tensors(preprocessing, folder)

    def weights(module: nn.Module) -> None:
        fill(module, unpacked(module, Tensors([folder / WEIGHTS])), str(folder))

    return Saved(name, model, weights, task, preprocessing)


def _without_tensors(node: Any, path: str, apart: dict[str, Tensor]) -> Any:
    """Plain data with ``{"tensor": KEY}`` in place of every tensor, which goes into ``apart``."""
    if isinstance(node, Tensor):
        apart[path] = node.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(node, Mapping):
        return {
            key: _without_tensors(value, f"{path}.{key}" if path else str(key), apart) for key, value in node.items()
        }
    return node


def _with_tensors(node: Any, folder: Path) -> Any:
    """The inverse of `_without_tensors`. Raises `ZooError` when a tensor is missing."""
    if not isinstance(node, dict):
        return node
    if set(node) == {"tensor"} and isinstance(key := node["tensor"], str):
        tensors = Tensors([folder / PREPROCESSING])
        if key not in tensors:
            raise ZooError(f"'{folder / PREPROCESSING}' lacks '{key}'; save or download the model again")
        return tensors[key]
    return {key: _with_tensors(value, folder) for key, value in node.items()}


def saved_folder(folder: Path) -> Path:
    """The folder itself, or ``model/`` inside a run folder. Raises `ZooError` when it is neither."""
    if folder.is_file():
        remedy = "zoo convert FILE --to FOLDER --model NAME" if folder.suffix in PICKLED else "name the folder it is in"
        raise ZooError(f"'{folder}' is a file, not the folder of a saved model; {remedy}")
    if not folder.is_dir():
        raise ZooError(f"'{folder}' does not exist; check the path, or see `zoo list` for models")
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED):
        raise ZooError(
            f"'{folder}' holds pickled weights ({pickles[0]}), which could run code and are never loaded; "
            f"convert them: zoo convert {folder / pickles[0]} --to FOLDER --model NAME"
        )
    if (folder / "config.yaml").is_file():
        raise ZooError(f"run folder '{folder}' has no model/ yet: the run did not finish; train on with resume=last")
    raise ZooError(
        f"'{folder}' is neither a saved model ({CONFIG}, {WEIGHTS}) nor a run folder of `zoo train` (model/ in it); "
        "check the path"
    )


def same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or folder."""
    return one.resolve() == other.expanduser().resolve()


def read_json(path: Path) -> zc.Tree:
    """A JSON object. Raises `ZooError` for what is missing, malformed or not an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"'{path}' cannot be read as JSON: {error}; save or download it again") from error
    if not isinstance(document, dict):
        raise ZooError(f"'{path}' must hold a JSON object, not a {type(document).__name__}")
    return document


class Tensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, each read when asked for. Raises `ZooError` for any other content."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._home: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
            except FileNotFoundError:
                raise ZooError(f"'{file}' does not exist; save or download the model again") from None
            except (SafetensorError, OSError) as error:
                raise ZooError(_not_safetensors(file, error)) from error
            self._home |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._home[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def _not_safetensors(file: Path, error: Exception) -> str:
    with file.open("rb") as stream:
        start = stream.read(9)
    # A zip as torch.save writes it, or a bare pickle; a safetensors header may start with the same byte.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        return (
            f"'{file}' is a pickle, which could run code and is never loaded; "
            f"convert it: zoo convert {file} --to FOLDER --model NAME"
        )
    return f"'{file}' is truncated or no safetensors file ({error}); save or download it again, or see `zoo convert`"


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that has several names (tied weights) under its first."""
    seen: set[int] = set()
    unique = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[key] = value
    return unique


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors of our own layout into the model, cast to its types. Raises like `copy_all`."""
    copy_all({key: (key, value.detach()) for key, value in unique_state(model).items()}, tensors, where)


def copy_all(wanted: Mapping[str, tuple[str, Tensor]], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy ``tensors[key]`` into ``wanted[key]``, a pair of our name for it and its place in the model.

    Raises:
        ZooError: listing the keys that are missing, left over, or of another shape. The model is then of no use.
    """
    wrong = []
    if missing := [key for key in wanted if key not in tensors]:
        wrong.append(f"missing: {shortlist(missing)}")
    if left_over := [key for key in tensors if key not in wanted]:
        wrong.append(f"left over: {shortlist(left_over)}")
    differ = []
    for key in (k for k in wanted if k in tensors):
        (ours, place), given = wanted[key], tensors[key]
        if given.shape != place.shape or given.is_floating_point() != place.is_floating_point():
            differ.append(f"{key} {_form(given)}, wanted {_form(place)}{f' for {ours}' if ours != key else ''}")
        elif not (wrong or differ):
            place.copy_(given)
    if differ:
        wrong.append(f"of another shape: {shortlist(differ)}")
    if wrong:
        what = "; ".join(wrong)
        raise ZooError(f"the weights in '{where}' do not fit the model; {what}. Use the settings they were made with")


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"({', '.join(map(str, tensor.shape))}){kind}"


def shortlist(items: list[str], most: int = 12) -> str:
    """``a, b, c and 7 more``."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
