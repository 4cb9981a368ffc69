"""Pieces that are looked at where they lie: what a look sees, whatever happens meanwhile."""

from __future__ import annotations

import threading
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._streams.reading import Sight, show_pieces
from pmarray._system.populating import can_populate
from pmarray.backends.files import kept
from pmarray.errors import ClosedError, DamagedError, LayoutError, SnapshotExpiredError
from tests.machine import forget_files

SHAPE = (70_000, 24)
"""Columns of more than 64 KiB, which are padded; 6.7 MB in all."""
COLUMNS = [(slice(0, SHAPE[0], 1), slice(j, j + 1, 1)) for j in range(SHAPE[1])]
ROOM = 4 << 20


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, values: np.ndarray) -> Path:
    """A group whose file is in memory."""
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("x", SHAPE, "float32", layout="col")[...] = values
    (file,) = (tmp_path / "g" / "data").iterdir()
    file.read_bytes()
    return tmp_path / "g"


@pytest.fixture
def mapping(counting: None) -> None:
    """Skip the test where files are not looked at in a mapping."""
    if not can_populate():
        pytest.skip("the kernel has no MADV_POPULATE_READ, which is of Linux 5.14")


def mapped(array: Any) -> np.ndarray:
    """What the mapping of an array's file has."""
    items: np.ndarray = array._storage._warm._items
    return items


def looks(sight: Sight) -> list[np.ndarray]:
    return [block.copy() for block in sight.looks()]


@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_in_memory_is_not_copied(
    place: Path, values: np.ndarray, mode: pmarray.Mode
) -> None:
    with pmarray.open_group(place, mode=mode) as group:
        x = group["x"]
        x[0, 0]  # who does not hold the lock has to have read once
        for j, sight in enumerate(show_pieces(x, COLUMNS, ROOM)):
            (block,) = sight.looks()
            assert np.array_equal(block[:, 0], values[:, j])
            assert np.shares_memory(block, mapped(x))
            assert not block.flags.writeable


def test_dram_is_not_copied_either() -> None:
    x = pmarray.open("dram:", shape=(5, 4), layout="col", fill_value=3)
    (sight,) = show_pieces(x, [(slice(0, 5), slice(1, 3))], ROOM)
    assert np.shares_memory(sight.block, np.asarray(x))
    assert (sight.block == 3).all()


@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize("look", ["transposed", "sliced", "of one axis"])
def test_a_view_looks_its_own_way(place: Path, values: np.ndarray, look: str) -> None:
    with pmarray.open_group(place, mode="r+") as group:
        x = group["x"]
        x[0, 0]
        view, expected = {
            "transposed": (x.T, values.T),
            "sliced": (x.view[:, 20:2:-3], values[:, 20:2:-3]),
            "of one axis": (x.view[:, 5], values[:, 5]),
        }[look]
        whole = tuple(slice(0, n, 1) for n in view.shape)
        (sight,) = show_pieces(view, [whole], ROOM)
        (block,) = sight.looks()
        assert np.array_equal(block, expected)
        assert np.shares_memory(block, mapped(x))


def test_what_is_not_in_memory_is_read(
    place: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "residents", lambda memory: np.zeros(1, bool))
    with pmarray.open_group(place, mode="r+") as group:
        for j, sight in enumerate(show_pieces(group["x"], COLUMNS, ROOM)):
            assert np.array_equal(sight.block[:, 0], values[:, j])
            assert not np.shares_memory(sight.block, mapped(group["x"]))


def test_where_the_system_does_not_tell_nothing_is_in_memory(
    place: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "is_told", lambda fd: False)
    with pmarray.open_group(place, mode="r+") as group:
        (sight,) = show_pieces(group["x"], COLUMNS[:1], ROOM)
        assert np.array_equal(sight.block[:, 0], values[:, 0])
        assert not np.shares_memory(sight.block, mapped(group["x"]))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, mapping: None) -> None:
    """A system that reads far ahead."""
    monkeypatch.setattr(kept, "read_ahead_nbytes", lambda device: 8 << 20)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_not_in_memory_comes_in_place(
    place: Path, values: np.ndarray, mode: pmarray.Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_files(place)
    fetched, fetch = [], kept.KeptMapping.fetch

    def counted(one: kept.KeptMapping, reach: Any) -> None:
        fetched.append(reach)
        fetch(one, reach)

    monkeypatch.setattr(kept.KeptMapping, "fetch", counted)
    with pmarray.open_group(place, mode=mode) as group:
        x = group["x"]
        arrival = x._storage.arriving(COLUMNS[-1])
        if arrival is None or arrival.is_at_hand():
            pytest.skip("this file system keeps everything in memory")
        in_place = 0
        for j, sight in enumerate(show_pieces(x, COLUMNS, ROOM)):
            for block in sight.looks():
                assert np.array_equal(block[:, 0], values[:, j])
                in_place += np.shares_memory(block, mapped(x))
        assert len(fetched) == len(set(fetched))
        assert len(fetched) >= SHAPE[1] - 2
        assert in_place >= SHAPE[1] - 2
        np.testing.assert_allclose(x.sum(axis=0), values.sum(axis=0), rtol=1e-3)


@pytest.mark.usefixtures("far")
def test_where_what_came_is_gone_again_it_is_read(
    place: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_files(place)
    monkeypatch.setattr(kept.KeptMapping, "fetch", lambda one, reach: None)
    with pmarray.open_group(place, mode="r") as group:
        for j, sight in enumerate(show_pieces(group["x"], COLUMNS, ROOM)):
            for block in sight.looks():
                assert np.array_equal(block[:, 0], values[:, j])


@pytest.mark.usefixtures("far")
def test_a_file_that_is_cut_while_pieces_come_is_an_error(place: Path) -> None:
    forget_files(place)
    (file,) = (place / "data").iterdir()
    with pmarray.open_group(place, mode="r") as group:
        sights = show_pieces(group["x"], COLUMNS, ROOM)
        looks(next(sights))
        with file.open("r+b") as opened:
            opened.truncate(2 << 20)
        with pytest.raises(DamagedError, match="truncated"):
            for sight in sights:
                looks(sight)


@pytest.mark.usefixtures("mapping")
def test_no_more_pages_stay_than_the_cache_may_have(place: Path, values: np.ndarray) -> None:
    with pmarray.open_group(place, mode="r+", cache="1 MiB") as group:
        x = group["x"]
        for _ in range(2):
            assert x.sum(0) == pytest.approx(values.sum(0, dtype=float), abs=1)
        assert x._storage._warm._mapped._count * 4096 <= 2 << 20  # type: ignore[attr-defined]


def test_a_writer_sees_what_it_has_written_and_not_committed(
    place: Path, values: np.ndarray
) -> None:
    with pmarray.open_group(place) as group:
        x = group["x"]
        assert x.sum() == pytest.approx(values.sum(dtype=float), abs=1)
        x[:, 3] = values[:, 3] = 50
        assert x.max() == 50
        with pytest.raises(RuntimeError), group.transaction():
            x[:, 4] = 90
            assert x.max() == 90
            raise RuntimeError
        assert x.max() == 50
        assert np.allclose(x @ np.ones(SHAPE[1], "f4"), values.sum(1), atol=1e-4)


@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize("when", ["while it looks", "before it looks"])
def test_a_reader_looks_again_where_something_was_committed(
    place: Path, values: np.ndarray, when: str
) -> None:
    with (
        pmarray.open_group(place, mode="r") as reader,
        pmarray.open_group(place) as writer,
    ):
        reader["x"][0, 0]
        for j, sight in enumerate(show_pieces(reader["x"], COLUMNS, ROOM)):
            seen: list[np.ndarray] = []
            if j == 2 and when == "before it looks":
                change(writer, j)
            for block in sight.looks():
                if j == 2 and not seen and when == "while it looks":
                    change(writer, j)
                seen.append(block.copy())
            assert len(seen) == (2 if j == 2 else 1)
            assert np.array_equal(seen[-1][:, 0], values[:, j])
            if j == 2:
                assert (seen[0] == 7).all()  # the commit came to the mapping


def change(writer: pmarray.Group, j: int) -> None:
    with writer.transaction():
        writer["x"][:, j : j + 8] = 7


def test_a_block_that_others_might_change_is_copied(place: Path, values: np.ndarray) -> None:
    with (
        pmarray.open_group(place, mode="r") as reader,
        pmarray.open_group(place) as writer,
    ):
        reader["x"][0, 0]
        (sight,) = show_pieces(reader["x"], COLUMNS[:1], ROOM)
        block = sight.block
        change(writer, 0)
        assert np.array_equal(block[:, 0], values[:, 0])


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("cold", [False, True])
def test_a_reader_computes_of_one_commit_beside_a_writer_at_full_speed(
    place: Path, cold: bool
) -> None:
    """Every commit makes all items equal; whoever mixes two sees that."""
    over = threading.Event()

    def write() -> None:
        with pmarray.open_group(place) as writer:
            for k in range(10_000):
                with writer.transaction():
                    writer["x"][...] = k
                if over.is_set():
                    return

    thread = threading.Thread(target=write)
    with pmarray.open_group(place) as writer, writer.transaction():
        writer["x"][...] = 0
    thread.start()
    try:
        seen: set[float] = set()
        with pmarray.open_group(place, mode="r") as reader:
            x = reader["x"]
            # A machine that is busy elsewhere lets no commit come for a while.
            for turn in takewhile(lambda turn: turn < 30 or len(seen) < 2, range(10_000)):
                try:
                    if cold:  # one look: beside a device that is busy, a commit is soon gone
                        forget_files(place)
                        reader.refresh()
                    product = x @ np.ones(SHAPE[1], "f4")
                    low = product[0] / SHAPE[1]
                    high = low if cold else x.max()
                    total = product.sum(dtype=float) if cold else x.sum(dtype=float)
                except SnapshotExpiredError:
                    reader.refresh()
                    continue
                assert low == high
                assert (product == low * SHAPE[1]).all()
                assert total == float(low) * SHAPE[0] * SHAPE[1]  # more than a float32 holds
                seen.add(float(low))
                if turn % 3 == 0:
                    reader.refresh()
    finally:
        over.set()
        thread.join()
    assert len(seen) > 1


def test_an_array_that_shrinks_or_closes_ends_the_looks(place: Path) -> None:
    group = pmarray.open_group(place)
    sights = show_pieces(group["x"], COLUMNS, ROOM)
    looks(next(sights))
    group["x"].resize((SHAPE[0], 12))
    with pytest.raises(LayoutError, match="shrunk"):
        for sight in sights:
            looks(sight)
    sights = show_pieces(group["x"], COLUMNS[:12], ROOM)
    looks(next(sights))
    group.close()
    with pytest.raises(ClosedError):
        looks(next(sights))


def test_a_file_that_was_cut_is_an_error(place: Path) -> None:
    with pmarray.open_group(place, mode="r") as group:
        x = group["x"]
        x[0, 0]
        (file,) = (place / "data").iterdir()
        with file.open("r+b") as opened:
            opened.truncate(2 << 20)
        with pytest.raises(DamagedError, match="truncated"):
            x.sum()


def test_nan_is_left_out_without_writing_to_the_array(place: Path, values: np.ndarray) -> None:
    with pmarray.open_group(place) as group:
        x = group["x"]
        x[5, :] = values[5, :] = np.nan
        group.flush()
        assert np.array_equal(np.nanmax(x, 0), np.nanmax(values, 0))
        assert np.isnan(x[5, 3])
    y = pmarray.open("dram:", shape=(3,), fill_value=np.nan)
    assert np.nansum(y) == 0
    assert np.isnan(y[1])
