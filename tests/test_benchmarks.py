"""The scripts of ``benchmarks/`` run: as small as they get, for the numbers are not what is tested."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo_kernels import ops

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def output(
    name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The rows of the table that a script prints, its head left out."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with ops.use_backend("reference"):  # no compiler
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_bip_optimum(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = output("bip_optimum.py", "1", monkeypatch=monkeypatch, capsys=capsys)
    assert len(rows) == 3 * 4 * 3 and all("%" in row for row in rows)


def test_zero_computation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--experts", "4", "--hidden", "8", "--inner", "8", "--tokens", "64", "--turns", "1"]
    rows = output("zero_computation.py", *size, monkeypatch=monkeypatch, capsys=capsys)
    shares = [float(row.split("|")[2]) for row in rows]
    assert len(rows) == 5 and shares == sorted(shares), "a larger tau sends more to true experts"


def test_comet_planted() -> None:
    script: dict[str, Any] = runpy.run_path(str(SCRIPTS / "comet_planted.py"))
    for settings in script["contestants"](4).values():
        recovered, used, error = script["run"](5, next(iter(settings.values())), 1e-2, 0, 2)
        assert 0 < recovered < 1 and 1 <= used <= 5 and error > 0


def test_diffusion_sampling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--model", "diffusion/dit_moe_tiny", "--layers", "1", "--pictures", "2", "--steps", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["diffusion_sampling.py", *size])
    with ops.use_backend("reference"):
        runpy.run_path(str(SCRIPTS / "diffusion_sampling.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "| zoo |" in told and "| HF grouped_mm |" in told
    assert float(told.partition("largest difference of the pictures: ")[2].split()[0]) < 1e-4


def test_against_blind() -> None:
    interval = runpy.run_path(str(SCRIPTS / "against_blind.py"))["interval"]
    mean, low, high = interval([1, 0, -1, 1], list("abcd"))
    assert mean == 0.25 and high - mean == mean - low == pytest.approx(1.96 * (2.75 / 3 / 4) ** 0.5)
    alone, doubled = interval([1, 0, 0, 1], list("abcd")), interval([1, 0, 0, 1] * 2, list("abcd") * 2)
    assert alone == pytest.approx(doubled), "the same questions twice are no more evidence"
