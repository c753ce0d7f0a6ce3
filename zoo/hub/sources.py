"""Where weights come from: inside a plugin, a local folder, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from zoo import registry, resources
from zoo.hub import folder as fmt
from zoo.hub import importer
from zoo.spec import ModelSpec, ZooError


def pretrained(entry: registry.Entry, tag: str = "", source: str = "") -> fmt.Saved:
    """The weights of a model's tag, of its first tag when none is given; ``source`` replaces where they come from."""
    spec = entry.spec
    assert isinstance(spec, ModelSpec)
    if not spec.pretrained:
        raise ZooError(f"model '{entry.name}' has no pretrained weights; train it, or see `zoo list --pretrained`")
    weights = spec.pretrained[tag or next(iter(spec.pretrained))]
    folder = locate(source or weights.source, entry.plugin.package)
    if not weights.importer:
        return fmt.read(folder)
    return importer.read(folder, entry, weights.importer)


def registered(source: str) -> tuple[registry.Entry, str] | None:
    """The model and tag that name this source (of any revision) as theirs, if one does."""
    for entry in registry.entries("model").values():
        for tag, weights in getattr(entry.spec, "pretrained", {}).items():
            if weights.source.partition("@")[0] == source.partition("@")[0]:
                return entry, tag
    return None


def locate(source: str, package: str = "") -> Path:
    """The local folder of ``bundled:FOLDER`` (in ``package``), ``local-dir:FOLDER`` or ``hf-hub:ORG/NAME@REVISION``."""
    kind, _, rest = source.partition(":")
    if kind == "local-dir":
        return Path(rest).expanduser()
    if kind == "hf-hub":
        repository, _, revision = rest.partition("@")
        return from_hub(repository, revision or None)
    if kind == "bundled" and (base := resources.package_dir(package)):
        return base / rest
    raise ZooError(f"unknown source of weights '{source}'; write local-dir:FOLDER or hf-hub:ORG/NAME@REVISION")


def from_hub(repository: str, revision: str | None = None) -> Path:
    """Download configs and safetensors of a hub repository, or find them in its cache. Nothing else is fetched."""
    at = f"{repository}@{revision}" if revision else repository
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except HFValidationError as error:
        raise ZooError(f"'{at}' is neither a folder nor the name of a hub repository (ORG/NAME)") from error
    except (HfHubHTTPError, OSError) as error:  # not found, gated, offline, no connection
        cause = str(error).strip().partition("\n")[0]
        raise ZooError(
            f"cannot fetch '{at}' from the Hugging Face hub ({cause}); check the name and the connection, "
            "or download its *.json and *.safetensors by hand and use local-dir:FOLDER"
        ) from error
