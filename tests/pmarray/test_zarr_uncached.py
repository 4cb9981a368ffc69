"""Zarr chunks that are read past the cache: the same items as by way of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._storage import uncached
from pmarray._storage.uncached import Scattered, WholeChunks
from pmarray._system.chunkthreads import THREADS
from pmarray._system.uninterrupted import Task
from pmarray.errors import DamagedError
from tests.sampling import examples

SHAPE = (20_000, 30)
"""2.4 MB in columns: more than a cache of 1 MiB."""


class Reads:
    """Counts what goes past the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for kind in (Scattered, WholeChunks):
            self._count(kind, monkeypatch)

    def _count(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        read = kind.read

        def counted(one: Any, out: np.ndarray) -> Any:
            self.count += 1
            return read(one, out)

        monkeypatch.setattr(kind, "read", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture
def url(tmp_path: Path, values: np.ndarray) -> str:
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group.create("x", SHAPE, "float32", layout="col", chunks=1, codecs=[])[...] = values
    return f"zarr:{tmp_path}/g"


def open_group(url: str, mode: pmarray.Mode = "r+", cache: str = "1 MiB") -> pmarray.Group:
    return pmarray.open_group(url, mode=mode, cache=cache)


ROWS: list[Any] = [np.s_[5], np.s_[100:200], np.s_[7:1000:10, 3:20:2], np.s_[-1, ::-1]]


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("index", ROWS)
def test_rows_of_columns(
    url: str, values: np.ndarray, reads: Reads, mode: pmarray.Mode, index: Any
) -> None:
    with open_group(url, mode) as group:
        assert np.array_equal(group["x"][index], values[index])
        assert reads.count == 1
        assert group.cache_bytes == 0


@pytest.mark.parametrize("index", [np.s_[:, 7], np.s_[:, 3:17], np.s_[:, 1::4], np.s_[...]])
@pytest.mark.parametrize("chunk", [20_000, 12_000])
def test_whole_columns(
    tmp_path: Path, values: np.ndarray, reads: Reads, index: Any, chunk: int
) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", SHAPE, "float32", layout="col", chunks=(chunk, 1), codecs=[])
        x[...] = values
        group.flush()
        reads.count = 0
        assert np.array_equal(x[index], values[index])
        assert reads.count == 1


def test_what_follows_in_order_is_read_ahead_and_so_through_the_cache(
    url: str, values: np.ndarray, reads: Reads
) -> None:
    with open_group(url, "r") as group:
        for j in (5, 20, 3, 4, 5, 6, 11):
            assert np.array_equal(group["x"][:, j], values[:, j])
        assert reads.count in (3, 4)  # what was fetched ahead may be on its way at the end


def test_what_is_no_small_part_goes_through_the_cache(
    url: str, values: np.ndarray, reads: Reads
) -> None:
    with open_group(url) as group:
        assert np.array_equal(group["x"][::2], values[::2])
        assert not reads.count


@pytest.mark.parametrize("index", [np.s_[5, 3:6], np.s_[100:200, 7]])
def test_who_comes_again_finds_what_is_around_in_the_cache(
    url: str, values: np.ndarray, reads: Reads, index: Any
) -> None:
    with open_group(url) as group:
        for _ in range(3):
            assert np.array_equal(group["x"][index], values[index])
        assert reads.count == 1
        assert group.cache_bytes


def test_who_looks_here_and_there_does_not_fill_the_cache(
    url: str, values: np.ndarray, reads: Reads
) -> None:
    with open_group(url) as group:
        for i in range(30):
            assert group["x"][600 * i, i] == values[600 * i, i]
        assert reads.count == 30
        assert group.cache_bytes == 0


def test_an_array_that_the_cache_has_room_for_goes_through_it(
    url: str, values: np.ndarray, reads: Reads
) -> None:
    with open_group(url, cache="16 MiB") as group:
        for i in range(5):
            assert np.array_equal(group["x"][i], values[i])
        assert not reads.count


@pytest.mark.parametrize("codecs", [["zstd"], ["crc32c"]])
def test_compressed_chunks_go_through_the_cache(
    tmp_path: Path, reads: Reads, codecs: list[str]
) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", SHAPE, "float32", layout="col", chunks=1, codecs=codecs)
        x[...] = 3
        group.flush()
        assert (x[5] == 3).all()
        assert not reads.count


def test_a_writer_reads_what_it_has_written(url: str, values: np.ndarray, reads: Reads) -> None:
    with open_group(url) as group:
        x = group["x"]
        x[100:110, 5:9] = values[100:110, 5:9] = 7
        assert np.array_equal(x[105], values[105])
        past_the_cache = [reads.count]
        group.flush()
        assert np.array_equal(x[106], values[106])
        past_the_cache.append(reads.count)
        assert past_the_cache == [0, 1]  # at first it was in the cache alone
        with pytest.raises(RuntimeError), group.transaction():
            x[50] = 8
            assert (x[50] == 8).all()
            raise RuntimeError
        assert np.array_equal(x[50], values[50])


def test_what_was_cut_off_does_not_come_back(url: str, values: np.ndarray) -> None:
    with open_group(url) as group:
        x = group["x"]
        x.resize((SHAPE[0], 10))
        x.resize(SHAPE)
        assert np.array_equal(x[5, :10], values[5, :10])
        assert (x[5, 10:] == 0).all()
        x.resize((10_000, 30))
        x.resize((15_000, 30))
        assert (x[12_000] == 0).all()
        group.flush()
        assert (x[12_000] == 0).all()


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path, reads: Reads) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", SHAPE, "float32", layout="col", chunks=1, codecs=[], fill_value=4)
        x[:, 3] = 1
        group.flush()
        row = x[9]
        assert row[3] == 1
        assert (np.delete(row, 3) == 4).all()
        assert reads.count


def test_a_reader_reads_its_commit(url: str, values: np.ndarray, reads: Reads) -> None:
    """A transaction that is larger than the cache replaces chunks before it is committed."""
    with open_group(url, "r") as reader, open_group(url) as writer:
        assert np.array_equal(reader["x"][5], values[5])
        with writer.transaction():
            writer["x"][...] = 7
            (kept,) = (Path(url.removeprefix("zarr:")) / ".pmarray").glob("*kept*")
            assert list(kept.iterdir())
            assert np.array_equal(reader["x"][6], values[6])
            assert np.array_equal(reader["x"][100:110:3, 2:], values[100:110:3, 2:])
        reader.refresh()
        assert (reader["x"][6] == 7).all()
        assert reads.count in (3, 4)  # what was fetched ahead may be on its way at the end


def test_a_damaged_chunk_is_told(url: str, tmp_path: Path) -> None:
    chunk = next(path for path in sorted((tmp_path / "g").rglob("c/0/7")) if path.is_file())
    chunk.write_bytes(b"short")
    with open_group(url, "r") as group:
        with pytest.raises(DamagedError, match="7"):
            group["x"][5]
        assert group["x"][5, 8:20].shape == (12,)


def test_reading_few_bytes_of_many_chunks_takes_little_memory(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", (60_000, 2000), "float64", layout="col", chunks=1, codecs=[])
        x[:, 5] = 1
        group.flush()
        tracemalloc.start()
        found = x[0:6000:1000, :]  # windows of 40 kB, 80 MB in all
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[:, 5].all()
        assert found.sum() == 6
        assert peak < 40_000_000  # 64 chunks on each of 8 threads, and what names them


DESCRIPTORS = """
import ctypes, itertools, os, random, sys, threading, time
import pmarray

x = pmarray.open_group(sys.argv[1], mode="r", cache="1 MiB")["x"]
for j in range(30):
    x[0, j]  # the files stay open
before = len(os.listdir("/proc/self/fd"))

class Arrived(Exception):
    pass

def storm(thread):
    while time.monotonic() < until - 0.5:  # what is on its way then arrives while there is time
        time.sleep(random.random() * 3e-4)
        target, what = ctypes.c_ulong(thread), ctypes.py_object(Arrived)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(target, what)

def read():
    for count in itertools.count(random.randrange(1000)):
        x[(count * 611) % 20_000, (count * 7) % 30]
        x[:, (count * 11) % 30]
        if time.monotonic() > until:
            return

def guard(call, level):  # what arrives in a handler is caught by the next one
    while time.monotonic() < until:
        try:
            guard(call, level - 1) if level else call()
        except Arrived:
            pass

until = time.monotonic() + 4
thread = threading.Thread(target=storm, args=(threading.get_ident(),))
guard(lambda: (thread.ident or thread.start(), read()), 5)
thread.join()
time.sleep(0.2)
print(len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the descriptors of a process")
def test_an_interrupt_leaves_no_descriptor_open(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DESCRIPTORS, url], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1  # a read that nobody waits for may be under way


@st.composite
def selections(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    axes = []
    for n in shape:
        start, stop = sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        axes.append(slice(start, stop, draw(st.integers(1, 9))))
    return tuple(axes)


@examples(1 / 2)
@given(st.data(), st.sampled_from(["row", "col"]))
def test_any_selection_of_any_chunks(data: st.DataObject, layout: pmarray.LayoutName) -> None:
    """Chunks of 8 KiB and more, of three axes; every selection of small parts."""
    import tempfile

    shape = (40, 30, 50)
    chunks = data.draw(st.sampled_from([(40, 5, 50), (8, 30, 10), (20, 15, 25), (40, 30, 1)]))
    model = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    with tempfile.TemporaryDirectory() as directory:
        url = f"zarr:{directory}/g"
        with pmarray.open_group(url) as group:
            group.create("x", shape, "float64", layout=layout, chunks=chunks, codecs=[])[...] = (
                model
            )
        with pmarray.open_group(url, mode="r+", cache="256 KiB") as group:
            for _ in range(4):
                index = data.draw(selections(shape))
                assert np.array_equal(group["x"][index], model[index])
                if data.draw(st.booleans()):
                    group["x"][index] = model[index] = data.draw(st.integers(0, 9))
                    if data.draw(st.booleans()):
                        group.flush()


def test_what_has_not_begun_when_an_interrupt_comes_never_does(
    url: str, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next reader waited for all of it, and the memory stayed."""
    begun: list[int] = []
    going_on = threading.Event()
    real = Task.wait

    def wait(task: Task[Any]) -> None:
        monkeypatch.setattr(Task, "wait", real)
        raise KeyboardInterrupt

    def fetch(reads: Any, grid: Any, extent: Any, out: np.ndarray) -> None:
        begun.append(extent.chunk)
        going_on.wait(30)

    with open_group(url, "r") as group:
        x = group["x"]
        with monkeypatch.context() as patch:
            patch.setattr(uncached, "_fetch", fetch)
            monkeypatch.setattr(Task, "wait", wait)
            with pytest.raises(KeyboardInterrupt):
                x[...]
        going_on.set()
        assert np.array_equal(x[:, 20:3:-2], values[:, 20:3:-2])
        assert len(begun) <= THREADS
