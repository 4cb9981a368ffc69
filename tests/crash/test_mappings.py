"""What is stored to mapped memory is noted, whoever stored it, and however it was mapped."""

from __future__ import annotations

import gc
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pmarray._system import osops
from tests.crash.check import scratch
from tests.crash.events import Event, Persist, Store
from tests.crash.recorder import Recorder
from tests.crash.simdisk import Disk
from tests.crash.stage import Stage

PAGE = 4096


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(bytes(4 * PAGE))
    return tmp_path


def mapped(path: Path, *pieces: tuple[int, int], write: bool = True) -> NDArray[np.uint8]:
    fd = osops.open_file(str(path / "f"), write=True)
    try:
        return osops.map_shared(fd, pieces, write=write, sync=False).memory
    finally:
        osops.close(fd)


def disk_after(path: Path, recorder: Recorder) -> Disk:
    """Return the disk after what was recorded; the real directory must agree."""
    disk = recorder.before.copy()
    for event in recorder.events:
        disk.apply(event)
    Stage(path).compare_with(disk)
    return disk


def facts(events: list[Event]) -> list[tuple[str, int, int]]:
    return [
        ("store", event.offset, len(event.data))
        if isinstance(event, Store)
        else ("persist", event.offset, event.nbytes)
        for event in events
        if isinstance(event, Store | Persist)
    ]


def test_stores_in_place_are_noted_at_the_next_event(place: Path) -> None:
    with Recorder(place) as recorder:
        memory = mapped(place, (2 * PAGE, PAGE), (0, PAGE))
        memory[10] = 1  # the third page of the file
        memory[PAGE + 9 : PAGE + 17] = 2  # two words of the first
        recorder.mark("now")
        assert facts(recorder.events) == [("store", 8, 16), ("store", 2 * PAGE + 8, 8)]
        recorder.mark("again")
        assert len(facts(recorder.events)) == 2
        osops.persist(memory[PAGE - 8 : PAGE + 8])  # the end of one piece, the start of another
        assert facts(recorder.events)[2:] == [("persist", 3 * PAGE - 8, 8), ("persist", 0, 8)]
    assert len(disk_after(place, recorder).files[2].pending) == 1  # lines are persisted whole


def test_a_store_that_nobody_persists_stays_pending(place: Path) -> None:
    with Recorder(place) as recorder:
        memory = mapped(place, (0, PAGE))
        memory[0] = 1
        osops.store(memory[64:72], np.full(8, 2, np.uint8))
    assert facts(recorder.events) == [("store", 0, 8), ("store", 64, 8), ("persist", 64, 8)]
    (left,) = disk_after(place, recorder).files[2].pending
    assert isinstance(left.event, Store)
    assert left.event.offset == 0


def test_an_old_mapping_is_seen_as_long_as_anybody_holds_it(place: Path) -> None:
    with Recorder(place) as recorder:
        old = mapped(place, (0, PAGE))[100:200]
        fd = osops.open_file(str(place / "f"), write=True)
        osops.fallocate(fd, 0, 8 * PAGE)
        new = mapped(place, (0, 8 * PAGE))
        old[:] = 1
        new[6 * PAGE] = 2
        osops.pwritev(fd, [memoryview(b"x" * PAGE)], 8 * PAGE)  # longer, and mapped no further
        del new
        gc.collect()
        old[0] = 3
        osops.ftruncate(fd, PAGE)
        osops.close(fd)
    disk_after(place, recorder)


def test_memory_that_was_unmapped_is_forgotten_after_its_last_store(place: Path) -> None:
    with Recorder(place) as recorder:
        memory = mapped(place, (0, PAGE))
        memory[0] = 1
        del memory
        gc.collect()
        recorder.mark("unmapped")
        assert len(facts(recorder.events)) == 1
        with (place / "f").open("r+b") as file:  # past the seam, and not mapped any more
            file.write(b"xyz")
        recorder.mark("later")
        assert len(facts(recorder.events)) == 1


def test_what_is_mapped_elsewhere_is_nobodys_business(place: Path) -> None:
    (place / "in").mkdir()
    with Recorder(place / "in") as recorder:
        memory = mapped(place, (0, PAGE))
        memory[0] = 1
        osops.store(memory[8:16], np.ones(8, np.uint8))
        osops.persist(memory)
    assert not recorder.events


def test_what_lies_between_two_stores_is_not_pending(place: Path) -> None:
    with Recorder(place) as recorder:
        memory = mapped(place, (0, PAGE))
        between = slice(512, 1024)
        osops.store(memory[between], np.ones(512, np.uint8))
        memory[:512] = 2  # by two threads, for one look
        memory[1024:1536] = 3
        recorder.mark("look")
        osops.persist(memory[:512])
        osops.persist(memory[1024:1536])
    disk = disk_after(place, recorder)
    assert not disk.files[2].pending


def test_threads_store_while_another_one_calls(place: Path) -> None:
    with Recorder(place) as recorder:
        memory = mapped(place, (PAGE, 3 * PAGE))

        def work(i: int) -> None:
            mine = memory[i * 1024 : (i + 1) * 1024]
            for j in range(60):
                mine[:512] = j
                osops.persist(mine[:512])
                osops.store(mine[512:], np.full(512, j, np.uint8))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            recorder.mark("tick")
        for thread in threads:
            thread.join()
    ends = [event.end for event in recorder.events]
    assert ends == sorted(ends)
    assert not disk_after(place, recorder).files[2].pending


@given(st.integers(0, 1 << 32))
def test_the_books_agree_with_the_file_whatever_is_done(seed: int) -> None:
    rng = random.Random(seed)
    with scratch() as path:
        (path / "f").write_bytes(rng.randbytes(rng.choice([1, 4, 4]) * PAGE))
        with Recorder(path) as recorder:
            fd = osops.open_file(str(path / "f"), write=True)
            held: list[tuple[NDArray[np.uint8], int]] = []
            for _ in range(25):
                size = os.fstat(fd).st_size
                offset = rng.randrange(max(1, size))
                kind = rng.choice(
                    ["map", "drop", "set", "set", "store", "persist", "write", "size"]
                )
                if kind == "map" and size >= PAGE:
                    pages = rng.sample(range(size // PAGE), rng.randint(1, min(3, size // PAGE)))
                    memory = mapped(path, *((page * PAGE, PAGE) for page in pages))
                    held.append((memory, max(pages) * PAGE + PAGE))
                elif kind == "drop" and held:
                    del held[rng.randrange(len(held))]
                elif kind == "write":
                    osops.pwritev(fd, [memoryview(rng.randbytes(rng.randint(1, 5000)))], offset)
                elif kind == "size":
                    needed = max((end for _, end in held), default=0)
                    osops.ftruncate(fd, max(needed, rng.choice([0, 3000, PAGE, 6 * PAGE])))
                elif held and kind in ("set", "store", "persist"):
                    memory = rng.choice(held)[0]
                    start = rng.randrange(len(memory))
                    piece = memory[start : start + rng.choice([1, 8, 64, 6000])]
                    data = np.frombuffer(rng.randbytes(len(piece)), np.uint8)
                    if kind == "set":
                        piece[:: rng.choice([1, 7])] = data[0]
                    elif kind == "store":
                        osops.store(piece, data)
                    else:
                        osops.persist(piece)
            osops.close(fd)
        disk_after(path, recorder)
