"""Memory of ``dram:`` is touched behind, ahead of appends, and given back."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import signal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._system.touching import BEHIND, touch
from pmarray.backends import _regions
from pmarray.backends._regions import DRAMRegion
from pmarray.errors import BudgetError
from tests.sampling import examples

ROWS = 1 << 19  # 4 MiB a column

with mmap.mmap(-1, mmap.PAGESIZE) as _page:
    CAN_TOUCH = touch(np.frombuffer(_page, np.uint8).ctypes.data, mmap.PAGESIZE)

needs_touching = pytest.mark.skipif(
    not CAN_TOUCH, reason="the kernel has no MADV_POPULATE_WRITE, which is of Linux 5.14"
)


def all_is_touched() -> None:
    """Wait until everything that was asked for is done."""
    BEHIND.submit(lambda: None).result()


def resident_pages(region: DRAMRegion, start: int, stop: int) -> int:
    pages = (stop - start) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    address = ctypes.c_void_p(region.memory.ctypes.data + start)
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(stop - start), found) == 0
    return sum(one & 1 for one in found)


def appended(array: pmarray.PMArray, value: float) -> int:
    """Append a column; return the pages that this thread had to wait for."""
    with array.appending() as out:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        out.fill(value)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def region_of(array: pmarray.PMArray) -> Any:
    return array._storage.region  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_fork_does_not_wait_for_the_thread_that_touched() -> None:
    region = DRAMRegion(mmap.PAGESIZE)
    with region._moving:  # as that thread does
        pid = os.fork()
        if not pid:
            signal.alarm(10)
            region.reserve(1 << 20)
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@needs_touching
def test_the_next_line_is_there_before_it_is_written() -> None:
    with pmarray.open("dram:", shape=(ROWS, 0), layout="col") as array:
        faults = []
        for i in range(12):
            faults.append(appended(array, i))
            all_is_touched()
        pages = ROWS * 8 // mmap.PAGESIZE
        assert faults[0] > pages // 2
        assert max(faults[3:]) < pages // 8
        assert all((array[:, i] == i).all() for i in range(12))


@needs_touching
def test_what_nobody_used_is_given_back() -> None:
    group = pmarray.open_group("dram:touched behind")
    array = group.create("x", (ROWS, 0), layout="col")
    for i in range(4):
        array.append(np.full(ROWS, i, "f8"))
    all_is_touched()
    region = region_of(array)
    end = array.nbytes
    stop = region.capacity // mmap.PAGESIZE * mmap.PAGESIZE
    assert resident_pages(region, end, stop) > 0
    group.close()
    assert resident_pages(region, end, stop) == 0
    with pmarray.open_group("dram:touched behind") as again:
        assert (again["x"][:, 3] == 3).all()
    pmarray.open_group("dram:touched behind", mode="w").close()


@examples(0.25)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
def test_lines_are_what_was_written_while_memory_is_touched(
    steps: list[tuple[int, bool]],
) -> None:
    rows = 1 << 17  # 1 MiB a column
    model = np.empty((rows, 0), order="F")
    views = []
    with pmarray.open("dram:", shape=(rows, 0), layout="col") as array:
        for count, keep in steps:
            if count:
                values = np.arange(rows * count, dtype="f8").reshape(rows, count, order="F")
                array.append(values + model.shape[1])
                model = np.hstack([model, values + model.shape[1]])
            else:
                lines = model.shape[1] // 2
                array.resize((rows, lines))
                model = model[:, :lines]
            if keep:
                views.append((np.asarray(array), model.copy()))  # the memory cannot move
            np.testing.assert_array_equal(array[:, -1:], model[:, -1:])
        np.testing.assert_array_equal(array[...], model)
        del views


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="no /proc tells of mappings")
def test_addresses_that_a_large_array_takes_are_not_counted() -> None:
    """Neighbours are counted as one, and with more than there is memory no process can fork."""
    array = pmarray.open("dram:", (1 << 20, 8), layout="col")
    array.append(np.ones((1 << 20, 1)))
    region = region_of(array)
    assert region.capacity >= os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    address, flags = region.memory.ctypes.data, ""
    with open("/proc/self/smaps") as file:
        for line in file:
            if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(match[1], 16) <= address < int(match[2], 16)
            elif line.startswith("VmFlags:") and inside:
                flags = line
    assert " nr " in flags
    assert " ac " not in flags
    assert array[5, 8] == 1


def test_more_than_the_system_would_reserve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_regions, "reservable_bytes", lambda: 100 << 20)
    with pytest.raises(BudgetError, match="cannot allocate 128 MiB"):
        pmarray.open("dram:", (1 << 24,), "f8")
    pmarray.open("dram:", (1 << 23,), "f8")
