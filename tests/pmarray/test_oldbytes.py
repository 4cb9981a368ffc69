"""Images of old bytes are what the file holds, whatever is asked for and however it is read."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._commits.committer import Committer
from pmarray._commits.journal import IMAGES_UNDER_WAY, MAX_PAYLOAD_BYTES
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._storage import oldbytes
from pmarray._storage.oldbytes import images_of
from pmarray._system import osops
from pmarray.backends.files.beside import SideReads
from pmarray.backends.files.region import FileRegion
from pmarray.errors import StorageError

_BLOCKS = 200
_HELD = np.random.default_rng(0).bytes(_BLOCKS * BLOCK_BYTES)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "file"
    path.write_bytes(_HELD)
    return path


class Memory:
    """Memory that is used again as soon as it may be."""

    def __init__(self, most: int) -> None:
        size = -(-most // BLOCK_BYTES) * BLOCK_BYTES
        self._places = [memoryview(bytearray(size)) for _ in range(IMAGES_UNDER_WAY + 1)]
        self._next = 0

    def __call__(self, nbytes: int) -> memoryview:
        self._next = (self._next + 1) % len(self._places)
        self._places[self._next][:] = b"?" * len(self._places[self._next])
        return self._places[self._next][:nbytes]


@given(
    offset=st.sampled_from([0, BLOCK_BYTES, 80]),
    seed=st.integers(0, 2**32 - 1),
    unit=st.sampled_from([BLOCK_BYTES, 512, 1]),
    least=st.sampled_from([1, 1 << 30]),
)
def test_images_are_what_the_file_holds(
    file: Path, offset: int, seed: int, unit: int, least: int
) -> None:
    rng = random.Random(seed)
    units = (len(_HELD) - offset) // unit
    pieces = []
    for _ in range(rng.randrange(1, 30)):
        start = rng.randrange(units)
        count = rng.randrange(1, min(units - start, 20 * BLOCK_BYTES // unit) + 1)
        pieces.append((start * unit, count * unit))
    memory = Memory(max(nbytes for _, nbytes in pieces))
    region = FileRegion(str(file), offset, writable=False, aligned=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(oldbytes, "_MIN_BYTES", least)
        held = memoryview(_HELD)[offset:]
        for (start, nbytes), image in zip(
            pieces, images_of(region, region, 7, pieces, memory), strict=True
        ):
            assert (image.file_id, image.offset) == (7, start)
            assert image.data == held[start : start + nbytes]
    region.close()


def test_nothing_is_read_any_more_after_a_failure(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are waited for: their memory is used again."""
    monkeypatch.setattr(oldbytes, "_MIN_BYTES", 1)
    real, reading = SideReads.read, []

    def read(reads: SideReads, request: Any, out: memoryview, *, direct: bool) -> None:
        if request.start == 2 * BLOCK_BYTES:
            raise StorageError(errno.EIO, "cannot read")
        reading.append(request)
        real(reads, request, out, direct=direct)
        reading.remove(request)

    monkeypatch.setattr(SideReads, "read", read)
    region = FileRegion(str(file), 0, writable=False, aligned=False)
    pieces = [(i * BLOCK_BYTES, BLOCK_BYTES) for i in range(20)]
    came: list[int] = []
    with pytest.raises(StorageError, match="cannot read"):
        for image in images_of(region, region, 0, pieces, Memory(BLOCK_BYTES)):
            came.append(image.offset)  # noqa: PERF401
    assert came == [0, BLOCK_BYTES]
    assert not reading
    region.close()


def test_nothing_is_read_any_more_when_the_journal_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read later would come into the memory of the next transaction."""
    real, write = SideReads.read, osops.pwritev
    reading, full = list[Any](), list[bool]()

    def read(reads: SideReads, request: Any, out: memoryview, *, direct: bool) -> None:
        reading.append(request)
        time.sleep(0.2)
        real(reads, request, out, direct=direct)
        reading.remove(request)

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if full:
            full.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, buffers, offset)

    def failed(committer: Committer, *args: Any) -> None:
        try:
            journal_before(committer, *args)
        except StorageError:
            assert not reading
            raise

    journal_before = Committer._journal_before
    monkeypatch.setattr(Committer, "_journal_before", failed)
    monkeypatch.setattr(SideReads, "read", read)
    monkeypatch.setattr(osops, "pwritev", pwritev)
    values = np.random.default_rng(0).standard_normal((MAX_PAYLOAD_BYTES // 8, 24))
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", values.shape, layout="col")
        x[...] = values
        with group.transaction():
            x[...] = values  # so that there is a journal
        full.append(True)
        with pytest.raises(StorageError, match="No space"), group.transaction():
            x[...] = -1
        np.testing.assert_array_equal(x[...], values)
        with pytest.raises(ZeroDivisionError), group.transaction():
            x[...] = -2
            1 / 0  # noqa: B018
        np.testing.assert_array_equal(x[...], values)


def test_a_transaction_over_more_than_the_memory_of_the_journal_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images go round in that memory several times, in records that are full and not."""
    images = list[bytes]()
    real = images_of

    def kept(*args: Any) -> Iterator[Any]:
        for image in real(*args):
            images.append(bytes(image.data))
            yield image

    monkeypatch.setattr("pmarray._storage.oldbytes.images_of", kept)
    rng = np.random.default_rng(0)
    lines, rows = 60, MAX_PAYLOAD_BYTES // 8 + 700
    values = rng.standard_normal((rows, lines))
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", values.shape, layout="col")
        x[...] = values
    with pmarray.open_group(tmp_path / "g") as group:  # anew: nothing is in memory
        x = group["x"]
        reader = pmarray.open_group(tmp_path / "g", mode="r")
        with group.transaction():
            x[:, ::3] = -1
            x[: rows // 3, 1] = -2
            x[:, 40:] = -3
        # Read through the journal.
        np.testing.assert_array_equal(reader["x"][...], values)
        reader.close()
    assert sum(map(len, images)) > 30 * MAX_PAYLOAD_BYTES
