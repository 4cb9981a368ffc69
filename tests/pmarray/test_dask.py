"""`PMArray` as a source and as a target of dask, and under xarray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pmarray

da = pytest.importorskip("dask.array")
xarray = pytest.importorskip("xarray")


@pytest.mark.parametrize("layout", ["row", "col"])
def test_dask_reads_what_is_there(tmp_path: Path, layout: str) -> None:
    model = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
    with pmarray.open(tmp_path / "g", model.shape, model.dtype, layout=layout) as array:
        array[...] = model
        lazy = array.to_dask(chunks=(100, 7))
        assert lazy.dtype == model.dtype
        np.testing.assert_array_equal(lazy.compute(), model)
        np.testing.assert_allclose((lazy.T @ lazy).compute(), model.T @ model, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(array.to_dask()[::3, 5].compute(), model[::3, 5])


def test_dask_sees_what_was_written_in_between(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (10, 4), layout="col") as array:
        assert array.to_dask().sum().compute() == 0
        array[...] = 1
        assert array.to_dask().sum().compute() == 40


def test_dask_stores_into_it(tmp_path: Path) -> None:
    lazy = da.arange(600, chunks=37).reshape(20, 30)
    with pmarray.open(tmp_path / "g", lazy.shape, lazy.dtype, layout="col") as array:
        da.store(lazy, array, lock=False)
        np.testing.assert_array_equal(array[...], lazy.compute())


def test_xarray_wraps_it_through_dask(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (6, 4), fill_value=2) as array:
        labelled = xarray.DataArray(array.to_dask(), dims=("weight", "step"))
        assert labelled.sum("step").values.tolist() == [8.0] * 6
