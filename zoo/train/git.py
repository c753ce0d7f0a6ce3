"""The commit that code runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, marked when there are changes; None for an installed one."""
    here = Path(__file__).parent
    try:
        # A package installed inside somebody's repository is none of that repository's files.
        tracked = ["ls-files", "--error-unmatch", Path(__file__).name]
        run = [
            subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"], tracked)
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + ("-dirty" if run[1] else "")
