"""Run NumPy's test modules with stored arrays: ``python -m tests.numpy_suite dram memmap zarr``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["MODULES", "run"]

MODULES = [
    "lib/tests/test_nanfunctions.py",
    "lib/tests/test_function_base.py",
    "lib/tests/test_histograms.py",
    "_core/tests/test_numeric.py",
    "_core/tests/test_multiarray.py",
    "_core/tests/test_ufunc.py",
    "linalg/tests/test_linalg.py",
]
NUMPY = Path(np.__file__).parent


def run(
    places: Sequence[str], modules: Sequence[str] = MODULES, *, every: int = 1, quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run modules, or every so manieth test of them, in a process of their own.

    Of several places each test has one, in turn. The configuration of pytest is NumPy's, and not
    that of this repository.
    """
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "tests.numpy_suite.plugin",
            "-c", os.devnull, "--rootdir", str(NUMPY), "-p", "no:cacheprovider", "-q",
            "--tb=short", *(str(NUMPY / module) for module in modules),
        ],
        env={**os.environ, "PMARRAY_PLACES": " ".join(places), "PMARRAY_EVERY": str(every)},
        cwd=Path(__file__).parents[2],
        capture_output=quiet,
        text=True,
        check=False,
    )  # fmt: skip


if __name__ == "__main__":
    codes = [run([place]).returncode for place in sys.argv[1:] or ["dram", "memmap", "zarr"]]
    sys.exit(max(codes))
