"""Sums along any axis are as near to the exact one as those that NumPy takes in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._numpy.summing import add_up

DTYPES = ["f2", "f4", "f8", "c8", "i4", "u1", "?"]


@st.composite
def blocks(draw: st.DrawFn) -> Any:
    """Items of any strides."""
    shape = tuple(
        draw(st.lists(st.sampled_from([1, 2, 3, 31, 32, 33, 200]), min_size=1, max_size=3))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = np.dtype(draw(st.sampled_from(DTYPES)))
    items = (10 * rng.uniform(size=shape)).astype(kind)
    items = np.asarray(items, order=draw(st.sampled_from(["C", "F"])))
    items = items.transpose(draw(st.permutations(range(items.ndim))))
    steps = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=items.ndim, max_size=items.ndim))
    return items[tuple(slice(None, None, step) for step in steps)]


@given(blocks(), st.data())
def test_any_axes_strides_masks_and_dtypes(items: Any, data: st.DataObject) -> None:
    axes = tuple(data.draw(st.sets(st.integers(0, items.ndim - 1), min_size=1)))
    masked = data.draw(st.booleans())
    where = items.real > items.real.mean(dtype="f8") if masked else True
    dtype = data.draw(st.sampled_from([None, "f4", "c16"] if items.dtype.kind != "c" else [None]))
    if items.dtype == "f2":
        items = items / np.float16(512)  # or sums overflow
    found = add_up(items, axes, dtype, where)
    plain = np.add.reduce(items, axis=axes, dtype=dtype, where=where, keepdims=True)
    assert (found.dtype, found.shape) == (plain.dtype, plain.shape)
    wide = np.result_type(items.dtype, plain.dtype, "f8")
    exact = np.add.reduce(items, axis=axes, dtype=wide, where=where, keepdims=True)
    if found.dtype.kind in "fc":
        eps = max(np.finfo(found.dtype).eps, np.finfo("f8").eps)
        with np.errstate(over="ignore"):
            assert (abs(found - exact) <= 40 * eps * abs(exact)).all()
    else:
        assert (found == plain).all()


@given(st.integers(0, 200), st.integers(1, 3))
def test_what_cannot_be_told_from_numbers(n: int, columns: int) -> None:
    """-0.0 stays, and NaN and infinity come through."""
    rows = np.full((n, columns), -0.0, "f4")
    np.testing.assert_array_equal(
        np.signbit(add_up(rows, (0,))), np.signbit(np.add.reduce(rows, axis=0, keepdims=True))
    )
    for value in (np.inf, np.nan):
        rows[n // 2 :, 0] = value
        np.testing.assert_array_equal(
            add_up(rows, (0,)), np.add.reduce(rows, axis=0, keepdims=True)
        )


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("work_memory", ["1 MiB", "64 MiB"])
def test_millions_of_rows(layout: Any, work_memory: str) -> None:
    """Line by line, their standard deviation is 40 times too large."""
    n = 2_000_000
    rows = np.full((n, 2), 0.1, "f4") + 1e-4 * np.random.default_rng(0).normal(size=(n, 2)).astype(
        "f4"
    )
    exact = rows.astype("f8")
    with (
        pmarray.open("dram:", rows.shape, "f4", layout=layout) as a,
        pmarray.config.set(work_memory=work_memory),
    ):
        a[...] = rows
        ones = np.ones(n, "f4")
        for found in (
            a.mean(0), np.sum(a, axis=0) / n, np.average(a, axis=0, weights=ones), np.nanmean(a, 0),
            np.nansum(a, axis=0) / n,
        ):  # fmt: skip
            np.testing.assert_allclose(found, exact.mean(0), rtol=2e-6)
        for found in (a.std(0), np.nanstd(a, axis=0), np.sqrt(a.var(0))):
            np.testing.assert_allclose(found, exact.std(0), rtol=2e-6)


def test_more_items_than_float32_can_count() -> None:
    n = (1 << 24) + 4096
    with (
        pmarray.open("dram:", (n, 1), "f2") as a,
        pmarray.config.set(work_memory="1 GiB"),
    ):
        a[: n // 2] = 1
        assert a.var(dtype="f4") == pytest.approx(0.25, rel=1e-6)
