"""Importing pmarray brings nothing heavy along; ``python -m benchmarks imports`` times it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "dask", "html", "matplotlib", "ml_dtypes", "numcodecs", "pandas", "secrets", "subprocess",
    "tempfile", "torch", "zarr",
]  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Names of the modules in a fresh interpreter after it ran `statement`."""
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def after_pmarray() -> set[str]:
    return loaded_by("import pmarray")


@pytest.mark.parametrize("package", HEAVY)
def test_pmarray_does_not_import(package: str, after_pmarray: set[str]) -> None:
    assert package not in after_pmarray


def test_pmarray_does_not_import_swag(after_pmarray: set[str]) -> None:
    assert not {name for name in after_pmarray if name.split(".")[0] == "swag"}


def test_pmarray_adds_few_modules_to_those_of_numpy(after_pmarray: set[str]) -> None:
    added = after_pmarray - loaded_by("import numpy")
    assert "pmarray" in added
    # About 100 when this was written. A framework that slips in brings hundreds.
    assert len(added) < 200, sorted(added)


def test_the_help_of_the_command_line_does_not_import_torch() -> None:
    loaded = loaded_by("import swag.cli")
    assert "swag.cli" in loaded
    assert "torch" not in loaded
