"""Files grow behind, ahead of who appends to them, and what was not needed is given back."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._system import osops
from pmarray.backends.files import region
from pmarray.backends.files.region import BEHIND, FileRegion
from pmarray.errors import DamagedError, LayoutError, StorageError
from tests.sampling import examples

ROWS = 2048  # 16 KiB a column
STEP = 64 << 10


@pytest.fixture(autouse=True)
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region, "_GROW_MIN_BYTES", STEP)
        yield


def has_grown() -> None:
    """Wait until everything that was asked for is done."""
    BEHIND.submit(lambda: None).result()


def data_file(directory: Path) -> Path:
    (found,) = (directory / "data").iterdir()
    return found


def exact(array: pmarray.PMArray) -> int:
    return BLOCK_BYTES + -(-array.nbytes // BLOCK_BYTES) * BLOCK_BYTES


def open_empty(directory: Path) -> pmarray.PMArray:
    return pmarray.open(directory, (ROWS, 0), layout="col")


class Allocations:
    """Who has allocated, and how much; `failing` and `held` are for what happens behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behind: list[int] = []
        self.waited_for: list[int] = []
        self.failing: int | None = None
        self.entered, self.held = threading.Event(), threading.Event()
        self.held.set()
        real = osops.fallocate

        def fallocate(fd: int, offset: int, nbytes: int) -> None:
            if threading.current_thread().name != "pmarray-growing":
                self.waited_for.append(nbytes)
            else:
                self.entered.set()
                assert self.held.wait(30)
                self.behind.append(nbytes)
                if self.failing is not None:
                    real(fd, offset, nbytes // 2)  # as a disk does that is full in the middle
                    raise OSError(self.failing, os.strerror(self.failing))
            real(fd, offset, nbytes)

        monkeypatch.setattr(osops, "fallocate", fallocate)


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> Allocations:
    return Allocations(monkeypatch)


def test_who_appends_does_not_allocate(allocations: Allocations, tmp_path: Path) -> None:
    with open_empty(tmp_path) as array:
        for i in range(100):
            if i == 2:
                allocations.waited_for.clear()
            array.append(np.full(ROWS, i))
            has_grown()
            assert data_file(tmp_path).stat().st_size - exact(array) <= 2 * max(
                STEP, array.nbytes // 2
            )
        assert allocations.waited_for == []
        assert sum(allocations.behind) >= 90 * 8 * ROWS
        assert (array[:] == np.arange(100)).all()
    assert data_file(tmp_path).stat().st_size == exact(array)


def test_what_is_filled_at_one_go_does_not_grow(allocations: Allocations, tmp_path: Path) -> None:
    with open_empty(tmp_path) as array:
        array.resize((ROWS, 300))
        array.resize((ROWS, 601))
        has_grown()
        assert allocations.behind == []


def test_a_file_that_cannot_grow_behind(allocations: Allocations, tmp_path: Path) -> None:
    """Whoever needs the room gets it, or is told; and the disk is asked once, not at each line."""
    allocations.failing = errno.ENOSPC
    with open_empty(tmp_path) as array:
        for i in range(40):
            array.append(np.full(ROWS, i))
            has_grown()
            assert data_file(tmp_path).stat().st_size <= exact(array) + max(STEP, array.nbytes // 4)
        assert 0 < len(allocations.behind) <= len(allocations.waited_for) < 15
        assert (array[:] == np.arange(40)).all()
    assert data_file(tmp_path).stat().st_size == exact(array)


def test_the_last_of_a_disk_is_left_to_who_needs_it(
    allocations: Allocations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = os.statvfs(tmp_path)
    little = os.statvfs_result((*found[:4], STEP // found.f_frsize, *found[5:]))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: little)
    with open_empty(tmp_path) as array:
        for i in range(20):
            array.append(np.full(ROWS, i))
            has_grown()
        assert allocations.behind == []


def test_who_needs_room_that_is_being_made_waits_for_it(
    allocations: Allocations, tmp_path: Path
) -> None:
    allocations.held.clear()
    with open_empty(tmp_path) as array:
        for i in range(2):
            array.append(np.full(ROWS, i))
        allocations.waited_for.clear()

        def go_on() -> None:
            for i in range(2, 9):
                array.append(np.full(ROWS, i))

        thread = threading.Thread(target=go_on)
        thread.start()
        assert allocations.entered.wait(30)
        allocations.held.set()
        thread.join(30)
        assert (array[:] == np.arange(9)).all()


def test_a_file_that_grows_while_it_is_written_to_was_not_cut(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The writer asks how long it is, another thread makes it longer, the writer compares."""
    path = tmp_path / "x.npy"
    path.write_bytes(bytes(2 * BLOCK_BYTES))
    found = FileRegion(str(path), BLOCK_BYTES, writable=True, aligned=True)
    real, growths = os.fstat, iter([200 * STEP])

    def fstat(fd: int) -> os.stat_result:
        before = real(fd)
        if fd == found._fd and threading.current_thread() is threading.main_thread():
            for nbytes in growths:
                thread = threading.Thread(target=found.reserve, args=(nbytes,))
                thread.start()
                thread.join()
                break
        return before

    monkeypatch.setattr(os, "fstat", fstat)
    found.write(0, [memoryview(bytearray(BLOCK_BYTES))])
    assert found.capacity >= 200 * STEP
    monkeypatch.undo()
    os.truncate(path, 2 * BLOCK_BYTES)
    with pytest.raises(DamagedError, match="was cut by another program"):
        found.write(0, [memoryview(bytearray(BLOCK_BYTES))])
    found.close()


def test_closing_waits_for_growth_and_cuts_the_file(
    allocations: Allocations, tmp_path: Path
) -> None:
    """Its descriptor would be somebody else's by then."""
    allocations.held.clear()
    array = open_empty(tmp_path)
    for i in range(5):
        array.append(np.full(ROWS, i))
    assert allocations.entered.wait(30)
    thread = threading.Thread(target=array.close)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    allocations.held.set()
    thread.join(30)
    assert not thread.is_alive()
    assert data_file(tmp_path).stat().st_size == exact(array)
    assert not [finding for finding in pmarray.verify(tmp_path) if finding.damaged]


def test_growth_that_comes_too_late_touches_no_other_file(
    allocations: Allocations, tmp_path: Path
) -> None:
    gate = threading.Event()
    BEHIND.submit(lambda: gate.wait(30))
    array = open_empty(tmp_path / "a")
    for i in range(5):
        array.append(np.full(ROWS, i))
    array.close()
    fds = [os.open(tmp_path / f"{i}", os.O_CREAT | os.O_RDWR) for i in range(20)]
    gate.set()
    has_grown()
    assert allocations.behind == []
    for fd in fds:
        assert os.fstat(fd).st_size == 0
        os.close(fd)
    assert data_file(tmp_path / "a").stat().st_size == exact(array)


def test_the_rest_of_a_growth_is_used_by_the_next_writer(
    allocations: Allocations, tmp_path: Path
) -> None:
    """Of a process that was killed while, or after, its file grew; and it holds no old bytes."""
    child = f"""
import os, sys, numpy as np, pmarray
from pmarray.backends.files import region
region._GROW_MIN_BYTES = {STEP}
array = pmarray.open(sys.argv[1], ({ROWS}, 0), layout="col")
for i in range(30):
    with array.group.transaction():
        array.append(np.full({ROWS}, i))
with array.group.transaction():
    array.append(np.full(({ROWS}, 2), 7.0))
    array.group._session.cache.flush()
    region.BEHIND.submit(lambda: None).result()
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    done = subprocess.run([sys.executable, "-c", child, str(tmp_path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    long = data_file(tmp_path).stat().st_size
    with pmarray.open(tmp_path, mode="r") as reader:
        assert reader.shape == (ROWS, 30)
    assert not [finding for finding in pmarray.verify(tmp_path) if finding.damaged]
    with pmarray.open(tmp_path, mode="r+") as array:
        assert array.shape == (ROWS, 30)
        assert long > exact(array)
        array.resize((ROWS, 33))
        assert (array[:, 30:] == 0).all()
        assert (array[:, :30] == np.arange(30)).all()
    assert data_file(tmp_path).stat().st_size == exact(array)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_fork_does_not_wait_for_the_thread_that_grew(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    one = FileRegion(str(path), 0, writable=True, aligned=False)
    with one._growing:  # as that thread does
        pid = os.fork()
        if not pid:
            signal.alarm(10)
            one.close()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    one.close()


@examples(0.25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["append", "resize", "roll back", "flush", "reopen", "view"]),
            st.integers(1, 6),
            st.sampled_from([None, errno.ENOSPC, errno.EIO]),
        ),
        max_size=12,
    ),
    wait=st.booleans(),
)
def test_items_are_what_was_written_while_the_file_grows(
    steps: list[tuple[str, int, Any]], wait: bool
) -> None:
    model = np.empty((ROWS, 0), order="F")
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory, allocations = Path(name), Allocations(patch)
        array = open_empty(directory)
        views = []
        for what, count, error in steps:
            allocations.failing = error
            values = np.arange(ROWS * count, dtype="f8").reshape(ROWS, count, order="F")
            values += model.shape[1]
            if what == "append":
                for column in values.T:
                    array.append(column)
                model = np.hstack([model, values])
            elif what == "resize":
                lines = max(0, model.shape[1] + count - 3)
                array.resize((ROWS, lines))
                more = np.zeros((ROWS, max(0, lines - model.shape[1])))
                model = np.hstack([model[:, :lines], more])
            elif what == "roll back":
                with pytest.raises(KeyError), array.group.transaction():
                    for column in values.T:
                        array.append(column)
                    raise KeyError
            elif what == "flush":
                array.flush()
            elif what == "view":
                array.flush()
                views.append((array.view[:, : model.shape[1]], model.copy()))
            else:
                views.clear()
                array.close()
                assert data_file(directory).stat().st_size == exact(array)
                array = pmarray.open(directory, mode="r+")
            if wait:
                has_grown()
            np.testing.assert_array_equal(array[...], model)
        views.clear()
        array.close()
        assert not [finding for finding in pmarray.verify(directory) if finding.damaged]
        with pmarray.open(directory, mode="r") as again:
            np.testing.assert_array_equal(again[...], model)


def test_growth_that_fails_in_front_is_told(
    allocations: Allocations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open_empty(tmp_path) as array:
        for i in range(8):
            array.append(np.full(ROWS, i))
        has_grown()

        def full(fd: int, offset: int, nbytes: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(osops, "fallocate", full)
        with pytest.raises(StorageError, match="nothing was changed"):
            for i in range(8, 100):
                array.append(np.full(ROWS, i))
        count = array.shape[1]
        assert 8 < count < 100
        assert (array[:] == np.arange(count)).all()
    assert data_file(tmp_path).stat().st_size == exact(array)


COUNTS = [np.int64(2), np.uint8(2), np.array(2), 2]
NO_COUNTS = [2.0, np.float64(2), "2", None, [2]]


@pytest.mark.parametrize("scheme", ["dram", "memmap", "zarr"])
@pytest.mark.parametrize("in_transaction", [False, True])
def test_numbers_of_lines_of_any_kind(scheme: str, in_transaction: bool, tmp_path: Path) -> None:
    """What is no number of lines changes nothing; any integer is one, and metadata hold it."""
    url = f"{scheme}:{tmp_path}/g"
    with (
        pmarray.open(url, (3, 0), "float32", layout="col") as array,
        contextlib.ExitStack() as done,
    ):
        array.append([0, 0, 0])
        array.flush()
        if in_transaction:
            done.enter_context(array.transaction())
        for count in NO_COUNTS:
            with pytest.raises(TypeError), array.appending(count):  # type: ignore[arg-type]
                pass
            with pytest.raises((TypeError, LayoutError)):
                array.resize((3, count))  # type: ignore[arg-type]
        assert array.shape == (3, 1)
        for count in COUNTS:
            with array.appending(count) as new:  # type: ignore[arg-type]
                new[...] = 1
            array.resize(np.add(array.shape, (0, 1)))  # type: ignore[arg-type]
        assert array.shape == (3, 13)
        assert all(type(extent) is int for extent in array.shape)
        if scheme == "dram":
            return
    with pmarray.open(url, mode="r") as array:
        np.testing.assert_array_equal(array[0], [0] + [1, 1, 0] * 4)
