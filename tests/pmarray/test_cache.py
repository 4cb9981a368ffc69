"""The cache: its budget holds, small writes leave as large ones, lent memory is the borrower's."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._cache import attempts
from pmarray._cache.buffers import BufferPool, expect_long
from pmarray.errors import BudgetError, LayoutError, LoanError, SelectionError
from tests.sampling import examples

Python = Callable[..., "subprocess.Popen[str]"]
MIB = 1 << 20

# -- the budget --------------------------------------------------------------------------------

PATTERNS = {
    "sequential": "for j in range(64): a[:, j] = column",
    "random columns": "for j in rng.permutation(64): a[:, j] = column",
    "random pieces": """
for _ in range(300):
    i, j = rng.integers(0, 400_000), rng.integers(0, 64)
    a[i : i + 50_000, j] = column[:50_000]
""",
    "rows": "for i in range(0, 500_000, 100_000): a[i : i + 3] = 1",
    "strided": "a[::1000, ::3] = 1; a[5::7, 10] = 2",
    "broadcast": "a[...] = 3",
    "loans": """
for j in range(0, 64, 2):
    with a.writing(np.s_[:, j]) as one, a.writing(np.s_[:, j + 1]) as two:
        one[:] = two[:] = j
""",
    "appending": """
a.resize((500_000, 0))
for j in range(64):
    with a.appending() as out: out[:, 0] = j
""",
    "reads": "for j in range(64): a[:, j].sum(); a[j, :].sum()",
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_peak_memory_stays_within_the_budget(scratch: Path, python: Python, pattern: str) -> None:
    """A file of eight budgets; the high-water mark is that of the process's own memory."""
    process = python(
        f"""
import sys
import numpy as np, pmarray

def peak():
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) << 10

rng = np.random.default_rng(0)
column = np.ones(500_000, "float32")
with pmarray.open_group("dram:") as warm:  # what importing and the first use of NumPy cost
    warm.create("x", (1000, 3))[::2, 1] = 1
a = pmarray.open(sys.argv[1], (500_000, 64), "float32", layout="col", cache="16 MiB")
open("/proc/self/clear_refs", "w").write("5")
before = peak()
{PATTERNS[pattern]}
assert a.group.cache_bytes <= 16 << 20, a.group.cache_bytes
a.close()
print(peak() - before)
""",
        scratch / "g",
    )
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    # 2 MB is a column as a value or a result.
    assert int(out) < 16 * MIB + 6 * MIB, f"{int(out) / MIB:.1f} MiB more than before"


@examples(1 / 3)  # each makes three files
@given(
    st.sampled_from([0, 16_384, 20_000, 100_000, MIB]),
    st.lists(st.tuples(st.sampled_from("wrsac"), st.integers(0, 10**6)), max_size=12),
)
def test_the_books_never_exceed_the_budget(budget: int, steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        group = pmarray.open_group(directory + "/g", cache=budget)
        arrays = [
            group.create("long", (30_000, 4), "float32", layout="col"),
            group.create("short", (50, 400), "float64", layout="col"),
            group.create("tiny", (3, 400), "int8", layout="row"),
        ]
        # Writing through needs two transient chunks.
        limit = budget or 2 * MIB
        for what, seed in steps:
            array = arrays[seed % 3]
            rng = np.random.default_rng(seed)
            i = int(rng.integers(0, array.shape[0]))
            j = int(rng.integers(0, array.shape[1]))
            if what == "w":
                array[i:, j] = seed % 100
            elif what == "r":
                array[:i, j:]
            elif what == "s":
                array[::2, j] = 1
            elif what == "a":
                array.append(np.ones([n for k, n in enumerate(array.shape)
                                      if k != (1 if array.layout == "col" else 0)]))  # fmt: skip
            else:
                group.flush()
            assert group.cache_bytes <= limit
        group.close()


def test_tiny_chunks_cost_whole_pages(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g", cache="64 KiB") as group:
        array = group.create("x", (1, 1000), "int8", layout="col", chunks=1)
        for j in range(1000):
            array[0, j] = 1
            assert group.cache_bytes <= 64 << 10
        assert len(group._session.cache._chunks) <= 16
        assert (array[...] == 1).all()


def test_long_runs_are_in_huge_pages_and_short_ones_are_not() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without huge pages")
    pool = BufferPool(budget_bytes=16 << 20)
    flags = []
    for nbytes in (8 << 20, 64 << 10):
        buffer = pool.take(nbytes)
        assert buffer is not None
        address = np.frombuffer(buffer, np.uint8).ctypes.data
        assert "hg" not in _flags_of_mapping(address)
        expect_long(buffer, 64 << 10)
        assert "hg" not in _flags_of_mapping(address)
        expect_long(buffer, buffer.nbytes // 4)
        flags.append(_flags_of_mapping(address))
    assert "hg" in flags[0]
    assert "hg" not in flags[1]


def _flags_of_mapping(address: int) -> list[str]:
    """Of the mapping at an address, as the kernel spells them: "hg" is advised to be huge."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:x}")


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), max_size=40))
def test_the_pool_counts_what_it_lends_and_keeps(steps: list[tuple[bool, int]]) -> None:
    pool = BufferPool(budget_bytes=100_000)
    lent: list[memoryview] = []
    for give, nbytes in steps:
        if give and lent:
            pool.give(lent.pop())
        elif (buffer := pool.take(nbytes)) is not None:
            assert buffer.nbytes == nbytes
            lent.append(buffer)
        else:
            assert sum(b.nbytes for b in lent) + nbytes + 4096 * (len(lent) + 1) > 100_000
        assert sum(b.nbytes for b in lent) <= pool.allocated_bytes <= 100_000


@pytest.mark.parametrize("cache", ["16 MiB", "7 MiB"])
def test_who_fills_a_large_chunk_finds_memory_for_the_next(scratch: Path, cache: str) -> None:
    """Chunks that nobody needs to keep make room for it; those that are on loan do not."""
    rows = 800_000  # 3.2 MB
    with pmarray.open_group(scratch / "g", cache=cache) as group:
        small = group.create("small", 100_000, chunks=10_000)
        small[:] = 1
        x = group.create("x", (rows, 0), "float32", layout="col", chunks=1)
        memory = group._session.cache.memory
        for j in range(6):
            group.flush()
            with x.appending() as out:
                assert memory._pool.has_free(out.nbytes)
                assert memory.used_bytes <= memory.budget_bytes
                out[...] = j
        if cache == "7 MiB":
            group.flush()
            with x.appending() as one, x.appending() as other:
                assert not memory._pool.has_free(rows * 4)
                one[...] = other[...] = 6
        for j in range(x.shape[1]):
            assert (x[:, j] == min(j, 6)).all()
        assert (small[:] == 1).all()


@pytest.mark.parametrize("cache", [1, 16_383, "1 kB"])
def test_a_budget_too_small_to_work_with_is_refused(tmp_path: Path, cache: Any) -> None:
    with pytest.raises(BudgetError, match="too small"):
        pmarray.open_group(tmp_path / "g", cache=cache)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("cache", ["many", -1, True, "1 apple"])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, cache: Any) -> None:
    with pytest.raises(ValueError, match="cache="):
        pmarray.open_group(tmp_path / "g", cache=cache)
    assert not (tmp_path / "g").exists()


def test_chunks_beyond_the_budget_are_refused(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g", cache="64 KiB") as group:
        with pytest.raises(BudgetError, match="open the group with cache= of 160 KiB or more"):
            group.create("x", (10_000, 9), "float64", layout="col", chunks=1)
        assert list(group) == []
        with pytest.raises(ValueError, match="chunks="):
            group.create("x", (10, 9), chunks=(3, 3))


# -- what leaves -------------------------------------------------------------------------------


def flags(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(text.partition("flags:")[2].split()[0], 8)


def test_small_columns_leave_as_few_large_writes(scratch: Path, calls: Any) -> None:
    with pmarray.open(scratch / "g", (1024, 0), "float32", layout="col") as array:
        for j in range(10_000):
            array.append(np.full(1024, j, "float32"))
        array.flush()
        data = [(at, size) for at, size in calls.written() if size > 5000]
        total = 10_000 * 4096
        assert sum(size for _, size in data) == total, "nothing is written twice"
        assert len(data) <= total / (4 * MIB) + 1
        assert all(at % 4096 == size % 4096 == 0 for at, size in data)
        assert all(size >= MIB for _, size in data[:-1])
        assert [at for at, _ in data] == sorted(at for at, _ in data)
        assert (array[5, ::1000] == range(0, 10_000, 1000)).all()


def test_random_items_leave_in_one_write_a_chunk(scratch: Path, calls: Any) -> None:
    with pmarray.open(scratch / "g", (512, 8192), "float64", layout="col") as array:
        array.flush()
        calls.log.clear()
        rng = np.random.default_rng(0)
        for i, j in zip(rng.integers(0, 512, 3000), rng.integers(0, 8192, 3000), strict=True):
            array[i, j] = 1
        assert calls.written() == [], "nothing leaves before it has to"
        array.flush()
        assert len(calls.written()) <= 3000
        data = [at for at, size in calls.written()]
        assert data == sorted(data), "in the order of the file"


def test_adjacent_large_columns_leave_together(scratch: Path, calls: Any) -> None:
    with pmarray.open(scratch / "g", (20_000, 64), "float32", layout="col") as array:
        calls.log.clear()
        for j in reversed(range(64)):
            array[100:, j] = j  # not whole chunks, so that they wait for the flush
        array.flush()
        data = [(at, size) for at, size in calls.written() if at >= 4096]
        assert len(data) < 16
        assert all(at % 4096 == size % 4096 == 0 for at, size in data)
        assert (array[100] == range(64)).all()
        assert (array[99] == 0).all()


@pytest.mark.parametrize(
    ("shape", "layout", "chunks"),
    [
        ((795_010, 0), "col", "auto"),
        ((21_840, 0), "col", "auto"),
        ((0, 300_000), "row", "auto"),
        ((1024, 0), "col", "auto"),
        ((100_000, 0), "col", 2),
        ((0,), "row", "auto"),
    ],
)
def test_data_are_written_directly(
    scratch: Path, calls: Any, shape: tuple[int, ...], layout: Any, chunks: Any
) -> None:
    """Past the page cache, as the kernel sees the descriptor that was written to."""
    with pmarray.open(scratch / "g", shape, "float32", layout=layout, chunks=chunks) as array:
        line = np.ones([n for n in shape if n], "float32") if len(shape) > 1 else np.ones(5000)
        calls.log.clear()
        for _ in range(5):
            array.append(line)
        array.flush()
        data = [args for name, args in calls.log if name == "pwritev" and args[2] >= 4096]
        assert data
        for fd, _, _ in data:
            assert flags(fd) & os.O_DIRECT
        assert (array[...] == 1).all()


def test_direct_io_can_be_declined(scratch: Path, calls: Any) -> None:
    with pmarray.open(f"{scratch}/g?direct=no", (100_000, 3), "f4", layout="col") as array:
        array[...] = 1
        array.flush()
        for name, args in calls.log:
            if name == "pwritev":
                try:
                    assert not flags(args[0]) & os.O_DIRECT
                except FileNotFoundError:
                    continue  # of a file that is closed by now


def test_a_file_system_that_refuses_the_first_direct_write(scratch: Path, calls: Any) -> None:
    with pmarray.open(scratch / "g", (100_000, 9), "f4", layout="col") as array:
        calls.failures["pwritev"] = [errno.EINVAL]
        array[...] = 1
        array.flush()
        array[:, 4] = 2
    with pmarray.open(scratch / "g", mode="r") as array:
        assert array[7].tolist() == [1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_without_a_cache_every_write_is_there_when_it_returns(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (50, 40), "float64", cache=0) as array:
        array.flush()
        model = np.zeros((50, 40))
        rng = np.random.default_rng(0)
        for _ in range(50):
            i, j = rng.integers(0, 40, 2)
            array[i, j:] = model[i, j:] = rng.normal()
            np.testing.assert_array_equal(np.load(tmp_path / "g/array.npy"), model)
        with pytest.raises(BudgetError, match="cannot lend"), array.writing(0):
            pass


def test_reads_in_order_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pmarray.open(tmp_path / "g", (300_000, 20), "float32", layout="col") as array:
        array[...] = 1
    asked: list[tuple[int, int]] = []
    real = os.posix_fadvise

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            asked.append((offset, length))
        real(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    with pmarray.open(tmp_path / "g", mode="r") as array:
        asked.clear()  # the counter of the lock file
        for j in (13, 2, 9, 5):
            array[:, j]
        assert asked == []
        for j in range(5, 10):
            array[:, j]
        assert sum(length for _, length in asked) >= 3 * 300_000 * 4


# -- loans -------------------------------------------------------------------------------------


@pytest.fixture
def column(scratch: Path) -> pmarray.PMArray:
    """Large columns in few chunks: (30_000, 6) float32, of value 9."""
    array = pmarray.open(scratch / "g", (30_000, 6), "float32", layout="col", cache="2 MiB")
    array[...] = 9
    array.flush()
    return array


def test_a_loan_is_the_memory_itself(column: pmarray.PMArray) -> None:
    with column.writing(np.s_[:, 2]) as out:
        assert out.shape == (30_000,)
        assert out.flags.writeable
        assert out.flags.c_contiguous
        assert out.ctypes.data % 64 == 0
        out[:] = 5
    assert column.group.cache_bytes >= 30_000 * 4
    assert column[3].tolist() == [9, 9, 5, 9, 9, 9]
    column.close()


def test_nobody_reads_the_medium_into_lent_memory(scratch: Path) -> None:
    """Small columns share chunks, and blocks; what lies beside a loan is read and written."""
    with pmarray.open(scratch / "g", (100, 50), "float32", layout="col") as array:
        array[...] = 9
        array.flush()
        with pmarray.open_group(scratch / "g", mode="r") as other:
            assert (other["array"][...] == 9).all()
    with pmarray.open(scratch / "g") as array:  # nothing is cached now
        with array.writing(np.s_[:, 7]) as out:
            out[:] = 1
            array[:, 8] = 2
            with array.writing(np.s_[:, 6]) as more:
                more[:] = 3
            assert (array[10, :6] == 9).all()
            array[3:5]  # a read of what lies around
            np.asarray(array)
            array.flush()
            array[0, 9] = 4
            assert (out == 1).all()
        assert array[0, 5:11].tolist() == [9, 3, 1, 2, 4, 9]
    with pmarray.open(scratch / "g", mode="r") as array:
        assert array[1, 5:11].tolist() == [9, 3, 1, 2, 9, 9]


@pytest.mark.parametrize("act", ["rows", "columns", "view", "flush", "neighbour", "append"])
def test_a_loan_of_a_large_column_is_left_alone(column: pmarray.PMArray, act: str) -> None:
    column.close()
    array = pmarray.open(Path(column.group.url.removeprefix("memmap:")), cache="2 MiB")
    with array.writing(np.s_[:, 2]) as out:
        out[:] = np.arange(30_000)
        if act == "rows":
            array[5:9, :]
        elif act == "columns":
            array[:, 1:4]
        elif act == "view":
            np.asarray(array).sum()
        elif act == "flush":
            array.flush()
        elif act == "neighbour":
            array[:, 1] = array[:, 3] = 9
        else:
            array.append(np.full(30_000, 9))
        np.testing.assert_array_equal(out, np.arange(30_000))
    np.testing.assert_array_equal(array[:, 2], np.arange(30_000))
    assert (array[:, [0, 1][1]] == 9).all()
    array.close()


def test_a_loan_that_ends_after_a_flush_is_made_durable_by_the_next(
    column: pmarray.PMArray, calls: Any
) -> None:
    with column.writing(np.s_[:, 1]) as out:
        out[:] = 1
        column.flush()
        calls.log.clear()
    column.flush()
    names = calls.names()
    assert "pwritev" in names
    assert "fdatasync" in names[names.index("pwritev") :]
    column.close()


def abandon(loan: Any) -> None:
    """Write half of it, then fail."""
    loan.__enter__()[:100] = 1
    loan.__exit__(KeyError, KeyError(), None)


def test_loans_that_fail_leave_the_old_values(column: pmarray.PMArray) -> None:
    abandon(column.writing(np.s_[:, 1]))
    assert (column[...] == 9).all()
    abandon(column.appending())
    assert column.shape == (30_000, 7)
    assert (column[:, 6] == 0).all()
    column.close()
    with pmarray.open(Path(column.group.url.removeprefix("memmap:")), mode="r") as again:
        assert (again[:, :6] == 9).all()
        assert (again[:, 6] == 0).all()


def test_a_loan_that_fails_shows_no_memory_of_others(scratch: Path) -> None:
    """A part of what was lent is on its way: the rest is what the medium has."""
    with pmarray.open(scratch / "g", (30_000, 4), "float32", layout="col", cache="1 MiB") as array:
        array[...] = 1
        array.group.flush()
        array.group._session.cache.forget()  # whose memory has ones, and not zeros
        array[...] = 2
        array.group.flush()
        array.group._session.cache.forget()
        array[:, :] = 3
        array.group.flush()
        array.group._session.cache.forget()
        array[100, :] = 4  # a block of each column is dirty
        with pytest.raises(KeyError), array.writing(np.s_[:, 1]) as out:
            out[20_000:] = 5
            raise KeyError
        assert (array[5_000:, 1] == 3).all()
        assert (array[100, :] == 4).all()


def test_loans_beyond_the_budget_are_refused_and_change_nothing(scratch: Path) -> None:
    array = pmarray.open(scratch / "g", (30_000, 0), "float32", layout="col", cache="1 MiB")
    open_loans: list[Any] = []
    for _ in range(1000):
        loan = array.appending()
        try:
            out = loan.__enter__()
        except BudgetError as error:
            assert "on loan" in str(error)  # noqa: PT017
            break
        out[:] = len(open_loans)
        open_loans.append(loan)
    assert 4 <= len(open_loans) <= 8
    assert array.shape == (30_000, len(open_loans)), "the one that failed has not grown it"
    assert array.group.cache_bytes <= MIB
    with pytest.raises(LoanError, match="leave their blocks first"):
        array.resize((30_000, 0))
    for loan in reversed(open_loans):
        loan.__exit__(None, None, None)
    array.append(np.full(30_000, len(open_loans)))
    assert (array[77] == range(len(open_loans) + 1)).all()
    array.close()


@pytest.fixture
def four_chunks(scratch: Path) -> Iterator[pmarray.PMArray]:
    """Six columns, of which the cache holds four, each a chunk of its own."""
    shape = (30_000, 6)
    with pmarray.open(
        scratch / "g", shape, "float32", layout="col", chunks=1, cache="512 KiB"
    ) as array:
        yield array


def lend_all_from_another_thread(array: pmarray.PMArray, then: Callable[[], object]) -> Any:
    """Lend four columns on a thread, do `then` there, and end the loans; return the thread."""
    lent = threading.Event()

    def borrow() -> None:
        with ExitStack() as loans:
            for j in range(4):
                loans.enter_context(array.writing(np.s_[:, j]))[:] = j
            lent.set()
            with suppress(BudgetError):
                then()

    thread = threading.Thread(target=borrow)
    thread.start()
    assert lent.wait(30)
    return thread


def test_memory_on_loan_to_another_thread_is_waited_for(four_chunks: pmarray.PMArray) -> None:
    wanted = threading.Event()
    thread = lend_all_from_another_thread(four_chunks, lambda: wanted.wait(30))
    timer = threading.Timer(0.2, wanted.set)
    timer.start()
    four_chunks[:, 5] = 5
    assert wanted.is_set()
    thread.join()
    timer.join()
    assert (four_chunks[7] == [0, 1, 2, 3, 0, 5]).all()


def test_threads_that_wait_for_each_others_loans_are_told(four_chunks: pmarray.PMArray) -> None:
    """Each has what the other wants: one of them is refused, and at once."""
    began = time.monotonic()

    def want_another() -> None:
        time.sleep(0.2)
        four_chunks[:, 4] = 4

    thread = lend_all_from_another_thread(four_chunks, want_another)
    with suppress(BudgetError):
        four_chunks[:, 5] = 5
    thread.join()
    assert time.monotonic() - began < attempts.LOAN_WAIT_SECONDS / 2
    assert (four_chunks[7, :4] == range(4)).all()


def test_the_wait_for_loans_ends(
    four_chunks: pmarray.PMArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The borrower waits for something else, for example for this very thread."""
    monkeypatch.setattr(attempts, "LOAN_WAIT_SECONDS", 0.2)
    done = threading.Event()
    thread = lend_all_from_another_thread(four_chunks, lambda: done.wait(30))
    with pytest.raises(BudgetError, match="on loan"):
        four_chunks[:, 5] = 5
    done.set()
    thread.join()
    four_chunks[:, 5] = 5
    assert (four_chunks[7] == [0, 1, 2, 3, 0, 5]).all()


def test_what_cannot_be_lent_is_refused(scratch: Path) -> None:
    with pmarray.open(scratch / "g", (50, 40), "float64", layout="col") as array:
        for index in (np.s_[3], np.s_[::2, 1], np.s_[:, ::2], np.s_[2:4, :]):
            with pytest.raises(SelectionError, match="not contiguous"), array.writing(index):
                pass
        with pytest.raises(IndexError), array.writing(np.s_[:, 40]):
            pass
        with array.writing(np.s_[:, 3:9]) as out:
            assert out.shape == (50, 6)
            out[...] = 1
        with array.writing(np.s_[::-1, 9]) as out:
            out[:] = np.arange(50)
        assert array[:, 9].tolist() == list(range(49, -1, -1))
        with array.writing(np.s_[:, 9]) as out:
            out[:] = 0
            with pytest.raises(LoanError):
                array.resize((50, 39))
        assert array.shape == (50, 40)
        assert array[...].sum() == 300
        with pytest.raises(LayoutError):
            array.append(np.ones(49))


def test_a_loan_is_entered_here_and_left_there(column: pmarray.PMArray) -> None:
    loans = [column.writing(np.s_[:, j]) for j in range(6)]
    buffers = [loan.__enter__() for loan in loans]

    def fill(j: int) -> None:
        buffers[j][:] = j
        loans[j].__exit__(None, None, None)

    threads = [threading.Thread(target=fill, args=(j,)) for j in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert column[29_999].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(LoanError, match="not open"):
        loans[0].__exit__(None, None, None)
    column.close()


def test_memory_lent_for_reading_stays(column: pmarray.PMArray) -> None:
    with column.reading(np.s_[:, 2]) as lent:
        assert not lent.flags.writeable
        for j in (0, 1, 3, 4, 5):
            column[:, j] = j
            column[::2, j] = j
        column.flush()
        assert (lent == 9).all()
        column[:, 2] = 1
        assert (lent == 1).all()
    column.close()


@pytest.mark.parametrize("kind", ["writing", "reading"])
def test_a_loan_that_is_torn_twice_at_its_beginning_pins_nothing(
    kind: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody keeps the exception, as a notebook does, and with it the frames."""
    with pmarray.open(scratch / "g", (1000, 4), layout="col", cache="64 KiB") as a:
        a[...] = 1
        a.flush()
        torn: list[str] = []

        def tearing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def method(*arguments: Any) -> Any:
                result = real(*arguments)
                if name not in torn:
                    torn.append(name)
                    raise KeyboardInterrupt
                return result

            return method

        cache = a.group._session.cache
        for where, name in (
            (type(cache), "lend"),
            (type(cache), "pin"),
            (type(cache), "forget_lost"),
        ):
            monkeypatch.setattr(where, name, tearing(name, getattr(where, name)))
        with pytest.raises(KeyboardInterrupt) as kept, getattr(a, kind)(np.s_[:, 2]):
            raise AssertionError("it did not begin")
        assert torn == ["lend" if kind == "writing" else "pin", "forget_lost"]
        a[:, 3] = 7
        assert not [chunk.pins for chunk in cache._chunks.values() if chunk.pins]
        assert (a[:, 2] == 1).all()
        del kept
