"""What a failure leaves: no descriptor, and a lock that the next writer gets."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._system import osops
from pmarray.errors import (
    ArrayNotFoundError,
    GroupLockedError,
    GroupNotFoundError,
    LockLostError,
    StorageError,
)
from tests.crash.faults import Injector, all_faults
from tests.persistent import MEMORY
from tests.sampling import sampled

SCHEMES = ["memmap", "zarr"]


def _descriptors(expected: int = 0) -> int:
    count = len(os.listdir("/proc/self/fd"))
    if count > expected:
        gc.collect()
        count = len(os.listdir("/proc/self/fd"))
    return count


def _program(url: str) -> None:
    """Some of everything; whatever fails, the next step is taken, and the group is closed."""
    group = pmarray.open_group(url, mode="a", cache=1 << 20)

    def rolled_back() -> None:
        with group.transaction():
            group["x"][:1] = 9
            raise KeyError

    def committed() -> None:
        with group.transaction():
            group["x"].append([1.0, 2.0])
            group.attrs["step"] = 1

    steps: list[Callable[[], object]] = [
        lambda: group.create("x", (4,), chunks=2),
        lambda: group["x"].append(np.ones(3)),
        group.flush,
        committed,
        rolled_back,
        lambda: group["x"].resize((2,)),
        lambda: group.create("y", (3,)),
        lambda: group.__delitem__("y"),
        committed,
    ]
    try:
        for step in steps:
            with suppress(OSError, KeyError, pmarray.errors.PMArrayError):
                step()
    finally:
        with suppress(OSError, pmarray.errors.PMArrayError):
            group.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors by /proc")
@pytest.mark.sampled
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_failure_leaves_a_descriptor_or_a_lock(scheme: str) -> None:
    with tempfile.TemporaryDirectory(prefix="pmarray-leaks-", dir=MEMORY) as directory:
        _suffer(scheme, directory)


def _suffer(scheme: str, directory: str) -> None:
    with Injector() as counter:
        _program(f"{scheme}:{directory}/count")
    _program(f"{scheme}:{directory}/warm")
    before = _descriptors()
    faults = [fault for fault in all_faults(counter.calls) if fault.kind not in ("EINTR", "short")]
    # Of each call the first of every kind, and a few of the others.
    chosen = [fault for fault in faults if not fault.index]
    chosen += sampled(faults, 10)
    for number, fault in enumerate(chosen):
        url = f"{scheme}:{directory}/{number}"
        with Injector(fault), suppress(OSError, pmarray.errors.PMArrayError):
            _program(url)
        assert _descriptors(before) == before, fault
        with pmarray.open_group(url, mode="a") as group:
            group.attrs["again"] = 1
        assert _descriptors(before) == before, fault


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_full_disk_while_the_lock_is_taken(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{scheme}:{tmp_path}/group"
    pmarray.open_group(url, mode="w").close()
    first, second = pmarray.open_group(url, mode="r+"), pmarray.open_group(url, mode="r+")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(osops, "pwritev", full)
        for _ in range(3):
            with pytest.raises(StorageError, match="No space left"):
                first.attrs["a"] = 1
    second.attrs["a"] = 2  # nobody has it
    with pytest.raises(GroupLockedError, match="in this process already"):
        first.attrs["a"] = 1
    second.close()
    first.attrs["a"] = 3
    first.close()


@contextmanager
def full_disk(after: int) -> Iterator[Callable[[], bool]]:
    """Let the disk be full from some call on that takes space; say whether there was one."""
    names = ("mkdir", "open_file", "pwritev", "fallocate", "rename", "symlink")
    saved = {name: getattr(osops, name) for name in names}
    calls = itertools.count()
    refused = threading.Event()

    def wrap(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if (name != "open_file" or options.get("create")) and next(calls) >= after:
                refused.set()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    try:
        for name, real in saved.items():
            setattr(osops, name, wrap(real, name))
        yield refused.is_set
    finally:
        for name, real in saved.items():
            setattr(osops, name, real)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["group", "array"])
def test_a_full_disk_while_a_group_is_made_leaves_what_opens(scheme: str, kind: str) -> None:
    def make(url: str, mode: Any) -> None:
        if kind == "group":
            pmarray.open_group(url, mode=mode).close()
        else:
            pmarray.open(url, (3,), mode=mode).close()

    with tempfile.TemporaryDirectory(prefix="pmarray-leaks-", dir=MEMORY) as directory:
        for after in itertools.count():
            url = f"{scheme}:{directory}/{after}/group"
            with full_disk(after) as was_full, suppress(OSError):
                make(url, "a")
            if not was_full():
                break
            with suppress(GroupNotFoundError):
                assert not [found for found in pmarray.verify(url) if found.damaged]
            with suppress(GroupNotFoundError, ArrayNotFoundError):
                make(url, "r")
            make(url, "a")
            assert pmarray.verify(url) == []
            with pmarray.open_group(url, mode="r") as group:
                assert list(group) == (["array"] if kind == "array" else [])
        assert after > 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors by /proc")
def test_transactions_refused_for_want_of_space_leave_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = pmarray.open_group(f"memmap:{tmp_path}/group", mode="w")
    group.create("x", (4,))
    group.flush()
    before = _descriptors()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(osops, "fallocate", full)
        for _ in range(20):
            with pytest.raises(StorageError), group.transaction():
                pass
    assert _descriptors(before) == before
    with group.transaction():
        group["x"][:] = 1
    group.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", ["flush", "transaction", "close", "rollback"])
def test_a_writer_whose_lock_file_was_removed_writes_no_more(
    scheme: str, how: str, tmp_path: Path
) -> None:
    url = f"{scheme}:{tmp_path}/group"
    first = pmarray.open_group(url, mode="w")
    first.create("x", (3,), chunks=1)[:] = 1
    first.flush()
    with first.transaction():
        first["x"][:] = 2
    lock = tmp_path / "group" / ("lock" if scheme == "memmap" else ".pmarray/lock")
    rollback = first.transaction()
    if how == "rollback":
        rollback.__enter__()
        first["x"][:] = 8
    os.unlink(lock)
    second = pmarray.open_group(url, mode="r+")  # recovers, as if the first one had died
    second["x"].append([5.0])
    second["x"][:1] = 4
    second.flush()
    if how == "flush":
        first["x"][:] = 7
        with pytest.raises(LockLostError, match="removed or replaced"):
            first.flush()
    elif how == "transaction":
        with pytest.raises(LockLostError), first.transaction():
            first["x"][:] = 7
    elif how == "close":
        first["x"][:] = 7
        with pytest.raises(LockLostError):
            first.close()
    else:
        rollback.__exit__(KeyError, KeyError(), None)
    with suppress(LockLostError):
        first.close()
    assert lock.exists()  # the second one's
    with pytest.raises(GroupLockedError), pmarray.open_group(url, mode="r+") as third:
        third.attrs["a"] = 1
    second.close()
    with pmarray.open_group(url, mode="r") as group:
        assert group["x"][...].tolist() == [4, 2, 2, 5]


def test_a_file_that_was_replaced_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(4))
    array = pmarray.open(str(path), mode="r+")
    array[0] = 1
    array.flush()
    np.save(tmp_path / "other.npy", np.full(4, 9.0))
    os.replace(tmp_path / "other.npy", path)
    array[1] = 2
    with pytest.raises(LockLostError, match="replaced"):
        array.flush()
    with suppress(LockLostError):
        array.close()
    assert np.load(path).tolist() == [9, 9, 9, 9]


def test_a_lock_that_is_taken_while_the_last_writer_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one removes the directory of the lock, and the one beside it, at its end."""
    url = f"zarr:{tmp_path}/g"
    last = pmarray.open_group(url)
    last.create("x", (4,), chunks=2)[...] = 1
    last.flush()
    group = pmarray.open_group(url, mode="r+")
    lock: Any = group._session.backend._lock  # type: ignore[union-attr]
    real = lock.acquire

    def acquire() -> None:
        monkeypatch.setattr(lock, "acquire", real)
        last.close()
        real()

    monkeypatch.setattr(lock, "acquire", acquire)
    with group, group.transaction():
        group["x"][1:] = 2
    with pmarray.open_group(url, mode="r") as reader:
        assert reader["x"][...].tolist() == [1, 2, 2, 2]
