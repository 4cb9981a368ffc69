"""Pieces that threads read while others are worked on: what they hold, whatever happens between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._config import config
from pmarray._geometry.layout import Layout
from pmarray._geometry.requests import plan_requests
from pmarray._storage.uncached import ArrivingChunks
from pmarray._streams.reading import read_pieces
from pmarray.errors import (
    ClosedError,
    DamagedError,
    LayoutError,
    SelectionError,
    SnapshotExpiredError,
)
from tests.machine import forget_files
from tests.sampling import examples

SHAPE = (70_000, 24)
"""Columns of more than 64 KiB, which are padded; 6.7 MB in all."""
COLUMNS = [(slice(0, SHAPE[0], 1), slice(j, j + 1, 1)) for j in range(SHAPE[1])]
ROOM = 4 << 20


class Place:
    """A group that holds one array, on a disk, and is larger than its cache."""

    def __init__(self, path: Path, scheme: str) -> None:
        self.path, self.scheme = path, scheme

    def make(self, layout: pmarray.LayoutName = "col", chunks: Any = (30_000, 1)) -> np.ndarray:
        values = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
        extra = {} if self.scheme == "memmap" else {"chunks": chunks}
        with self.open("a") as group:
            group.create("x", SHAPE, "float32", layout=layout, **extra)[...] = values
        forget_files(self.path)
        return values

    def open(self, mode: pmarray.Mode = "a") -> pmarray.Group:
        return pmarray.open_group(f"{self.scheme}:{self.path}", mode=mode, cache="2 MiB")


@pytest.fixture(params=["memmap", "zarr"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path / "g", request.param)


def make(path: Path) -> np.ndarray:
    return Place(path, "memmap").make()


@st.composite
def plans(draw: st.DrawFn) -> tuple[Layout, tuple[slice, ...], int]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    orders: list[Literal["col", "row"]] = ["col", "row"]
    order = draw(st.sampled_from(orders))
    large = draw(st.booleans())
    if large:
        long = 20_000 + draw(st.integers(0, 3000))
        shape = (long, *shape) if order == "col" else (*shape, long)
    layout = Layout.plan(shape, draw(st.sampled_from([1, 4, 8])), order)
    axes = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        axes.append(slice(start, stop, draw(st.integers(1, 3))))
    if draw(st.booleans()):  # whole lines
        slow = layout.slow_axis
        axes = [axes[i] if i == slow else slice(0, n, 1) for i, n in enumerate(shape)]
    return layout, tuple(axes), draw(st.sampled_from([0, 128, 4096]))


@given(plans(), st.sampled_from([4096, 16384, 1 << 20]))
@examples(4)
def test_requests_put_the_items_where_they_say(
    plan: tuple[Layout, tuple[slice, ...], int], nbytes: int
) -> None:
    layout, axes, offset = plan
    requests = plan_requests(layout, axes, offset)
    if requests is None:
        return
    content = np.random.default_rng(0).integers(0, 256, offset + layout.nbytes, dtype=np.uint8)
    kind = np.dtype(f"u{layout.itemsize}")
    whole = np.ndarray(layout.shape, kind, content, offset, strides=layout.strides)
    buffer = np.zeros(requests.nbytes, np.uint8)
    for one in requests.cut(nbytes):
        assert one.start % 4096 == one.stop % 4096 == one.place % 4096 == 0
        assert one.start < one.least <= one.stop <= one.start + nbytes
        data = content[one.start : one.stop]
        buffer[one.place : one.place + data.size] = data
    shape = [len(range(a.start, a.stop, a.step)) for a in axes]
    found = np.ndarray(shape, kind, buffer, requests.offset, strides=requests.strides)
    assert np.array_equal(found, whole[axes])


@pytest.mark.parametrize("direct", [True, False])
def test_both_ways_read_the_same(tmp_path: Path, direct: bool) -> None:
    values = make(tmp_path / "g")
    with pmarray.open_group(tmp_path / "g", mode="r+") as group:
        axes = (slice(4096, 60_001, 1), slice(1, 24, 5))
        group["x"][0, 0] = values[0, 0]  # from here on it is no reader
        group.flush()
        forget_files(tmp_path / "g")
        arrival = group["x"]._storage.arriving(axes)
        assert arrival is not None
        buffer = mmap.mmap(-1, arrival.nbytes)
        for call in arrival.calls(memoryview(buffer), direct=direct):
            call()
        assert np.array_equal(arrival.block(memoryview(buffer)), values[axes])
        assert arrival.is_right()
        group["x"][0, 0] = 1
        assert not arrival.is_right()


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("layout", ["col", "row"])
def test_pieces_are_numpys(place: Place, mode: pmarray.Mode, layout: pmarray.LayoutName) -> None:
    values = place.make(layout, chunks=(9000, 5))
    for n in (1, 3, 8):
        pieces = [
            (slice(i, min(i + 9000, SHAPE[0]), 1), slice(0, SHAPE[1], n))
            for i in range(0, SHAPE[0], 9000)
        ]
        forget_files(place.path)
        with place.open(mode) as group, config.set(read_requests=n):
            for piece, block in zip(
                pieces, read_pieces(group["x"], pieces, ROOM // n), strict=True
            ):
                assert np.array_equal(block, values[piece])
                block[...] = 0  # it is the caller's
            assert group["x"].sum() == pytest.approx(values.sum(dtype=float), abs=1)


def test_whole_chunks_of_a_directory_arrive(tmp_path: Path) -> None:
    place = Place(tmp_path / "g", "zarr")
    values = place.make(chunks=(30_000, 5))
    with place.open("r+") as group:
        x = group["x"]
        x[0, 0] = values[0, 0]  # from here on it is no reader
        group.flush()
        assert x._storage.arriving((slice(0, 30_000, 1), slice(0, 5, 1))) is None  # it is cached
        group._session.cache.forget()
        for columns in (slice(0, 5, 1), slice(5, 20, 1), slice(20, 24, 1)):
            for rows in (slice(0, 60_000, 1), slice(60_000, SHAPE[0], 1)):
                arrival = x._storage.arriving((rows, columns))
                assert isinstance(arrival, ArrivingChunks)
                buffer = memoryview(mmap.mmap(-1, arrival.nbytes))
                for call in arrival.calls(buffer, direct=False):
                    call()
                assert np.array_equal(arrival.block(buffer), values[rows, columns])
                assert arrival.is_right()
        for axes in ((slice(0, 60_000, 1), slice(0, 4, 1)), (slice(0, 60_000, 2), slice(0, 5, 1))):
            assert x._storage.arriving(axes) is None
        whole = slice(0, 30_000, 1), slice(0, 5, 1)
        changes: tuple[Callable[[], object], ...] = (
            lambda: x.__setitem__((0, 0), 1),
            lambda: x.resize((SHAPE[0], 30)),
            lambda: x._storage.lend(whole).done(),
        )
        for change in changes:
            arrival = x._storage.arriving(whole)
            assert arrival is not None
            change()
            assert not arrival.is_right()
            group.flush()
            group._session.cache.forget()


def test_what_is_written_meanwhile_is_read(place: Place) -> None:
    values = place.make()
    with place.open() as group:
        x = group["x"]
        for j, block in enumerate(read_pieces(x, COLUMNS, ROOM)):
            assert np.array_equal(block[:, 0], values[:, j])
            if j < 20:
                x[:, j + 1] = values[:, j + 1] = j
                if j % 3 == 0:
                    group.flush()


def test_a_block_that_is_rolled_back_leaves_nothing_in_what_comes(place: Place) -> None:
    values = place.make()
    with place.open() as group:
        x = group["x"]
        reads = read_pieces(x, COLUMNS, ROOM)
        for _ in range(3):
            next(reads)
        transaction = group.transaction()
        transaction.__enter__()
        x[:, 3:] = 7
        assert (next(reads) == 7).all()
        transaction.__exit__(ValueError, ValueError(), None)
        assert np.array_equal(next(reads)[:, 0], values[:, 4])


def test_a_reader_reads_its_commit_beside_a_writer(place: Place) -> None:
    values = place.make()
    overwritten: set[int] = set()
    with (
        place.open("r") as reader,
        place.open() as writer,
    ):
        reads = read_pieces(reader["x"], COLUMNS, ROOM)
        for j in range(SHAPE[1]):
            try:
                block = next(reads)
            except SnapshotExpiredError:
                # A directory keeps the old chunks until the commit; a file, until its journal is
                # used anew, after far more than this. Which chunks had arrived is the disk's.
                assert place.scheme == "zarr"
                assert j in overwritten
                break
            assert np.array_equal(block[:, 0], values[:, j])
            if j in (2, 9):
                with writer.transaction():
                    writer["x"][:, j : j + 8] = j
                overwritten |= set(range(j, j + 8))
        reader.refresh()
        new = reader["x"][...]
    values[:, 2:10] = 2
    if 16 in overwritten:
        values[:, 9:17] = 9
    assert np.array_equal(new, values)


def test_an_array_that_shrinks_or_closes_ends_the_reading(place: Place) -> None:
    place.make()
    group = place.open()
    reads = read_pieces(group["x"], COLUMNS, ROOM)
    next(reads)
    group["x"].resize((SHAPE[0], 12))
    with pytest.raises(LayoutError, match="shrunk"):
        list(reads)
    reads = read_pieces(group["x"], COLUMNS[:12], ROOM)
    next(reads)
    group.close()
    with pytest.raises(ClosedError):
        list(reads)


def test_a_file_that_is_cut_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "g")
    with pmarray.open_group(tmp_path / "g", mode="r") as group:
        reads = read_pieces(group["x"], COLUMNS, ROOM)
        next(reads)
        (file,) = (tmp_path / "g" / "data").iterdir()
        os.truncate(file, 2 << 20)
        with pytest.raises(DamagedError, match="truncated"):
            list(reads)


def test_the_memory_for_what_comes_is_limited(tmp_path: Path) -> None:
    make(tmp_path / "g")
    with pmarray.open_group(tmp_path / "g", mode="r+") as group:
        reads = read_pieces(group["x"], COLUMNS, 1 << 20)
        addresses = {block.ctypes.data for block in reads}
    assert len(addresses) <= (1 << 20) // (SHAPE[0] * 4)


@pytest.mark.parametrize("url", ["dram:", "memmap:g", "zarr:g"])
def test_read_each_is_indexing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.arange(60.0).reshape(5, 4, 3)
    indices: list[Any] = [
        np.s_[1:3],
        np.s_[..., -1],
        np.s_[2, 1, 0],
        np.s_[::-2, None, 3],
        np.s_[5:],
        ...,
    ]
    with pmarray.open_group(url) as group:
        group["x"] = values
        for x, expected in ((group["x"], values), (group["x"].T, values.T)):
            picked = [one for one in indices if one != np.s_[2, 1, 0]] + [np.s_[2, 1, 0]]
            for index, block in zip(picked, x.read_each(picked, memory=100), strict=True):
                np.testing.assert_array_equal(block, expected[index])
        with pytest.raises(SelectionError):
            x.read_each([[0, 1]])
        assert [b.item() for b in group.create("y", (), data=3.0).read_each([()])] == [3.0]
