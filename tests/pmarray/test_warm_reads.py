"""Reads through the mapping of a file that is kept: right beside bytes that are elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._geometry.layout import Layout
from pmarray._geometry.reach import meeting, reach_of
from pmarray._storage.region import RegionStorage
from pmarray._storage.warm import WarmReads
from pmarray._system.residency import residents
from pmarray.backends.files import kept
from pmarray.backends.files.kept import KeptMapping
from pmarray.errors import ClosedError
from tests.sampling import examples

AnyArray = np.ndarray[Any, Any]


@st.composite
def axes_of(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    axes = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        step = draw(st.integers(1, n))
        count = draw(st.integers(1, len(range(start, n, step))))
        axes.append(slice(start, start + (count - 1) * step + 1, step))
    return tuple(axes)


shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@given(st.data(), shapes, st.sampled_from(["row", "col"]), st.integers(0, 3))
@examples(3)
def test_a_reach_has_every_item_and_its_run_is_unbroken(
    data: st.DataObject, shape: tuple[int, ...], order: Any, padding: int
) -> None:
    plain = Layout.plan(shape, 4, order)
    stride = plain.line_nbytes + 4 * padding if len(shape) > 1 else plain.line_nbytes
    layout = Layout(shape, 4, order, stride)
    axes = data.draw(axes_of(shape))
    offsets = np.zeros((), int)
    for one, step in zip(axes, layout.strides, strict=True):
        offsets = np.add.outer(offsets, np.arange(one.start, one.stop, one.step) * step)
    found = np.sort(offsets.ravel())
    reach = reach_of(layout, axes)
    assert (reach.start, reach.stop) == (found[0], found[-1] + 4)
    within = (found[:, None] - reach.start - reach.step * np.arange(reach.stretches)[None]).T
    assert ((within >= 0) & (within + 4 <= reach.nbytes)).any(axis=0).all()
    longest = max(len(part) for part in np.split(found, np.flatnonzero(np.diff(found) != 4) + 1))
    assert reach.run <= 4 * longest


@given(st.data(), shapes)
@examples(3)
def test_where_a_selection_meets_a_box(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axes = data.draw(axes_of(shape))
    box = tuple(slice(one.start, one.stop) for one in data.draw(axes_of(shape)))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    common = np.intersect1d(numbers[axes], numbers[box])
    met = meeting(axes, box)
    if met is None:
        assert not common.size
        return
    items, where = met
    assert numbers[items].ravel().tolist() == common.tolist()
    assert (numbers[axes][where] == numbers[items]).all()


class Reached:
    """Counts reads through mappings, and those of arrays that had something elsewhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.beside_dirty = self.items = self.gathers = 0
        read, item, gather = WarmReads.read, WarmReads.item, WarmReads.gather
        unsettled = RegionStorage._read_mapped

        def counted(warm: WarmReads, layout: Layout, axes: Any, out: Any) -> bool:
            found = read(warm, layout, axes, out)
            self.reads += found
            return found

        def counted_item(warm: WarmReads, *args: Any) -> Any:
            found = item(warm, *args)
            self.items += found is not None
            return found

        def beside(storage: RegionStorage, warm: WarmReads, axes: Any, out: Any) -> bool:
            elsewhere = bool(storage._cache.unsettled(storage))
            found = unsettled(storage, warm, axes, out)
            self.beside_dirty += found and elsewhere
            return found

        def counted_gather(warm: WarmReads, *args: Any) -> bool:
            found = gather(warm, *args)
            self.gathers += found
            return found

        monkeypatch.setattr(WarmReads, "read", counted)
        monkeypatch.setattr(WarmReads, "gather", counted_gather)
        monkeypatch.setattr(WarmReads, "item", counted_item)
        monkeypatch.setattr(RegionStorage, "_read_mapped", beside)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    return Reached(monkeypatch)


def _index(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    kind = rng.integers(5)
    if 0 in shape:
        return ...
    if kind == 0:
        return tuple(int(rng.integers(n)) for n in shape)
    if kind == 1:
        where = int(rng.integers(3))
        rows, columns = (rng.choice(n, min(n, 3), replace=False) for n in shape)
        count = min(len(rows), len(columns))
        return [rows, (rows[:count], columns[:count] - shape[1]), (slice(None, None, 2), columns)][
            where
        ]
    axes = []
    for n in shape:
        start, stop = np.sort(rng.integers(n + 1, size=2)).tolist()
        axes.append(slice(start, stop, int(rng.integers(1, 4))))
    if kind == 2:
        axes[int(rng.integers(len(shape)))] = slice(None)
    return tuple(axes)


def _history(seed: int, directory: Path, *, steps: int) -> None:
    """Do at random what users do, and hold every read against NumPy."""
    rng = np.random.default_rng(seed)
    layout: pmarray.LayoutName = "row" if seed % 2 else "col"
    url = f"memmap:{directory}/{seed}"
    lines = 20
    width = int(rng.choice([5, 700, 1024, 20_000]))

    def shaped(n: int) -> tuple[int, int]:
        return (n, width) if layout == "row" else (width, n)

    model = np.zeros(shaped(lines))
    group = pmarray.open_group(url, cache=str(rng.choice(["64 KiB", "512 KiB", "8 MiB"])))
    array = group.create("array", model.shape, layout=layout)
    other = group.create("other", (3,))
    saved: AnyArray | None = None
    block: Any = None
    for step in range(steps):
        deed = rng.integers(12)
        if deed < 4:
            index = _index(rng, model.shape)
            model[index] = array[index] = step
        elif deed == 4 and block is None:
            group.flush()
        elif deed == 5:
            lines = int(rng.integers(1, 30))
            resized = np.zeros(shaped(lines))
            kept = tuple(
                slice(0, min(a, b)) for a, b in zip(model.shape, resized.shape, strict=True)
            )
            resized[kept] = model[kept]
            model = resized
            array.resize(model.shape)
        elif deed == 6:
            new = np.full(shaped(1), float(step))
            axis = 0 if layout == "row" else 1
            array.append(new)
            model = np.concatenate([model, new], axis)
            lines += 1
        elif deed == 7 and block is None:
            saved = model.copy()
            block = group.transaction()
            block.__enter__()
        elif deed == 8 and block is not None:
            block.__exit__(None, None, None)
            block = None
        elif deed == 9 and block is not None:
            assert saved is not None
            group.rollback()
            block, model = None, saved
            lines = model.shape[0 if layout == "row" else 1]
        elif deed == 10 and block is None:
            group.close()
            group = pmarray.open_group(url, cache="256 KiB")
            array, other = group["array"], group["other"]
        else:
            other[0] = step
        for _ in range(3):
            index = _index(rng, model.shape)
            found = array[index]
            assert np.array_equal(found, model[index]), (seed, step, index)
    if block is not None:
        group.rollback()
    group.close()


@pytest.mark.parametrize("part", range(2))
def test_histories_agree_with_numpy(part: int, tmp_path: Path, reached: Reached) -> None:
    for seed in range(part * 3, part * 3 + 3):
        _history(seed, tmp_path, steps=60)
    assert reached.reads > 30
    assert reached.beside_dirty > 10
    assert reached.items > 10
    assert reached.gathers > 5


def test_orthogonal_selections_are_gathered(ones: tuple[str, Path], reached: Reached) -> None:
    url, _ = ones
    with pmarray.open(url, mode="r+") as array:
        array[...] = numbers = np.arange(8192.0 * 64).reshape(8192, 64)
        array.flush()
        reached.gathers = 0
        rows, columns = [5, 3, 8000, 3], [63, 0]
        assert (array.oindex[rows, columns] == numbers[np.ix_(rows, columns)]).all()
        assert (array.oindex[rows, ::-3] == numbers[rows, ::-3]).all()
        assert (array[rows[:2], columns] == numbers[rows[:2], columns]).all()
        assert (array[np.array(rows)[:, None], 1] == numbers[np.array(rows)[:, None], 1]).all()
        assert reached.gathers == 4


@pytest.fixture
def ones(tmp_path: Path) -> tuple[str, Path]:
    """Make a group with an array of 64 columns of 64 KiB; return its URL, and its file."""
    with pmarray.open(f"memmap:{tmp_path}/g", (8192, 64), layout="col") as array:
        array[...] = 1
    return f"memmap:{tmp_path}/g", tmp_path / "g/data/000001.npy"


CUT = """
import os, sys, time, numpy as np, pmarray
from pmarray.errors import DamagedError
array = pmarray.open(sys.argv[1], mode=sys.argv[2])
assert array[5].sum() == 64 and array[7, 9] == 1
os.truncate(sys.argv[3], 1 << 20)
try:
    array[5]
    print("read 5")
except DamagedError:
    pass
time.sleep(0.005)  # an item takes the file to be whole for so long after a look
for index in (np.s_[5], np.s_[7, 40], np.s_[:3, ::2], np.s_[7, np.int64(63)], ([1, 2], [60, 61])):
    try:
        array[index]
        print("read", index)
    except DamagedError:
        pass
assert array[7, 2] == 1
print("alive", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_that_was_cut_is_an_error_and_no_signal(
    mode: Any, ones: tuple[str, Path], python: Callable[..., Any]
) -> None:
    url, path = ones
    reader = python(CUT, url, mode, str(path))
    assert reader.communicate(timeout=60)[0].splitlines() == ["alive"]
    assert reader.returncode == 0


def test_a_reader_goes_on_while_a_writer_grows_and_cuts(ones: tuple[str, Path]) -> None:
    url, path = ones
    size = path.stat().st_size
    with pmarray.open(url, mode="r") as reader:
        assert reader[5].sum() == 64
        with pmarray.open(url, mode="r+") as writer:
            assert writer[5].sum() == 64
            writer.append(np.full((8192, 300), 2.0))
            writer.flush()
            assert writer[5].sum() == 664
            assert reader[5].sum() == 64
            writer.resize((8192, 2))
            writer.flush()
        # The reader has the file mapped: nobody cuts it.
        reader.group.refresh()
        assert reader[5].tolist() == [1, 1]
    with pmarray.open(url, mode="r+") as writer:
        writer[0, 0] = 1
    assert path.stat().st_size < size // 8


def test_the_writers_own_mapping_does_not_keep_its_file_from_being_cut(
    ones: tuple[str, Path],
) -> None:
    url, path = ones
    size = path.stat().st_size
    with pmarray.open(url, mode="r+") as writer:
        assert writer[5].sum() == 64
        writer.resize((8192, 2))
    assert path.stat().st_size < size // 8


def test_a_read_that_fails_is_an_error_of_ours(
    ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = ones
    with pmarray.open(url, mode="r") as array:
        assert array[5, 5] == 1
        preadv = os.preadv

        def fails(fd: int, buffers: Any, offset: int, *flags: int) -> int:
            if offset > 1 << 20:
                raise OSError(5, os.strerror(5))
            return preadv(fd, buffers, offset, *flags)

        monkeypatch.setattr(os, "preadv", fails)
        monkeypatch.setattr(kept, "residents", absent)
        for index in (np.s_[5], np.s_[5, 60], np.s_[:3, ::2]):
            with pytest.raises(pmarray.errors.StorageError, match="cannot read"):
                array[index]
        assert array[5, 5] == 1  # in memory, and mapped


def test_where_pages_cannot_be_mapped_they_are_read(
    ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = ones
    monkeypatch.setattr(KeptMapping, "_populate", lambda *_: False)
    with pmarray.open(url, mode="r") as array:
        assert array[5].sum() == 64
        assert array[5, 60] == 1
        assert array[:3, ::2].sum() == 96


def absent(memory: AnyArray) -> AnyArray:
    """Of a file that is not in memory."""
    return np.zeros(-(-memory.nbytes // 4096), bool)


class Populated:
    """Counts what is mapped, in how many calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.pages = 0
        populate = KeptMapping._populate

        def counted(mapping: KeptMapping, first: int, stop: int) -> bool:
            self.calls += 1
            self.pages += stop - first
            return populate(mapping, first, stop)

        monkeypatch.setattr(KeptMapping, "_populate", counted)


@pytest.mark.parametrize("index", [np.s_[5], np.s_[5:9, 3:7], ([7, 1], [9, 60]), np.s_[7, 63]])
def test_what_lies_around_is_mapped_with_a_few_pages(
    index: Any, ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MiB in memory: whoever reads here and there has them after a few steps."""
    url, path = ones
    path.read_bytes()
    populated = Populated(monkeypatch)
    with pmarray.open(url, mode="r") as array:
        for step in range(64):
            assert (array[index] == 1).all()
            assert (array[100 * step : 100 * step + 2] == 1).all()
        assert populated.calls <= 4
        assert populated.pages * 4096 <= path.stat().st_size + 4096


@pytest.mark.parametrize("gone", [0, 255, 256, 600])
def test_a_page_that_is_not_in_memory_is_left_out(
    gone: int, ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = ones
    path.read_bytes()
    starts: list[int] = []

    def look(memory: AnyArray) -> AnyArray:
        there = residents(memory)
        starts.append(memory.ctypes.data)
        place = gone - (starts[-1] - starts[0]) // 4096
        if 0 <= place < len(there):
            there[place] = False
        return there

    monkeypatch.setattr(kept, "residents", look)
    populated = Populated(monkeypatch)
    with pmarray.open(url, mode="r") as array:
        assert (array[300] == 1).all()
        assert gone == 0 or not array._storage._warm._mapped.known[gone]  # type: ignore[attr-defined]
        assert populated.calls <= 5
        for i in range(0, 8192, 100):
            assert (array[i] == 1).all()


@pytest.mark.parametrize("why", ["not in memory", "not told", "no room"])
def test_what_lies_around_is_left_alone(
    why: str, ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = ones
    if why == "not in memory":
        monkeypatch.setattr(kept, "residents", absent)
    elif why == "not told":
        monkeypatch.setattr(kept, "is_told", lambda fd: False)
    populated = Populated(monkeypatch)
    with pmarray.open(url, mode="r", cache="1 MiB" if why == "no room" else "auto") as array:
        assert (array[5] == 1).all()
        assert populated.pages == 64
        assert (array[6] == 1).all()
        assert populated.pages == 64


def test_reading_threads_and_a_close(ones: tuple[str, Path]) -> None:
    url, _ = ones
    array = pmarray.open(url, mode="r")
    wrong: list[object] = []

    def read() -> None:
        try:
            while True:
                if array[5].sum() != 64 or array[9, 9] != 1:
                    wrong.append("values")
        except ClosedError:
            pass
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert array[:, 3].sum() == 8192
    array.close()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(ClosedError):
        array[5]


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_nobody_waits_for_who_waits_for_the_medium(
    mode: Any, ones: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = ones
    ask, read_into = KeptMapping.ask, KeptMapping.read_into
    started, go_on = threading.Semaphore(0), threading.Event()
    slow = threading.local()

    def wait() -> None:
        if getattr(slow, "here", False):
            started.release()
            assert go_on.wait(60)

    def slow_ask(mapped: KeptMapping, reach: Any) -> bool:
        wait()
        return ask(mapped, reach)

    def slow_read_into(mapped: KeptMapping, offset: int, out: memoryview) -> None:
        wait()
        read_into(mapped, offset, out)

    monkeypatch.setattr(KeptMapping, "ask", slow_ask)
    monkeypatch.setattr(KeptMapping, "read_into", slow_read_into)
    array = pmarray.open(url, mode=mode, cache="64 KiB")  # which has no other column
    if mode == "r+":
        array[0, 0] = 1  # the writer from now on
        array.flush()
    assert array[5].sum() == 64
    found: list[float] = []

    def read(index: Any) -> None:
        slow.here = True
        found.append(float(array[index].sum()))

    threads = [threading.Thread(target=read, args=(i,)) for i in (np.s_[7000], np.s_[:, 9])]
    for thread in threads:
        thread.start()
        assert started.acquire(timeout=60)
    assert array[9].sum() == 64
    assert array[:, 11].sum() == 8192
    assert array[3, 4] == 1
    if mode == "r+":
        array[7, 0] = 1  # what is written meanwhile they may see or not
        array.resize((8192, 10))
        array.close()  # they go on by descriptors of their own
    go_on.set()
    for thread in threads:
        thread.join()
    array.close()
    assert sorted(found) == [64, 8192]
    if mode == "r+":
        with pmarray.open(url, mode="r+") as again:
            again[0, 0] = 1
    assert path.stat().st_size == 4096 + 65536 * (10 if mode == "r+" else 64)


def test_a_forked_reader_reads_through_a_mapping_of_its_own(ones: tuple[str, Path]) -> None:
    url, _ = ones
    array = pmarray.open(url, mode="r")
    assert array[5].sum() == 64
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if array[6].sum() == 64 and array[5, 5] == 1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert array[7].sum() == 64
    array.close()
