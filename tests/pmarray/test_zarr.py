"""``zarr:`` beside the readers and writers of other libraries."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray.errors import (
    BudgetError,
    DamagedError,
    ForeignDataError,
    GroupLockedError,
    LayoutError,
    SnapshotExpiredError,
    TransactionError,
    URLError,
)
from pmarray.testing import State, Workload, array_shapes, basic_indices, filled, layouts

dtypes = st.sampled_from(
    [np.dtype(one) for one in ("bool", "i1", ">u2", "i8", "f2", "f4", ">f8", "c16", "M8[s]")]
)
codecs = st.sampled_from(
    [
        None,
        ["zstd"],
        ["crc32c"],
        ["gzip", "crc32c"],
        [{"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "shuffle"}}],
    ]
)


@contextmanager
def place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pmarray-zarr-") as directory:
        yield f"{directory}/group"


@st.composite
def chunkings(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Chunks of any shape, and shards of some of them or none."""
    chunks = tuple(draw(st.integers(max(1, n // 4), max(1, n + 2))) for n in shape)
    if not shape or draw(st.booleans()):
        return draw(st.sampled_from(["auto", 1, 3, chunks])), None
    return chunks, tuple(n * draw(st.integers(1, 2)) for n in chunks)


@given(st.data(), array_shapes(600), dtypes, layouts(), codecs)
def test_any_chunks_shards_and_codecs_read_and_write_like_numpy(
    data: st.DataObject,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: Any,
    chain: Any,
) -> None:
    chunks, shards = data.draw(chunkings(shape))
    model = filled(shape, dtype, 1)
    with place() as path:
        cache: Any = data.draw(st.sampled_from([0, "1 MiB", "auto"]))
        with pmarray.open_group(f"zarr:{path}", cache=cache) as group:
            array = group.create(
                "x", shape, dtype, layout=layout, chunks=chunks, shards=shards, codecs=chain
            )
            array[...] = model
            for seed in range(data.draw(st.integers(0, 4), "writes")):
                index = data.draw(basic_indices(shape))
                values = filled(np.shape(model[index]), dtype, seed)
                model[index] = array[index] = values
                index = data.draw(basic_indices(shape))
                np.testing.assert_array_equal(array[index], model[index])
        read_by_zarr = zarr.open_array(f"{path}/x", mode="r")
        np.testing.assert_array_equal(read_by_zarr[...], model)
        for mode in ("r", "r+"):
            with pmarray.open(f"zarr:{path}#x", mode=mode) as array:
                assert (array.shape, array.dtype, array.layout) == (shape, dtype, layout)
                np.testing.assert_array_equal(array[...], model)


def test_tensorstore_reads_and_writes_the_same(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    x = np.random.default_rng(0).normal(size=(1000, 7)).astype("f4")
    for name, options in {
        "plain": {},
        "zstd": {"codecs": ["zstd", "crc32c"]},
        "blosc": {"codecs": ["blosc"]},
        "shards": {"chunks": (100, 2), "shards": (500, 4), "codecs": ["zstd"]},
    }.items():
        for layout in ("row", "col"):
            path = tmp_path / f"{name}-{layout}"
            with pmarray.open(f"zarr:{path}", x.shape, "f4", layout=layout, **options) as a:  # type: ignore[arg-type]
                a[...] = x
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/array"}}
            other = tensorstore.open(spec).result()
            np.testing.assert_array_equal(other.read().result(), x)
            other[3:5].write(x[5:7]).result()
            with pmarray.open(f"zarr:{path}", mode="r") as a:
                np.testing.assert_array_equal(a[3:5], x[5:7])


@pytest.mark.parametrize("compressor", [None, "blosc", "gzip"])
def test_arrays_of_tensorstore_open(tmp_path: Path, compressor: str | None) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    x = np.arange(700, dtype=">f8").reshape(100, 7)
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    chain = [little] if compressor is None else [little, {"name": compressor}]
    other = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / "x")},
            "metadata": {
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [30, 4]}},
                "codecs": chain,
                "fill_value": -1.5,
                "data_type": "float64",
            },
        },
        create=True,
        shape=(100, 9),
    ).result()
    other[:, :7].write(x).result()
    with pmarray.open(f"zarr:{tmp_path}/x", mode="r+") as a:  # the array alone, in no group
        assert (a.shape, a.layout, a.fill_value) == ((100, 9), "row", -1.5)
        np.testing.assert_array_equal(a[:, :7], x)
        np.testing.assert_array_equal(a[:, 8], np.full(100, -1.5))
        a[50] = 3
    np.testing.assert_array_equal(other[50].read().result(), np.full(9, 3.0))


@given(
    st.data(),
    array_shapes(300),
    st.sampled_from([np.dtype(n) for n in ("i4", "f8", "c8", "U3", "S2")]),
    st.sampled_from([2, 3]),
    st.booleans(),
)
def test_arrays_of_zarr_python_open(
    data: st.DataObject,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    version: Any,
    fortran: bool,
) -> None:
    """Missing chunks hold the fill value; attributes of others stay; format 2 can be read."""
    model = np.full(shape, np.ones((), dtype)[()], dtype)
    with place() as path:
        with _no_warnings():
            root = zarr.open_group(path, mode="w", zarr_format=version, attributes={"title": "t"})
            other = root.create_array(
                "x",
                shape=shape,
                dtype=dtype,
                chunks=tuple(max(1, n // 2) for n in shape),
                fill_value=np.ones((), dtype)[()],
                order="F" if fortran and version == 2 else None,
                attributes={"units": "m"},
            )
            index = data.draw(basic_indices(shape))
            values = filled(np.shape(model[index]), dtype, 3)
            model[index] = values
            other[...] = model
        with pmarray.open_group(f"zarr:{path}", mode="r") as group:
            assert list(group) == ["x"]
            assert dict(group.attrs) == {"title": "t"}
            np.testing.assert_array_equal(group["x"][...], model)
        if version == 2:
            with pmarray.open(f"zarr:{path}#x", mode="r+") as a, pytest.raises(ForeignDataError):
                a[...] = model
            return
        if dtype.kind in "US":
            return
        with pmarray.open(f"zarr:{path}#x", mode="r+") as a:
            a.resize(tuple(n + 1 for n in shape))
        again: Any = zarr.open_group(path, mode="r")
        assert again["x"].shape == tuple(n + 1 for n in shape)
        assert again["x"].attrs["units"] == "m"
        assert again.attrs["title"] == "t"


@contextmanager
def _no_warnings() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_xarray_opens_what_has_dimension_names(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    x = np.arange(12.0).reshape(4, 3)
    with pmarray.open(
        f"zarr:{tmp_path}/g#temperature",
        x.shape,
        layout="col",
        dimension_names=["place", "time"],
        codecs=["zstd"],
    ) as a:
        a[...] = x
        a.group.attrs["title"] = "of the world"
    with xarray.open_zarr(f"{tmp_path}/g", consolidated=False) as data:
        assert data["temperature"].dims == ("place", "time")
        assert data.attrs["title"] == "of the world"
        np.testing.assert_array_equal(data["temperature"].values, x)


def test_columns_are_chunks_and_whole_columns_are_written_without_reading(tmp_path: Path) -> None:
    n = 1 << 20
    with pmarray.open(f"zarr:{tmp_path}/g", (n, 0), "f8", layout="col") as a:
        assert a.chunks == (n, 1)
        for i in range(5):
            assert a.append(np.full(n, i + 1, "f8")) == (n, i + 1)
    assert sorted(os.listdir(tmp_path / "g/array/c/0")) == ["0", "1", "2", "3", "4"]
    assert os.path.getsize(tmp_path / "g/array/c/0/4") == 8 * n


def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the objects written from now on."""
    from pmarray.backends.zarr.files import FileStore

    result: list[str] = []
    write = FileStore.write

    def note(self: FileStore, key: str, data: object) -> None:
        result.append(key)
        write(self, key, data)

    monkeypatch.setattr(FileStore, "write", note)
    return result


def test_a_chunk_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pmarray.open(f"zarr:{tmp_path}/g", (100, 64), layout="col", chunks=(100, 8)) as a:
        names = encoded(tmp_path, monkeypatch)
        for column in range(64):
            a[:, column] = column
        for row in range(100):
            a[row, 3] = row
        a.flush()
    chunks = [name for name in names if "/c/" in name]
    assert len(chunks) == len(set(chunks)) + 1, "all once, and the first again for the rows"


def test_memory_stays_within_the_budget_while_chunks_are_read_ahead(tmp_path: Path) -> None:
    with pmarray.open(f"zarr:{tmp_path}/g", (1000, 400), layout="col", chunks=(1000, 4)) as a:
        for column in range(400):
            a[:, column] = column
    with pmarray.open(f"zarr:{tmp_path}/g", mode="r", cache="256 KiB") as a:
        for column in range(400):
            assert a[7, column] == column
            assert a.group.cache_bytes <= 256 << 10
        assert float(np.sum(a)) == 1000 * sum(range(400))
        assert a.group.cache_bytes <= 256 << 10
    with pytest.raises(BudgetError, match="open the group with cache= of"):
        pmarray.open(f"zarr:{tmp_path}/g", mode="r", cache="16 KiB")


def test_reading_ahead_pins_nothing_for_good(tmp_path: Path) -> None:
    """Each of many arrays that are read in order would leave a chunk in a small cache."""
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        for i in range(12):
            group.create(f"a{i}", (1000, 6), layout="col", chunks=1)[...] = i + 1
    with pmarray.open_group(f"zarr:{tmp_path}/g", mode="r", cache="64 KiB") as group:
        for i in range(12):
            for column in range(3):
                assert group[f"a{i}"][7, column] == i + 1


def test_one_writer_and_readers_of_its_last_commit(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, (4, 3), "i4", layout="col", chunks=(4, 1)) as writer:
        with writer.transaction():
            writer[...] = 1
        with pmarray.open(url, mode="r") as reader:
            assert (reader[...] == 1).all()
            with pmarray.open(url, mode="r+") as other:
                with pytest.raises(GroupLockedError, match="in this process already"):
                    other[0] = 2
            with writer.transaction():
                writer[:, 0] = 2
                writer.append([9, 9, 9, 9])
                assert (reader[...] == 1).all()
            reader.group.refresh()
            assert reader.shape == (4, 4)
            assert reader[0, 0] == 2


@pytest.mark.parametrize("checkpoints", [0, 1, 3])
@pytest.mark.parametrize("ends", ["commit", "checkpoint"])
def test_a_reader_outlives_its_writer_and_meets_the_next_one(
    checkpoints: int, ends: str, tmp_path: Path
) -> None:
    url = f"zarr:{tmp_path}/g"
    array = pmarray.open(url, (50, 2), layout="col", chunks=(50, 1))
    with array.transaction():
        array[...] = 1
    for _ in range(checkpoints):
        array.append(np.ones(50))
        array.flush()
    with array.transaction():
        array[...] = 2
    with pmarray.open(url, mode="r") as reader:
        assert reader[5, 0] == 2
        array.close()
        if ends == "commit":
            assert reader[5, 1] == 2  # nothing has been committed since
            reader.group.refresh()
        with pmarray.open(url, mode="r+") as array:
            with array.transaction():
                array[...] = 3
            if ends == "checkpoint":
                array.append(np.ones(50))
                array.flush()
            try:
                assert (reader[:, :2] == 2).all()
            except SnapshotExpiredError:
                pass
            reader.group.refresh()
            assert (reader[:, :2] == 3).all()


def test_a_reader_after_a_crash_sees_the_last_commit(tmp_path: Path, python: Any) -> None:
    url = f"zarr:{tmp_path}/g"
    source = """
        import os, sys, time, pmarray
        a = pmarray.open(sys.argv[1], (1000, 4), "i4", layout="col", chunks=(1000, 1),
                         cache="16 KiB")
        with a.transaction():
            a[...] = 1
            a.group.attrs["step"] = 1
        t = a.transaction()
        t.__enter__()
        a[...] = 2              # more than the cache holds: some of it leaves
        a.group.attrs["step"] = 2
        time.sleep(0.5)         # the writer thread is at it
        os._exit(9)
    """
    process = python(source, url)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 9, error
    changed = [
        name
        for name in ("0", "1", "2", "3")
        if (np.fromfile(tmp_path / "g/array/c/0" / name, "i4") == 2).any()
    ]
    assert changed, "the test needs a transaction that has spilled"
    with pmarray.open(url, mode="r") as a:
        assert (a[...] == 1).all()
        assert a.group.attrs["step"] == 1
    assert pmarray.verify(url)[0].damaged is False
    assert pmarray.recover(url).images == len(changed)
    assert pmarray.verify(url) == []
    stored: Any = zarr.open_group(tmp_path / "g", mode="r")
    assert (stored["array"][...] == 1).all()
    assert stored.attrs["step"] == 1
    assert sorted(os.listdir(tmp_path / "g")) == ["array", "zarr.json"]


def test_what_zarr_cannot_do_is_refused_with_the_reason(tmp_path: Path) -> None:
    group = pmarray.open_group(f"zarr:{tmp_path}/g")
    for dtype, says in {
        "float8_e4m3fn": "float8_e4m3fn", "(2,)i4, i4": "no arrays|subarray",
    }.items():  # fmt: skip
        with pytest.raises(LayoutError, match=says):
            group.create("x", (3,), dtype)
    try:
        group.create("dates", (3,), "M8")
    except LayoutError:
        pass  # of dates without a unit, zarr-python 3.1 writes what it does not read
    else:
        assert group["dates"].dtype == np.dtype("M8")
        del group["dates"]
    with pytest.raises(LayoutError, match="no codec 'zippy'"):
        group.create("x", (3,), codecs=["zippy"])
    for one in ("zstd", numcodecs.BitRound(keepbits=10), {"zstd"}):
        with pytest.raises(LayoutError, match="give a list"):
            group.create("x", (3,), codecs=one)
    with pytest.raises(LayoutError, match="shards"):
        group.create("x", (30,), chunks=(7,), shards=(10,))
    with pytest.raises(LayoutError, match="in shards"):
        group.create("x", (30,), [("a", "i4"), ("b", "?")], chunks=(5,), shards=(10,))
    with pytest.raises(ValueError, match="one extent an axis"):
        group.create("x", (30,), chunks=(7, 2))
    with pytest.raises(TypeError, match="takes codecs="):
        group.create("x", (30,), compression="zstd")
    with pytest.raises(TypeError, match="chunk stores"):
        pmarray.open_group("dram:").create("x", (3,), codecs=["zstd"])
    assert list(group) == []
    group.close()
    with pytest.raises(URLError, match="no options"):
        pmarray.open_group(f"zarr:{tmp_path}/g?direct=no")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ForeignDataError, match=r"notes\.txt"):
        pmarray.open_group(f"zarr:{tmp_path}/other")
    with (
        pmarray.open_group("zarr:memory://refuses") as memory,
        pytest.raises(TransactionError, match="icechunk:"),
        memory.transaction(),
    ):
        pass


def test_a_damaged_chunk_is_an_error_and_not_data(tmp_path: Path) -> None:
    with pmarray.open(f"zarr:{tmp_path}/g", (1000,), codecs=["zstd", "crc32c"]) as a:
        a[...] = np.arange(1000)
    path = tmp_path / "g/array/c/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pmarray.open(f"zarr:{tmp_path}/g", mode="r") as a:
        with pytest.raises(DamagedError, match="array/c/0"):
            a[...]
    path.write_bytes(bytes(data[:10]))
    with pmarray.open(f"zarr:{tmp_path}/g", mode="r") as a, pytest.raises(DamagedError):
        a[...]
    (tmp_path / "g/zarr.json").write_text("{")
    with pytest.raises(DamagedError):
        pmarray.open(f"zarr:{tmp_path}/g", mode="r")


def test_identity_and_layout_stand_in_the_attributes(tmp_path: Path) -> None:
    with pmarray.open(f"zarr:{tmp_path}/g", (4, 3), ">i4", layout="col") as a:
        a.group.attrs["mine"] = [1, 2]
    group = json.loads((tmp_path / "g/zarr.json").read_text())
    assert group["attributes"]["mine"] == [1, 2]
    array = json.loads((tmp_path / "g/array/zarr.json").read_text())
    assert array["attributes"]["pmarray"]["layout"] == "col"
    assert array["codecs"][0] == {"name": "transpose", "configuration": {"order": [1, 0]}}


def values_of(array: pmarray.PMArray) -> NDArray[Any]:
    result: NDArray[Any] = array[...]
    return result


def test_a_copied_directory_is_an_array_of_its_own(tmp_path: Path) -> None:
    """Its attributes say that it is the other one."""
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group.create("b", (10, 3), chunks=(5, 3))[...] = 1
    for name in ("a", "c"):
        shutil.copytree(tmp_path / "g/b", tmp_path / "g" / name)
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        assert list(group) == ["a", "b", "c"]
        for i, name in enumerate(group):
            group[name][...] = i
        with group.transaction():
            del group["b"]
            group["c"][0] = 7
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        assert list(group) == ["a", "c"]
        assert (group["a"][...] == 0).all()
        assert group["c"][:2, 0].tolist() == [7, 2]


def test_what_was_not_closed_is_written_at_exit(tmp_path: Path, python: Any) -> None:
    process = python(
        """
        import sys, pmarray
        a = pmarray.open(sys.argv[1], (1000, 3), layout="col", codecs=["zstd"])
        a[...] = 7
        """,
        f"zarr:{tmp_path}/g",
    )
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    with pmarray.open(f"zarr:{tmp_path}/g", mode="r") as a:
        assert (values_of(a) == 7).all()


@pytest.mark.parametrize("layout", ["row", "col"])
def test_copies_go_to_chunk_stores_and_back(tmp_path: Path, layout: Any) -> None:
    x = np.random.default_rng(1).normal(size=(3000, 70)).astype("f4")
    with pmarray.open(f"memmap:{tmp_path}/m", x.shape, "f4", layout="col", fill_value=2) as a:
        a[...] = x
    for url in (f"zarr:{tmp_path}/z", f"icechunk:{tmp_path}/i", "zarr:memory://copies"):
        pmarray.copy(
            f"memmap:{tmp_path}/m", url, layout=layout, codecs=["zstd"], cache="1 MiB", mode="w"
        )
        with pmarray.open(url, mode="r") as b:
            assert (b.layout, b.fill_value) == (layout, 2)
            np.testing.assert_array_equal(b[...], x)
        pmarray.copy(url, f"memmap:{tmp_path}/back", mode="w", cache="8 MiB")
        with pmarray.open(f"memmap:{tmp_path}/back", mode="r") as c:
            np.testing.assert_array_equal(c[...], x)


def test_a_copy_that_fails_leaves_nothing_where_there_are_no_transactions() -> None:
    class Broken:
        shape, dtype = (10, 3), np.dtype("f8")

        def __getitem__(self, index: Any) -> NDArray[Any]:
            raise OSError(5, "no such luck")

    with pytest.raises(OSError, match="no such luck"):
        pmarray.from_array(Broken(), "zarr:memory://broken-copy")
    with pmarray.open_group("zarr:memory://broken-copy", mode="r") as group:
        assert list(group) == []


# -- what a process that died has left ------------------------------------------------------------


def _died(url: str, directory: str) -> str:
    """Return the URL of a copy as it is now: what another process finds if the writer is killed."""
    shutil.copytree(url.removeprefix("zarr:"), directory)  # hard links become files of their own
    return f"zarr:{directory}"


def _files(directory: str) -> set[str]:
    return {str(one.relative_to(directory)) for one in Path(directory).rglob("*")}


def test_what_an_uncommitted_array_left_is_removed(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url, cache=16384) as group:
        group.attrs["x"] = 1
        with group.transaction():
            group.create("a", (100, 9), chunks=3)[:] = 1
            group._session.cache.flush()
            (tmp_path / "g" / "a" / "c" / "1.pmarray-new").write_bytes(b"half")
            copy = _died(url, f"{tmp_path}/copy")
    assert [(one.where, one.damaged) for one in pmarray.verify(copy)] == [("a/", False)]
    with pmarray.open_group(copy) as group:
        group._session.recover()
        assert list(group) == []
        assert pmarray.verify(copy) == []
    assert _files(f"{tmp_path}/copy") == {"zarr.json"}
    assert list(zarr.open_group(f"{tmp_path}/copy", mode="r")) == []


def test_an_array_that_was_deleted_stays_so(tmp_path: Path) -> None:
    """The metadata go first: whoever dies then leaves the files of the array."""
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        group.create("a", (3,))[:] = 1
        group.create("b", (3,))[:] = 2
    shutil.copytree(f"{tmp_path}/g/a", f"{tmp_path}/a")
    with pmarray.open_group(url) as group:
        del group["a"]
        group.flush()
        copy = _died(url, f"{tmp_path}/copy")
    shutil.copytree(f"{tmp_path}/a", f"{tmp_path}/copy/a")
    zarr.create_array(f"{tmp_path}/copy/theirs", shape=(3,), dtype="int8")
    with pmarray.open_group(copy, mode="r+") as group:
        group._session.recover()
    assert sorted(zarr.open_group(f"{tmp_path}/copy", mode="r")) == ["b", "theirs"]


def test_an_array_that_only_the_journal_knew_can_be_deleted(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        with group.transaction():
            group.create("a", (3,))[:] = 1
        copy = _died(url, f"{tmp_path}/copy")
    with pmarray.open_group(copy) as group:
        assert list(group) == ["a"]
        with group.transaction():
            del group["a"]
    assert list(zarr.open_group(f"{tmp_path}/copy", mode="r")) == []


@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (6, 1, 4)])
def test_an_array_comes_back_as_it_was_when_another_one_took_its_name(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Of other dimensions, chunks and dtype; also for a reader meanwhile, and after a death."""
    url = f"zarr:{tmp_path}/g"
    expected = np.zeros((3, 5))
    expected[0] = 1
    with pmarray.open_group(url) as group:
        group.create("a", (3, 5), chunks=1)[0] = 1  # two chunks were never written
    with pmarray.open_group(url) as group:
        with pytest.raises(KeyError), group.transaction():
            del group["a"]
            group.create("a", shape, "int8", chunks="auto" if not shape else 1)[...] = 7
            group._session.cache.flush()
            with pmarray.open_group(url, mode="r") as reader:
                np.testing.assert_array_equal(reader["a"][:], expected)
            copy = _died(url, f"{tmp_path}/copy")
            raise KeyError
        np.testing.assert_array_equal(group["a"][:], expected)
    for place in (url, copy):
        with pmarray.open_group(place) as group:
            group._session.recover()
            np.testing.assert_array_equal(group["a"][:], expected)


def test_a_deletion_is_durable_before_another_array_takes_the_name(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        group.create("a", (3, 5), chunks=1)[:] = 1
    with pmarray.open_group(url) as group:
        del group["a"]
        group.create("a", (4,), "int8", chunks=1)[:] = 7
        group._session.cache.flush()
        copy = _died(url, f"{tmp_path}/copy")
    with pmarray.open_group(copy) as group:
        group._session.recover()
        assert list(group) == []
    with pmarray.open_group(url, mode="r") as group:
        np.testing.assert_array_equal(group["a"][:], 7)


def test_a_cache_with_room_for_a_few_small_chunks_is_enough_to_read(tmp_path: Path) -> None:
    """Each takes a page of it, however small."""
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache=16384) as group:
        array = group.create("a", (10, 40), layout="col", chunks=1)
        array[:] = np.arange(400).reshape(10, 40)
        np.testing.assert_array_equal(array[:], np.arange(400).reshape(10, 40))


def test_commits_may_be_sealed_while_others_are_carried_out(tmp_path: Path) -> None:
    for seed in range(5):
        workload = Workload(seed, 40, chunks=1)
        url = f"zarr:{tmp_path}/{seed}"
        with pmarray.open_group(url, commit="pipelined", cache="64 KiB") as group:
            for i in range(40):
                with group.transaction():
                    workload.apply(i, group)
            assert State.of_group(group) == workload.states[40]


@pytest.mark.parametrize("flushed", [True, False])
def test_a_replaced_array_does_not_pass_for_the_committed_one(
    tmp_path: Path, flushed: bool
) -> None:
    """The process dies after an array has made way for another one, outside a transaction."""
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="64 KiB") as group:
        with group.transaction():
            group.create("x", (9, 4), "int16", layout="col")[...] = 1
        if flushed:
            group.flush()
        del group["x"]
        group.create("x", (3, 4), "int16", chunks=(3, 4))[...] = 7
        group._session.cache.flush()
        shutil.copytree(tmp_path / "g", tmp_path / "left")
    with pmarray.open_group(f"zarr:{tmp_path}/left") as group:
        if "x" in group:
            assert (group["x"][...] == 1).all()
    assert not [one for one in pmarray.verify(f"zarr:{tmp_path}/left") if one.damaged]


@pytest.mark.parametrize("begins", ["before", "after a commit"])
@pytest.mark.parametrize("looks", ["before", "after"])
def test_a_reader_of_an_array_that_is_deleted(tmp_path: Path, begins: str, looks: str) -> None:
    """Its chunks are gone, and are no chunks of fill."""
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as writer:
        writer.create("t", (40,), chunks=10)[...] = 7
        writer.create("other", (3,))[...] = 1
    with pmarray.open_group(url, mode="r") as reader, pmarray.open_group(url) as writer:
        if begins != "before":
            with writer.transaction():
                writer.attrs["step"] = 1
            reader.refresh()
        if looks == "before":
            assert reader["t"][0] == 7
        with writer.transaction():
            del writer["t"]
        with pytest.raises(SnapshotExpiredError, match="refresh"):
            reader["t"][10:]
        reader.refresh()
        assert list(reader) == ["other"]
        assert reader["other"][...].tolist() == [1, 1, 1]


def test_a_copy_of_an_array_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(f"{url}#t", (20, 1000), chunks=(1, 1000)) as array:
        array[...] = 7
    with pmarray.open_group(url) as writer:

        def delete(done: int, total: int) -> None:
            if "t" in writer:
                with writer.transaction():
                    del writer["t"]

        with pytest.raises(KeyError, match="no array 't'"):  # it was looked for once more
            pmarray.copy(f"{url}#t", f"memmap:{tmp_path}/to#t", cache="64 KiB", progress=delete)
    with pmarray.open_group(f"memmap:{tmp_path}/to") as copied:
        assert not list(copied)
