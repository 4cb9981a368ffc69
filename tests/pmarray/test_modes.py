"""Modes, the one writer, and what becomes of a group in threads, forks and at exit."""

from __future__ import annotations

import copy
import errno
import gc
import itertools
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._system import beneath, osops
from pmarray.backends.files import memmap
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    ClosedError,
    GroupExistsError,
    GroupLockedError,
    GroupNotFoundError,
    LayoutError,
    ReadOnlyError,
    StorageError,
)
from tests.persistent import persistent_place

Fingerprint = Callable[[Path], dict[str, str]]


@pytest.fixture(params=["dram", "memmap", "shelf", "device"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place where nothing is yet."""
    if request.param in ("shelf", "device"):
        with persistent_place(request.param) as place:
            yield place
    elif request.param == "dram":
        yield f"dram:{uuid.uuid4()}"
    else:
        yield f"memmap:{tmp_path}/deep/er/g"


@pytest.fixture
def filled(url: str) -> str:
    """A place with the arrays x (ones) and y (twos), and an attribute."""
    with pmarray.open_group(url) as group:
        group.create("x", (4, 3))[...] = 1
        group.create("y", (2,), "int64")[...] = 2
        group.attrs["a"] = 1
    return url


# -- modes of a group --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_must_exist_must_exist(url: str, mode: Any) -> None:
    with pytest.raises(GroupNotFoundError, match="there is no group"):
        pmarray.open_group(url, mode=mode)
    with pytest.raises(FileNotFoundError):
        pmarray.open(url, (3,), mode=mode)


@pytest.mark.parametrize("mode", ["a", "w", "w-"])
def test_what_may_be_created_is_created(url: str, mode: Any) -> None:
    pmarray.open_group(url, mode=mode).close()
    with pmarray.open_group(url, mode="r") as group:
        assert list(group) == []


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_what_exists_is_kept(filled: str, mode: Any) -> None:
    with pmarray.open_group(filled, mode=mode) as group:
        assert list(group) == ["x", "y"]
        assert dict(group.attrs) == {"a": 1}
        assert (group["x"][...] == 1).all()
        assert len(group) == 2
        assert "x" in group
        assert "z" not in group
        assert bool(group)


def test_w_deletes_everything_and_w_minus_nothing(filled: str) -> None:
    with pytest.raises(GroupExistsError, match="exists already"):
        pmarray.open_group(filled, mode="w-")
    with pmarray.open_group(filled, mode="w") as group:
        assert list(group) == []
        assert dict(group.attrs) == {}
    with pmarray.open_group(filled, mode="r") as group:
        assert list(group) == []


@pytest.mark.parametrize("mode", ["", "x", "rw", None])
def test_other_modes_are_refused(url: str, mode: Any) -> None:
    with pytest.raises(ValueError, match="use one of"):
        pmarray.open_group(url, mode=mode)
    with pytest.raises(ValueError, match="use one of"):
        pmarray.open(url, (3,), mode=mode)
    with pytest.raises(GroupNotFoundError):
        pmarray.open_group(url, mode="r")


# -- modes of an array -------------------------------------------------------------------------


def test_an_arrays_modes_leave_its_neighbours_alone(filled: str) -> None:
    with pytest.raises(ArrayExistsError, match="already"):
        pmarray.open(f"{filled}#x", (4, 3), mode="w-")
    with pmarray.open(f"{filled}#x", (5,), "int8", mode="w") as array:
        assert (array.shape, array.dtype) == ((5,), np.dtype("int8"))
        assert (array[...] == 0).all()
    with pmarray.open(f"{filled}#z", 7, mode="w-", fill_value=3) as array:
        assert (array[...] == 3).all()
    with pmarray.open_group(filled, mode="r") as group:
        assert list(group) == ["x", "y", "z"]
        assert dict(group.attrs) == {"a": 1}
        assert (group["y"][:] == 2).all()


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_an_array_that_is_not_there(filled: str, mode: Any) -> None:
    with pytest.raises(ArrayNotFoundError, match=r"no array 'z' in .*; it holds x, y|give shape="):
        pmarray.open(f"{filled}#z", mode=mode)
    with pytest.raises(KeyError):
        pmarray.open(f"{filled}#z", mode=mode)


@pytest.mark.parametrize("mode", ["a", "r+", "r"])
def test_what_another_handle_here_has_not_committed_is_hinted_at(tmp_path: Path, mode: Any) -> None:
    """As in a notebook: made in one cell, opened in the next."""
    url = f"memmap:{tmp_path / 'g'}"
    with pmarray.open(url, (4, 3), mode="w") as x:
        x[:] = 1
        with pytest.raises(ArrayNotFoundError, match=r"another handle .* flush\(\)"):
            pmarray.open(url, mode=mode)
        x.flush()
        with pmarray.open(url, mode=mode) as y:
            assert y.shape == (4, 3)
    with pytest.raises(ArrayNotFoundError) as caught:
        pmarray.open(f"{url}#y", mode=mode)
    assert "another handle" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"shape": -1},
        {"shape": "x"},
        {"shape": 3, "dtype": object},
        {"shape": 3, "dtype": "nonsense"},
        {"shape": 3, "layout": "diagonal"},
        {"shape": (3, 3), "chunks": -1},
        {"shape": (3, 3), "chunks": (2, 2)},
        {"shape": 3, "fill_value": "x"},
        {"shape": 3, "dtype": "int8", "fill_value": 1000},
        {"shape": 10**18},
    ],
)
@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_wrong_call_deletes_and_creates_nothing(
    filled: str, url: str, mode: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, OSError, MemoryError, KeyError)):
        pmarray.open(f"{filled}#{'x' if mode == 'w' else 'new'}", mode=mode, **wrong)
    with pmarray.open_group(filled, mode="r") as group:
        assert list(group) == ["x", "y"]
        assert (group["x"][...] == 1).all()


# -- reading only ------------------------------------------------------------------------------


def test_a_reader_changes_nothing(filled: str, fingerprint: Fingerprint) -> None:
    root = Path(filled.removeprefix("memmap:"))
    before = fingerprint(root) if filled.startswith("memmap") else None
    with pmarray.open_group(filled, mode="r") as group:
        x = group["x"]
        for act in (
            lambda: x.__setitem__(0, 1),
            lambda: x.__setitem__(np.s_[0:0], 1),
            lambda: x.append(np.ones((1, 3))),
            lambda: x.resize((2, 3)),
            lambda: x.writing(0).__enter__(),
            lambda: x.appending().__enter__(),
            lambda: group.create("z", (3,)),
            lambda: group.__delitem__("x"),
            lambda: group.attrs.update(a=2),
            lambda: group.attrs.pop("a"),
            lambda: group.attrs.clear(),
        ):
            with pytest.raises(ReadOnlyError, match="mode='r'"):
                act()
            with pytest.raises(PermissionError):
                act()
        assert x.shape == (4, 3)
        assert not np.asarray(x).flags.writeable
        group.flush()
        x[...], x[::2], np.array(x)
    if before is not None:
        assert fingerprint(root) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_what_may_not_be_written_says_how_to_read_it(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(3))
    real = osops.open_file

    def refusing(path: str, *, write: bool = False, **others: Any) -> int:
        if write:
            raise OSError(code, os.strerror(code))
        return real(path, write=write, **others)

    monkeypatch.setattr(osops, "open_file", refusing)
    with pytest.raises(StorageError, match=r'cannot open: .* \(mode="r" opens it to read alone'):
        pmarray.open(path)
    with pmarray.open(path, mode="r") as array:
        assert array.sum() == 3


def test_a_closed_group_says_so(filled: str) -> None:
    group = pmarray.open_group(filled)
    x = group["x"]
    x[0] = 5
    x.close()
    assert group.closed
    group.close()
    for act in (
        lambda: x[0],
        lambda: x.__setitem__(0, 1),
        lambda: np.asarray(x),
        lambda: x.append(np.ones((1, 3))),
        x.flush,
        group.flush,
        lambda: group["x"],
        lambda: list(group),
        lambda: group.attrs["a"],
    ):
        with pytest.raises(ClosedError, match="open it again"):
            act()
    assert x.shape == (4, 3)
    assert "closed" in repr(group)
    with pmarray.open_group(filled, mode="r") as again:
        assert (again["x"][0] == 5).all()


def test_loans_that_outlive_their_group_say_so(filled: str) -> None:
    group = pmarray.open_group(filled)
    loan = group["x"].writing(0)
    out = loan.__enter__()
    group.close()
    out[:] = 7  # memory that is nobody's, and no crash
    with pytest.raises(ClosedError, match="lost"):
        loan.__exit__(None, None, None)
    with pmarray.open_group(filled, mode="r") as again:
        assert (again["x"][1:] == 1).all()


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_reader_whose_group_has_gone(scheme: str, how: str, tmp_path: Path) -> None:
    """It is told so, and not to refresh, for ever."""
    url = f"{scheme}:{tmp_path}/g"
    with pmarray.open(url, (1000, 200), chunks=50) as a:
        a[...] = 1
    with pmarray.open(url, mode="r", cache="300 KiB") as b:
        b[0, 0]
        if how == "moved":
            os.rename(tmp_path / "g", tmp_path / "h")
        else:
            shutil.rmtree(tmp_path / "g")
        for _ in range(2):
            with pytest.raises((GroupNotFoundError, StorageError), match="moved or deleted"):
                b[520, 0]
            with pytest.raises(GroupNotFoundError, match="moved or deleted"):
                b.group.refresh()
        with pmarray.open(url, (1000, 200), chunks=50, fill_value=2):
            pass
        b.group.refresh()
        assert b[520, 0] == 2


# -- the one writer ----------------------------------------------------------------------------


def test_a_second_writer_of_this_process(filled: str) -> None:
    with pmarray.open_group(filled) as first, pmarray.open_group(filled) as second:
        first.attrs["b"] = 1
        for _ in range(2):
            with pytest.raises(GroupLockedError, match="in this process already"):
                second.attrs["c"] = 1
        with pytest.raises(BlockingIOError):
            second["x"][0] = 1
        assert (second["x"][...] == 1).all(), "it may still read"
        first.close()
        second.attrs["c"] = 1
    with pmarray.open_group(filled, mode="r") as group:
        assert dict(group.attrs) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ("{pid} on another-container", "by process {pid} on another-container"),
        ("", "by process unknown"),
        ("\x1b[31mred", "by process unknown"),
    ],
)
def test_a_writer_elsewhere(note: str, says: str, tmp_path: Path) -> None:
    """In containers, all programs may have one number; and a file may hold anything."""
    with pmarray.open_group(tmp_path / "g") as group:
        group.attrs["a"] = 1
        with open(tmp_path / "g/lock", "r+b") as file:
            file.write(note.format(pid=os.getpid()).encode().ljust(64))
        with (
            pmarray.open_group(tmp_path / "g") as second,
            pytest.raises(GroupLockedError, match=says.format(pid=os.getpid())),
        ):
            second.attrs["b"] = 1


def test_a_writer_moves_on_to_what_the_last_one_left(filled: str) -> None:
    """Two handles, both opened first: the second has the old state in its cache."""
    first, second = pmarray.open_group(filled), pmarray.open_group(filled)
    assert (second["x"][...] == 1).all()
    x, y = second["x"], second["y"]
    second["x"][0:4:2, 1]
    first["x"][1] = 5
    first["x"].append(np.full((600, 3), 6))
    del first["y"]
    first.create("z", (3,))[:] = 3
    first.attrs["b"] = 2
    first.close()
    x[0, 0] = 7
    assert x.shape == (604, 3)
    assert x[:5, 0].tolist() == [7, 5, 1, 1, 6]
    with pytest.raises(ArrayNotFoundError, match="deleted"):
        y[0]
    assert list(second) == ["x", "z"]
    assert dict(second.attrs) == {"a": 1, "b": 2}
    second.close()
    third, fourth = pmarray.open_group(filled), pmarray.open_group(filled)
    x = third["x"]
    x[...]
    fourth["x"].resize((2, 3))
    fourth.close()
    x.append(np.full((1, 3), 8))
    assert x[:, 1].tolist() == [1, 5, 8]
    x.resize((600, 3))
    assert (x[3:] == 0).all(), "nothing of what was cut off comes back"
    third.close()


WRITER = """
import sys, time, pmarray
group = pmarray.open_group(sys.argv[1])
group["x"][0, 0] = 9
print("writing", flush=True)
sys.stdin.readline()
group.close()
print("closed", flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path, python: Any) -> tuple[Path, Any]:
    """Another process that holds the lock."""
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("x", (4, 3))[...] = 1
    process = python(WRITER, tmp_path / "g")
    assert process.stdout.readline() == "writing\n", process.stderr.read()
    return tmp_path / "g", process


def test_a_writer_in_another_process_is_named(writer: tuple[Path, Any]) -> None:
    path, process = writer
    with pmarray.open_group(path) as group:
        with pytest.raises(GroupLockedError, match=f"process {process.pid} on "):
            group["x"][0, 1] = 1
        with pytest.raises(GroupLockedError):
            pmarray.open_group(path, mode="w")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        group["x"][0, 1] = 8
        assert group["x"][0].tolist() == [9, 8, 1]


def test_the_lock_dies_with_its_process(writer: tuple[Path, Any]) -> None:
    path, process = writer
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pmarray.open_group(path) as group:
        group["x"][0, 1] = 8
        assert group["x"][0].tolist() == [1, 8, 1], "what was not flushed is gone"


def test_readers_read_while_a_writer_writes(writer: tuple[Path, Any]) -> None:
    path, process = writer
    with pmarray.open_group(path, mode="r") as group:
        assert (group["x"][...] == 1).all()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        group.refresh()
        assert group["x"][0, 0] == 9


# -- leaving without closing -------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "raise KeyError", "del a; gc.collect()", "a = None; os.getpid()"]
)
def test_what_was_not_closed_is_written_at_exit(tmp_path: Path, python: Any, end: str) -> None:
    process = python(
        f"""
        import gc, os, sys, pmarray
        a = pmarray.open(sys.argv[1], (30_000, 3), "float32", layout="col")
        a[...] = 5
        a.append([6] * 30_000)
        {end}
        """,
        tmp_path / "g",
    )
    process.communicate(timeout=60)
    with pmarray.open(tmp_path / "g", mode="r") as array:
        assert array.shape == (30_000, 4)
        assert array[7].tolist() == [5, 5, 5, 6]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_group_that_is_dropped_is_written_and_unlocked(tmp_path: Path) -> None:
    def drop() -> None:
        for i in range(3):
            array = pmarray.open(f"{tmp_path}/g{i}", (30_000, 3), "float32", layout="col")
            array[...] = i

    before = len(os.listdir("/proc/self/fd"))
    drop()
    gc.collect()
    for i in range(3):
        with pmarray.open(tmp_path / f"g{i}", mode="r+") as array:
            assert (array[...] == i).all()
            array[0] = 1
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before, "its descriptors are closed too"
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("pmarray-writer") == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_view_outlives_its_group(filled: str) -> None:
    view = np.asarray(pmarray.open(f"{filled}#x", mode="r"))
    gc.collect()
    assert (view == 1).all()


def test_groups_and_arrays_are_no_values(filled: str) -> None:
    """A copy of a handle would be a second writer with the same cache."""
    with pmarray.open_group(filled) as group:
        for thing in (group, group["x"]):  # pickled, they are their URL, to be read elsewhere
            assert copy.copy(thing) is thing
            with pytest.raises(TypeError, match="has no deep copy"):
                copy.deepcopy(thing)


# -- forks -------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, time, pmarray
from pmarray.errors import ClosedError, GroupLockedError
group = pmarray.open_group(sys.argv[1], cache="1 MiB")
x = group.create("x", (100_000, 4), "float32", layout="col")
x[...] = 1
group.flush()
stop = threading.Event()
def work():
    while not stop.is_set():
        x[:, 1] = 2
        x[::3, 2]
worker = threading.Thread(target=work)
worker.start()
for i in range(8):
    time.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                x[0, 0] = 7
            except ClosedError:
                code = 0
            group.close()
            with pmarray.open_group(sys.argv[1], mode="r") as mine:
                assert mine["x"][0, 0] == 1
            try:
                pmarray.open_group(sys.argv[1]).attrs["a"] = 1
                code = 2
            except GroupLockedError:
                pass
        finally:
            if i % 2:
                os._exit(code)
            sys.exit(code)
    for _ in range(1000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, 9)
        print("the child hangs")
    if status:
        print("status", status)
stop.set()
worker.join()
x[:, 3] = 3
group.close()
print("done")
"""


def test_a_forked_child_has_no_part_in_it(tmp_path: Path, python: Any) -> None:
    """Not even when another thread held every lock at that moment."""
    process = python(FORK, tmp_path / "g")
    out, error = process.communicate(timeout=100)
    assert out == "done\n", out + error
    with pmarray.open(f"{tmp_path}/g#x", mode="r") as array:
        assert array[5].tolist() == [1, 2, 1, 3]


# -- threads -----------------------------------------------------------------------------------


def together(*works: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


# Four threads with a loan each, and one that reads: five chunks of an eighth of the budget.
@pytest.mark.parametrize("cache", ["2 MiB", "16 MiB"])
@pytest.mark.parametrize("rows", [300, 30_000])
def test_threads_write_disjoint_columns_while_another_flushes(
    tmp_path: Path, cache: str, rows: int
) -> None:
    with pmarray.open(tmp_path / "g", (rows, 24), "float32", layout="col", cache=cache) as array:

        def write(thread: int) -> None:
            for turn in range(3):
                for j in range(thread, 24, 4):
                    if (j + turn) % 2:
                        array[:, j] = turn * 100 + j
                    else:
                        with array.writing(np.s_[:, j]) as out:
                            out[:] = turn * 100 + j

        def look() -> None:
            for _ in range(20):
                array.flush()
                array[3]
                np.asarray(array)

        together(*(lambda t=t: write(t) for t in range(4)), look)
        assert (array[...] == 200 + np.arange(24)).all()
    with pmarray.open(tmp_path / "g", mode="r") as array:
        assert (array[...] == 200 + np.arange(24)).all()


def test_threads_append_lines_of_their_own(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (5000, 0), "float32", layout="col", cache="1 MiB") as array:

        def append(thread: int) -> None:
            for i in range(20):
                if i % 2:
                    array.append(np.full(5000, thread * 100 + i))
                else:
                    with array.appending() as out:
                        out[:] = thread * 100 + i

        together(*(lambda t=t: append(t) for t in range(4)))
        assert array.shape == (5000, 80)
        whole = array[...]
        assert (whole == whole[0]).all(), "no column is torn"
        assert sorted(whole[0]) == [t * 100 + i for t in range(4) for i in range(20)]


def test_threads_set_attributes_of_their_own(url: str) -> None:
    with pmarray.open_group(url) as group:

        def work(thread: int) -> None:
            for i in range(50):
                group.attrs[f"{thread}-{i}"] = i
            for i in range(0, 50, 2):
                del group.attrs[f"{thread}-{i}"]

        together(*(lambda t=t: work(t) for t in range(4)))
        assert len(group.attrs) == 100


def test_threads_open_one_array_once(filled: str) -> None:
    with pmarray.open_group(filled) as group:
        found: list[pmarray.PMArray] = []
        together(*(lambda: found.append(group["x"]) for _ in range(8)))
        assert len({id(array) for array in found}) == 1


# -- dram: -------------------------------------------------------------------------------------


def test_unnamed_groups_in_memory_are_separate() -> None:
    with pmarray.open_group("dram:") as first, pmarray.open_group("dram:") as second:
        first.create("x", (3,))
        assert list(second) == []
    with pytest.raises(GroupNotFoundError):
        pmarray.open_group("dram:", mode="r")


def test_memory_that_cannot_be_had_is_refused() -> None:
    with pmarray.open_group("dram:") as group:
        with pytest.raises((MemoryError, LayoutError)):
            group.create("x", (2**62,), "float64")
        assert list(group) == []
        group.create("x", (3,))[:] = 1


def test_a_group_that_is_made_while_it_is_looked_for_is_no_foreign_directory(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata is not there when it is read, and its arrays are when the directory is."""
    look, place, times = beneath.entries, str(scratch / "group"), itertools.count()

    def make_first(directory: str) -> list[str]:
        if next(times) == 0:
            with pmarray.open_group(f"memmap:{place}") as group:
                group["x"] = np.arange(3)
        return look(directory)

    monkeypatch.setattr(memmap, "entries", make_first)
    with pmarray.open_group(f"memmap:{place}", mode="r") as group:
        assert list(group) == ["x"]
