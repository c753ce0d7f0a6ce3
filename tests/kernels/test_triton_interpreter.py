"""Runs triton_interpreter_cases.py in a process of its own: the interpreter is chosen when triton is imported, and
ahead-of-time compilation (test_triton_aot.py) needs it off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_interpreter_cases.py")


@pytest.mark.timeout(600)  # half a minute alone, several on a crowded machine
def test_every_kernel_equals_the_reference_in_the_interpreter(tmp_path: Path) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=env, cwd=CASES.parents[2], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
