"""Mappings that were handed out: no file is cut under them, no store through one harms anybody."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray.errors import ForeignDataError, SnapshotExpiredError

READER = """
import sys
import numpy as np, pmarray
array = pmarray.open(sys.argv[1], mode="r")
view = np.asarray(array)
if sys.argv[2] == "closed":
    array.close()
print("mapped", flush=True)
sys.stdin.readline()
print(view.sum(), flush=True)
sys.stdin.readline()
"""

LINES = 64
PLACES = ["memmap", "npy"]


def _made(kind: str, directory: Path) -> tuple[str, Path]:
    """Make an array of 64 lines of 64 KiB, of ones; return its URL and its file."""
    ones = np.ones((LINES, 8192))
    if kind == "npy":
        np.save(directory / "array.npy", ones)
        return str(directory / "array.npy"), directory / "array.npy"
    with pmarray.open(f"{directory}/group", ones.shape) as array:
        array[...] = ones
    return f"{directory}/group", directory / "group" / "data" / "000001.npy"


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("handle", ["open", "closed"])
def test_a_file_is_not_cut_under_a_reader(
    kind: str, handle: str, tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    url, path = _made(kind, tmp_path)
    size = path.stat().st_size
    reader = python(READER, url, handle)
    assert reader.stdout is not None
    assert reader.stdin is not None
    assert reader.stdout.readline() == "mapped\n"
    for lines in (40, 2):
        with pmarray.open(url, mode="r+") as array:
            array.resize((lines, 8192))
        assert path.stat().st_size == size
    print(file=reader.stdin, flush=True)
    # A load from a page that was cut off would have been a bus error.
    assert float(reader.stdout.readline()) == LINES * 8192
    if kind == "npy":
        # Its tail passes for something that follows the array, and is never taken from anybody.
        with pmarray.open(url, mode="r+") as array, pytest.raises(ForeignDataError):
            array.append(np.full((1, 8192), 3.0))
        return
    with pmarray.open(url, mode="r+") as array:
        assert array.shape == (2, 8192)
        array.append(np.full((1, 8192), 3.0))
        assert array[2].tolist() == [3.0] * 8192
    print(file=reader.stdin, flush=True)
    reader.wait(30)
    assert reader.returncode == 0
    with pmarray.open(url, mode="r+") as array:
        array[0, 0] = 2  # the next writer cuts it
    assert path.stat().st_size < size // 8
    with pmarray.open(url, mode="r") as array:
        assert array[:, 1].tolist() == [1, 1, 3]


def test_a_file_is_not_cut_under_another_handle_of_the_process(tmp_path: Path) -> None:
    url, path = _made("memmap", tmp_path)
    size = path.stat().st_size
    with pmarray.open(url, mode="r") as reader:
        view = np.asarray(reader)
    with pmarray.open(url, mode="r+") as writer:
        own = np.asarray(writer)
        writer.resize((2, 8192))
    assert path.stat().st_size == size
    assert view.sum() == own.sum() == LINES * 8192
    del view
    with pmarray.open(url, mode="r+") as writer:
        writer[0, 0] = 1
    assert path.stat().st_size == size  # the other mapping is a writer's that has closed
    del own
    with pmarray.open(url, mode="r+") as writer:
        writer[0, 0] = 1
    assert path.stat().st_size < size // 8


def test_what_has_no_locks_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pmarray._system import osops

    url, _ = _made("memmap", tmp_path)

    def no_locks(*_: Any, **__: Any) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(osops, "lock", no_locks)
    with pmarray.open(url, mode="r") as array:
        found = np.asarray(array)
        assert found.sum() == LINES * 8192
        with pytest.raises(ValueError, match="copy"):
            np.asarray(array, copy=False)


# -- stores that should not be ------------------------------------------------------------------

STORE = """
import ctypes, sys, warnings
import numpy as np, pmarray
array = pmarray.open(sys.argv[1], mode=sys.argv[2])
view, other = np.asarray(array), np.asarray(array)
if sys.argv[3] == "torch":
    torch = __import__("torch")
    warnings.simplefilter("ignore")
    torch.from_numpy(view)[0] = 4
elif sys.argv[3] == "share":
    warnings.simplefilter("ignore")
    tensor = array.torch(share=True)
    tensor[0] = 4
    assert tensor[0, 0] == 4
else:
    place = view.__array_interface__["data"][0]
    ctypes.memset(place, 0xFF, 100)
assert other[0, 0] == 1 and array[0, 0] == 1 and np.asarray(array)[0, 0] == 1
if sys.argv[2] == "r+":
    array[2] = 2
    array.flush()
    assert view[2, 0] == other[2, 0] == 2, "untouched pages are those of the file"
array.close()
print("alive")
"""


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        *((kind, mode, "memset") for kind in PLACES for mode in ("r", "r+")),
        ("memmap", "r", "torch"),
        ("memmap", "r+", "share"),
    ],
)
def test_a_store_through_a_view_harms_nobody(
    kind: str, mode: str, how: str, tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    if how != "memset":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    url, _ = _made(kind, tmp_path)
    process = python(STORE, url, mode, how)
    out, error = process.communicate(timeout=60)
    assert (out, error, process.returncode) == ("alive\n", "", 0)
    with pmarray.open(url, mode="r") as array:
        assert array[0].tolist() == [1] * 8192


def test_a_view_is_read_only_for_those_who_ask(tmp_path: Path) -> None:
    url, _ = _made("memmap", tmp_path)
    with pmarray.open(url, mode="r") as array:
        view = np.asarray(array)
        assert not view.flags.writeable
        with pytest.raises(ValueError, match=r"WRITEABLE|read-only"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


@pytest.mark.parametrize("direct", ["yes", "no"])
def test_a_view_sees_what_another_process_writes(direct: str, tmp_path: Path) -> None:
    """Private pages that nobody has stored to follow the file, direct I/O or not."""
    url, _ = _made("memmap", tmp_path)
    with pmarray.open(url, mode="r") as reader:
        view = np.asarray(reader)
        assert view.sum() == LINES * 8192
        for value in range(2, 6):
            with pmarray.open(f"memmap:{url}?direct={direct}", mode="r+") as writer:
                writer[::3] = value
                writer.flush()
                assert (view[::3] == value).all()
                assert (view[1::3] == 1).all()


@pytest.mark.parametrize("looked", [True, False])
def test_what_a_reader_maps_and_multiplies_is_of_its_commit(looked: bool, tmp_path: Path) -> None:
    ones = np.ones(8)
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        array = group.create("x", (4096, 8), layout="col")
        with group.transaction():
            array[...] = 1
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
            if looked:
                assert reader[5, 5] == 1
            before = np.asarray(reader)
            with group.transaction():
                array[...] = 2
            assert (before == 2).all(), "a mapping that was handed out shows the file"
            assert (reader @ ones == 8).all()
            assert (np.asarray(reader) == 1).all()
            assert (np.asarray(reader.view[1:]) == 1).all()
            reader.group.refresh()
            assert (reader @ ones == 16).all()
            assert (np.asarray(reader) == 2).all()


def test_what_a_writer_has_not_committed_is_not_mapped_by_a_reader(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g", cache="64 KiB") as group:
        array = group.create("x", (4096, 8), layout="col")
        with group.transaction():
            array[...] = 1
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
            with pytest.raises(ZeroDivisionError), group.transaction():
                array[...] = 2  # more than the cache holds: most of it is in the file
                assert (np.asarray(reader) == 1).all()
                assert (reader.T @ np.ones(4096) == 4096).all()
                1 / 0  # noqa: B018
            assert (np.asarray(reader) == 1).all()


def test_what_was_forgotten_is_not_mapped(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        array = group.create("x", (4096, 8), layout="col")
        with group.transaction():
            array[...] = 1
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
            with group.transaction():
                array.forget(np.s_[:, 1])
            with group.transaction():
                array[:, 1] = 2
            with pytest.raises(SnapshotExpiredError):
                np.asarray(reader)
            with pytest.raises(SnapshotExpiredError):
                reader @ np.ones(8)
