"""``shelf:`` on a DAX device: a file that is mapped as a device would be."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._formats.pool import Slot, current
from pmarray._system import osops, pmem
from pmarray._system.lockfile import owner_note
from pmarray.backends.shelf import devices
from pmarray.backends.shelf.pool import Pool
from pmarray.errors import (
    DamagedError,
    ForeignDataError,
    GroupLockedError,
    SnapshotExpiredError,
    StorageError,
    URLError,
)
from tests.persistent import MEMORY, pretend_devices
from tests.sampling import examples

pytestmark = pytest.mark.uses("libpmem")
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
    found = devices.find_device(str(path))
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


@examples(0.6)
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
                views = [("" if view[0] == name else view[0], *view[1:]) for view in views]
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


def test_units_that_somebody_looks_at_are_not_given_back(device: Path) -> None:
    """Another process may be the next writer, and would not know of the view."""
    with pmarray.open(f"shelf:{device}#a", (40, LINE), "uint8") as a:
        a[...] = 1
        a.flush()
        full = len(units_of(device))
        view = np.asarray(a)
        a.resize((4, LINE))
    assert len(units_of(device)) == full
    with pmarray.open_group(f"shelf:{device}") as group:
        group.create("b", (60, LINE), "uint8")[...] = 2
        same(view, [1] * 40)


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
        a.flush()
        with pmarray.open(f"shelf:{device}") as other:
            with pytest.raises(GroupLockedError, match="in this process already"):
                other[0] = 2
            assert other[1] == 0, "it may read"
        with pytest.raises(GroupLockedError):
            pmarray.open_group(f"shelf:{device}", mode="w")
    with pmarray.open(f"shelf:{device}") as again:
        again[0] = 2


IN_A_CHILD = """
import os, sys, warnings
import numpy as np
import pmarray
from pmarray.errors import GroupLockedError, SnapshotExpiredError
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
    with pytest.raises(GroupLockedError, match=f"process {child.pid} on "):
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
group.flush()
warnings.simplefilter("ignore", DeprecationWarning)  # of any fork beside threads, from 3.12 on
pid = os.fork()
if not pid:
    assert group.closed
    try:
        pmarray.open(url + "#a")[0] = 5
    except GroupLockedError:
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


def test_a_reader_follows_a_journal_that_grows(device: Path) -> None:
    with pmarray.open_group(f"shelf:{device}") as group:
        x = group.create("x", (16, LINE), "uint8")
        x[...] = 1
        with group.transaction():
            group.attrs["step"] = 1  # makes a journal, which the reader finds at its first size
        group.flush()
        with pmarray.open_group(f"shelf:{device}", mode="r") as reader:
            same(reader["x"][:2], [1, 1])
            before = sum(n for _, n in pool_of(device).directory.files[0])
            with group.transaction():
                x[...] = 2
                assert sum(n for _, n in pool_of(device).directory.files[0]) > before
                same(reader["x"][...], [1] * 16)
            same(reader["x"][...], [1] * 16)


@examples(0.3)
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


def test_a_reader_stays_where_it_is_while_arrays_grow(device: Path) -> None:
    """Units are given to files all the time, and taken from none."""
    url = f"shelf:{device}"
    with pmarray.open_group(url) as group:
        x = group.create("x", (1, LINE), "uint8")
        with group.transaction():
            x[...] = 1
        with pmarray.open_group(url, mode="r", cache=0) as reader:
            before = pool_of(device).generation
            for value in range(2, 12):
                with group.transaction():
                    x.append(lines([value]))
                    group.attrs["step"] = value
                same(reader["x"][...], [1])
            assert pool_of(device).generation > before
            with group.transaction():
                del group["x"]
            with pytest.raises(SnapshotExpiredError):
                reader["x"][...]


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


# -- what is not a whole pool of ours ------------------------------------------------------------

FOREIGN: dict[str, tuple[int, bytes]] = {
    "a PMDK pool": (0, b"PMEMPOOL"),
    "an XFS file system": (0, b"XFSB"),
    "an ext4 file system": (0x438, b"\x53\xef"),
    "a partition table": (512, b"EFI PART"),
    "an LVM volume": (512, b"LABELONE"),
    "data of another program": (UNIT - 1, b"\x01"),  # the last byte of the first unit
}


def fill_foreign(device: Path, offset: int, data: bytes) -> bytes:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.seek(10 * UNIT)
        file.write(b"precious")
    return device.read_bytes()


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_contents_are_refused_and_left(device: Path, what: str) -> None:
    before = fill_foreign(device, *FOREIGN[what])
    for mode in ("r", "r+", "a", "w-"):
        with pytest.raises(ForeignDataError, match=f"holds {what}, and nothing was changed"):
            pmarray.open_group(f"shelf:{device}", mode=mode)
    with pytest.raises(ForeignDataError):
        pmarray.open(f"shelf:{device}", (3,))
    assert device.read_bytes() == before
    with pmarray.open_group(f"shelf:{device}", mode="w") as group:
        group.create("a", (2, LINE), "uint8")[...] = 1
    with pmarray.open(f"shelf:{device}#a", mode="r") as a:
        same(a[...], [1, 1])


def test_the_end_of_a_device_is_looked_at_too(device: Path) -> None:
    before = fill_foreign(device, 64 * UNIT - 1, b"\x01")
    with pytest.raises(ForeignDataError, match="data of another program"):
        pmarray.open_group(f"shelf:{device}")
    assert device.read_bytes() == before


def test_a_reader_leaves_an_empty_device_empty(device: Path) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError, match="there is no group"):
            pmarray.open_group(f"shelf:{device}", mode=mode)
    assert not any(device.read_bytes())


def store(device: Path, offset: int, data: bytes) -> None:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def pool(device: Path) -> Path:
    """A device with an array."""
    with pmarray.open(f"shelf:{device}", (3, LINE), "uint8") as a:
        a[...] = 7
    return device


def both_superblocks(path: Path) -> None:
    for half in (0, 2048, 4096, 6144):
        store(path, half + 20, b"\xff\xff")


def directory(path: Path) -> None:
    store(path, pool_of(path)._superblock.offset + 3, b"???")


def newer_format(path: Path) -> None:
    line = path.read_bytes()[:8] + bytes(4) + b"\x02\0\0\0".ljust(52, b"?")
    store(path, 0, line[:8] + struct.pack("<I", google_crc32c.value(line)) + line[12:])


def half_formatted(path: Path) -> None:
    store(path, 0, bytes(8192))
    store(path, 0, Pool(devices.find_device(str(path)), writable=False)  # type: ignore[arg-type]
          ._superblock.to_bytes())  # fmt: skip


def shrunk(path: Path) -> None:
    os.truncate(path, 60 * UNIT)


DAMAGE: list[tuple[Callable[[Path], None], type[Exception], str]] = [
    (both_superblocks, DamagedError, "both superblocks of .* are damaged"),
    (directory, DamagedError, "the directory of .* is damaged"),
    (newer_format, ForeignDataError, "format 2.* install a newer one"),
    (half_formatted, ForeignDataError, "half formatted.*pmarray format"),
    (shrunk, DamagedError, "give it back its size"),
]


@pytest.mark.parametrize(
    ("harm", "error", "says"), DAMAGE, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_is_not_whole_is_refused_and_left(
    pool: Path, harm: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    harm(pool)
    before = pool.read_bytes()
    for mode in ("r", "a", "w-"):
        with pytest.raises(error, match=says):
            pmarray.open_group(f"shelf:{pool}", mode=mode)
    assert pool.read_bytes() == before
    with pmarray.open(f"shelf:{pool}", (2, LINE), "uint8", mode="w") as a:
        a[...] = 1
    with pmarray.open(f"shelf:{pool}", mode="r") as a:
        same(a[...], [1, 1])


@pytest.mark.parametrize("half", [0, 2048])
@pytest.mark.parametrize("bit", range(0, 512, 37))
def test_a_flipped_bit_of_a_superblock_loses_nothing_and_is_told(
    pool: Path, half: int, bit: int
) -> None:
    url = f"shelf:{pool}"
    with pmarray.open_group(url) as group:
        group.attrs["step"] = 1
    assert pmarray.verify(url) == []
    at = pool_of(pool)._slot * 4096 + half + bit // 8
    with pool.open("rb") as file:
        file.seek(at)
        store(pool, at, bytes([file.read(1)[0] ^ 1 << bit % 8]))
    (finding,) = pmarray.verify(url)
    assert finding.where.startswith("superblock")
    assert finding.damaged or half
    with pmarray.open_group(url, mode="r") as reader:
        assert reader.attrs["step"] == 1
    for step in (2, 3):  # either slot is stored to
        with pmarray.open_group(url) as group:
            assert group.attrs["step"] == step - 1
            group.attrs["step"] = step
            group.flush()
    assert pmarray.verify(url) == []
    with pmarray.open_group(url, mode="r") as reader:
        same(reader["array"][...], [7] * 3)


def test_a_superblock_without_its_copy_gets_one(pool: Path) -> None:
    """A crash came before the last step, and the next writer takes it."""
    store(pool, pool_of(pool)._slot * 4096 + 2048, bytes(64))
    pmarray.recover(f"shelf:{pool}")
    slot = pool_of(pool)._slot * 4096
    with pool.open("rb") as file:
        block = file.read(8192)[slot:][:4096]
    assert block[:64] == block[2048:][:64]


def test_no_superblock_is_stored_over_a_torn_one(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of both could be a whole one, whose directory is overwritten by then."""
    at = (1 - pool_of(pool)._slot) * 4096
    line = bytearray(pool_of(pool)._superblock.to_bytes())
    line[16] ^= 3  # a word of its generation has not come
    store(pool, at, bytes(line))
    seen: list[tuple[bytes, bytes]] = []
    real = osops.store

    def watch(memory: Any, data: Any) -> None:
        seen.append((memory.tobytes(), data.tobytes()))
        real(memory, data)

    monkeypatch.setattr(osops, "store", watch)
    with pmarray.open_group(f"shelf:{pool}") as group:
        group.attrs["step"] = 1
    note = owner_note()  # of who has the lock, which is as long
    stored = [before for before, data in seen if len(data) == 64 and any(data) and data != note]
    assert len(stored) >= 2
    assert not any(Slot(before).is_torn("") for before in stored)
    assert Slot(bytes(line)).is_torn("")


def test_another_alignment_is_refused(pool: Path) -> None:
    before = pool.read_bytes()
    with pretend_devices(4 * UNIT), pytest.raises(DamagedError, match="daxctl reconfigure-device"):
        pmarray.open_group(f"shelf:{pool}")
    assert pool.read_bytes() == before
    with pretend_devices(UNIT // 2), pmarray.open(f"shelf:{pool}", mode="r") as a:
        same(a[...], [7] * 3)


def test_units_are_of_the_alignment_where_that_is_large(device: Path) -> None:
    with pretend_devices(4 * UNIT):
        with pmarray.open(f"shelf:{device}", (9, LINE), "uint8") as a:
            a[...] = 7
        assert pool_of(device).unit_bytes == 4 * UNIT
        with pmarray.open(f"shelf:{device}", mode="r") as a:
            same(a[...], [7] * 9)


def test_other_devices_are_refused() -> None:
    with pytest.raises(URLError, match="not one of persistent memory"):
        pmarray.open_group("shelf:/dev/null")


def test_without_libpmem_a_device_is_read_only(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = devices.find_device(str(pool))
    assert found is not None
    real = devices.Device(found.path, found.nbytes, found.alignment)
    monkeypatch.setattr(devices, "find_device", lambda path: real)
    monkeypatch.setattr(pmem, "libpmem", lambda: None)
    before = pool.read_bytes()
    for mode in ("a", "w", "r+"):
        with pytest.raises(StorageError, match="apt install libpmem1"):
            pmarray.open_group(f"shelf:{pool}", mode=mode)
    with pmarray.open(f"shelf:{pool}", mode="r") as a:
        same(a[...], [7] * 3)
    assert pool.read_bytes() == before


# -- replacing the directory ---------------------------------------------------------------------


@given(st.sets(st.integers(0, 7)))
def test_a_torn_superblock_is_the_old_directory_or_the_new(words: set[int]) -> None:
    """The power fails in the middle of the commit point."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as place,
        pretend_devices(),
    ):
        path = make_device(place, 8)
        with pmarray.open_group(f"shelf:{path}") as group:
            group.attrs["state"] = "old"
            group.flush()
            slot = 1 - pool_of(path)._slot
            block = path.read_bytes()[slot * 4096 :][:4096]
            before, copy = block[:64], block[2048:][:64]
            group.attrs["state"] = "new"
            group.flush()
            assert pool_of(path)._slot == slot
            image = bytearray(path.read_bytes())
        after = bytes(image[slot * 4096 :][:64])
        torn = b"".join((after if i in words else before)[8 * i :][:8] for i in range(8))
        path.write_bytes(image)
        store(path, slot * 4096, torn)
        store(path, slot * 4096 + 2048, copy)  # which comes later
        with pmarray.open_group(f"shelf:{path}", mode="r") as group:
            assert group.attrs["state"] == ("new" if torn == after else "old")


def test_threads_write_while_another_flushes(device: Path) -> None:
    with pmarray.open_group(f"shelf:{device}") as group:
        names = "abc"
        made = {name: group.create(name, (0, LINE), "uint8") for name in names}
        seen: Counter[str] = Counter()

        def grow(name: str) -> None:
            for value in range(12):
                made[name].append(lines([value]))
                seen[name] += 1

        threads = [threading.Thread(target=grow, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            group.flush()
        assert seen == dict.fromkeys(names, 12)
    with pmarray.open_group(f"shelf:{device}", mode="r") as group:
        for name in names:
            same(group[name][...], list(range(12)))


def test_views_of_what_was_deleted_keep_their_values(device: Path) -> None:
    """Its units are given to nobody while somebody looks at them."""
    with pmarray.open_group(f"shelf:{device}") as group:
        group.create("a", (20, LINE), "uint8")[...] = 1
        group.flush()
        view = np.asarray(group["a"])
        del group["a"]
        group.flush()
        group.create("b", (60, LINE), "uint8")[...] = 2
        same(view, [1] * 20)
        with pytest.raises(StorageError):
            group["b"].append(lines([2] * 50))
        del view
        group["b"].append(lines([2] * 50))
    with pmarray.open(f"shelf:{device}#b", mode="r") as b:
        same(b[...], [2] * 110)


def test_unknown_options_are_refused(device: Path) -> None:
    for options in ("?engine=x", "?direct=no", "?engine=dax&x=1"):
        with pytest.raises(URLError, match=r"\?engine=dax"):
            pmarray.open_group(f"shelf:{device}{options}")


def test_all_changes_of_a_device_go_through_the_seam(device: Path, calls: Any) -> None:
    with pmarray.open(f"shelf:{device}", (3, LINE), "uint8") as a:
        a[...] = 1
        a[:, ::3] = 2
    assert {"store", "persist", "map_shared", "lock"} <= set(calls.names())
    assert not {"pwritev", "fsync", "fdatasync", "ftruncate", "fallocate"} & set(calls.names())


def test_the_superblock_in_force_is_never_stored_to(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the first change after opening, and by formatting what is a pool already."""
    real, replaced = osops.store, 0

    def slots() -> list[bytes]:
        with pool.open("rb") as file:
            head = file.read(8192)
        return [head[:64], head[4096 : 4096 + 64]]

    def watched(*arguments: Any) -> None:
        nonlocal replaced
        before = slots()
        real(*arguments)
        found = current([Slot(line) for line in before], "")
        assert found is not None
        assert slots()[found[0]] == before[found[0]]
        replaced += slots() != before

    monkeypatch.setattr(osops, "store", watched)
    for mode in ("a", "r+", "w"):
        with pmarray.open_group(f"shelf:{pool}", mode=mode) as group:
            group.attrs["mode"] = mode
    found = devices.find_device(str(pool))
    assert found is not None
    Pool(found, writable=True).make_empty()
    assert replaced > 6
    assert not pool_of(pool).directory.files


@pytest.mark.parametrize("cache", ["auto", "8 MiB"])
def test_an_append_stores_its_own_bytes_and_no_zeros(device: Path, calls: Any, cache: str) -> None:
    """Units that another array has left are given to this one as they are."""
    with pmarray.open_group(f"shelf:{device}", cache=cache) as group:
        group["old"] = lines([255] * 40)
        group.flush()
        del group["old"]
        group.flush()
        group.create("new", (0, LINE), "uint8", chunks=1)
        calls.log.clear()
        for i in range(24):
            group["new"].append(lines([i]))
        group.flush()
        stored = sum(args[1].nbytes for name, args in calls.log if name == "store")
        assert stored <= 24 * LINE + (2 << 20), "the rest is the directory"
        same(group["new"][...], list(range(24)))
        group["new"].resize((40, LINE))
        same(group["new"][...], [*range(24), *[0] * 16])
        with pytest.raises(KeyError), group.transaction():
            group["new"].append(lines([200] * 4))
            raise KeyError
        group["new"].resize((50, LINE))
        same(group["new"][...], [*range(24), *[0] * 26])
    with pmarray.open_group(f"shelf:{device}") as group:
        same(group["new"][...], [*range(24), *[0] * 26])
