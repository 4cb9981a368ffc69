"""Large new files are written past the page cache, and hold what they were given."""

from __future__ import annotations

import errno
import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._system import osops, pastcache
from pmarray._system.residency import resident_share
from pmarray.errors import StorageError

_PIECE = pastcache._PIECE_BYTES
_TURNS = (0, BLOCK_BYTES, pastcache._MIN_BYTES, _PIECE, 2 * _PIECE)
_BYTES = np.random.default_rng(0).bytes(2 * _PIECE + 2 * BLOCK_BYTES)
_ON_PAGES = memoryview(mmap.mmap(-1, len(_BYTES)))
_ON_PAGES[:] = _BYTES
_MIN_COLUMN_BYTES = 4 << 20


def _write(path: Path, data: memoryview | bytes) -> float:
    """Write a new file; return which share of it is in the page cache."""
    fd = osops.open_file(str(path), write=True, create=True)
    try:
        pastcache.write_new(fd, memoryview(data), path=str(path))
        osops.fdatasync(fd)
        return resident_share(fd, 0, len(data))
    finally:
        osops.close(fd)


def _takes_direct(directory: Path) -> bool:
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return os.statvfs(directory).f_bsize <= BLOCK_BYTES


@given(st.sampled_from(_TURNS), st.integers(-2, BLOCK_BYTES), st.integers(0, 5))
def test_a_file_holds_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, near: int, more: int, start: int
) -> None:
    path = tmp_path_factory.mktemp("new") / "file"
    data = memoryview(_BYTES)[start : start + max(0, near + more)]
    _write(path, data)
    assert path.read_bytes() == data
    path.unlink()


@given(st.sampled_from(_TURNS), st.integers(-2, BLOCK_BYTES))
def test_a_file_holds_what_lay_on_whole_pages(
    tmp_path_factory: pytest.TempPathFactory, near: int, more: int
) -> None:
    path = tmp_path_factory.mktemp("new") / "file"
    data = _ON_PAGES[: max(0, near + more)]
    _write(path, data)
    assert path.read_bytes() == data
    path.unlink()


def _sizes_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each write from now on, where writes go past the cache."""
    if not _takes_direct(directory):
        pytest.skip("no O_DIRECT on the file system of the tests")
    real, sizes = osops.pwritev, list[int]()

    def seen(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        sizes.append(sum(buffer.nbytes for buffer in buffers))
        return real(fd, buffers, offset)

    monkeypatch.setattr(osops, "pwritev", seen)
    return sizes


def test_what_lies_on_whole_pages_is_written_at_once_and_only_its_end_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _sizes_written(tmp_path, monkeypatch)
    nbytes = 2 * _PIECE + 5
    _write(tmp_path / "on pages", _ON_PAGES[:nbytes])
    assert sizes == [2 * _PIECE, BLOCK_BYTES]
    sizes.clear()
    _write(tmp_path / "beside them", _ON_PAGES[1 : 1 + nbytes])
    assert sizes == [_PIECE, _PIECE, BLOCK_BYTES]


@pytest.mark.parametrize("scheme", ["zarr", "memmap"])
def test_a_column_leaves_the_cache_without_a_copy(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = (_MIN_COLUMN_BYTES + _PIECE) // 4
    with pmarray.open(f"{scheme}:{tmp_path}/x", (n, 0), "float32", layout="col", chunks=1) as array:
        sizes = _sizes_written(tmp_path, monkeypatch)
        array.append(np.arange(n, dtype=np.float32), axis=1)
        array.flush()
        monkeypatch.undo()
        assert max(sizes) >= 4 * n // BLOCK_BYTES * BLOCK_BYTES
        np.testing.assert_array_equal(array[:, 0], np.arange(n, dtype=np.float32))


def test_what_is_written_does_not_stay_in_the_page_cache(tmp_path: Path) -> None:
    if not _takes_direct(tmp_path):
        pytest.skip("no O_DIRECT on the file system of the tests")
    assert _write(tmp_path / "large", _BYTES) < 0.1
    assert _write(tmp_path / "small", _BYTES[:1000]) == 1


@pytest.mark.parametrize("at", [0, 1])
def test_a_file_system_that_refuses_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Some take O_DIRECT, and say EINVAL when they are to write so."""
    real, calls = osops.pwritev, 0

    def refused(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, buffers, offset)

    monkeypatch.setattr(osops, "pwritev", refused)
    _write(tmp_path / "file", _BYTES)
    assert (tmp_path / "file").read_bytes() == _BYTES
    assert calls > at + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_memory_of_its_own(tmp_path: Path) -> None:
    """Both take what is spare; neither may write what the other is about to."""
    _write(tmp_path / "ours", _BYTES)
    before = [bytes(memory) for memory in pastcache._spare]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            _write(tmp_path / "theirs", _BYTES[::-1])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert before
    assert [bytes(memory) for memory in pastcache._spare] == before
    assert (tmp_path / "theirs").read_bytes() == _BYTES[::-1]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="No space"):
        patched.setattr(osops, "pwritev", full)
        _write(tmp_path / "file", _BYTES)
    _write(tmp_path / "other", _BYTES[::-1])
    assert (tmp_path / "other").read_bytes() == _BYTES[::-1]


@pytest.mark.parametrize("codecs", [[], ["zstd"]], ids=["plain", "zstd"])
def test_large_chunks_are_read_by_zarr_python(tmp_path: Path, codecs: list[str]) -> None:
    values = np.random.default_rng(0).standard_normal((300_001, 5))
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        array = group.create("a", values.shape, layout="col", chunks=1, codecs=codecs)
        array[...] = values
        group.flush()
        array[:, 3] = values[:, 0]
    expected = values.copy()
    expected[:, 3] = values[:, 0]
    found = zarr.open_group(tmp_path / "g", mode="r")["a"]
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(np.asarray(found[...]), expected)
