"""The byte corpus: text of four clearly different domains that any PyTorch installation contains, with no download.

The bytes depend on the installed versions, so their hash is told and travels with the results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.config import at_least
from zoo.spec import ZooError
from zoo.vocabulary import Byte, saved
from zoo_language.data.windows import Windows

DOMAINS = ("python", "cpp", "prose", "records")


class Bytes:
    """Windows of one domain each; the last tenth of every domain is held out, half for validation, half for test."""

    @dataclass
    class Config:
        context: int = 128
        bytes_per_domain: int = 700_000

        def __post_init__(self) -> None:
            at_least(1, self, "context", "bytes_per_domain")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text = [np.frombuffer(_read(name, config.bytes_per_domain), np.uint8) for name in DOMAINS]
        if min(map(len, self.text)) < 100 * (config.context + 1):
            raise ZooError(f"context={config.context} leaves too few windows of the byte corpus; lower it")
        digest = hashlib.sha256(b"".join(text.tobytes() for text in self.text)).hexdigest()[:16]
        self.notes = [f"byte corpus of {sum(map(len, self.text)):,} bytes, sha256 {digest}"]
        self.preprocessing: dict[str, Any] = {
            "vocabulary": saved(Byte(Byte.Config())),
            "context": config.context,
            "corpus": digest,
        }

    def split(self, name: str) -> Windows:
        low, high = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}[name]
        texts = [t[int(low * len(t)) : int(high * len(t))] for t in self.text]
        context, offset, starts = self.config.context, 0, []
        for text in texts:
            starts.append(np.arange(offset, offset + len(text) - context, context))
            offset += len(text)
        domain_N = np.repeat(np.arange(len(texts), dtype=np.int32), [len(t) for t in texts])
        columns = {"tokens": np.concatenate(texts), "bytes": np.ones(offset, np.uint8), "domain": domain_N}
        return Windows(columns, np.concatenate(starts), context)


def _read(domain: str, size: int) -> bytes:
    pieces, total = [], 0
    for path in _files(domain):
        pieces.append(path.read_bytes())
        total += len(pieces[-1])
        if total >= size:
            break
    if total < size // 10:
        raise ZooError(f"the byte corpus finds only {total} bytes of {domain} in this installation of torch")
    return b"".join(pieces)[:size]


def _files(domain: str) -> Iterator[Path]:
    root = Path(torch.__file__).parent
    if domain == "python":
        for folder in ("nn", "optim"):
            yield from sorted((root / folder).rglob("*.py"))
    elif domain == "cpp":
        yield from sorted((root / "include" / "ATen").rglob("*.h"))
    else:
        for distribution in sorted(metadata.distributions(), key=lambda d: str(d.metadata["Name"]).lower()):
            for file in sorted(distribution.files or (), key=str):
                name = file.name.upper()
                prose = name == "METADATA" or name.startswith(("LICENSE", "NOTICE", "COPYING"))
                if ".dist-info" in str(file) and (prose if domain == "prose" else name == "RECORD"):
                    path = Path(str(distribution.locate_file(file)))
                    if path.is_file():
                        yield path
