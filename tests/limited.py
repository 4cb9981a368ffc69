"""Scripts in a process that may hold only so much memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import _cgroup

__all__ = ["run_with_memory"]

_REPOSITORY = Path(__file__).parents[1]
_JOIN = """
import pathlib, sys
from benchmarks import _cgroup
_cgroup.join(pathlib.Path(sys.argv.pop(1)))
"""


def run_with_memory(nbytes: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a memory cgroup, which is gone then; skips where none can be made.

    Parameters
    ----------
    nbytes
        What it may hold, pages of files in the page cache included.
    script
        Source; finds the `arguments` in ``sys.argv[1:]``.
    """
    try:
        with _cgroup.limited(nbytes) as processes:
            done = subprocess.run(
                [sys.executable, "-c", _JOIN + script, str(processes), *arguments],
                cwd=_REPOSITORY,
                capture_output=True,
                text=True,
                check=False,
            )
    except _cgroup.CgroupError as error:
        pytest.skip(str(error))
    assert not processes.parent.exists()
    return done
