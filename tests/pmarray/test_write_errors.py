"""Writes that fail: the caller is told, nothing is lost that memory holds, the lock is given up."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._system import osops
from pmarray.errors import (
    GroupLockedError,
    PoisonedError,
    StorageError,
    WriteBehindError,
)

ROWS = 30_000  # one column is 120 kB: padded, and written directly


@pytest.fixture
def array(scratch: Path) -> Iterator[pmarray.PMArray]:
    """(ROWS, 8) float32 of ones, durable; a chunk is a column, half of the budget is four."""
    url = scratch / "g"
    made = pmarray.open(url, (ROWS, 8), "float32", layout="col", cache="1 MiB", chunks=1)
    made[...] = 1
    made.flush()
    yield made
    if not made.group.closed:
        made.close()


def wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 5 seconds")


def write_behind(array: pmarray.PMArray, calls: Any, column: int, value: float) -> None:
    """Write one whole column, which leaves at once, and wait until it has been tried."""
    before = calls.names().count("pwritev")
    array[:, column] = value
    wait_for(lambda: calls.names().count("pwritev") > before)
    array.group._session.cache.lock.acquire()  # the writer keeps its books under it
    array.group._session.cache.lock.release()


def unlocked(array: pmarray.PMArray) -> bool:
    """Whether another handle may write."""
    try:
        with pmarray.open(path_of(array), mode="r+") as again:
            again[0, 0] = again[0, 0]
    except GroupLockedError:
        return False
    return True


def path_of(array: pmarray.PMArray) -> Path:
    return Path(array.group.url.removeprefix("memmap:"))


# -- injected ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["read", "write", "append", "flush", "lend", "resize"])
def test_a_failure_reaches_the_next_operation_once(
    array: pmarray.PMArray, calls: Any, code: int, operation: str
) -> None:
    calls.failures["pwritev"] = [code]
    write_behind(array, calls, 3, 5)
    acts: dict[str, Callable[[], object]] = {
        "read": lambda: array[0, 0],
        "write": lambda: array.__setitem__((0, 0), 1),
        "append": lambda: array.append(np.zeros(ROWS)),
        "flush": array.flush,
        "lend": lambda: array.writing(np.s_[:, 0]).__enter__(),
        "resize": lambda: array.resize((ROWS, 9)),
    }
    wait_for(lambda: array.group._session.cache.health.unreported is not None)
    with pytest.raises(WriteBehindError, match="still in memory") as caught:
        acts[operation]()
    assert caught.value.errno == code
    assert isinstance(caught.value, OSError)
    assert str(path_of(array)) in str(caught.value.filename)
    assert array.shape == (ROWS, 8)
    # Once, and nothing was lost.
    assert (array[:, 3] == 5).all()
    array.flush()
    array.close()
    with pmarray.open(path_of(array), mode="r") as again:
        assert (again[:, 3] == 5).all()
        assert (again[:, :3] == 1).all()


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_a_rollback_forgets_what_could_not_be_written(
    scheme: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wants it any more, so that the next reader is not told of it."""
    url = f"{scheme}:{scratch}/rolled-back"
    with pmarray.open(url, (200_000,), cache="4 MiB", chunks=10_000) as array:
        array[...] = 1
        array.flush()
        over = threading.Event()

        def full(*_: Any) -> int:
            over.wait(5)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(KeyError), array.transaction():
            with monkeypatch.context() as patch:
                patch.setattr(osops, "pwritev", full)
                # Less than half of the cache, then more: it leaves behind the last operation.
                array[...] = 2
                array.append(np.full(100_000, 3.0))
                over.set()
                wait_for(lambda: array.group._session.cache.health.unreported is not None)
            raise KeyError
        assert array[:3].tolist() == [1, 1, 1]
        assert array.shape == (200_000,)
        with array.transaction():
            array[:1] = 5
    with pmarray.open(url, mode="r") as array:
        assert array[:3].tolist() == [5, 1, 1]


def test_nothing_is_lost_while_the_disk_stays_full(array: pmarray.PMArray, calls: Any) -> None:
    """More is written than the budget holds: writes are refused, not forgotten."""
    calls.always["pwritev"] = errno.ENOSPC
    model = np.ones(8)
    refused = 0
    for value, column in enumerate([*range(8), *range(8)], 10):
        for _ in range(3):
            try:
                array[:, column] = value
            except StorageError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                refused += 1
            else:
                model[column] = value
                break
    assert refused
    for _ in range(3):
        with pytest.raises(WriteBehindError):
            array.flush()
    del calls.always["pwritev"]
    try:
        array.flush()
    except WriteBehindError:
        array.flush()  # the failure of before was not told yet
    assert (array[ROWS - 1] == model).all()
    array.close()
    with pmarray.open(path_of(array), mode="r") as again:
        assert (again[...] == model).all()


@pytest.mark.parametrize("cache", [0, "1 MiB"])
@pytest.mark.parametrize("direct", ["yes", "no"])
@pytest.mark.parametrize("short", [1, 1000, 4096, 5000, 70_000])
def test_short_writes_go_on(scratch: Path, calls: Any, cache: Any, direct: str, short: int) -> None:
    if short == 1 and direct == "yes":
        short = 512  # the kernel takes whole sectors, or nothing
    rows = 100 if short == 1 else 20_000
    url = f"{scratch}/g?direct={direct}"
    with pmarray.open(url, (rows, 3), "float64", layout="col", cache=cache) as array:
        array.flush()
        calls.short = short
        array[...] = np.arange(rows)[:, None]
        array.flush()
        calls.short = None
    with pmarray.open(url, mode="r") as array:
        assert (array[...] == np.arange(rows)[:, None]).all()


def test_interrupted_writes_go_on(array: pmarray.PMArray, calls: Any) -> None:
    calls.failures["pwritev"] = [errno.EINTR] * 5
    array[...] = 2
    array.flush()
    assert not calls.failures["pwritev"]
    array.close()
    with pmarray.open(path_of(array), mode="r") as again:
        assert (again[...] == 2).all()


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(
    array: pmarray.PMArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(osops, "pwritev", lambda *args: 0)
        array[0, 0] = 2
        with pytest.raises(StorageError, match="took no bytes"):
            array.flush()
    array.flush()


@pytest.mark.parametrize("cache", [0, "1 MiB"])
def test_a_failed_barrier_poisons_the_group(scratch: Path, calls: Any, cache: Any) -> None:
    array = pmarray.open(scratch / "g", (100, 8), "float64", cache=cache)
    array[...] = 1
    array.flush()
    array[5] = 2
    calls.failures["fdatasync"] = [errno.EIO]
    with pytest.raises(PoisonedError, match="open it again"):
        array.flush()
    # The kernel may call lost pages clean now: trying again would prove nothing.
    for act in (
        lambda: array[0],
        lambda: array.__setitem__(0, 1),
        array.flush,
        lambda: array.group.create("y", 3),
        lambda: array.group.attrs.update(a=1),
        lambda: array.append(np.ones((1, 8))),
    ):
        with pytest.raises(PoisonedError):
            act()
    assert not unlocked(array)
    array.close()
    assert array.group.closed
    assert unlocked(array)
    with pmarray.open(scratch / "g", mode="r") as again:
        assert (again[:5] == 1).all()


def test_close_tells_of_a_failure_and_writes_what_it_can(
    array: pmarray.PMArray, calls: Any
) -> None:
    calls.failures["pwritev"] = [errno.EIO]
    write_behind(array, calls, 2, 7)
    wait_for(lambda: array.group._session.cache.health.unreported is not None)
    with pytest.raises(WriteBehindError) as caught:
        array.close()
    assert "nothing was lost" in caught.value.__notes__[0]
    assert unlocked(array)
    with pmarray.open(path_of(array), mode="r") as again:
        assert (again[:, 2] == 7).all()


@pytest.mark.parametrize("name", ["pwritev", "fdatasync", "rename", "fsync", "symlink"])
def test_close_releases_the_lock_whatever_fails(
    array: pmarray.PMArray, calls: Any, name: str
) -> None:
    array.group.attrs["a"] = 1
    array.group.create("new", (3,))[:] = 1
    array[:, 1] = 3
    array.append(np.ones(ROWS))
    calls.always[name] = errno.EIO
    with pytest.raises(StorageError) as caught:
        array.close()
    assert caught.value.errno == errno.EIO
    calls.always.clear()
    assert array.group.closed
    array.close()  # once more does nothing
    assert unlocked(array)
    with pmarray.open(path_of(array), mode="r") as again:
        assert (again[:, 0] == 1).all()
        assert again.shape in ((ROWS, 8), (ROWS, 9))


@pytest.mark.parametrize("nth", range(4))
def test_an_error_of_close_itself_is_told_and_the_lock_given_up(
    array: pmarray.PMArray, calls: Any, nth: int
) -> None:
    array.group.create("new", (3,))[:] = 1
    array.flush()
    array[0, 0] = 1
    array.flush()
    calls.log.clear()
    calls.failures["close"] = [0] * nth + [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        array.close()
    assert array.group.closed
    assert unlocked(array)


@pytest.mark.parametrize("name", ["open_file", "pwritev", "fsync", "rename"])
def test_metadata_that_cannot_be_replaced_stay(
    array: pmarray.PMArray, calls: Any, name: str
) -> None:
    before = (path_of(array) / "pmarray.json").read_bytes()
    array.group.attrs["a"] = 1
    calls.failures[name] = [errno.ENOSPC]
    with pytest.raises(StorageError):
        array.flush()
    assert (path_of(array) / "pmarray.json").read_bytes() == before
    array.flush()
    with pmarray.open_group(path_of(array), mode="r") as again:
        assert dict(again.attrs) == {"a": 1}


@pytest.mark.parametrize("name", ["open_file", "fallocate", "fsync_directory"])
@pytest.mark.parametrize("nth", [0, 1])
def test_an_array_that_cannot_be_created_leaves_nothing(
    array: pmarray.PMArray, calls: Any, name: str, nth: int
) -> None:
    calls.failures[name] = [0] * nth + [errno.ENOSPC] * 2

    def create() -> None:
        array.group.create("new", (ROWS, 9), "float32", layout="col")
        array.flush()

    with pytest.raises(StorageError) as caught:
        create()
    calls.failures.clear()
    if isinstance(caught.value, PoisonedError):
        # The directory of the metadata: a barrier, which nobody retries.
        assert name == "fsync_directory"
        array.close()
        with pmarray.open_group(path_of(array)) as group:
            assert "array" in group
        return
    if "new" not in array.group:
        assert len(list((path_of(array) / "data").iterdir())) == 1
        array.group.create("new", (ROWS, 9), "float32", layout="col")
    array.group["new"][...] = 4
    array.close()
    with pmarray.open(f"{path_of(array)}#new", mode="r") as again:
        assert (again[...] == 4).all()


def test_growth_without_room_changes_nothing(array: pmarray.PMArray, calls: Any) -> None:
    size = (path_of(array) / "data/000001.npy").stat().st_size
    for grow in (
        lambda: array.append(np.ones(ROWS)),
        lambda: array.resize((ROWS, 500)),
        lambda: array.appending().__enter__(),
    ):
        calls.always["fallocate"] = errno.ENOSPC
        with pytest.raises(StorageError, match="nothing was changed") as caught:
            grow()
        assert caught.value.errno == errno.ENOSPC
        assert array.shape == (ROWS, 8)
        assert (path_of(array) / "data/000001.npy").stat().st_size == size
    calls.always.clear()
    calls.failures["fallocate"] = [
        errno.ENOSPC
    ]  # ahead of need there is no room; for need there is
    array.append(np.full(ROWS, 5))
    assert array[7].tolist() == [1] * 8 + [5]


def test_a_loan_that_ends_beside_a_failure_is_not_lost(array: pmarray.PMArray, calls: Any) -> None:
    loan = array.writing(np.s_[:, 6])
    loan.__enter__()[:] = 8
    calls.failures["pwritev"] = [errno.EIO]
    write_behind(array, calls, 1, 3)
    wait_for(lambda: array.group._session.cache.health.unreported is not None)
    try:
        loan.__exit__(None, None, None)
    except WriteBehindError:
        array.flush()
    else:
        with pytest.raises(WriteBehindError):
            array.flush()
        array.flush()
    array.close()
    with pmarray.open(path_of(array), mode="r") as again:
        assert again[9].tolist() == [1, 3, 1, 1, 1, 1, 8, 1]


def test_one_failing_group_keeps_no_other_from_closing_at_exit(scratch: Path, python: Any) -> None:
    process = python(
        """
        import sys, pmarray
        from pmarray._system import osops
        groups = [pmarray.open_group(f"{sys.argv[1]}/{i}") for i in range(5)]
        for group in groups:
            group.create("x", (3,))[:] = 1
        bad = {a._storage.region._fd for g in groups[1:4:2] for a in g._catalog.arrays.values()}
        real = osops.fdatasync
        def fdatasync(fd):
            if fd in bad:
                raise OSError(5, "Input/output error")
            real(fd)
        osops.fdatasync = fdatasync
        """,
        scratch,
    )
    _, error = process.communicate(timeout=60)
    assert "PoisonedError" in error
    for i in (0, 2, 4):
        assert np.load(scratch / f"{i}/x.npy").tolist() == [1, 1, 1]


# -- real --------------------------------------------------------------------------------------


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, of which few are free."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    where = tmp_path / "disk"
    where.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(where)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True)
        if made.returncode:
            pytest.skip(f"mkfs.ext4 does not work here: {made.stderr!r}")
        command = ["mount", "-o", "loop", str(image), str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(where: Path, leave: int) -> Path:
    """Take all space but `leave` bytes."""
    ballast = where / "ballast"
    found = os.statvfs(where)
    fd = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(fd, 0, max(1, found.f_bavail * found.f_frsize - leave))
    finally:
        os.close(fd)
    return ballast


def test_a_full_disk(small_disk: Path) -> None:
    array = pmarray.open(small_disk / "g", (ROWS, 0), "float32", layout="col", cache="1 MiB")
    array.append(np.full(ROWS, 0))
    array.flush()
    ballast = fill(small_disk, leave=3 << 20)

    def append_for_ever() -> None:
        for j in range(1, 1000):
            array.append(np.full(ROWS, j))

    with pytest.raises(StorageError, match="nothing was changed") as caught:
        append_for_ever()
    assert caught.value.errno == errno.ENOSPC
    count = array.shape[1]
    assert count > 5
    array[5, 0] = 9  # what is there can still be written
    assert (array[3] == range(count)).all()
    ballast.unlink()
    for j in range(count, count + 10):
        array.append(np.full(ROWS, j))
    array.close()
    with pmarray.open(small_disk / "g", mode="r") as again:
        assert again.shape == (ROWS, count + 10)
        assert (again[3] == range(count + 10)).all()
        assert again[5, 0] == 9


def test_a_disk_too_full_for_the_metadata(small_disk: Path) -> None:
    group = pmarray.open_group(small_disk / "g", cache="1 MiB")
    group.create("x", (1000,), "float32")[:] = 1
    group.flush()
    ballast = fill(small_disk, leave=0)
    with (small_disk / "rest").open("wb", buffering=0) as rest:
        try:
            while rest.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    group.attrs["long"] = "x" * 100_000
    with pytest.raises(StorageError) as caught:
        group.flush()
    assert caught.value.errno == errno.ENOSPC
    with pmarray.open_group(small_disk / "g", mode="r") as reader:
        assert dict(reader.attrs) == {}
    with pytest.raises(StorageError):
        group.create("y", (10_000_000,))
    assert list(group) == ["x"]
    ballast.unlink()
    group.close()
    with pmarray.open_group(small_disk / "g", mode="r") as reader:
        assert len(reader.attrs["long"]) == 100_000
        assert (reader["x"][:] == 1).all()


def test_a_disk_that_fills_up_below_a_sparse_array(small_disk: Path) -> None:
    url = f"memmap:{small_disk}/g?sparse=yes"
    array = pmarray.open(url, (1 << 18, 200), "f4", layout="col", cache="1 MiB")
    array[:, 0] = 1
    array.flush()
    assert os.stat(small_disk / "g" / "array.npy").st_size > 24 << 20
    ballast = fill(small_disk, leave=4 << 20)
    done = 0

    def write_for_ever() -> None:
        nonlocal done
        for j in range(1, 200):
            with array.transaction():
                array[:, j] = j
            done = j

    with pytest.raises(StorageError) as caught:
        write_for_ever()
    assert caught.value.errno == errno.ENOSPC
    assert done < 10
    with contextlib.suppress(StorageError):
        array.close()
    with pmarray.open(url, mode="r") as again:
        assert again[3, : done + 2].tolist() == [1, *range(1, done + 1), 0]
    ballast.unlink()
    with pmarray.open(url, mode="r+") as again:
        assert again[3, : done + 2].tolist() == [1, *range(1, done + 1), 0]
        again[:, done + 1] = 9
    with pmarray.open(url, mode="r") as again:
        assert (again[:, done + 1] == 9).all()
