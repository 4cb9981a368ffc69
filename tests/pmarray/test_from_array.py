"""`pmarray.from_array`: from NumPy, memory maps, dask, and what else takes slices."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid
import warnings
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import ArrayExistsError, LayoutError, URLError
from pmarray.testing.strategies import array_dtypes, array_shapes, budgets, filled, layouts


@given(
    shape=array_shapes(8000),
    dtype=array_dtypes(),
    given_order=layouts(),
    layout=st.one_of(st.none(), layouts()),
    kind=st.sampled_from(["numpy", "strided", "dask", "pmarray"]),
    cache=budgets(),
    memory=st.sampled_from(["4 KiB", "100 KiB", "64 MiB"]),
    seed=st.integers(0, 99),
)
def test_any_array_arrives(
    shape: Any, dtype: Any, given_order: Any, layout: Any, kind: str, cache: Any, memory: Any,
    seed: int, tmp_path_factory: Any,
) -> None:  # fmt: skip
    values = filled(shape, dtype, seed)
    x: Any = np.array(values, order="F" if given_order == "col" else "C")
    expected = layout or (given_order if kind in ("numpy", "pmarray") else None)
    if kind == "strided":
        x = np.repeat(values, 2, axis=0)[::-2] if shape else values
        values = values[::-1] if shape else values
    elif kind == "dask":
        chunked: Any = dask.array.from_array
        x = chunked(x, chunks=tuple(max(1, n // 3) for n in shape))
    elif kind == "pmarray":
        x = pmarray.from_array(x, "dram:", layout=given_order)
    url = tmp_path_factory.mktemp("from") if seed % 2 else f"dram:{uuid.uuid4()}"
    with (
        pmarray.config.set(work_memory=memory),
        pmarray.from_array(x, url, layout=layout, cache=cache) as a,
    ):
        assert (a.shape, a.dtype) == (shape, dtype)
        if expected and not np.asarray(values).flags.f_contiguous:
            assert a.layout == expected
        np.testing.assert_array_equal(a[...], values)


@pytest.mark.parametrize("what", ["list", "scalar", "torch", "h5py", "zarr", "matrix"])
def test_arrays_of_other_libraries(what: str, tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(3, 4)
    x: Any = values.tolist()
    if what == "scalar":
        x = values = np.array(3.5)
        x = 3.5
    elif what == "torch":
        x = torch.from_numpy(values)
    elif what == "h5py":
        h5py = pytest.importorskip("h5py", reason="h5py comes with the extra test")
        x = h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=values)
    elif what == "zarr":
        x = zarr.array(values)
    elif what == "matrix":
        with warnings.catch_warnings(action="ignore"):
            x = np.asmatrix(values)
    with pmarray.from_array(x, "dram:") as a:
        np.testing.assert_array_equal(a[...], values)


def test_a_fortran_ordered_array_stays_so(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(12).reshape(3, 4))
    with pmarray.from_array(x, tmp_path / "a") as a:
        assert a.layout == "col"
        with pmarray.from_array(a, f"{tmp_path}/a#b") as b:  # within the group that is open
            assert b.group is a.group
            assert b.layout == "col"
    with pmarray.from_array(x.T[::2], tmp_path / "c") as c:
        assert c.layout == "row"


def test_progress_of_dask(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    x = dask.array.ones((100, 10), chunks=(30, 10))
    with pmarray.from_array(x, tmp_path, progress=lambda *step: steps.append(step)) as a:
        assert a[...].all()
    assert (steps[0], steps[-1], len(steps)) == ((0, 8000), (8000, 8000), 5)


def test_a_dask_graph_that_fails_stores_nothing(tmp_path: Path) -> None:
    def fail(block: Any, block_info: Any = None) -> Any:
        if block_info and block_info[0]["chunk-location"] == (2,):
            raise ZeroDivisionError
        return block

    x = dask.array.ones(1000, chunks=100).map_blocks(fail, dtype="f8", meta=np.empty(0))
    with pytest.raises(ZeroDivisionError):
        pmarray.from_array(x, tmp_path)
    with pmarray.open_group(tmp_path, mode="r+") as group:  # and the lock is free
        assert not len(group)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"pmarray\.copy"):
        pmarray.from_array("x.npy", tmp_path)
    with pytest.raises(TypeError, match="mask"):
        pmarray.from_array(np.ma.masked_equal([1, 2], 2), tmp_path)
    with pytest.raises(LayoutError, match="Python objects"):
        pmarray.from_array([object()], tmp_path)
    x = dask.array.ones(5)
    with pytest.raises(LayoutError, match="compute_chunk_sizes"):
        pmarray.from_array(x[x > 0], tmp_path)
    assert not list(tmp_path.iterdir())
    pmarray.from_array([1, 2], tmp_path).close()
    with pytest.raises(ArrayExistsError):
        pmarray.from_array([3], tmp_path)
    with pmarray.from_array([3], tmp_path, mode="w") as a:
        assert a[:] == [3]
        with pytest.raises(URLError, match="itself"):
            pmarray.from_array(a, tmp_path, mode="w")


@pytest.mark.parametrize("kind", ["memmap", "turned memmap", "dask", "pmarray"])
def test_the_source_is_never_in_memory_as_a_whole(kind: str, scratch: Any) -> None:
    """An array four times cache and work memory together."""
    script = f"""
        import resource, threading, numpy as np, dask.array
        import pmarray, pmarray._exchange.dask, pmarray._streams.stream
        threading.stack_size(512 << 10)  # of which all counts, and little is used
        pmarray.config.work_memory = "4 MiB"
        x = np.lib.format.open_memmap("{scratch}/x.npy", "w+", "float32", (1 << 18, 32))
        for i in range(32):
            x[i << 13 : (i + 1) << 13] = np.arange(32)
        x.flush()
        x = np.load("{scratch}/x.npy", mmap_mode="r")
        if "{kind}" == "dask":
            x = dask.array.from_array(x, chunks=(1 << 13, 32), name="x") + np.float32(0)
        elif "{kind}" == "pmarray":
            x = pmarray.open("{scratch}/x.npy", mode="r", cache="1 MiB")
        dask.array.ones((2, 2), chunks=1).compute(scheduler="threads")
        pmarray.from_array(np.ones((9, 9)), "{scratch}/small", layout="col").close()
        status = lambda: int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, ((status() + 8 * 1024 + 8 * 1024) << 10,) * 2)
        layout = "col" if "turned" in "{kind}" else None
        with pmarray.from_array(x, "{scratch}/a", cache="4 MiB", layout=layout) as a:
            assert a.layout == (layout or "row")
            assert (a[::24_999] == list(range(32))).all()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
