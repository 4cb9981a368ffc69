"""Importing pmarray brings nothing heavy along; ``python -m benchmarks imports`` times it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "dask", "decimal", "html", "matplotlib", "ml_dtypes", "numcodecs", "pandas", "secrets",
    "subprocess", "tempfile", "torch", "urllib.parse", "zarr",
]  # fmt: skip
LATER = [
    "pmarray._copying.copy", "pmarray._exchange.info", "pmarray._numpy.functions.registry",
    "pmarray._storage.chunked", "pmarray._upkeep.verify", "pmarray.linalg._products",
]  # fmt: skip
"""What only some programs use: it is loaded when it is asked for."""


def loaded_by(statement: str) -> set[str]:
    """Names of the modules in a fresh interpreter after it ran `statement`."""
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def after_pmarray() -> set[str]:
    return loaded_by("import pmarray")


@pytest.mark.parametrize("package", HEAVY + LATER)
def test_pmarray_does_not_import(package: str, after_pmarray: set[str]) -> None:
    assert package not in after_pmarray


def test_pmarray_does_not_import_swag(after_pmarray: set[str]) -> None:
    assert not {name for name in after_pmarray if name.split(".")[0] == "swag"}


def test_pmarray_adds_few_modules_to_those_of_numpy(after_pmarray: set[str]) -> None:
    added = after_pmarray - loaded_by("import numpy")
    assert "pmarray" in added
    # 150 when this was written, each for half a millisecond or less. A framework that slips in
    # brings hundreds.
    assert len(added) < 170, sorted(added)


def test_pmarray_generates_almost_no_classes() -> None:
    """To make a dataclass takes as long as to load two modules: records are named tuples."""
    made = (
        "import pmarray, sys;"
        "print({one.__qualname__ for name, module in list(sys.modules.items())"
        " if name.startswith('pmarray') for one in vars(module).values()"
        " if isinstance(one, type) and hasattr(one, '__dataclass_fields__')})"
    )
    done = subprocess.run([sys.executable, "-c", made], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["{'Layout'}"]


@pytest.mark.parametrize("name", ["linalg.norm", "copy", "from_array", "verify"])
def test_what_is_loaded_later_is_there(name: str) -> None:
    package, _, function = f"pmarray.{name}".rpartition(".")
    listed = f"assert {function!r} in dir({package})"
    assert "pmarray" in loaded_by(f"import pmarray; {listed}; assert callable(pmarray.{name})")


def test_numpy_loads_its_functions_by_the_first_call() -> None:
    calls = "a = pmarray.open('dram:', (3, 2), fill_value=2); assert numpy.linalg.norm(a) > 4.8"
    loaded = loaded_by(f"import numpy, pmarray; {calls}")
    assert {"pmarray._numpy.functions.products", "pmarray.linalg._norms"} <= loaded


def test_the_help_of_the_command_line_does_not_import_torch() -> None:
    loaded = loaded_by("import swag.cli")
    assert "swag.cli" in loaded
    assert "torch" not in loaded
