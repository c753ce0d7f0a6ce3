"""Fetching from misbehaving servers, and unpacking archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zoo import download
from zoo.download import fetch, unpack
from zoo.spec import DataFile, ZooError

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it does depends on the first step of the path; ``log`` holds the step and the range of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[tuple[str, str | None]] = []

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{behaviour}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        behaviour, asked = self.path.split("/")[1], self.headers.get("Range")
        earlier = sum(step == behaviour for step, _ in self.server.log)
        self.server.log.append((behaviour, asked))
        content = CONTENT[::-1] if behaviour == "wrong" else CONTENT
        if behaviour == "missing":
            return self.send_error(404)
        if behaviour == "busy" and earlier == 0:
            return self.send_error(503)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and behaviour != "rangeless" else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = behaviour == "dying" or (behaviour in ("cut", "rangeless") and earlier == 0)
        self.wfile.write(content[start : start + (len(content) - start) // 2] if cut else content[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    return tmp_path / "cache"


def part(cache: Path) -> Path:
    return cache / "data" / "some" / "data.bin.part"


def wanted(*urls: str, sha256: str = SHA) -> DataFile:
    return DataFile("some/data.bin", urls, sha256)


def test_a_file_under_zoo_data_is_used_as_it_is(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "data" / "some" / "data.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    assert fetch(wanted(server.url("good"))) == file
    assert server.log == []


def test_a_download_happens_once(server: Server, cache: Path) -> None:
    path = fetch(wanted(server.url("good")))
    assert path == cache / "data" / "some" / "data.bin" and path.read_bytes() == CONTENT
    assert fetch(wanted(server.url("good"))) == path
    assert len(server.log) == 1 and not part(cache).exists()


def test_an_interrupted_transfer_goes_on_where_it_stopped(server: Server) -> None:
    assert fetch(wanted(server.url("cut"))).read_bytes() == CONTENT
    assert server.log == [("cut", None), ("cut", f"bytes={len(CONTENT) // 2}-")]


def test_another_mirror_goes_on_where_the_first_stopped(server: Server) -> None:
    assert fetch(wanted(server.url("cut"), server.url("good"))).read_bytes() == CONTENT
    assert server.log == [("cut", None), ("good", f"bytes={len(CONTENT) // 2}-")]


def test_a_part_of_an_earlier_process_is_continued(server: Server, cache: Path) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).write_bytes(CONTENT[:1000])
    assert fetch(wanted(server.url("good"))).read_bytes() == CONTENT
    assert server.log == [("good", "bytes=1000-")]


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    assert fetch(wanted(server.url("rangeless"))).read_bytes() == CONTENT
    assert len(server.log) == 2


@pytest.mark.parametrize("rubbish", [b"\xff" * 1000, CONTENT + b"too long"], ids=["other content", "too long"])
def test_a_part_that_belongs_to_something_else_is_thrown_away(server: Server, cache: Path, rubbish: bytes) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).write_bytes(rubbish)
    assert fetch(wanted(server.url("good"))).read_bytes() == CONTENT
    assert server.log[-1] == ("good", None)


def test_without_a_checksum_nothing_is_continued(server: Server, cache: Path) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).write_bytes(b"\xff" * 1000)
    assert fetch(wanted(server.url("cut"), sha256="")).read_bytes() == CONTENT
    assert server.log == [("cut", None), ("cut", None)]


def test_a_git_blob_id_stands_in_for_a_sha256(server: Server, tmp_path: Path) -> None:
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # of "hello\n", as `git hash-object` says
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert download.git_blob(tmp_path / "hello") == blob
    ours = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    file = DataFile("some/data.bin", (server.url("wrong"), server.url("cut")), git_blob=ours)
    assert fetch(file).read_bytes() == CONTENT
    with pytest.raises(ZooError, match=r"its git blob id is .*, not ce013625030b"):
        fetch(DataFile("some/other.bin", (server.url("good"),), git_blob=blob))


def test_mirrors_are_tried_in_turn(server: Server) -> None:
    urls = [server.url(behaviour) for behaviour in ("missing", "wrong", "busy", "good")]
    assert fetch(wanted(*urls)).read_bytes() == CONTENT
    assert [step for step, _ in server.log] == ["missing", "wrong", "busy", "good"]


def test_a_busy_mirror_is_asked_again(server: Server) -> None:
    assert fetch(wanted(server.url("missing"), server.url("busy"))).read_bytes() == CONTENT
    assert [step for step, _ in server.log] == ["missing", "busy", "busy"]


def test_failure_names_every_cause_and_the_place_for_the_file(server: Server, cache: Path, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9/data.bin"
    with pytest.raises(ZooError) as caught:
        fetch(wanted(server.url("missing"), server.url("wrong"), server.url("dying"), closed))
    message = str(caught.value)
    assert (
        "Not Found" in message and f"not {SHA[:12]}" in message and "closed after" in message and "refused" in message
    )
    assert str(tmp_path / "data" / "some" / "data.bin") in message and "\n" not in message
    assert not (cache / "data" / "some" / "data.bin").exists()


def test_a_file_without_address_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=str(tmp_path / "data" / "some" / "data.bin")):
        fetch(wanted())


def test_a_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ZooError, match="set ZOO_CACHE"):
        fetch(wanted(server.url("good")))


def test_concurrent_fetches_download_once(server: Server) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(wanted(server.url("good"))))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and len(server.log) == 1


def test_a_bar_appears_when_it_takes_long(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    fetch(wanted(server.url("good")))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(download, "BAR_AFTER", -1.0)
    fetch(DataFile("other/slow.bin", (server.url("good"),), SHA))
    out, err = capsys.readouterr()
    assert out == "" and "slow.bin" in err


# -- archives --------------------------------------------------------------------------------------------------------


def tar(path: Path, fill: Callable[[tarfile.TarFile], None], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as package:  # type: ignore[call-overload]
        fill(package)
    return path


def member(name: str, content: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(package: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        package.addfile(info, io.BytesIO(content))

    return add


def zipped(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        package.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_archives_unpack_once_into_the_cache(kind: str, tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "deep").mkdir()
    (source / "deep" / "a.txt").write_text("hello")
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as package:
            for path in sorted(source.rglob("*")):
                package.write(path, path.relative_to(source))
    else:
        mode = "w:" + kind.partition(".")[2]
        tar(archive, lambda package: package.add(source, "."), mode)
    folder = unpack(archive)
    assert folder.is_relative_to(cache) and (folder / "deep" / "a.txt").read_text() == "hello"
    assert (folder / "empty").is_dir()
    (folder / "deep" / "a.txt").write_text("unpacked before")
    assert (unpack(archive) / "deep" / "a.txt").read_text() == "unpacked before"


def test_links_inside_become_copies(tmp_path: Path) -> None:
    def fill(package: tarfile.TarFile) -> None:
        member("d/real.txt", b"content")(package)
        member("d/soft.txt", b"", type=tarfile.SYMTYPE, linkname="real.txt")(package)
        member("hard.txt", b"", type=tarfile.LNKTYPE, linkname="d/real.txt")(package)

    folder = unpack(tar(tmp_path / "a.tar.gz", fill))
    for name in ("d/soft.txt", "hard.txt"):
        assert (folder / name).read_bytes() == b"content" and not (folder / name).is_symlink()


HOSTILE = {
    "above": member("../evil.txt"),
    "above, hidden": member("a/../../evil.txt"),
    "absolute": member("/evil.txt"),
    "soft link out": member("a", b"", type=tarfile.SYMTYPE, linkname="../../evil.txt"),
    "absolute link": member("a", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link out": member("a", b"", type=tarfile.LNKTYPE, linkname="../evil.txt"),
    "link to itself": member("a", b"", type=tarfile.SYMTYPE, linkname="a"),
    "device": member("a", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "pipe": member("a", b"", type=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tar_members_are_refused(kind: str, tmp_path: Path, cache: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", HOSTILE[kind])
    with pytest.raises(ZooError, match=r"a\.tar\.gz"):
        unpack(archive)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != archive and p.suffix != ".lock"]


def test_a_linked_folder_is_no_way_out(tmp_path: Path) -> None:
    def fill(package: tarfile.TarFile) -> None:
        member("out", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))(package)
        member("out/evil.txt")(package)

    with pytest.raises(ZooError, match="link to"):
        unpack(tar(tmp_path / "a.tar.gz", fill))
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("name", "mode"), [("../evil.txt", 0), ("/evil.txt", 0), ("a", stat.S_IFLNK), ("a", stat.S_IFCHR)]
)
def test_hostile_zip_members_are_refused(name: str, mode: int, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", name, b"/etc/passwd", mode)
    with pytest.raises(ZooError, match="is refused"):
        unpack(archive)
    assert not (tmp_path / "cache" / "unpacked" / "evil.txt").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_and_leaves_nothing(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(4 << 20)
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        zipped(archive, "zeros", zeros)
    else:
        tar(archive, member("zeros", zeros))
    monkeypatch.setattr(download, "BOMB_FLOOR", 1 << 20)
    with pytest.raises(ZooError, match="more than 1 MiB"):
        unpack(archive)
    assert [p.suffix for p in (cache / "unpacked").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_a_damaged_archive_is_one_line(name: str, tmp_path: Path) -> None:
    archive = tmp_path / name
    if name == "a.zip":
        zipped(archive, "x", CONTENT)
    else:
        tar(archive, member("x", CONTENT), "w:gz" if name.endswith("gz") else "w")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ZooError, match=r"cannot be unpacked.*delete it") as caught:
        unpack(archive)
    assert "\n" not in str(caught.value)
