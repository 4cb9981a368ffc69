"""What needs a package of an extra says how to install it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pmarray._extras import _EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("dask", "pmarray.open('dram:', (3,)).to_dask()"),
        ("torch", "pmarray.open('dram:', (3,)).torch()"),
        ("ml_dtypes", "pmarray.open('dram:', (3,), 'bfloat16')"),
        ("icechunk", "pmarray.open('icechunk:memory://x', (3,))"),
        ("obstore", "pmarray.open('zarr:s3://x/y', (3,))"),
        ("torch", "swag.SWAG"),
        ("torch", "swag.models"),
        ("safetensors", "list(swag._draws.save(None, None, {}, False))"),
        ("lightning", "import swag.integrations.lightning"),
        ("transformers", "import swag.integrations.transformers"),
    ],
)
def test_a_package_that_is_missing_is_told_with_its_extra(package: str, use: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import pmarray, swag"
    if "_draws" in use:
        code += ", swag._draws"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {use}"], capture_output=True, text=True, check=False
    )
    assert package in done.stderr.splitlines()[-1]
    assert f"pip install 'pmarray[{_EXTRAS[package]}]'" in done.stderr.splitlines()[-1]


def test_each_extra_brings_its_packages() -> None:
    for package, extra in _EXTRAS.items():
        names = [one.split(">")[0].split("[")[0] for one in PROJECT["optional-dependencies"][extra]]
        assert package in names
