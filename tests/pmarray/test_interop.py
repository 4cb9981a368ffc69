"""A `PMArray` in the hands of NumPy, PyTorch, dask, xarray, and of other processes."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

import pmarray
from pmarray.errors import ReadOnlyError


@pytest.fixture
def stored(scratch: Path) -> Any:
    with pmarray.open(scratch / "g", shape=(500, 3), dtype="float32", layout="col") as a:
        a[...] = np.arange(1500).reshape(500, 3)
        yield a


@pytest.fixture
def in_memory() -> Any:
    with pmarray.open("dram:", shape=(500, 3), dtype="float32", layout="col") as a:
        a[...] = np.arange(1500).reshape(500, 3)
        yield a


def test_numpy_gets_a_read_only_view_through_the_array_interface(stored: Any) -> None:
    whole = np.asarray(stored)
    assert not whole.flags.writeable
    assert whole.strides == stored._storage.layout.strides
    np.testing.assert_array_equal(whole, np.arange(1500).reshape(500, 3))
    np.testing.assert_array_equal(np.asarray(stored.view[::-2, 1:]), whole[::-2, 1:])


def test_the_view_outlives_the_array(scratch: Path) -> None:
    with pmarray.open(scratch / "g", shape=(500, 3)) as a:
        a[...] = 7
        whole = np.asarray(a)
    del a
    assert (whole == 7).all()


def test_writing_an_array_to_itself_through_its_view(stored: Any) -> None:
    expected = np.array(stored[::-1])
    stored[...] = np.asarray(stored)[::-1]
    np.testing.assert_array_equal(stored[...], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", [("x", "f4"), ("y", "i2")]])
def test_a_dtype_that_the_interface_cannot_spell_comes_by_array(dtype: Any) -> None:
    a = pmarray.open("dram:", shape=(4,), dtype=dtype)
    assert not hasattr(a, "__array_interface__")
    assert np.asarray(a).dtype == a.dtype


@pytest.mark.parametrize("shape", [(), (3,)])
def test_bytes_of_no_kind_come_through_the_array_interface(shape: tuple[int, ...]) -> None:
    a: Any = pmarray.open("dram:", shape=shape, dtype="V4")
    a[...] = expected = np.full(shape, b"abcd").astype("V4")
    assert a.__array_interface__["descr"] == expected.__array_interface__["descr"]
    np.testing.assert_array_equal(np.asarray(a), expected)


def test_in_a_transaction_the_file_is_no_view(stored: Any) -> None:
    with stored.transaction():
        stored[0] = -1
        assert not hasattr(stored, "__array_interface__")
        assert np.asarray(stored)[0, 0] == -1


def test_a_tensor_of_memory_shares_it(in_memory: Any) -> None:
    tensor = in_memory.torch()
    tensor[3] = -1
    in_memory[4] = -2
    assert (in_memory[3] == -1).all()
    assert (tensor[4] == -2).all()
    assert from_dlpack(in_memory).data_ptr() == tensor.data_ptr()
    assert np.from_dlpack(in_memory)[3, 0] == -1


def test_stores_through_a_tensor_made_in_a_transaction_are_rolled_back(in_memory: Any) -> None:
    before = in_memory[...]
    with pytest.raises(KeyError), in_memory.transaction():
        in_memory.torch()[...] = -1
        raise KeyError
    np.testing.assert_array_equal(in_memory[...], before)


def test_a_tensor_of_a_file_is_a_copy(stored: Any) -> None:
    for tensor in (stored.torch(), from_dlpack(stored)):
        tensor[...] = -1
    assert stored[1, 0] == 3


def test_a_tensor_of_a_file_is_shared_on_demand_with_a_warning(stored: Any) -> None:
    with pytest.warns(UserWarning, match="neither the file"):
        tensor = stored.torch(share=True)
    assert tensor[1, 0] == 3
    with pytest.raises(BufferError), stored.transaction():
        stored.torch(share=True)


def test_dlpack_marks_a_file_as_read_only(stored: Any) -> None:
    shared = np.from_dlpack(stored, copy=False)
    assert not shared.flags.writeable
    assert shared[1, 0] == 3
    with pytest.raises(BufferError, match=r"[Rr]ead-?only"):
        stored.__dlpack__(copy=False)
    assert stored.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", ">f4", "int64", "complex64", "bool"])
def test_dtypes_of_tensors(dtype: str) -> None:
    a = pmarray.open("dram:", shape=(4, 2), dtype=dtype, fill_value=1)
    tensor = a.torch()
    assert tensor.shape == (4, 2)
    assert (tensor.to(torch.complex64) == 1).all()


def test_a_pickle_is_the_url(stored: Any, python: Callable[..., Any], tmp_path: Path) -> None:
    stored[2] = -5  # in the cache: pickling flushes
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps([stored, stored.T]))
    assert path.stat().st_size < 2000
    process = python(
        """
        import pickle, sys
        a, t = pickle.load(open(sys.argv[1], "rb"))
        print(a.group.mode, a.shape, a[2, 0], t.shape, t[1, 2])
        """,
        path,
    )
    out, err = process.communicate(timeout=60)
    assert out.split("\n")[0] == "r (500, 3) -5.0 (3, 500) -5.0", err


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_a_pickled_group_is_its_url(scheme: str, tmp_path: Path) -> None:
    with pmarray.open_group(f"{scheme}:{tmp_path}/g") as group:
        layer = group.create_group("layer")
        layer["weight"] = [[1.0, 2.0]]
        there, part = pickle.loads(pickle.dumps((group, layer)))
        assert (there.url, there.mode) == (group.url, "r")
        assert there["layer.weight"][0, 1] == part["weight"][0, 1] == 2
        with pytest.raises(ReadOnlyError, match="comes out of a pickle"):
            there["layer.weight"][0] = 3
        there.close()
        part.group.close()


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_pickles_of_other_items_are_others(scheme: str, tmp_path: Path) -> None:
    """Caches on disk go by them, such as joblib's."""
    url = f"{scheme}:{tmp_path}/g#x"
    with pmarray.open(url, (4,), fill_value=1) as a:
        before = pickle.dumps(a), pickle.dumps(a.group)
        a[0] = 2
        after = pickle.dumps(a), pickle.dumps(a.group)
    assert not set(before) & set(after)
    seen = set()
    for value in range(3):
        with pmarray.open(url, mode="r+") as a:
            a[0] = value
        with pmarray.open(url, mode="r") as a:
            seen.add(pickle.dumps(a))
    assert len(seen) == 3


def test_an_archive_is_pickled_when_it_is_there(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/x.zip"
    with (
        pmarray.open(url, (3,), fill_value=1) as a,
        pytest.raises(pickle.PicklingError, match="pickle it after that"),
    ):
        pickle.dumps(a)
    with pmarray.open(url, mode="r") as a, pickle.loads(pickle.dumps(a)) as b:
        assert (b[:] == 1).all()


def test_what_cannot_be_pickled_says_why(in_memory: Any, stored: Any) -> None:
    with pytest.raises(pickle.PicklingError, match="memory of this process"):
        pickle.dumps(in_memory)
    with stored.transaction(), pytest.raises(pickle.PicklingError, match="transaction"):
        pickle.dumps(stored)


def test_copies_of_a_handle(stored: Any) -> None:
    assert copy.copy(stored) is stored
    with pytest.raises(TypeError, match=r"pmarray\.copy"):
        copy.deepcopy(stored)


def test_info_counts_cached_and_dirty_bytes(scratch: Path) -> None:
    with pmarray.open(scratch / "g", shape=(20_000, 4), dtype="float32", layout="col") as a:
        assert a.info.cached_nbytes == 0
        a[:10] = 1
        info = a.info
        assert info.dirty_nbytes > 0
        assert info.cached_nbytes >= info.dirty_nbytes
        assert (info.nbytes, info.stored_nbytes) == (320_000, 4 * 81_920)
        a.flush()
        assert a.info.dirty_nbytes == 0
        assert "stored  320 KiB" in repr(a.info)


def test_info_counts_what_files_occupy(scratch: Path) -> None:
    """Not what a sparse file, or one whose chunks are compressed, would take otherwise."""
    with pmarray.open(scratch / "sparse", shape=(1_000_000, 2), layout="col") as a:
        a[:100, 0] = 1
        a.flush()
        file = Path(a._storage.region.path)  # type: ignore[attr-defined]
        assert a.info.stored_nbytes <= file.stat().st_blocks * 512
    url = f"zarr:{scratch}/compressed"
    with pmarray.open(url, shape=(1_000_000, 2), chunks=100_000, codecs=["zstd"]) as a:
        a[...] = 1
        a.flush()
        assert 0 < a.info.stored_nbytes < a.nbytes / 100


@pytest.mark.parametrize("name", ["a#b", "a?b=c", "a%23b", "100%", "a b"])
@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_a_pickle_opens_what_was_pickled(
    name: str, scheme: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "here").mkdir()
    (scratch / "there").mkdir()
    monkeypatch.chdir(scratch / "here")
    escaped = name.replace("%23", "%2523").replace("#", "%23").replace("?", "%3F")
    url = Path(name) if scheme == "memmap" else f"{scheme}:./{escaped}"
    with pmarray.open(url, (3,), fill_value=7) as a:
        monkeypatch.chdir(scratch / "there")
        with pmarray.open("memmap:a", (3,)), pickle.loads(pickle.dumps(a)) as b:
            assert b.group.url == a.group.url
            assert b[...].tolist() == [7, 7, 7]
        with pmarray.open(a.group.url, mode="r") as c:
            assert c[0] == 7
    assert os.listdir(scratch / "here") == [name]


@pytest.mark.parametrize("url", ["dram:", "memmap"])
def test_nothing_is_handed_over_as_well(url: str, tmp_path: Path) -> None:
    place = url if url == "dram:" else f"{url}:{tmp_path}/g"
    with warnings.catch_warnings(action="error"), pmarray.open(place, (0, 3), "f4") as a:
        a.__dlpack__()
        assert np.from_dlpack(a).shape == (0, 3)
        assert a.torch().shape == (0, 3)


def test_others_get_its_columns_and_its_table(stored: Any) -> None:
    pandas, pyplot = pytest.importorskip("pandas"), pytest.importorskip("matplotlib.pyplot")
    values = stored[...]
    figure, axes = pyplot.subplots()
    assert len(axes.boxplot(stored)["medians"]) == 3
    assert np.array_equal(axes.hist(stored, 5)[0], axes.hist(values, 5)[0])
    pyplot.close(figure)
    table, series = pandas.DataFrame(values), pandas.Series(values[:, 0])
    line = pmarray.from_array(values[:, 0], "dram:")
    for found, expected in (
        (stored * table, values * table), (stored > table, values > table),
        (line - series, values[:, 0] - series), (series - line, series - values[:, 0]),
    ):  # fmt: skip
        assert found.equals(expected)
    line += series
    assert np.array_equal(line[...], 2 * values[:, 0])
    np.add(stored, table, out=stored)
    assert np.array_equal(stored[...], 2 * values)


@pytest.mark.parametrize("url", ["memmap:{}/m", "zarr:{}/z#a", "dram:"])
def test_who_copies_what_it_may_share_gets_memory_of_its_own(url: str, tmp_path: Path) -> None:
    """As scikit-learn asks before it centres in place."""
    with pmarray.open(url.format(tmp_path), (4, 3), layout="row") as a:
        a[...] = 1
        for _ in range(2):
            found = np.asarray(a)
            assert not found.flags.writeable
            assert np.may_share_memory(found, a)
            assert np.may_share_memory(a, found)
            assert not np.may_share_memory(np.ones((4, 3)), a)
            assert not np.may_share_memory(found.copy(), a)
            a[0] = 2


def test_the_array_api_names_numpy(stored: Any) -> None:
    # NumPy 2.5 refuses the version that it says it has.
    xp = stored.__array_namespace__(api_version="2023.12")
    assert xp is np
    with pytest.raises(ValueError, match="not supported"):
        stored.__array_namespace__(api_version="1999.1")
    assert stored.device == "cpu"
    assert stored.to_device("cpu") is stored
    with pytest.raises(ValueError, match=r"[Dd]evice"):
        stored.to_device("cuda")
    np.testing.assert_array_equal(stored.mT[...], stored[...].mT)
    with pytest.raises(ValueError, match="ndim < 2"):
        _ = pmarray.open("dram:", (3,)).mT


def test_a_pattern_takes_an_array_where_it_takes_numpys(stored: Any) -> None:
    def matched(value: Any) -> Any:
        match value:
            case [first, *rest]:
                return first, len(rest)
            case _:
                return None

    wanted, found = matched(stored[...]), matched(stored)
    assert (wanted is None) == (found is None)
    if wanted is not None:
        np.testing.assert_array_equal(found[0], wanted[0])
        assert found[1] == wanted[1]
    assert isinstance(stored, Sequence) == isinstance(stored[...], Sequence)


def test_read_into_what_is_no_array(stored: Any) -> None:
    with pytest.raises(TypeError, match="out= is a list"):
        stored.read(..., out=[])


@pytest.mark.parametrize("into", ["bfloat16", "float32"])
def test_tensors_of_bfloat16_come_in(into: str) -> None:
    """PyTorch gives NumPy none of them, and `torch()` gives them."""
    t = torch.arange(-6, 6, dtype=torch.bfloat16).reshape(4, 3) / 7
    with pmarray.open("dram:", (4, 3), into, layout="col") as a:
        for given in (t, t.T.contiguous().T):
            a[...] = 0
            a[...] = given
            assert torch.equal(a.torch().float(), t.float())
        a.append(t[:, 1])
        a[0] = a[1, 0]
        assert torch.equal(a.torch()[1:, 3].float(), t[1:, 1].float())
        if into == "bfloat16":
            assert (a + torch.cat([t, t[:, :1]], dim=1)).dtype == a.dtype
    with pmarray.from_array(t, "dram:") as b:
        assert b.dtype.name == "bfloat16"
        assert torch.equal(b.torch(), t)
