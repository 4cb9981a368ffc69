"""Interrupts: that the rig finds what there is to find, and a sample of every backend.

All of it: ``make interrupts MINUTES=60``.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from weakref import WeakSet

import numpy as np
import pytest

import pmarray
from pmarray._cache.cache import ChunkCache
from pmarray._storage import fetching
from pmarray._storage.uncached import Scattered, WholeChunks
from pmarray._system import dropped, pmem
from pmarray._system.chunkthreads import start
from pmarray._system.populating import can_populate
from pmarray._system.uninterrupted import Task
from pmarray.backends._regions import SpillRegion
from pmarray.backends.files.beside import SideReads
from pmarray.backends.files.kept import KeptMapping
from pmarray.errors import SnapshotExpiredError
from tests.crash.interrupts import books
from tests.crash.interrupts import campaign as campaigns
from tests.crash.interrupts.calibration import PROGRAMS_BY_NAME, Program
from tests.crash.interrupts.collection import COLLECTION
from tests.crash.interrupts.injected import EXCEPTIONS, Delivery, Injected, raised_at
from tests.crash.interrupts.large import LARGE
from tests.crash.interrupts.places import PLACES, slow_barriers
from tests.crash.interrupts.points import Points
from tests.crash.interrupts.scenarios import NAMES, SCENARIOS, find
from tests.crash.interrupts.timers import Timers
from tests.crash.interrupts.trial import Trial, measure

KIND = EXCEPTIONS["interrupt"]
FEWER = sys.version_info >= (3, 12)
"""From then on CPython looks for signals in fewer places."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of signals are afterwards what they were."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    tracer = sys.gettrace()
    yield
    sys.settrace(tracer)
    for number, handler in saved.items():
        signal.signal(number, handler)


def interrupt(name: str, delivery: Points | Timers) -> bool:
    """Run a program of the calibration; return whether its lock is held afterwards."""
    program = Program(PROGRAMS_BY_NAME[name])
    try:
        try:
            delivery.arm()
            program.operate()
        finally:
            delivery.disarm()
    except Injected:
        pass
    delivery.disarm()
    return program.lock.locked()


def everywhere(name: str, second: int = 0) -> tuple[int, int]:
    """Interrupt at each point in turn; count those, and after how many the lock was held."""
    first = held = 0
    while True:
        first += 1
        points = Points(first, second, [KIND, KIND])
        held += interrupt(name, points)
        if not points.deliveries:
            return first - 1, held


def test_a_signal_leaves_no_lock_that_with_has_taken() -> None:
    count, held = everywhere("with")
    assert count >= (2 if FEWER else 7)
    assert held == 0


@pytest.mark.parametrize("name", ["guard", "acquire"])
def test_a_signal_leaves_a_lock_that_python_has_taken(name: str) -> None:
    _, held = everywhere(name)
    assert held > 0


def test_a_second_signal_comes_while_the_first_one_is_handled() -> None:
    assert everywhere("twice")[1] == 0
    assert sum(everywhere("twice", second)[1] for second in range(1, 6)) > 0


def test_real_signals_agree() -> None:
    """They are found where the points are: never with the lock held by ``with``."""
    delivered = 0
    for i in range(3000):
        timers = Timers(1 + i % 30, 0, [KIND])
        assert not interrupt("with", timers)
        delivered += len(timers.deliveries)
    assert delivered > 50


def test_a_point_is_the_same_each_time() -> None:
    def deliveries() -> list[Delivery]:
        points = Points(2 if FEWER else 4, 0, [KIND])
        interrupt("with", points)
        return points.deliveries

    assert deliveries() == deliveries() != []


def test_where_an_exception_was_raised_is_read_off_its_traceback() -> None:
    """Where another thread stands when one is sent to it is before that."""

    def work(lock: threading.Lock) -> None:
        raise KIND

    with pytest.raises(KIND) as raised:
        Program(work).operate()
    found = raised_at(raised.value)
    assert found.inside.endswith(" operate")
    line = work.__code__.co_firstlineno + 1
    assert found.innermost.endswith(f"test_interrupts.py:{line} work")


def test_a_trial_can_be_written_down() -> None:
    trial = Trial("durable", "memmap", "points", 812, 3, 7)
    assert Trial.parse(str(trial)) == trial


def test_every_scenario_has_a_name() -> None:
    assert {*SCENARIOS, *LARGE, *COLLECTION} == set(NAMES)


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one in a process that has no threads yet, since it forks."""
    return subprocess.run(
        [sys.executable, "-m", "tests.crash.interrupts", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


# What differs between backends: the commit, what is written in place, and the end.
SAMPLED = (
    "slice-write", "append", "shrink", "create", "delete", "durable", "pipelined", "roll-back",
    "close", "appending",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_no_interrupt_breaks_anything(place: str) -> None:
    scenarios = [word for name in SAMPLED for word in ("--scenario", name)]
    done = campaign(
        "--backend", place, *scenarios, "--mode", "points", "--trials", "2", "--rounds", "1"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_real_signal_breaks_anything() -> None:
    done = campaign(
        "--backend", "dram", "--backend", "memmap", "--scenario", "item-write", "--scenario",
        "empty", "--mode", "storm", "--mode", "threads", "--trials", "2", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_interrupt_breaks_a_collection() -> None:
    done = campaign(
        "--backend", "memmap", "--scenario", "collect", "--scenario", "collect-close",
        "--mode", "points", "--trials", "2", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_commit_that_is_not_waited_for_is_noticed() -> None:
    """The first exception would come after a minute: what is seen is what returning promises."""
    trial = str(Trial("durable", "memmap", "timers", 60_000_000, 0, seed=1))
    done = campaign("--trial", trial, "--without", "commit")
    assert done.returncode == 1, done.stderr
    assert "lost: it returned" in done.stdout


def test_a_caller_that_comes_next_and_does_not_wait_is_noticed() -> None:
    done = campaign(
        "--backend", "memmap", "--scenario", "durable", "--mode", "timers", "--without", "wait",
        "--trials", "8", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_task_that_was_given_up_and_not_taken_back_is_not_waited_for() -> None:
    """A second exception arrived between the claim and the taking back: two seeds of an hour."""
    group = pmarray.open_group("dram:")
    task: Task[None] = Task(lambda: None, group._session.over)
    group._session.pending = task
    task._given_up = True
    assert task.claim()
    task.run()  # as the thread does that finds it claimed
    thread = threading.Thread(target=group.attrs.update, args=({"x": 1},), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert dict(group.attrs) == {"x": 1}


def at_every_point(work: Callable[[threading.Lock], None]) -> Iterator[None]:
    """Interrupt `work` at each point in turn, and yield after each."""
    delivered = 0
    while True:
        points = Points(delivered + 1, 0, [KIND])
        program = Program(work)
        with suppress(Injected):
            try:
                points.arm()
                program.operate()
            finally:
                points.disarm()
        points.disarm()
        gc.collect()  # what the exception held
        if not points.deliveries:
            return
        delivered += 1
        yield


def test_memory_that_goes_is_unmapped_whatever_arrives(tmp_path: Path) -> None:
    """A finalizer in Python was torn at two of these places, and the memory stayed mapped."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(1 << 16))
    fd = os.open(path, os.O_RDWR)

    def work(lock: threading.Lock) -> None:
        mapping = pmem.map_pieces(fd, [(0, 1 << 16)], write=True, sync=False)
        memory = mapping.memory
        del mapping
        memory[0] = 1
        del memory

    work(threading.Lock())  # libraries are loaded
    delivered = 0
    for _ in at_every_point(work):
        assert str(path) not in Path("/proc/self/maps").read_text()
        delivered += 1
    os.close(fd)
    assert delivered > 10


def open_files_of(name: str) -> list[str]:
    """The descriptors of this process that lead to files so called."""
    found = []
    for one in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            if name in os.readlink(f"/proc/self/fd/{one}"):
                found.append(one)
    return found


def test_a_mapping_that_is_kept_closes_its_file_whatever_arrives(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(bytes(1 << 16))
    fd = os.open(path, os.O_RDONLY)

    def work(lock: threading.Lock) -> None:
        mapping = KeptMapping(fd, str(path), 0, 1 << 16)
        del mapping

    delivered = 0
    for _ in at_every_point(work):
        assert open_files_of(str(path)) == [str(fd)]
        assert str(path) not in Path("/proc/self/maps").read_text()
        delivered += 1
    os.close(fd)
    assert delivered > 10


def test_what_reads_beside_closes_its_file_whatever_arrives(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    fd = os.open(path, os.O_RDONLY)

    def work(lock: threading.Lock) -> None:
        beside = SideReads(fd, str(path), 0)
        del beside

    delivered = 0
    for _ in at_every_point(work):
        assert open_files_of(str(path)) == [str(fd)]
        delivered += 1
    os.close(fd)
    assert delivered > (3 if FEWER else 5)


# A set of weak references keeps a dead one then, and leaves it out.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_memory_that_is_spilled_closes_its_file_whatever_arrives(tmp_path: Path) -> None:
    regions: list[SpillRegion] = []

    def work(lock: threading.Lock) -> None:
        region = regions.pop()
        del region

    delivered = 0
    regions.append(SpillRegion(1 << 16, str(tmp_path)))  # made where nothing interrupts
    for _ in at_every_point(work):
        regions.clear()  # the point may have come before
        gc.collect()
        assert open_files_of(str(tmp_path)) == []
        regions.append(SpillRegion(1 << 16, str(tmp_path)))
        delivered += 1
    assert delivered >= 2


@pytest.mark.parametrize("lend", ["writing", "reading"])
def test_no_loan_is_open_that_was_torn_at_its_beginning(lend: str, tmp_path: Path) -> None:
    """Though the exception is kept, as a notebook keeps the last one, and what it came through."""
    group = pmarray.open_group(f"memmap:{tmp_path}", cache=64 << 10)
    a = group.create("x", (1000, 40), "float32", layout="col", chunks=1)
    a[...] = 1

    def work(lock: threading.Lock) -> None:
        with getattr(a, lend)(np.s_[:, 1]):
            points.disarm()  # what comes later is another matter

    points = Points(0, 0, [])
    Program(work).operate()
    delivered = 0
    while True:
        points = Points(delivered + 1, 0, [KIND])
        program, kept = Program(work), None
        try:
            try:
                points.arm()
                program.operate()
            finally:
                points.disarm()
        except Injected as error:
            kept = error
        points.disarm()
        assert (a[:, :2] == 1).all()
        a[:, 30:] = 1  # which needs the memory
        # At the end of its beginning, in `contextlib`, it is open, as at the end of its block.
        if not any("contextlib" in delivery.innermost for delivery in points.deliveries):
            assert books.left_open(group) == [], points.deliveries
        if kept is None:
            break
        delivered += 1
    group.close()
    assert delivered > (60 if FEWER else 80)


def test_a_second_interrupt_of_the_wait_before_closing_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the wait for the commit that the first one has left: the lock was held for good."""
    url = f"memmap:{tmp_path}/g"
    real = Task.wait
    torn: list[Task[Any]] = []

    def wait(task: Task[Any]) -> None:
        if threading.current_thread() is threading.main_thread() and len(torn) < 2:
            torn.append(task)
            while task.thread is None and not task.over:
                time.sleep(0.001)  # or what has not begun yet never would
            raise KeyboardInterrupt
        real(task)

    group = pmarray.open_group(url)
    x = group.create("x", (3,))
    group.flush()
    with slow_barriers(0.2), pytest.raises(KeyboardInterrupt), group:
        with group.transaction():
            x[0] = 2
            monkeypatch.setattr(Task, "wait", wait)
    assert len(torn) == 2
    assert torn[0] is torn[1]  # the commit, twice
    with pmarray.open_group(url, mode="r+") as again:  # which waits for the closing
        assert again["x"][0] == 2
        again.attrs["written"] = True
    assert group.closed


def test_a_group_that_was_not_handed_over_is_closed_by_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception came before it was in the queue, or had a thread: it took a minute."""

    def torn(*arguments: object) -> None:
        raise KeyboardInterrupt

    for name in ("_queue.put", "start_thread"):
        group = pmarray.open_group(f"memmap:{tmp_path}/{name}")
        group.attrs["x"] = 1
        with monkeypatch.context() as patch:
            patch.setattr(dropped, "_closer", [])
            if name == "start_thread":
                patch.setattr(dropped, "start_thread", torn)
            else:
                patch.setattr(dropped, "_queue", SimpleNamespace(put=torn))
            with pytest.raises(KeyboardInterrupt):
                dropped.close_behind(group._session)
        began = time.monotonic()
        with pmarray.open_group(group.url, mode="r+") as again:
            again.attrs["x"] = 2
        assert time.monotonic() - began < 30
        assert group.closed


def test_a_child_that_fails_is_told() -> None:
    """It was killed as soon as it had nothing more to say, and then passed for a good one."""
    for _ in range(5):
        (told,) = campaigns._in_child(lambda out: 1 / 0)
        assert "ZeroDivisionError" in told["died"]


def test_a_loan_that_has_ended_is_not_open_whatever_arrives_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Torn(WeakSet[object]):
        def discard(self, item: object) -> None:
            monkeypatch.setattr(a, "_loans", real)
            raise KeyboardInterrupt

    a = pmarray.open("dram:", (3, 2), layout="col")
    loan, real = a.writing(np.s_[:, 1]), a._loans
    with pytest.raises(KeyboardInterrupt):
        with loan as out:
            out[:] = 7
            monkeypatch.setattr(a, "_loans", Torn(real))
    a[:, 0] = 1
    assert not a._loans
    assert (a[:, 1] == 7).all()


def test_memory_for_a_chunk_that_no_thread_was_told_to_fetch_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was pinned for good: after a few such interrupts nothing could be read any more."""
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        x = group.create("x", (2048, 40), layout="col", chunks=1, codecs=["zstd"])
        x[...] = 1
    real = start

    def torn(task: Task[Any]) -> None:
        monkeypatch.setattr(fetching, "start", real)
        raise KeyboardInterrupt

    with pmarray.open_group(url, mode="r", cache="128 KiB") as group:
        x = group["x"]
        for j in range(0, 40, 3):  # the cache has room for eight
            monkeypatch.setattr(fetching, "start", torn)
            with suppress(KeyboardInterrupt):
                x[:, j]
            assert vars(fetching)["start"] is real
        assert books.left_open(group) == []
        assert (x[:, 1] == 1).all()


@pytest.mark.parametrize(
    ("owner", "call"), [(fetching, "Task"), (fetching, "start"), (ChunkCache, "unpin")]
)
def test_an_exception_that_is_kept_keeps_no_chunk_of_a_torn_fetch(
    owner: Any, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A debugger, a notebook or a logger keeps it, and with it the frames it came through."""
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        x = group.create("x", (2048, 40), layout="col", chunks=1, codecs=["zstd"])
        x[...] = 1
    real = getattr(owner, call)
    kept = []

    def torn(*_: Any) -> None:
        monkeypatch.setattr(owner, call, real)
        raise KeyboardInterrupt

    with pmarray.open_group(url, mode="r", cache="128 KiB") as group:
        x = group["x"]
        for j in range(0, 40, 3):  # the cache has room for eight
            monkeypatch.setattr(owner, call, torn)
            try:
                x[5:50, j : j + 2]
            except KeyboardInterrupt as error:
                kept.append(error)
        monkeypatch.setattr(owner, call, real)
        assert kept
        assert books.left_open(group) == []
        assert (x[:, 1] == 1).all()


def test_reads_past_the_cache_are_interrupted() -> None:
    """The scenarios take the ways that they are for."""
    for name, kind in (("many-item", Scattered), ("many-columns", WholeChunks)):
        with mock.patch.object(kind, "read", autospec=True, side_effect=kind.read) as read:
            measure(name, "zarr")
        assert read.call_count >= 2


@pytest.mark.skipif(not can_populate(), reason="files are looked at by MADV_POPULATE_READ")
def test_computations_in_place_and_with_requests_in_flight_are_interrupted() -> None:
    for name, owner, attribute in (
        ("in-place", KeptMapping, "show"),
        ("in-flight", SideReads, "read"),
    ):
        real = getattr(owner, attribute)
        with (
            mock.patch.object(owner, attribute, autospec=True, side_effect=real) as called,
            find(name).surroundings(),
        ):
            measure(name, "memmap")
        assert called.call_count > 30


@pytest.mark.parametrize("place", ["memmap", "zarr"])
def test_no_interrupt_breaks_reads_of_large_arrays(place: str) -> None:
    scenarios = [word for name in LARGE for word in ("--scenario", name)]
    done = campaign(
        "--backend", place, *scenarios, "--mode", "points", "--mode", "timers", "--trials", "2",
        "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", ["memmap", "device"])
def test_a_reader_follows_a_writer_where_nothing_interrupts(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrived while metadata were read was called damage, or left a descriptor open."""
    loaded: list[int] = []
    where = PLACES[place]
    where.prepare(tmp_path)
    with where.surroundings(), pmarray.open_group(where.url(tmp_path), mode="w") as writer:
        writer.create("x", (1000, 2), layout="col")[...] = 1
        writer.flush()
        with pmarray.open_group(writer.url, mode="r") as reader:
            _ = reader["x"][0, 0]
            backend = reader._session.backend
            real = backend.load

            def load() -> Any:
                loaded.append(threading.get_ident())
                return real()

            monkeypatch.setattr(backend, "load", load)
            writer["x"][...] = 2
            writer.flush()
            writer.attrs["v"] = 1
            writer.flush()
            with suppress(SnapshotExpiredError):
                _ = reader["x"][:, 1]
    assert loaded
    assert threading.get_ident() not in loaded
