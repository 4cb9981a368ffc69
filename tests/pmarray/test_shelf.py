"""``shelf:`` on a directory, with DAX and without; and ``dram:?spill=``, the volatile kind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._storage.persistent import PersistentStorage
from pmarray._storage.region import RegionStorage
from pmarray._system import osops, pmem
from pmarray.backends.shelf import engines
from pmarray.errors import (
    ForeignDataError,
    PersistenceWarning,
    PoisonedError,
    StorageError,
    URLError,
)
from pmarray.testing import basic_indices, filled, layouts
from tests.persistent import MEMORY, pretend_dax

Python = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.uses("libpmem")


@pytest.fixture
def dax(tmp_path: Path) -> Iterator[Path]:
    """A directory that takes MAP_SYNC, by all appearances."""
    with pretend_dax():
        yield tmp_path / "g"


@pytest.fixture
def off_dax(tmp_path: Path) -> Path:
    """A directory that does not, and has not warned yet."""
    return tmp_path / uuid.uuid4().hex


def make(path: Path, columns: int = 6, **options: Any) -> pmarray.PMArray:
    """(20_000, columns) float32 of ones, padded columns, durable."""
    a = pmarray.open(f"shelf:{path}", (20_000, columns), "float32", layout="col", **options)
    a[...] = 1
    a.flush()
    return a


# -- where it is -------------------------------------------------------------------------------


def test_files_off_dax_are_used_with_fsync_and_one_warning(off_dax: Path) -> None:
    with pytest.warns(PersistenceWarning, match="no persistent memory.*pmarray doctor"):
        make(off_dax).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pmarray.open(f"shelf:{off_dax}") as a:
            a[0] = 2
            assert isinstance(a._storage, RegionStorage)
    with pmarray.open(off_dax, mode="r") as a:
        assert (a[0] == 2).all()
        assert (a[1:] == 1).all()


def test_on_dax_nobody_is_warned(dax: Path) -> None:
    with make(dax) as a:
        assert isinstance(a._storage, PersistentStorage)


def test_an_engine_that_cannot_be_is_refused(off_dax: Path) -> None:
    for url in (f"shelf:{off_dax}?engine=dax", f"shelf:{off_dax}?engine=pmdk",
                f"shelf:{off_dax}?direct=no", "shelf:"):  # fmt: skip
        with pytest.raises(URLError):
            pmarray.open(url, (3,))
    assert not off_dax.exists()


def test_the_engine_may_be_named(dax: Path) -> None:
    with pmarray.open(f"shelf:{dax}?engine=dax", (3,)) as a:
        assert isinstance(a._storage, PersistentStorage)


def test_a_file_in_the_way_is_an_error(dax: Path) -> None:
    dax.write_bytes(b"precious")
    for place in (dax, dax / "deeper"):
        with pytest.raises((StorageError, ForeignDataError)):
            pmarray.open(f"shelf:{place}", (3,))
    assert dax.read_bytes() == b"precious"


@pytest.mark.parametrize("first", ["shelf", "memmap"])
def test_memmap_and_numpy_read_the_same_files(dax: Path, first: str) -> None:
    second = {"shelf": "memmap", "memmap": "shelf"}[first]
    model = filled((20_000, 6), np.dtype("float32"), 3)
    with pmarray.open(f"{first}:{dax}", model.shape, "float32", layout="col") as a:
        with a.transaction():
            a[...] = model
    with pmarray.open(f"{second}:{dax}") as a:
        np.testing.assert_array_equal(a[...], model)
        with a.transaction():
            a[:, 2] = model[:, 2] = 7
        a.append(model[:, 0])
        model = np.concatenate([model, model[:, :1]], axis=1)
    with pmarray.open(f"{first}:{dax}", mode="r") as a:
        np.testing.assert_array_equal(a[...], model)
    np.testing.assert_array_equal(np.load(dax / "array.npy")[:20_000], model)


# -- stores in place ---------------------------------------------------------------------------


def test_a_loan_and_a_tensor_are_the_mapping_itself(dax: Path) -> None:
    pytest.importorskip("torch")
    with make(dax) as a:
        address = a._storage.items.ctypes.data  # type: ignore[attr-defined]
        with a.writing(np.s_[:, 0]) as out:
            assert out.ctypes.data == address
            out[:] = 5
        tensor = a.torch()
        assert tensor.data_ptr() == address
        assert np.asarray(a).ctypes.data == address
        tensor[:, 1] = 6
        a.flush()
        stored = np.load(dax / "array.npy")
        assert stored[0, :3].tolist() == [5, 6, 1]
        tensor.mul_(2)  # through a tensor that was made before
        del tensor
        a.flush()
    with pmarray.open(dax, mode="r") as a:
        assert a[0, :3].tolist() == [10, 12, 2]


@pytest.mark.parametrize("dropped", [True, False])
def test_what_a_tensor_stores_is_made_durable_by_the_next_flush(
    dax: Path, calls: Any, dropped: bool
) -> None:
    pytest.importorskip("torch")
    with make(dax) as a:
        tensor = a.torch()
        tensor[5, 5] = 2
        if dropped:
            del tensor
        calls.log.clear()
        a.flush()
        memory = a._storage.region.memory  # type: ignore[attr-defined]
        item = memory.ctypes.data + a._storage.items[5:, 5].ctypes.data - memory.ctypes.data  # type: ignore[attr-defined]
        made = [(args[0].ctypes.data, args[0].nbytes) for n, args in calls.log if n == "persist"]
        assert any(start <= item < start + nbytes for start, nbytes in made)


def test_a_tensor_that_is_registered_with_cuda_goes_straight_to_a_gpu(dax: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU: cudaHostRegister of a mapping is not tried")
    cudart = torch.cuda.cudart()
    with make(dax) as a:
        tensor = a.torch()
        torch.cuda.check_error(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
        try:
            assert tensor.is_pinned()
            there = tensor[:, 3].to("cuda", non_blocking=True)
            torch.cuda.synchronize()
        finally:
            torch.cuda.check_error(cudart.cudaHostUnregister(tensor.data_ptr()))
        np.testing.assert_array_equal(there.cpu(), a[:, 3])


spans = basic_indices((20_000, 6))


@given(
    st.lists(st.tuples(st.sampled_from(["write", "lend", "append", "cut"]), spans), max_size=5),
    st.booleans(),
    layouts(),
    st.sampled_from(["auto", "1 MiB"]),
    st.booleans(),
)
def test_transactions_roll_back_or_take_place(
    steps: list[tuple[str, Any]], fails: bool, layout: Any, cache: str, sync: bool
) -> None:
    """Overwritten, strided, borrowed, grown and cut; what was there comes back to the byte."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-shelf-", dir=MEMORY) as directory,
        pretend_dax() if sync else ExitStack(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", PersistenceWarning)
        url = f"shelf:{directory}/g"
        shape = (20_000, 6) if layout == "col" else (6, 20_000)
        before = filled(shape, np.dtype("float32"), 1)
        after = before.copy()
        with pmarray.open(url, shape, "float32", layout=layout, cache=cache) as a:
            a[...] = before
            try:
                with a.transaction():
                    after = _change(a, after, steps, layout)
                    np.testing.assert_array_equal(a[...], after)
                    with pmarray.open(url, mode="r") as reader:
                        np.testing.assert_array_equal(reader[...], before)
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                after = before
            np.testing.assert_array_equal(a[...], after)
        with pmarray.open(url, mode="r") as a:
            np.testing.assert_array_equal(a[...], after)


def _change(
    a: pmarray.PMArray, model: NDArray[Any], steps: list[tuple[str, Any]], layout: Any
) -> NDArray[Any]:
    axis = 1 if layout == "col" else 0
    for seed, (what, index) in enumerate(steps, 2):
        if layout == "row" and isinstance(index, tuple):
            index = index[::-1]
        lines = model.shape[axis]
        if what == "append":
            line = filled((20_000,), np.dtype("float32"), seed)
            a.append(line)
            model = np.concatenate([model, np.expand_dims(line, axis)], axis)
        elif what == "cut":
            model = model[:, : max(1, lines - 2)] if axis else model[: max(1, lines - 2)]
            a.resize(model.shape)
        else:
            try:
                shape = np.shape(model[index])
            except IndexError:  # it was cut off
                continue
            model = model.copy()
            values = filled(shape, np.dtype("float32"), seed)
            model[index] = values
            if what == "lend" and shape and np.size(values):
                try:
                    with a.writing(index) as out:
                        out[...] = values
                except (pmarray.errors.BudgetError, IndexError, ValueError):
                    a[index] = values
            else:
                a[index] = values
    return model


def test_a_killed_writer_leaves_its_last_commit(dax: Path, python: Python) -> None:
    """Its stores are in the mapping, and in the file at once; recovery takes them back."""
    source = """
import sys
import pmarray
from tests.persistent import pretend_dax
pretence = pretend_dax()
pretence.__enter__()
a = pmarray.open("shelf:" + sys.argv[1])
with a.transaction():
    a[:, :3] = 2
transaction = a.transaction()
transaction.__enter__()
a[:, 1:] = 3
with a.writing((slice(None), 0)) as out:
    out[:] = 4
print("writing", flush=True)
input()
"""
    make(dax).close()
    child = python(source, dax)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    assert np.load(dax / "array.npy")[0].tolist() == [4, 3, 3, 3, 3, 3], "in place"
    child.send_signal(signal.SIGKILL)
    child.wait()
    for mode in ("r", "a"):
        with pmarray.open(f"shelf:{dax}", mode=mode) as a:
            a.group.attrs.update({"x": 1}) if mode == "a" else None
            assert a[7].tolist() == [2, 2, 2, 1, 1, 1]


def test_a_barrier_that_fails_poisons_and_the_commit_is_taken_back(dax: Path, calls: Any) -> None:
    a = make(dax)
    calls.failures["persist"] = [errno.EIO]
    with pytest.raises(PoisonedError), a.transaction():
        a[::2] = 2
    with pytest.raises(PoisonedError):
        a[0, 0]
    a.close()
    with pmarray.open(f"shelf:{dax}") as a:
        a.group.attrs["x"] = 1
        assert (a[...] == 1).all()


# -- the cache, growth, and room ---------------------------------------------------------------


def test_a_cache_is_a_choice(dax: Path) -> None:
    with make(dax, cache="1 MiB") as a:
        assert isinstance(a._storage, RegionStorage)
        a[3, ::2] = 4
        assert a.group.cache_bytes > 0
    with pmarray.open(f"shelf:{dax}") as a:
        assert a[3].tolist() == [4, 1, 4, 1, 4, 1]
        a[0] = 1
        assert isinstance(a._storage, PersistentStorage)


def test_without_libpmem_the_kernel_makes_it_durable(
    dax: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pmem, "libpmem", lambda: None)
    assert pmem.persistence() == "msync"
    with make(dax) as a:
        with a.transaction():
            a[::7, 1:3] = 2
        expected = a[...]
    with pmarray.open(f"memmap:{dax}", mode="r") as again:
        np.testing.assert_array_equal(again[...], expected)


def test_views_stay_when_an_array_grows_and_shrinks(dax: Path) -> None:
    with make(dax, 6) as a:
        view = np.asarray(a)
        a.resize((20_000, 500))
        a[:, 0] = 3
        assert (view[:, 0] == 3).all()
        assert (view[:, 1:] == 1).all()
        wide = np.asarray(a)
        a.resize((20_000, 2))
        a.flush()
    assert wide.shape == (20_000, 500)
    assert wide[0, :3].tolist() == [3, 1, 1]
    assert not wide[:, 6:].any(), "a page that was cut off would kill the process"
    with pmarray.open(f"shelf:{dax}", mode="r") as a:
        assert a.shape == (20_000, 2)


def test_a_file_is_cut_when_nobody_looks_at_it(dax: Path) -> None:
    with make(dax, 500) as a:
        a.resize((20_000, 2))
    path = dax / "data/000001.npy"
    assert path.stat().st_size < 1 << 20
    with pmarray.open(f"shelf:{dax}", mode="r") as a:
        assert (a[...] == 1).all()


def test_fresh_bytes_are_written_by_system_calls_and_old_ones_stored(dax: Path, calls: Any) -> None:
    with pmarray.open(f"shelf:{dax}", (20_000, 0), "float32", layout="col") as a:
        a.append(np.ones((20_000, 3)), axis=1)
        a.flush()
        storage: Any = a._storage
        region, stride = storage.region, storage.layout.line_stride

        def journey(write: Callable[[], object]) -> tuple[int, int]:
            calls.log.clear()
            write()
            written = sum(nbytes for _, nbytes in calls.written())
            memory = region.memory.ctypes.data
            stored = sum(
                args[0].nbytes for name, args in calls.log if name == "store"
                and memory <= args[0].ctypes.data < memory + region.capacity
            )  # fmt: skip
            return written, stored

        written, stored = journey(lambda: a.append(np.ones(20_000, "float32")))
        assert written >= 80_000
        assert stored < 4096
        assert written < 3 * stride
        written, stored = journey(lambda: a.__setitem__(np.s_[:, 1], np.ones(20_000, "float32")))
        assert (written, stored) == (0, 80_000)


def test_a_full_disk_is_an_error_and_changes_nothing(dax: Path, calls: Any) -> None:
    with make(dax) as a:
        calls.always["fallocate"] = errno.ENOSPC
        attempts: list[Callable[[], object]] = [
            lambda: a.resize((20_000, 5000)),
            lambda: a.append(np.zeros((20_000, 4000), "float32"), axis=1),
            lambda: a.group.create("b", (1 << 20,)),
        ]
        for attempt in attempts:
            with pytest.raises(StorageError) as caught:
                attempt()
            assert caught.value.errno == errno.ENOSPC
        assert a.shape == (20_000, 6)
        assert list(a.group) == ["array"]
        a[0] = 2
        calls.always.clear()
        a.append(np.full(20_000, 3))
    with pmarray.open(f"shelf:{dax}", mode="r") as a:
        assert a[0].tolist() == [2] * 6 + [3]


def test_dax_is_asked_of_a_file_and_leaves_none(tmp_path: Path) -> None:
    assert not engines.is_dax(str(tmp_path / "not/there"))
    with pretend_dax():
        assert engines.is_dax(str(tmp_path / "not/there"))
    assert not os.listdir(tmp_path)


# -- dram:?spill= ------------------------------------------------------------------------------


def test_spilled_arrays_are_like_those_in_memory(scratch: Path) -> None:
    url = f"dram:{uuid.uuid4()}?spill={scratch}"
    with pmarray.open(url, (20_000, 3), "float32", layout="col") as a:
        view = np.asarray(a)
        a[:, 1] = 2
        a.append(np.full((20_000, 900), 3), axis=1)
        assert view[5].tolist() == [0, 2, 0]
        with pytest.raises(ZeroDivisionError), a.transaction():
            a[...] = 9
            1 / 0  # noqa: B018
        assert os.listdir(scratch) == []
    with pmarray.open(url, mode="r") as a:  # for the whole process
        assert a.shape == (20_000, 903)
        assert a[5, :4].tolist() == [0, 2, 0, 3]


def test_spilled_space_is_given_back(python: Python, scratch: Path) -> None:
    """A file without a name is gone with its last user; nobody must stay one after `close`."""
    source = """
import sys, pmarray
a = pmarray.open("dram:?spill=" + sys.argv[1], (64 << 20,), "uint8")
a[...] = 1
print("there", flush=True)
input()
a.close()
print("gone", flush=True)
input()
"""
    child = python(source, str(scratch))
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "there\n"
    process = Path(f"/proc/{child.pid}")

    def held() -> list[os.stat_result]:
        files = [one for one in (process / "fd").iterdir() if str(scratch) in os.readlink(one)]
        return [one.stat() for one in files]

    assert {one.st_nlink for one in held()} == {0}
    assert held()[0].st_blocks * 512 >= 64 << 20
    assert str(scratch) in (process / "maps").read_text()
    assert os.listdir(scratch) == []
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "gone\n"
    assert held() == []
    assert str(scratch) not in (process / "maps").read_text()


def test_a_full_disk_to_spill_to_changes_nothing(scratch: Path, calls: Any) -> None:
    with pmarray.open(f"dram:?spill={scratch}", (1000,), "uint8") as a:
        a[...] = 1
        calls.always["fallocate"] = errno.ENOSPC
        for attempt in (lambda: a.append(np.zeros(9000, "uint8")),
                        lambda: a.group.create("b", (9000,))):  # fmt: skip
            with pytest.raises(StorageError, match="nothing was changed") as caught:
                attempt()
            assert caught.value.errno == errno.ENOSPC
        assert list(a.group) == ["array"]
        assert (a[...] == 1).all()
        calls.always.clear()
        a.append(np.full(9000, 2, "uint8"))
        assert (len(a), a[999], a[1000]) == (10_000, 1, 2)


def test_the_last_pages_of_a_disk_can_be_spilled_to(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than was asked for is reserved only where there is more; and nothing of it kept."""
    real, room = osops.fallocate, 60 << 10
    lengths: list[int] = []

    def allocate(fd: int, offset: int, nbytes: int) -> None:
        real(fd, offset, min(nbytes, room))
        lengths.append(os.fstat(fd).st_size)
        if nbytes > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(osops, "fallocate", allocate)
    with pmarray.open(f"dram:?spill={scratch}", (48 << 10,), "uint8") as a:
        a[...] = 1
        a.append(np.full(8 << 10, 2, "uint8"))
        assert lengths[-2:] == [room, 56 << 10]
        with pytest.raises(StorageError, match="nothing was changed"):
            a.append(np.full(8 << 10, 3, "uint8"))
        a.append(np.full(4 << 10, 4, "uint8"))
        assert (np.unique(a[...]) == [1, 2, 4]).all()


@pytest.mark.parametrize("where", ["none", "file"])
def test_spilling_to_no_directory_is_an_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot make a file to spill to"):
        pmarray.open(f"dram:?spill={tmp_path / where}", (3,))
    with pytest.raises(URLError, match="spill"):
        pmarray.open("dram:?cache=3", (3,))
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_spilled_needs_no_memory_of_its_own(scratch: Path, python: Python) -> None:
    """An array of four times what the process may have: its pages are the file's."""
    source = """
import resource, sys, numpy as np, pmarray
small = pmarray.open("dram:?spill=" + sys.argv[1], (9, 9))
small[...] = 1
small.sum()
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (48 << 20),) * 2)
try:
    np.ones(96 << 20, "uint8")
except MemoryError:
    print("limited")
a = pmarray.open("dram:?spill=" + sys.argv[1], (192, 1 << 20), "uint8")
for i in range(192):
    a[i] = i
print(all((a[i] == i).all() for i in range(192)))
"""
    child = python(source, scratch)
    assert child.communicate(timeout=100) == ("limited\nTrue\n", "")
