"""`zarr:` in memory, in a zip archive, and through fsspec."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import (
    DamagedError,
    GroupNotFoundError,
    ReadOnlyError,
    StorageError,
    TransactionError,
    URLError,
    WriteBehindError,
)
from tests.pmarray.conftest import SystemCalls
from tests.pmarray.histories import write_at_random
from tests.sampling import examples


def stored(archive: Path, name: str = "array") -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What zarr-python finds in an archive."""
    store = zarr.storage.ZipStore(archive, mode="r")
    found = zarr.open_group(store, mode="r")[name]
    assert isinstance(found, zarr.Array)
    values = np.asarray(found[...])
    store.close()
    return values


@given(data=st.data())
def test_random_writes_in_memory_match_numpy(data: st.DataObject) -> None:
    write_at_random(data, f"zarr:memory://{uuid.uuid4()}", sessions=3)


@examples(0.4)
@given(data=st.data())
def test_random_writes_through_fsspec_match_numpy(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        url = f"zarr:local://{directory}/x?auto_mkdir=true"
        model = write_at_random(data, url, sessions=3)
        # fsspec's files are those of a directory.
        with pmarray.open(f"zarr:{directory}/x", mode="r") as array:
            np.testing.assert_array_equal(array[...], model)


@examples(0.4)
@given(data=st.data())
def test_random_writes_in_an_archive_match_numpy(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "x.zip"
        model = write_at_random(data, f"zarr:{archive}", sessions=1)
        np.testing.assert_array_equal(stored(archive), model)
        with zipfile.ZipFile(archive) as opened:
            assert opened.testzip() is None
            assert len(set(opened.namelist())) == len(opened.namelist())
        assert os.listdir(directory) == ["x.zip"]


# -- memory ----------------------------------------------------------------------------------------


def test_handles_on_memory_share_it() -> None:
    url = f"zarr:memory://{uuid.uuid4()}"
    with pytest.raises(GroupNotFoundError):
        pmarray.open_group(url, mode="r")
    with pmarray.open_group(url) as group, pmarray.open_group(url, mode="r") as other:
        group.create("x", (3,))[...] = 1
        group.flush()
        other.refresh()
        assert other["x"][...].tolist() == [1, 1, 1]
        with pytest.raises(TransactionError, match="icechunk:"), group.transaction():
            pass
        with pytest.raises(pickle.PicklingError, match="memory of this process"):
            pickle.dumps(group["x"])


def test_a_local_store_is_pickled_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pmarray.open("zarr:./x", (3,)) as array:
        array[...] = 1
        pickled = pickle.dumps(array)
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as other:
        assert other[...].tolist() == [1, 1, 1]


# -- an archive ------------------------------------------------------------------------------------


def test_an_archive_is_there_when_its_group_has_been_closed(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with pytest.raises(GroupNotFoundError):
        pmarray.open(f"zarr:{archive}", mode="r")
    assert os.listdir(tmp_path) == []
    with pmarray.open_group(f"zarr:{archive}") as group:
        x = group.create("x", (40, 10), layout="col", chunks=(10, 5))
        x[...] = 1
        group.create("y", (3,))[...] = 7
        group.flush()
        x[...] = 2
        x.append(np.full((40, 3), 3.0))
        x.resize((15, 13))
        del group["y"]
        group.attrs["step"] = 4
        group.flush()
        assert x[0].tolist() == [2] * 10 + [3] * 3
        assert not archive.exists()
    assert os.listdir(tmp_path) == ["x.zip"]
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if "/c/" in name]
    assert sorted(names) == [f"x/c/{i}/{j}" for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(stored(archive, "x")[:, 10:], np.full((15, 3), 3.0))
    with pmarray.open_group(f"zarr:{archive}", mode="r") as group:
        assert dict(group.attrs) == {"step": 4}
        np.testing.assert_array_equal(group["x"][:, :10], np.full((15, 10), 2.0))


@pytest.mark.parametrize("mode", ["r+", "a", "w"])
def test_an_archive_that_is_there_is_not_changed(tmp_path: Path, mode: Any) -> None:
    archive = tmp_path / "x.zip"
    with pmarray.open(f"zarr:{archive}", (3,)) as array:
        array[...] = 1
    before = archive.read_bytes()
    with pytest.raises(ReadOnlyError, match="copy it"):
        with pmarray.open(f"zarr:{archive}", (3,), mode=mode) as array:
            array[0] = 2
    assert archive.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.zip"]


def test_of_two_writers_of_an_archive_the_second_is_told_where_its_own_is(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path / 'x.zip'}"
    first, second = pmarray.open(url, (3,)), pmarray.open(url, (3,))
    first[...] = 1
    second[...] = 2
    first.close()
    with pytest.raises(StorageError, match="somebody has made a file of this name") as caught:
        second.close()
    assert caught.value.errno == errno.EEXIST
    assert stored(tmp_path / "x.zip").tolist() == [1, 1, 1]
    (left,) = set(os.listdir(tmp_path)) - {"x.zip"}
    assert left in str(caught.value)
    assert stored(tmp_path / left).tolist() == [2, 2, 2]


def test_a_damaged_archive(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"no archive at all")
    with pytest.raises(DamagedError, match="no zip archive"):
        pmarray.open(f"zarr:{archive}", mode="r")
    assert archive.read_bytes() == b"no archive at all"
    archive.unlink()
    with pmarray.open(f"zarr:{archive}", (1000,), codecs=[]) as array:
        array[...] = np.arange(1000)
    data = bytearray(archive.read_bytes())
    data[data.index(np.arange(500, 504.0).tobytes())] ^= 1
    archive.write_bytes(data)
    with pmarray.open(f"zarr:{archive}", mode="r") as array, pytest.raises(DamagedError):
        array[...]


def test_an_archive_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot create"):
        pmarray.open(f"zarr:{tmp_path}/missing/x.zip", (3,))


def test_an_archive_that_cannot_get_its_name_keeps_another(
    tmp_path: Path, calls: SystemCalls
) -> None:
    array = pmarray.open(f"zarr:{tmp_path / 'x.zip'}", (3,))
    array[...] = 1
    calls.always["link"] = errno.ENOSPC
    with pytest.raises(StorageError, match="what was written is in") as caught:
        array.close()
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "x.zip").exists()
    assert len(os.listdir(tmp_path)) == 1


# -- fsspec ----------------------------------------------------------------------------------------


def test_errors_of_fsspec_are_ours(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create it"):
        pmarray.open(f"zarr:local://{tmp_path}/x", (3,))  # it makes no directory unless told
    with pytest.raises(URLError, match="fsspec"):
        pmarray.open("zarr:floppy://a/b", (3,))
    url = f"zarr:local://{tmp_path}/x?auto_mkdir=true"
    with pmarray.open(url, (4, 4), chunks=(2, 4)) as array:
        array[...] = 1
        array.flush()
        (tmp_path / "x" / "array" / "c" / "0").rename(tmp_path / "kept")
        (tmp_path / "x" / "array" / "c" / "0").write_text("in the way")
        array[...] = 2
        with pytest.raises(WriteBehindError, match="still in memory"):
            array.flush()
        (tmp_path / "x" / "array" / "c" / "0").unlink()
        array.flush()
    with pmarray.open(url, mode="r") as array:
        assert (array[...] == 2).all()
