"""A sample of NumPy's tests of its functions, with stored arrays; ``make numpy-suite`` has all."""

from __future__ import annotations

import re

import pytest

from tests.numpy_suite.__main__ import MODULES, NUMPY, run

SAMPLED = [module for module in MODULES if module.startswith("lib") or "numeric" in module]
"""The others are slow to collect, or mostly about methods and the C API."""

pytestmark = pytest.mark.skipif(
    not (NUMPY / MODULES[0]).exists(), reason="this NumPy was installed without its tests"
)


def test_a_sample_of_numpys_own_tests() -> None:
    done = run(["dram", "memmap", "zarr"], SAMPLED, every=29, quiet=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    stored = re.findall(r"(\d+) arguments were stored in (\w+):", done.stdout)
    assert {place: int(count) > 50 for count, place in stored} == dict.fromkeys(
        ["dram", "memmap", "zarr"], True
    )
