"""What is read without a turn: right at every index, and only as long as nothing has happened."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray import errors
from pmarray._geometry.reach import Reach
from pmarray.backends.files.kept import KeptMapping
from tests.sampling import examples

SHAPE = (1500, 3, 2)


@pytest.fixture(scope="module", params=["row", "col"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    url = f"memmap:{tmp_path_factory.mktemp('near')}/a"
    with pmarray.open(url, SHAPE, "int32", layout=request.param) as array:
        array[...] = np.arange(9000).reshape(SHAPE)
    with pmarray.open(url, mode="r") as array:
        array[0]  # a reader has to look once before it knows what the counter says
        array[0]
        yield array


@st.composite
def one_index(draw: st.DrawFn, extent: int) -> Any:
    number = st.integers(-extent - 2, extent + 1)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(number)
    if kind == 1:
        return draw(st.sampled_from([np.int16, np.uint64, np.intp]))(abs(draw(number)))
    if kind == 2:
        steps = st.none() | st.integers(-3, 3).filter(bool)
        return slice(draw(st.none() | number), draw(st.none() | number), draw(steps))
    return draw(st.sampled_from([True, None, ..., [0, 1], np.True_, 1.5, slice(None), "f"]))


@given(data=st.data())
@examples(2)
def test_every_index_means_what_it_means_to_numpy(reader: Any, data: st.DataObject) -> None:
    parts = tuple(data.draw(one_index(n)) for n in SHAPE[: data.draw(st.integers(0, 3))])
    index = parts[0] if len(parts) == 1 and data.draw(st.booleans()) else parts
    whole = np.arange(9000, dtype="int32").reshape(SHAPE, order="C")
    try:
        expected = whole[index]
    except IndexError:
        with pytest.raises(IndexError):
            reader[index]
        return
    for _ in range(2):  # the second time, the pages are known
        found = reader[index]
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        if isinstance(found, np.ndarray):
            assert found.flags.writeable


@pytest.mark.usefixtures("counting")
def test_it_is_taken(reader: Any) -> None:
    near = reader._storage.near
    assert near((7, 1, 0)) == 44
    assert (near((slice(3, 9, 2), 1)) == reader[3:9:2, 1]).all()
    assert near((7, np.int64(1), -2)) == 44
    assert near((7, 1, 2)) is near((7, 1, True)) is near(...) is None


WAYS: list[Callable[[Any], Any]] = [operator.itemgetter((5, 1)), lambda a: a[5:6, :].sum() / 2]


@pytest.mark.parametrize("look", WAYS)
def test_nothing_that_happens_is_missed(look: Callable[[Any], Any], tmp_path: Path) -> None:
    # The cache is too small to have what is looked at, which is in the file then.
    group = pmarray.open_group(f"memmap:{tmp_path}/g", cache="64 KiB")
    array = group.create("x", (20_000, 2), layout="col")

    def settle(value: float) -> None:
        array[...] = value
        group.flush()
        for _ in range(3):
            assert look(array) == value
        assert array._storage.near is not None
        assert array._storage.near((5, 1)) is not None

    settle(1)
    array[5] = 2
    assert look(array) == 2
    settle(3)
    with group.transaction():
        array[5] = 4
        assert look(array) == 4
    assert look(array) == 4
    settle(5)
    with pytest.raises(ZeroDivisionError), group.transaction():
        array[...] = 6
        assert look(array) == 6
        1 / 0  # noqa: B018
    assert look(array) == 5
    settle(7)
    array.resize((20_000, 1))
    with pytest.raises(IndexError):
        array[5, 1]
    array.resize((20_000, 2))
    assert look(array) in (0, 3.5)
    settle(8)
    array.append(np.ones(20_000))
    assert array[5, 2] == 1
    array.resize((20_000, 2))
    settle(9)
    other = group.create("y", (2,))
    del group["x"]
    assert other[1] == 0
    with pytest.raises(errors.ArrayNotFoundError):
        look(array)
    array = group.create("x", (20_000, 2), layout="col")
    settle(10)
    with array.writing(np.s_[:100, 1]) as lent:
        lent[...] = 11
    assert array[5, 1] == 11
    group.close()
    with pytest.raises(errors.ClosedError):
        look(array)


@pytest.mark.parametrize("look", WAYS)
def test_a_reader_at_full_speed_stays_at_its_commit(
    look: Callable[[Any], Any], tmp_path: Path
) -> None:
    url = f"memmap:{tmp_path}/g"
    wrong: list[Any] = []
    seen: set[Any] = set()
    stop = threading.Event()

    def read() -> None:
        with pmarray.open(url, mode="r") as reader:
            value: Any = None
            while not stop.is_set():
                try:
                    for _ in range(50):
                        found = look(reader)
                        value = found if value is None else value
                        if found != value:
                            wrong.append((value, found))
                    assert value is not None
                    seen.add(float(value))
                except errors.SnapshotExpiredError:
                    pass
                reader.group.refresh()
                value = None

    with pmarray.open(url, (2000, 2), layout="col") as writer:
        writer[...] = 0
        writer.flush()
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(1, 2000):
            if i > 30 and len(seen) > 2:
                break
            with writer.transaction(wait=i % 4 == 0):
                writer[...] = i
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 2


def test_a_writers_own_threads_read_what_was_written_before(tmp_path: Path) -> None:
    with pmarray.open(f"memmap:{tmp_path}/g", (4000, 2), layout="col", cache="64 KiB") as array:
        array[...] = 0
        done = 0
        wrong: list[Any] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                before = done
                found = array[3000, 1]
                if not before <= found <= done + 1:
                    wrong.append((before, found, done))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(1, 400):
            array[3000, 1] = i
            done = i
            if i % 7 == 0:
                array.flush()
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_child_of_a_fork_does_not_read_through_its_parent(tmp_path: Path) -> None:
    url = f"memmap:{tmp_path}/g"
    with pmarray.open(url, (20_000, 2), layout="col", cache="64 KiB") as array:
        array[...] = 1
        array.flush()
        assert array[5, 1] == array[5, 1] == 1
        assert array._storage.near is not None
        child = os.fork()
        if not child:
            try:
                array[5, 1]
            except errors.ClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert array[5, 1] == 1


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("layout", ["row", "col"])
def test_long_runs_and_lines_across_are_at_hand_the_second_time(
    layout: Any, tmp_path: Path
) -> None:
    url = f"memmap:{tmp_path}/g"
    numbers = np.arange(1024.0 * 512).reshape(1024, 512)
    with pmarray.open(url, numbers.shape, layout=layout) as array:
        array[...] = numbers
    with pmarray.open(url, mode="r") as array:
        for _ in range(3):
            for index in (np.s_[:, 7], np.s_[9], np.s_[::2, -1]):
                assert (array[index] == numbers[index]).all()
        near = array._storage.near
        assert near is not None
        assert all(near(i) is not None for i in ((slice(None), 7), 9))


def test_a_mapping_does_not_know_more_than_it_should(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 4096)
    out = memoryview(bytearray(64 << 10))
    with path.open("rb") as file:
        mapping = KeptMapping(file.fileno(), str(path), 0, 1 << 20)
        mapping.budget_bytes = 256 << 10
        known = []
        for start in range(0, 1 << 20, 64 << 10):
            mapping.read_into(start, out)
            assert out == bytes(range(256)) * 256
            known.append(mapping.known.count(1) * 4096)
        assert known[0] == 64 << 10
        assert max(known) == 256 << 10
        assert mapping.ask(Reach(1 << 19, 8192, 8192, 1, 8192))
        assert mapping.is_crowded()
        mapping.let_go(Reach(0, 1 << 19, 1 << 19, 1, 1 << 19))
        assert not mapping.is_crowded()
