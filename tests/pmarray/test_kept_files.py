"""Files that stay open: what is read is what has their name now, and waits for nothing."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import pmarray
from pmarray._system import filesystems, keptfiles
from pmarray._system.descriptor import Descriptor
from pmarray._system.keptfiles import KeptFiles
from tests.machine import forget_files

pytestmark = pytest.mark.usefixtures("counting")  # the file system is one of those that are known

NBYTES = 10_000


def keep(files: KeptFiles, path: Path) -> None:
    files.keep(path.name, str(path), Descriptor(os.open(path, os.O_RDONLY)))


def read(files: KeptFiles, path: Path, nbytes: int = NBYTES) -> bytes | None:
    out = np.empty(100, np.uint8)
    return bytes(out) if files.read(path.name, [(5, out)], nbytes) else None


def open_below(directory: Path) -> list[str]:
    """Return what this process has open in a directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(str(directory))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(b"a" * NBYTES)
    return path


@pytest.fixture
def files(path: Path) -> Iterator[KeptFiles]:
    files = KeptFiles()
    keep(files, path)
    assert read(files, path) == b"a" * 100
    yield files
    files.clear()


def test_a_file_that_took_its_place_is_not_taken_for_it(files: KeptFiles, path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"b" * NBYTES)
    other.rename(path)
    assert read(files, path) is None
    keep(files, path)
    assert read(files, path) == b"b" * 100


def test_a_file_that_is_gone_is_not_read(files: KeptFiles, path: Path) -> None:
    path.unlink()
    assert read(files, path) is None


@pytest.mark.parametrize("nbytes", [0, 50, NBYTES + 1])
def test_a_file_of_another_length_is_not_read(files: KeptFiles, path: Path, nbytes: int) -> None:
    os.truncate(path, nbytes)
    assert read(files, path) is None


def test_what_was_written_to_it_is_read(files: KeptFiles, path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"c" * 200)
    assert read(files, path) == b"c" * 100


def test_a_link_that_took_its_place_is_not_followed(files: KeptFiles, path: Path) -> None:
    shutil.move(path, path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))
    assert read(files, path) is None


def test_nothing_is_waited_for(files: KeptFiles, path: Path) -> None:
    forget_files(path.parent)
    first = read(files, path)
    path.read_bytes()
    assert read(files, path) == b"a" * 100
    if first is not None:
        pytest.skip("the system keeps the file in memory")


def test_a_process_keeps_a_part_of_its_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 40))
    before = len(os.listdir("/proc/self/fd"))
    groups = [KeptFiles(), KeptFiles()]
    others = sum(len(one._files) for one in KeptFiles._all)
    paths = [tmp_path / str(i) for i in range(60)]
    for i, path in enumerate(paths):
        path.write_bytes(b"a" * NBYTES)
        keep(groups[i % 2], path)
    assert len(os.listdir("/proc/self/fd")) - before == 40 // keptfiles._SHARE - others
    # Most of those that came first are still there; some came later.
    there = [i for i, path in enumerate(paths) if read(groups[i % 2], path)]
    assert min(there) < 10
    assert max(there) > 20
    del groups[:]
    assert len(os.listdir("/proc/self/fd")) == before


def test_on_a_file_system_that_was_not_tried_nothing_is_kept_and_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_LOCAL", set())
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", (20_000, 30), "float32", layout="col", chunks=1, codecs=[])
        x[...] = 3
        group.flush()
        for _ in range(2):
            assert (x[5] == 3).all()
        assert not [name for name in open_below(tmp_path) if "/x/c/" in name]


@pytest.mark.parametrize("layout", ["col", "row"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_whole_chunk_goes_into_memory_of_either_order(
    tmp_path: Path, layout: pmarray.LayoutName, order: Literal["C", "F"]
) -> None:
    values = np.arange(400_000.0).reshape(1000, 400)
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", values.shape, layout=layout, chunks=(200, 100), codecs=[])
        x[...] = values
        group.flush()
        block = np.s_[400:600, 100:200]
        assert np.array_equal(x[block], values[block])  # the file is open from here on
        assert open_below(tmp_path / "g/x")
        fill = x._storage.deferred((slice(400, 600, 1), slice(100, 200, 1)))
        assert fill is not None
        out = np.empty((200, 100), order=order)
        assert fill(out)
        assert np.array_equal(out, values[block])


def test_a_group_closes_them(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", (20_000, 30), "float32", layout="col", chunks=1, codecs=[])
        x[...] = 3
        group.flush()
        assert (x[5] == 3).all()
        assert sum("/x/c/" in name for name in open_below(tmp_path)) == 30
    assert not open_below(tmp_path)


def test_the_space_of_what_is_replaced_or_removed_is_given_back(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g", cache="1 MiB") as group:
        x = group.create("x", (20_000, 30), "float32", layout="col", chunks=1, codecs=[])
        for k in (3, 4):
            x[...] = k
            group.flush()
            assert (x[5] == k).all()
            assert x[5, 7] == k
        x.resize((20_000, 10))
        group.flush()
        assert (x[6] == 4).all()
        del group["x"]
        group.flush()
        assert not [name for name in open_below(tmp_path) if "deleted" in name]


def test_what_another_program_has_replaced_is_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        group.create("x", (20_000, 30), "float32", layout="col", chunks=1, codecs=[])[...] = 3
    with pmarray.open_group(url, mode="r", cache="1 MiB") as reader:
        x = reader["x"]
        for _ in range(2):
            assert (x[5, 3], x[5, 9]) == (3, 3)
        zarr.open_array(f"{tmp_path}/g/x", mode="r+")[5, 3] = 7
        assert (x[5, 3], x[5, 9]) == (7, 3)
        assert x[5, 3:6].tolist() == [7, 3, 3]
