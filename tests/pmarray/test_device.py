"""``shelf:`` on a DAX device: a file that is mapped as a device would be."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray.backends import _device
from pmarray.backends._pool import Pool
from pmarray.errors import (
    GroupLockedError,
    SnapshotExpiredError,
    StorageError,
)
from tests.persistent import MEMORY, pretend_devices

UNIT = 2 << 20
LINE = 1 << 20
"""Bytes of a line of the arrays here: two make a unit."""


def make_device(directory: str, units: int = 64) -> Path:
    path = Path(directory) / "dax0.0"
    with path.open("wb") as file:
        file.truncate(units * UNIT)
    return path


@pytest.fixture
def device() -> Iterator[Path]:
    """A device of 128 MiB with nothing on it."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as directory,
        pretend_devices(),
    ):
        yield make_device(directory)


def pool_of(path: Path) -> Pool:
    """What is on a device now."""
    found = _device.find_device(str(path))
    assert found is not None
    pool = Pool(found, writable=False)
    assert pool.refresh()
    return pool


def units_of(path: Path) -> list[int]:
    """The units of all files, with the journal's."""
    files = pool_of(path).directory.files.values()
    return [unit for runs in files for first, n in runs for unit in range(first, first + n)]


def lines(values: list[int]) -> NDArray[Any]:
    return np.repeat(np.array(values, "uint8"), LINE).reshape(len(values), LINE)


def same(found: Any, values: list[int]) -> None:
    assert found.shape == (len(values), LINE)
    assert np.array_equal(found, lines(values))


# -- arrays in units ---------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "cut", "delete", "view", "flush", "reopen"]),
        st.sampled_from("abc"),
        st.integers(1, 5),
    ),
    max_size=16,
)


@settings(max_examples=30)
@given(steps, st.sampled_from(["auto", "4 MiB"]))
def test_arrays_share_a_device_and_no_unit(steps: list[tuple[str, str, int]], cache: str) -> None:
    """They grow in turns, over several runs; what a view shows stays, also of what is deleted."""
    model: dict[str, list[int]] = {}
    views: list[tuple[str, NDArray[Any], list[int]]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as directory,
        pretend_devices(),
    ):
        path = make_device(directory, 128)
        group = pmarray.open_group(f"shelf:{path}", cache=cache)
        for value, (what, name, count) in enumerate(steps, 1):
            held = [view for view in views if view[0] == name]
            if what == "reopen":
                views.clear()  # the next handle gives their units to others
                group.close()
                group = pmarray.open_group(f"shelf:{path}", cache=cache)
            elif what == "flush":
                group.flush()
            elif name not in model:
                group.create(name, (0, LINE), "uint8", chunks=1)
                model[name] = []
            elif what == "append":
                group[name].append(lines([value] * count))
                model[name] += [value] * count
            elif what == "cut":
                del model[name][count:]
                group[name].resize((len(model[name]), LINE))
                for view in held:
                    del view[2][count:]
            elif what == "view":
                group.flush()
                views.append((name, np.asarray(group[name]), list(model[name])))
            elif what == "delete":
                del group[name], model[name]
                views = [("" if view in held else view[0], *view[1:]) for view in views]
            for _, seen, values in views:
                same(seen[: len(values)], values)
        for name, values in model.items():
            same(group[name][...], values)
        views.clear()
        group.close()
        units = units_of(path)
        assert len(set(units)) == len(units)
        assert 0 not in units
        with pmarray.open_group(f"shelf:{path}", mode="r") as reader:
            assert sorted(reader) == sorted(model)
            for name, values in model.items():
                same(reader[name][...], values)


def test_a_file_in_several_runs(device: Path) -> None:
    with pmarray.open_group(f"shelf:{device}") as group:
        a, b = (group.create(name, (0, LINE), "uint8") for name in "ab")
        for value in range(1, 9, 2):
            a.append(lines([value, value]))
            b.append(lines([value + 1, value + 1]))
        values = [v for v in range(1, 9, 2) for _ in range(2)]
        del group["b"]
        group.flush()
        a.append(lines(list(range(100, 150))))
        same(a[...], values + list(range(100, 150)))
    assert max(len(runs) for runs in pool_of(device).directory.files.values()) > 1
    with pmarray.open(f"shelf:{device}#a", mode="r") as a:
        same(a[...], values + list(range(100, 150)))


def test_cutting_and_deleting_give_units_back(device: Path) -> None:
    with pmarray.open(f"shelf:{device}#a", (40, LINE), "uint8") as a:
        a[...] = 1
    full = len(units_of(device))
    with pmarray.open(f"shelf:{device}#a") as a:
        a.resize((4, LINE))
    assert len(units_of(device)) == full - 18
    with pmarray.open_group(f"shelf:{device}") as group:
        same(group["a"][...], [1] * 4)
        del group["a"]
    assert len(units_of(device)) == full - 20


def test_what_grows_again_holds_zeros(device: Path) -> None:
    """Not what somebody else has left in the unit."""
    with pmarray.open_group(f"shelf:{device}") as group:
        group.create("old", (60, LINE), "uint8")[...] = 255
        del group["old"]
        group.flush()
        made = group.create("new", (60, LINE), "uint8")
        same(made[...], [0] * 60)


@pytest.mark.parametrize("cache", ["auto", "4 MiB"])
def test_a_full_device_is_an_error_and_changes_nothing(device: Path, cache: str) -> None:
    with pmarray.open_group(f"shelf:{device}", cache=cache) as group:
        a = group.create("a", (50, LINE), "uint8", chunks=1)
        a[...] = 1
        group.create("b", (10, LINE), "uint8", chunks=1)[...] = 2
        group.flush()
        before = pool_of(device).directory
        attempts: list[Callable[[], object]] = [
            lambda: a.resize((1000, LINE)),
            lambda: a.append(np.zeros((100, LINE), "uint8")),
            lambda: group.create("c", (100, LINE), "uint8"),
        ]
        for attempt in attempts:
            with pytest.raises(StorageError, match=r"MiB are free; nothing was changed") as caught:
                attempt()
            assert caught.value.errno == errno.ENOSPC
            assert isinstance(caught.value, OSError)
        assert list(group) == ["a", "b"]
        assert pool_of(device).directory.files == before.files
        while True:  # to the last unit
            try:
                a.append(lines([1, 1]))
            except StorageError:
                break
        n = len(a)
        assert n > 80
        same(a[...], [1] * n)
        del group["b"]
        group.flush()
        a.append(lines([3] * 8))
        same(a[...], [1] * n + [3] * 8)


def test_a_full_device_ends_a_transaction(device: Path) -> None:
    with pmarray.open_group(f"shelf:{device}") as group:
        a = group.create("a", (4, LINE), "uint8")
        a[...] = 1
        with pytest.raises(StorageError), group.transaction():
            a[...] = 2
            a.resize((1000, LINE))
        same(a[...], [1] * 4)
        with group.transaction():
            a[...] = 3
    with pmarray.open(f"shelf:{device}#a", mode="r") as a:
        same(a[...], [3] * 4)


# -- one writer, many readers ------------------------------------------------------------------


def test_one_writer_of_this_process(device: Path) -> None:
    with pmarray.open(f"shelf:{device}", (3,)) as a:
        a[0] = 1
        with pmarray.open(f"shelf:{device}") as other:
            with pytest.raises(GroupLockedError, match=rf"process {os.getpid()} \(this one\)"):
                other[0] = 2
            assert other[1] == 0, "it may read"
        with pytest.raises(GroupLockedError):
            pmarray.open_group(f"shelf:{device}", mode="w")
    with pmarray.open(f"shelf:{device}") as again:
        again[0] = 2


IN_A_CHILD = """
import os, sys
import numpy as np
import pmarray
from pmarray.errors import SnapshotExpiredError
from tests.persistent import pretend_devices
pretence = pretend_devices()
pretence.__enter__()
url = "shelf:" + sys.argv[1]
"""

Python = Callable[..., "subprocess.Popen[str]"]


def test_one_writer_of_all_processes(device: Path, python: Python) -> None:
    source = """
with pmarray.open(url, (3,)) as a:
    a[...] = 1
    a.flush()
    a[1] = 2
    print("writing", flush=True)
    input()
"""
    with pmarray.open(f"shelf:{device}", (3,)):
        pass
    child = python(IN_A_CHILD + source, device)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    with pytest.raises(GroupLockedError, match=f"process {child.pid};"):
        pmarray.open(f"shelf:{device}", (3,), mode="w")
    child.kill()
    child.wait()
    with pmarray.open(f"shelf:{device}") as a:
        a[2] = 3
        assert a[...].tolist()[::2] == [1, 3]


def test_a_forked_child_has_no_part_in_it(device: Path, python: Python) -> None:
    source = """
group = pmarray.open_group(url)
a = group.create("a", (3, 4))
a[...] = 1
pid = os.fork()
if not pid:
    assert group.closed
    try:
        pmarray.open(url + "#a")[0] = 5
    except pmarray.GroupLockedError:
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
a[1] = 2
a.append(np.ones((1, 4)))
group.close()
"""
    child = python(IN_A_CHILD + source, device)
    assert child.communicate(timeout=60) == ("", "")
    with pmarray.open(f"shelf:{device}#a", mode="r") as a:
        assert a[:, 0].tolist() == [1, 2, 1, 1]


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "cut", "fill", "delete"]), st.integers(1, 6)),
        max_size=12,
    ),
    st.booleans(),
)
def test_a_reader_sees_its_commit_or_is_told(steps: list[tuple[str, int]], one: bool) -> None:
    """Never the bytes of another array, whoever has its units now."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as directory,
        pretend_devices(),
    ):
        url = f"shelf:{make_device(directory)}"
        with pmarray.open_group(url) as group:
            group.create("x", (4, LINE), "uint8")[...] = 1
            group.create("other", (4, LINE), "uint8")[...] = 255
            group.flush()
            reader = pmarray.open_group(url, mode="r", cache=0)
            read: Any = reader["x"]
            committed, model = [1] * 4, [1] * 4
            for value, (what, count) in enumerate(steps, 2):
                with group.transaction():
                    if what == "append":
                        group["x"].append(lines([value] * count))
                        model = model + [value] * count
                    elif what == "cut":
                        model = model[:count]
                        group["x"].resize((len(model), LINE))
                    elif what == "fill":
                        group["x"][...] = value
                        model = [value] * len(model)
                    else:
                        del group["x"]
                        group.create("x", (count, LINE), "uint8")[...] = value
                        model = [value] * count
                    group["other"].append(lines([255] * 2))
                if not one or value % 3 == 0:
                    group.flush()
                try:
                    same(read[...], committed)
                except SnapshotExpiredError:
                    reader.refresh()
                    read, committed = reader["x"], list(model)
                    same(read[...], committed)
            reader.close()


READER = """
from collections import Counter
seen = Counter()
with pmarray.open_group(url, mode="r", cache=0) as group:
    print("reading", flush=True)
    while True:
        try:
            group.refresh()
            step = group.attrs["step"]
            if step == "end":
                break
            x = group["x"]
            shape, found = x.shape, np.unique(x[...])
        except SnapshotExpiredError:
            seen["expired"] += 1
            continue
        assert found.tolist() == [1 + step % 100], (step, shape, found)
        seen["whole"] += 1
print(seen["whole"] > 0)
"""


def test_a_reader_in_another_process_while_arrays_come_and_go(device: Path, python: Python) -> None:
    with pmarray.open_group(f"shelf:{device}") as group:

        def make(step: int) -> None:
            with group.transaction():
                if step % 3 == 0 and "x" in group:
                    del group["x"]
                if "x" not in group:
                    group.create("x", (1 + step % 7, LINE), "uint8")
                group["x"].resize((1 + step % 5, LINE))
                group["x"][...] = 1 + step % 100
                group.attrs["step"] = step
            if step % 2:
                group.flush()
            # Somebody else's bytes in the units that were given up.
            group.create("other", (8, LINE), "uint8")[...] = 255
            group.flush()
            del group["other"]
            group.flush()

        make(0)
        child = python(IN_A_CHILD + READER, device)
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        for step in range(60):
            make(step)
        group.attrs["step"] = "end"
    assert child.communicate(timeout=60) == ("True\n", "")
