"""`PMArray` as a source and as a target of dask, and under xarray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray

da = pytest.importorskip("dask.array")
xarray = pytest.importorskip("xarray")


@pytest.mark.parametrize("layout", ["row", "col"])
def test_dask_reads_what_is_there(tmp_path: Path, layout: Any) -> None:
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


def _age(path: Path) -> None:
    """Make all files an hour old: times of new ones tell nothing."""
    for file in path.rglob("*"):
        os.utime(file, ns=(0, os.stat(file).st_mtime_ns - 3600 * 10**9))


def test_the_name_is_the_same_while_nothing_is_written(tmp_path: Path) -> None:
    pmarray.open(tmp_path / "g", (10, 4)).close()
    _age(tmp_path)
    with pmarray.open(tmp_path / "g", mode="r") as one, pmarray.open(tmp_path / "g", mode="r") as x:
        assert one.to_dask().name == one.to_dask().name == x.to_dask().name
        assert one.to_dask(chunks=3).name != one.to_dask().name
        assert one.view[1:].to_dask().name != one.view[1:].to_dask().name


@pytest.mark.parametrize("how", ["flush", "commit", "process", "npy"])
def test_the_name_changes_with_what_others_write(tmp_path: Path, how: str) -> None:
    path = tmp_path / "g"
    if how == "npy":
        path = tmp_path / "x.npy"
        np.save(path, np.zeros((10, 4)))
    else:
        pmarray.open(path, (10, 4)).close()
    _age(tmp_path)
    with pmarray.open(path, mode="r") as reader:
        before = {reader.to_dask().name, reader.to_dask().name}
        assert len(before) == 1
        if how == "process":
            script = f"import pmarray; a = pmarray.open({str(path)!r}); a[2] = 1; a.close()"
            subprocess.run([sys.executable, "-c", script], check=True)
        else:
            with pmarray.open(path, mode="r+") as writer:
                if how == "commit":
                    with writer.transaction():
                        writer[2] = 1
                else:
                    writer[2] = 1
                    writer.flush()
                assert writer.to_dask().name not in before
        assert reader.to_dask().name not in before
    _age(tmp_path)
    with pmarray.open(path, mode="r") as reader:
        assert reader.to_dask().name not in before
        assert reader.to_dask().sum().compute() == 4


def test_a_file_written_a_moment_ago_has_no_lasting_name(tmp_path: Path) -> None:
    pmarray.open(tmp_path / "g", (10, 4)).close()
    with pmarray.open(tmp_path / "g", mode="r") as reader:
        assert reader.to_dask().name != reader.to_dask().name
