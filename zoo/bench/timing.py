"""Interleaved timing on a machine that may be shared: wall and process CPU time, and who else was running."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.spec import ZooError

WARMUP = 2


@dataclass
class Times:
    """Milliseconds of each repeat: wall time, and the process's CPU time over all its threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, float]]:
        return {"wall_ms": quartiles(self.wall), "cpu_ms": quartiles(self.cpu)}


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": low, "q3": high}


def interleave(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Time all runs round-robin, so that a busy minute hits each of them; two unmeasured rounds come first."""
    times = {name: Times() for name in runs}
    for turn in range(WARMUP + repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= WARMUP:
                times[name].wall.append(1e3 * wall)
                times[name].cpu.append(1e3 * cpu)
    return times


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Run on the first ``threads`` of the allowed cores with as many threads; yields those cores.

    Enter before torch is imported, so that its OpenMP pool starts with this number.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 0 < threads <= len(allowed):
        raise ZooError(f"--threads {threads}: this process may use {len(allowed)} cores; name 1 to {len(allowed)}")
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    before = torch.get_num_threads()
    cores = allowed[:threads]
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        torch.set_num_threads(before)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, allowed)


@contextmanager
def contention() -> Iterator[dict[str, Any]]:
    """Fills in, when the block ends, what else kept the machine busy (Linux; elsewhere the load average only).

    ``others`` and ``steal`` are shares of all cores: CPU time of other processes, and time the hypervisor took.
    """
    seen: dict[str, Any] = {}
    before, own, load = _cpu_ticks(), time.process_time(), os.getloadavg()[0]
    yield seen
    after, own = _cpu_ticks(), time.process_time() - own
    seen["load_average"] = [load, os.getloadavg()[0]]
    if before and after and sum(after) > sum(before):
        spent = [b - a for a, b in zip(before, after, strict=True)]
        busy = sum(spent) - spent[3] - spent[4] - spent[7]
        seen["others"] = max(0.0, busy - own * os.sysconf("SC_CLK_TCK")) / sum(spent)
        seen["steal"] = spent[7] / sum(spent)


def _cpu_ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal; guest time is already part of user."""
    stat = Path("/proc/stat")
    return [int(value) for value in stat.read_text().split("\n", 1)[0].split()[1:9]] if stat.exists() else []


def versions() -> dict[str, str]:
    import platform

    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown")
