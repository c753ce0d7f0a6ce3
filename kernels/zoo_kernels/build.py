"""Compiles `csrc` once with the system compiler into a user cache and loads it through ctypes: no torch headers."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
# no -ffast-math: the order of sums and the handling of NaN are part of the contract
BASE = (
    "-O2",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
)
# the best set of flags that the compiler takes
FLAG_SETS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())


class BuildError(Exception):
    """The C sources could not be compiled or loaded; the message says why."""


def cache_dir() -> Path:
    """`kernels` in $ZOO_CACHE, or in `moe-zoo` of $XDG_CACHE_HOME (default ~/.cache)."""
    if base := os.environ.get("ZOO_CACHE"):
        return Path(base).expanduser() / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-zoo" / "kernels"


def compiler() -> list[str]:
    """$CC if set, else the first of cc, gcc, clang."""
    named = shlex.split(os.environ.get("CC", ""))
    found = shutil.which(named[0]) if named else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise BuildError(f"no C compiler found ({'CC=' + named[0] if named else 'cc, gcc, clang'})")
    return [found, *named[1:]]


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(command: list[str], target: Path) -> str:
    """Compiles to `target` atomically; returns the compiler's complaint, empty if it worked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        files = [str(path) for path in sorted(SOURCES.glob("*.c"))]
        done = subprocess.run(
            [*command, *files, "-o", temporary, "-lm", "-lpthread"], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        os.replace(temporary, target)
        return ""
    finally:
        Path(temporary).unlink(missing_ok=True)


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, compiled if this machine, compiler and source were not met before. Raises BuildError."""
    try:
        command = compiler()
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
        sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
        complaint = ""
        for flags in FLAG_SETS:
            line = [*command, *BASE, *flags]
            key = hashlib.sha256(repr((line, version, _cpu())).encode() + sources).hexdigest()[:24]
            target = cache_dir() / f"zoo-{key}.so"
            complaint = "" if target.exists() else _compile(line, target)
            if not complaint:
                return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error
    raise BuildError(f"{Path(command[0]).name} failed: {complaint}")
