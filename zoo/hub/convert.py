"""Foreign or pickled weights into our own format: the only place where a pickle is opened, and then weights only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo import registry
from zoo.hub import folder as fmt
from zoo.hub import importer, layout, sources
from zoo.hub.model import Model, instantiate
from zoo.spec import Importer, ModelSpec, ZooError


def convert(
    source: str, to: Path, name: str = "", importer_name: str = "", overrides: Mapping[str, Any] | None = None
) -> Model:
    """What `opened` reads, saved as `zoo.load` wants it, in fp32."""
    if fmt.same(_path(source), to):
        raise ZooError(f"--to {to} is where the weights come from; name another folder")
    model = opened(source, name, importer_name, overrides)
    fmt.save(to, model, extra={"converted_from": source})
    return model


def opened(source: str, name: str = "", importer_name: str = "", overrides: Mapping[str, Any] | None = None) -> Model:
    """Read foreign weights and check that every one of them has its place.

    Args:
        source: a file (.safetensors, .pt, .pth, .bin, .ckpt) or a folder of them, or ``hf-hub:ORG/NAME@REVISION``.
        name: ``plugin/model``; found by the ``config.json`` beside the weights when only one model claims it, or by
            the file's name (``dit_moe_s_8E2A.pt``) when one model is called so.
        importer_name: which of the model's importers reads the layout; by default its only one when there is a foreign
            ``config.json``, or when it needs none and knows the keys. Otherwise the keys must be our own.
        overrides: settings of the model that differ from its defaults.

    Raises:
        ZooError: a pickle that is more than weights, settings that no model has, or keys that do not fit.
    """
    path = _path(source)
    beside = (path if path.is_dir() else path.parent) / fmt.CONFIG
    foreign = fmt.read_json(beside) if beside.is_file() else None
    entry, tag = registry.find_model(name or _claimed(foreign, source))
    if chosen := _importer(entry, importer_name or _of_tag(entry, tag), foreign, path):
        if foreign is None and not _settled(chosen):
            raise ZooError(f"the importer needs the checkpoint's settings: put its config.json at {beside}")
        saved = importer.imported(entry, chosen, foreign or {}, lambda: tensors(path), beside.parent, overrides)
    else:
        tree = zc.resolve_part("model", zc.merge({"name": entry.name}, overrides or {}), "model") or {}
        saved = fmt.Saved(entry.name, {k: v for k, v in tree.items() if k != "name"}, _own(path, source))
    return instantiate(entry.name, saved, "cpu")


def _path(source: str) -> Path:
    path = sources.locate(source) if source.startswith(("hf-hub:", "local-dir:")) else Path(source).expanduser()
    if not path.exists():
        raise ZooError(f"'{source}' does not exist; name a file or folder of weights, or hf-hub:ORG/NAME")
    return path


def is_foreign(source: str) -> bool:
    """Whether a source is a folder or hub repository with another library's ``config.json``."""
    if not source.startswith(("hf-hub:", "local-dir:")) and not (Path(source).expanduser() / fmt.CONFIG).is_file():
        return False
    return sources.registered(source) is None and "format" not in fmt.read_json(_path(source) / fmt.CONFIG)


def _claimed(foreign: Mapping[str, Any] | None, source: str) -> str:
    """The one model whose importer expects exactly such a config."""
    claims = [
        name
        for name, entry in registry.entries("model").items()
        for each in getattr(entry.spec, "importers", {}).values()
        if foreign and each.expect and importer.fits(each, foreign) is None
    ]
    named = [name for name in registry.entries("model") if name.partition("/")[2] == Path(source).stem.lower()]
    if not claims and len(named) == 1:
        return named[0]
    if not claims and foreign and (kind := foreign.get("model_type")):
        raise ZooError(
            f"'{source}' is of type '{kind}', and no installed model reads that layout; name one with --model, or keep "
            'its class in transformers, with experts_implementation="zoo"'
        )
    if len(claims) != 1:
        which = f"one of {', '.join(claims)}" if claims else "see `zoo list`"
        raise ZooError(f"cannot tell which model '{source}' holds; name it with --model ({which})")
    return claims[0]


def _of_tag(entry: registry.Entry, tag: str) -> str:
    assert isinstance(entry.spec, ModelSpec)
    return entry.spec.pretrained[tag].importer if tag else ""


def _settled(chosen: Importer) -> bool:
    """Whether a layout says all about the model, so that no config is needed."""
    return not chosen.config and not chosen.expect


def _importer(entry: registry.Entry, name: str, foreign: Mapping[str, Any] | None, path: Path) -> Importer | None:
    assert isinstance(entry.spec, ModelSpec)
    if not name:
        known = entry.spec.importers
        if foreign is None and known:
            maps = [(each, (each.keys, *each.dialects.values())) for each in known.values() if _settled(each)]
            keys = list(tensors(path)) if maps else []
            fit = [each for each, key_maps in maps if any(layout.speaks(m, keys) for m in key_maps)]
            return fit[0] if len(fit) == 1 else None
        if foreign is None or not known:
            return None
        if len(known) > 1:
            raise ZooError(
                f"model '{entry.name}' has several importers; choose one with --importer: {', '.join(known)}"
            )
        name = next(iter(known))
    return importer.find(entry, name)


def _own(path: Path, where: str) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        found = tensors(path)
        for prefix in ("module.", "model."):  # of a data-parallel wrapper, of a Lightning module
            if found and all(key.startswith(prefix) for key in found):
                found = {key.removeprefix(prefix): value for key, value in found.items()}
        fmt.fill(model, found, where)

    return fill


def tensors(path: Path) -> Mapping[str, Tensor]:
    """All tensors by name of a file, or of the weight files of a folder: safetensors if there are any, else pickles."""
    if path.suffix == ".safetensors":
        return fmt.Tensors([path])
    if path.is_file():
        return read_pickle(path)
    pickles = sorted(p for p in path.iterdir() if p.suffix in fmt.PICKLED)
    if any(path.glob("*.safetensors")) or not pickles:
        return fmt.Tensors(importer.shards(path))
    found: dict[str, Tensor] = {}
    for file in pickles:
        shard = read_pickle(file)
        if twice := found.keys() & shard.keys():
            raise ZooError(f"'{file}' repeats '{min(twice)}' of another file beside it; name the one file to convert")
        found |= shard
    return found


def read_pickle(file: Path) -> dict[str, Tensor]:
    """A state dict written by ``torch.save``, bare or under ``state_dict`` or ``model``. Runs nothing that is in it."""
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(file, map_location="cpu", weights_only=True)  # files from before torch 1.6
    except Exception as error:  # a hostile file may fail in any way
        told = re.search(r"Unsupported [^\n]*? (?:\S+\.)?\S+", str(error))
        cause = told[0] if told else str(error).strip().partition("\n")[0]
        raise ZooError(
            f"'{file}' is refused: it is truncated or more than plain weights ({cause}); nothing in it was run. "
            "Ask its author for safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ZooError(f"'{file}' holds a {type(content).__name__}, not named tensors; save model.state_dict()")
    if odd := [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise ZooError(
            f"'{file}' holds more than named tensors ({fmt.shortlist([str(k) for k in odd], 4)}); save those only"
        )
    return content
