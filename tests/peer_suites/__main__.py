"""Run the suites of other projects over arrays of ours: ``python -m tests.peer_suites``.

Their tests come with their sources, which are looked for where variables of the environment say:

``PMARRAY_ZARR_SOURCE``
    zarr-python's source as it is released (``pip download --no-deps --no-binary zarr zarr``),
    unpacked.
``PMARRAY_ARRAY_API_TESTS``
    https://github.com/data-apis/array-api-tests, with its submodule. The suite needs the packages
    ndindex and pytest-json-report.

What is not there is skipped, and said so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["run_array_api", "run_zarr"]

_REPOSITORY = Path(__file__).parents[2]


def _pytest(*args: str | Path, modules: Sequence[Path] = (), **environment: str) -> int:
    """Run pytest in a process of its own, whose modules come from there, too."""
    found = [*map(str, (_REPOSITORY, *modules)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, args)],
        cwd=_REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found), **environment},
        check=False,
    ).returncode


def _source(variable: str, file: str) -> Path | None:
    """Where a source is; says why it is skipped if it is not there."""
    place = os.environ.get(variable)
    if place is None:
        print(f"skipped: {variable} does not say where the source is (tests/peer_suites)")
    elif not (Path(place) / file).exists():
        print(f"skipped: {variable}={place} has no {file}")
    else:
        return Path(place)
    return None


def run_zarr() -> int:
    """Run zarr-python's tests of indexing."""
    source = _source("PMARRAY_ZARR_SOURCE", "tests/test_indexing.py")
    if source is None:
        return 0
    with tempfile.TemporaryDirectory(prefix="pmarray-peers-") as directory:
        # A copy, since the packages of either project are called "tests".
        test = shutil.copy(source / "tests" / "test_indexing.py", directory)
        return _pytest(
            "-c", os.devnull, "--rootdir", directory, "--noconftest", "--tb=short", "-W", "ignore",
            "-p", "tests.peer_suites.zarr_plugin", "--basetemp", f"{directory}/tmp", test,
        )  # fmt: skip


def run_array_api() -> int:
    """Run the array API's suite over NumPy with arrays of ours."""
    source = _source("PMARRAY_ARRAY_API_TESTS", "array_api_tests/stubs.py")
    if source is None:
        return 0
    missing = [name for name in ("ndindex", "pytest_jsonreport") if find_spec(name) is None]
    if missing:
        print(f"skipped: the array API's suite needs the packages {', '.join(missing)}")
        return 0
    return _pytest(
        "-c", source / "pytest.ini", "--rootdir", source, "--tb=short", "-W", "ignore",
        "-p", "tests.peer_suites.array_api_plugin", "--disable-deadline",
        "--max-examples", os.environ.get("EXAMPLES", "20"), source / "array_api_tests",
        modules=[source], ARRAY_API_TESTS_MODULE="tests.peer_suites.namespace",
    )  # fmt: skip


if __name__ == "__main__":
    suites = {"zarr": run_zarr, "array-api": run_array_api}
    sys.exit(max(suites[name]() for name in sys.argv[1:] or suites))
