"""A group that nobody has any more is closed, warned of, and waited for by nobody who must not."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import pmarray
from pmarray.errors import LayoutError, StorageError, TransactionError
from pmarray.group import Group

ON_THE_LOOP = """
import asyncio, gc, sys, threading
import pmarray
from zarr.core.sync import sync
gc.disable()
urls = sys.argv[1:]
def leave(url):
    array = pmarray.open(url, (1000,))
    array[...] = 3
    group = array.group
    cycle = [group]
    cycle.append(cycle)
    group.cycle = cycle
async def collect():
    gc.collect()
for url in urls:
    leave(url)
    sync(collect())
print("collected", flush=True)
for url in urls:
    with pmarray.open(url, mode="r+") as array:  # waits for the one that was dropped
        assert array[...].tolist() == [3] * 1000
        array[0] = 4
"""


def test_a_group_that_is_collected_on_the_event_loop(
    tmp_path: Path, python: Callable[..., Popen[str]]
) -> None:
    urls = [f"zarr:{tmp_path}/zarr", f"memmap:{tmp_path}/memmap"]
    process = python(ON_THE_LOOP, *urls)
    out, error = process.communicate(timeout=60)
    assert (out, error) == ("collected\n", "")
    for url in urls:
        with pmarray.open(url, mode="r") as array:
            assert array[:2].tolist() == [4, 3]


def _drop(url: str) -> None:
    array = pmarray.open(url, (5,))
    array[...] = 2
    del array
    gc.collect()


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_an_unclosed_group_warns_and_is_closed(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}:{tmp_path}/group"
    with pytest.warns(ResourceWarning, match="unclosed <Group"):
        _drop(url)
    with pmarray.open(url, mode="r+") as array:
        assert array[...].tolist() == [2] * 5
        array[0] = 1


def test_memory_and_what_was_closed_do_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _drop("dram:")
        pmarray.open(f"memmap:{tmp_path}/group", (5,)).close()
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_every_thread_may_drop_a_group(scheme: str, tmp_path: Path) -> None:
    for number in range(5):
        url = f"{scheme}:{tmp_path}/{number}"
        thread = threading.Thread(target=_drop, args=(url,))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        with pmarray.open(url, mode="r+") as array:
            assert array[...].tolist() == [2] * 5


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("hook_fails", [False, True])
def test_an_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook_fails: bool
) -> None:
    told: list[Any] = []
    beyond: list[Any] = []

    def hook(arguments: Any) -> None:
        told.append(arguments)
        if hook_fails:
            raise ValueError("of the hook")

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: beyond.append(kind))
    array = pmarray.open(f"memmap:{tmp_path}/group", (5,))
    array[...] = 2

    def fail(*_: Any) -> None:
        raise StorageError(5, "it failed")

    monkeypatch.setattr(array.group._session.backend, "publish", fail)

    def drop(holder: list[Any]) -> None:
        holder.clear()
        gc.collect()

    holder = [array]
    del array
    thread = threading.Thread(target=drop, args=(holder,))
    thread.start()
    thread.join(30)
    pmarray.open_group(f"memmap:{tmp_path}/group", mode="r").close()  # waits for it
    assert [one.exc_type for one in told] == [StorageError]
    thread = threading.Thread(target=_drop, args=(f"memmap:{tmp_path}/another",))
    thread.start()
    thread.join(30)
    pmarray.open_group(f"memmap:{tmp_path}/another", mode="r").close()  # the thread is still there
    assert beyond == ([ValueError] if hook_fails else [])


def test_a_group_that_is_garbage_in_a_cycle_gives_up_its_lock(tmp_path: Path) -> None:
    """As one is that was dropped in the middle of a transaction."""
    url = f"memmap:{tmp_path}/group"
    with pmarray.open_group(url) as group:
        group.attrs["x"] = 1
    gc.disable()
    try:
        group = pmarray.open_group(url)
        cycle: list[Any] = [group]
        cycle.append(cycle)
        group.attrs["x"] = 2
        del group, cycle
        with pytest.warns(ResourceWarning):
            again = pmarray.open_group(url)
        with again:
            again.attrs["y"] = 3
            assert dict(again.attrs) == {"x": 2, "y": 3}
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("scheme", ["memmap", "zarr", "dram"])
def test_what_was_dropped_is_there_when_it_is_opened_again(scheme: str, tmp_path: Path) -> None:
    """As by a function that stores, which a notebook calls again and again."""
    url = f"{scheme}:{tmp_path}/group"

    def store(value: int) -> None:
        array = pmarray.open(url, (5, 8))
        array[...] = value

    gc.disable()
    try:
        for value in range(5):
            store(value)
            with pmarray.open(url, mode="r") as array:
                assert (array[...] == value).all()
        store(9)
        with pytest.raises(LayoutError, match="has shape"):
            pmarray.open(url, (5, 9))
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_array_that_another_thread_makes_meanwhile(tmp_path: Path) -> None:
    """Opened before the other one has closed, and so before there was an array."""
    first = pmarray.open_group(tmp_path / "group")
    first.flush()
    opened, found = threading.Event(), list[bool]()

    def make() -> None:
        opened.wait(30)
        first.create("array", (3,))[...] = 1
        first.close()

    real = Group.__contains__

    def contains(group: Group, name: object) -> bool:
        there = real(group, name)
        if group is not first and not opened.is_set():
            opened.set()
            thread.join()
        found.append(there)
        return there

    thread = threading.Thread(target=make)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "__contains__", contains)
        with pmarray.open(tmp_path / "group", (3,)) as array:
            assert (array[...] == 1).all()
    assert found[0] is False


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_zip_archive_that_was_dropped_is_finished(tmp_path: Path) -> None:
    """Python closes its file as soon as nobody can reach it, in any order with the group."""
    for number in range(10):
        with suppress(TransactionError):  # which keeps it for a while
            pmarray.open(
                f"zarr:{tmp_path}/{number}.zip", (3,), fill_value=number
            ).transaction().__enter__()
        gc.collect()
        with pmarray.open(f"zarr:{tmp_path}/{number}.zip", mode="r") as array:
            assert (array[...] == number).all()
