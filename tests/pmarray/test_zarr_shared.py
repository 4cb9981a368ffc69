"""Another program is at work in a Zarr hierarchy while a writer of ours is: neither loses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pmarray
from pmarray.errors import ConflictError


def _made(directory: Path) -> str:
    url = f"zarr:{directory}/group"
    with pmarray.open_group(url, mode="w") as group:
        group.create("x", (4,), "i8", chunks=2)[:] = range(4)
        group.create("y", (2,), "i8")[:] = 7
        group.attrs["who"] = "we"
    return url


def _append(directory: Path) -> None:
    zarr.open_array(str(directory / "group" / "x"), mode="r+").append(np.array([40, 50]))


def _attribute(directory: Path) -> None:
    zarr.open_group(str(directory / "group"), mode="r+").attrs["who"] = "they"


def _array_attribute(directory: Path) -> None:
    zarr.open_array(str(directory / "group" / "x"), mode="r+").attrs["unit"] = "m"


def _found(directory: Path) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    group: Any = zarr.open_group(str(directory / "group"), mode="r")
    attrs = {key: value for key, value in group.attrs.items() if key != "pmarray"}
    return list(group["x"][:]), attrs, dict(group["x"].attrs)


@pytest.mark.filterwarnings("ignore:Object at")
@pytest.mark.parametrize("change", [_append, _attribute, _array_attribute])
@pytest.mark.parametrize("work", ["nothing", "items", "attrs", "append", "transaction"])
def test_what_another_program_changes_stays(change: Any, work: str, tmp_path: Path) -> None:
    url = _made(tmp_path)
    group = pmarray.open_group(url, mode="r+")
    group["y"][:1] = 8  # becomes the writer
    group.flush()
    change(tmp_path)
    theirs = _found(tmp_path)
    if work == "items":
        group["x"][:1] = 5
        theirs[0][0] = 5
    elif work == "attrs":
        group.attrs["who"] = "we again"
    elif work == "append":
        group["y"].append([9])
    elif work == "transaction":
        with group.transaction():
            group["y"].append([9])
    with pytest.raises(ConflictError, match=r"changed (x/)?zarr\.json"):
        group.close()
    assert group.closed
    assert _found(tmp_path) == theirs
    # Nobody goes on from either by accident.
    with pmarray.open_group(url, mode="r+") as again, pytest.raises(ConflictError):
        again.attrs["more"] = 1
    assert _found(tmp_path) == theirs
    with pmarray.open_group(url, mode="r") as ours:
        assert ours["x"].shape == (4,)
        assert ours["y"].shape == ((3,) if work in ("append", "transaction") else (2,))
        assert ours.attrs["who"] == ("we again" if work == "attrs" else "we")
    # The way out that the message names.
    shutil.rmtree(tmp_path / "group" / ".pmarray")
    with pmarray.open_group(url, mode="r+") as after:
        assert after["x"][...].tolist() == theirs[0]
        after["x"].append([60])
    assert _found(tmp_path)[0] == [*theirs[0], 60]


def test_the_other_way_out(tmp_path: Path) -> None:
    url = _made(tmp_path)
    before = (tmp_path / "group" / "x" / "zarr.json").read_bytes()
    group = pmarray.open_group(url, mode="r+")
    group["y"].append([9])
    _append(tmp_path)
    with pytest.raises(ConflictError):
        group.close()
    (tmp_path / "group" / "x" / "zarr.json").write_bytes(before)
    with pmarray.open_group(url, mode="r+") as after:
        after["y"].append([10])
        assert after["x"].shape == (4,)
    with pmarray.open_group(url, mode="r") as after:
        assert after["y"][...].tolist() == [7, 7, 9, 10]


@pytest.mark.filterwarnings("ignore:Object at")
def test_what_another_program_adds_after_a_crash_stays(tmp_path: Path) -> None:
    url = _made(tmp_path)
    pid = os.fork()
    if not pid:
        try:
            group = pmarray.open_group(url, mode="r+")
            with group.transaction():
                group["y"].append([9])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "group" / ".pmarray" / "pmarray.json").exists()
    _append(tmp_path)
    with pmarray.open_group(url, mode="r+") as group, pytest.raises(ConflictError):
        group.attrs["more"] = 1
    assert _found(tmp_path)[0] == [0, 1, 2, 3, 40, 50]


def test_an_array_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    url = _made(tmp_path)
    with pmarray.open_group(url, mode="r+") as group:
        group.attrs["more"] = 1
        zarr.create_array(str(tmp_path / "group" / "z"), shape=(2,), dtype="i8")[:] = 3
        with pytest.raises(ConflictError, match="under the name 'z'"):
            group.create("z", (5,))
    theirs: Any = zarr.open_array(str(tmp_path / "group" / "z"), mode="r")
    assert list(theirs[:]) == [3, 3]


def test_in_a_store_without_a_session(tmp_path: Path) -> None:
    url = "zarr:memory://shared"
    with pmarray.open_group(url, mode="w") as group:
        group.create("x", (2,), "i8", chunks=2)[:] = 1
    first, second = pmarray.open_group(url, mode="r+"), pmarray.open_group(url, mode="r+")
    first.attrs["first"] = 1
    second["x"].append([2, 3])
    second.close()
    first["x"].append([4])
    with pytest.raises(ConflictError):
        first.close()
    with pmarray.open_group(url, mode="r") as group:
        assert group["x"].shape == (4,)


def test_one_array_alone(tmp_path: Path) -> None:
    place = tmp_path / "alone"
    zarr.create_array(str(place), shape=(2,), chunks=(2,), dtype="i8")[:] = 1
    array = pmarray.open(f"zarr:{place}", mode="r+")
    array.append([2, 2])
    zarr.open_array(str(place), mode="r+").append(np.array([3, 3, 3, 3]))
    with pytest.raises(ConflictError):
        array.close()
    assert zarr.open_array(str(place), mode="r").shape == (6,)
    with pmarray.open(f"zarr:{place}", mode="r+") as array:
        array.append([5])
    assert zarr.open_array(str(place), mode="r").shape == (7,)
