"""`pmarray.copy` and `pmarray.copy_group`: the items, the traffic, the memory, the failures."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.testing.strategies import array_dtypes, array_shapes, budgets, filled, layouts

SCHEMES = st.sampled_from(["dram", "memmap"])


def make(url: str, values: Any, layout: str = "row", **options: Any) -> None:
    with pmarray.open(url, values.shape, values.dtype, layout=layout, mode="w", **options) as a:
        a[...] = values


def contents(url: Any) -> Any:
    with pmarray.open(url, mode="r") as a:
        return a[...]


# -- the items ----------------------------------------------------------------------------------


@given(
    shape=array_shapes(20_000),
    dtype=array_dtypes(),
    read=layouts(),
    written=st.one_of(st.none(), layouts()),
    schemes=st.tuples(SCHEMES, SCHEMES),
    cache=budgets(),
    seed=st.integers(0, 99),
)
def test_a_copy_holds_the_same_items(
    shape: Any, dtype: Any, read: str, written: Any, schemes: Any, cache: Any, seed: int
) -> None:
    values = filled(shape, dtype, seed)
    places = {"dram": str(uuid.uuid4()), "memmap": tempfile.mkdtemp()}
    source, target = (f"{scheme}:{places[scheme]}/{i}#x" for i, scheme in enumerate(schemes))
    steps: list[tuple[int, int]] = []
    try:
        make(source, values, read)
        pmarray.copy(
            source, target, layout=written, cache=cache, progress=lambda *step: steps.append(step)
        )
        with pmarray.open(target, mode="r") as copied:
            assert (copied.shape, copied.dtype, copied.layout) == (shape, dtype, written or read)
            np.testing.assert_array_equal(copied[...], values)
    finally:
        shutil.rmtree(places["memmap"])
    assert steps[0] == (0, values.nbytes)
    assert steps[-1] == (values.nbytes, values.nbytes)
    assert steps == sorted(steps)
