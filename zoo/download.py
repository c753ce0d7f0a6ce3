"""Data files: found under ``ZOO_DATA``, or fetched once into the cache, checked, and unpacked with suspicion."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from zoo.resources import cache_dir, data_dir
from zoo.spec import DataFile, ZooError

CHUNK = 1 << 18
ROUNDS, TIMEOUT = 3, 30.0
BOMB_FLOOR, BOMB_RATIO = 1 << 30, 200  # an archive may unpack to a GiB, or to 200 times its size
BAR_AFTER = 2.0

_Network = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_Damaged = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, RuntimeError)


def fetch(file: DataFile) -> Path:
    """The local path of a data file: under ``ZOO_DATA`` if it lies there, else in the cache, downloaded if need be.

    Mirrors are tried in turn, and with a checksum a broken transfer goes on where it stopped, also on another mirror or
    another day. The file gets its name only when it is whole and right. What is already there is taken as it is.

    Raises:
        ZooError: no mirror delivered it; names each cause and the place to put the file by hand.
    """
    by_hand, target = data_dir() / file.path, cache_dir() / "data" / file.path
    for path in (by_hand, target):
        if path.is_file():
            return path
    if not file.urls:
        raise ZooError(f"data file '{file.path}' is not there and has no address; put it at {by_hand}, or set ZOO_DATA")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            causes = {} if target.is_file() else _from_mirrors(file, target)
    except OSError as error:
        raise ZooError(
            f"cannot write '{target}': {error}; free some space, or set ZOO_CACHE to another folder"
        ) from error
    if causes:
        tried = "; ".join(f"{url}: {cause}" for url, cause in causes.items())
        raise ZooError(f"cannot download '{file.path}' ({tried}); check the connection, or put the file at {by_hand}")
    return target


def _from_mirrors(file: DataFile, target: Path) -> dict[str, str]:
    """Download into ``target``. Returns nothing on success, else why each mirror failed."""
    part = target.with_name(f"{target.name}.part")
    causes: dict[str, str] = {}
    hopeless = set()
    for url in file.urls * ROUNDS:
        if url in hopeless:
            continue
        try:
            resumed = _transfer(url, part, resume=bool(file.sha256 or file.git_blob))
        except _Network as error:
            causes[url] = str(getattr(error, "reason", None) or error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                if error.code == 416:  # what we have is longer than the file, so it is no part of it
                    part.unlink(missing_ok=True)
                elif error.code < 500:
                    hopeless.add(url)
            continue
        kind, wanted, found = "sha256", file.sha256, sha256(part) if file.sha256 else ""
        if not wanted and file.git_blob:
            kind, wanted, found = "git blob id", file.git_blob, git_blob(part)
        if found == wanted:
            os.replace(part, target)
            return {}
        part.unlink()
        causes[url] = f"its {kind} is {found[:12]}..., not {wanted[:12]}..."
        if not resumed:  # else the fault may lie in what was there before
            hopeless.add(url)
    return causes


def _transfer(url: str, part: Path, resume: bool) -> bool:
    """Bring ``part`` to its full length; returns whether it began in the middle. Raises one of ``_Network``."""
    done = part.stat().st_size if resume and part.exists() else 0
    headers = {"User-Agent": "moe-zoo"} | ({"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if resumed else 0  # a server that knows no ranges sends everything
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with progress(part.stem, total, done) as advance, part.open("ab" if resumed else "wb") as stream:
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                done += len(chunk)
                advance(len(chunk))
    if total is not None and done < total:
        raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    return resumed


def unpack(archive: Path) -> Path:
    """The folder in the cache that holds an archive's files (zip, tar, tar.gz, tar.xz, ...), unpacked once.

    Only plain files and folders come out: a link inside becomes a copy of what it names.

    Raises:
        ZooError: a member that points outside, a link outside, a device, a bomb, or a damaged archive.
    """
    state = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_dir() / "unpacked" / f"{archive.name}-{key}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as temporary:
                    root = Path(temporary) / "root"
                    root.mkdir()
                    _unpack(archive, root, max(BOMB_FLOOR, BOMB_RATIO * state.st_size))
                    os.replace(root, target)
    except _Damaged as error:
        raise ZooError(f"'{archive}' cannot be unpacked: {error}; delete it, so that it is fetched again") from error
    except OSError as error:
        raise ZooError(f"cannot unpack '{archive}' into '{target}': {error}; see ZOO_CACHE") from error
    return target


def _unpack(archive: Path, root: Path, limit: int) -> None:
    left = limit
    with progress(f"unpacking {archive.name}", None) as advance:
        for name, source in _members(archive):
            path = root / name
            # No link is ever created below root, so a name is all that could lead outside.
            if not path.resolve().is_relative_to(root.resolve()):
                raise ZooError(f"'{archive}' is refused: its member '{name}' would be written outside its folder")
            if source is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as stream:
                while chunk := source.read(CHUNK):
                    if (left := left - len(chunk)) < 0:
                        raise ZooError(f"'{archive}' is refused: it unpacks to more than {limit >> 20} MiB")
                    stream.write(chunk)
                    advance(len(chunk))


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every member; folders have none."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as package:
            for info in package.infolist():
                if info.external_attr >> 28 not in (0, 0o4, 0o10):  # the file type of Unix: folder, file, or not said
                    raise ZooError(f"'{archive}' is refused: its member '{info.filename}' is a link or a device")
                yield info.filename, None if info.is_dir() else package.open(info)
        return
    with tarfile.open(archive) as package:
        for member in package:
            try:
                content = None if member.isdev() else package.extractfile(member)
            except KeyError:  # a link to what the archive does not hold
                content = None
            if content is None and not member.isdir():
                kind = "a device" if member.isdev() else f"a link to '{member.linkname}', which is no file in it"
                raise ZooError(f"'{archive}' is refused: its member '{member.name}' is {kind}")
            yield member.name, content


@contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives ``advance(bytes)``; after two seconds a bar appears on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, began = bar.add_task(what, total=total, completed=done), time.monotonic()

    def advance(count: int) -> None:
        bar.update(task, advance=count)
        if bar.console.is_terminal and not bar.live.is_started and time.monotonic() - began > BAR_AFTER:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return _digest(path, hashlib.sha256())


def git_blob(path: Path) -> str:
    """The id that git gives a file's content."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    found: str = digest.hexdigest()
    return found
