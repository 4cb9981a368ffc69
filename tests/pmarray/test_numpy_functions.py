"""A sample of NumPy's tests of its functions, with stored arrays; ``make numpy-suite`` has all."""

from __future__ import annotations

import re

import pytest

from tests.numpy_suite.__main__ import MODULES, NUMPY, run

SAMPLED = [module for module in MODULES if "multiarray" not in module and "ufunc" not in module]
"""In the other two most tests are of methods and of the C API."""

pytestmark = pytest.mark.skipif(
    not (NUMPY / MODULES[0]).exists(), reason="this NumPy was installed without its tests"
)


@pytest.mark.parametrize("place", ["dram", "memmap", "zarr"])
def test_a_sample_of_numpys_own_tests(place: str) -> None:
    every = {"dram": 211, "memmap": 401, "zarr": 1201}[place]  # primes, against rows of parameters
    done = run(place, SAMPLED, every=every, quiet=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    stored = re.search(r"(\d+) arguments were stored", done.stdout)
    assert stored is not None
    assert int(stored[1]) > 50
