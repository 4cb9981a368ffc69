"""Another program is at work in a Zarr hierarchy while a writer of ours is: neither loses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

import pmarray
from pmarray.errors import (
    ConflictError,
    ForeignDataError,
    GroupLockedError,
    LayoutError,
    LeftOutWarning,
    URLError,
)


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


# -- what other programs have in the hierarchy ----------------------------------------------------


def _strangers(place: str) -> dict[str, str]:
    """Put what is no array of the group into a hierarchy; return what lies there, by name."""
    with pmarray.open(f"zarr:{place}#x", (4,)) as array:
        array[:] = 1
    with pmarray.open(f"zarr:{place}/run/c#w", (4,)) as array:  # a group of ours, without its own
        array[:] = 5
    zarr.create_array(f"{place}/exp/c", data=np.arange(3.0))
    zarr.create_array(f"{place}/old", data=np.arange(3.0), zarr_format=2)
    (Path(place) / "docs").mkdir()
    (Path(place) / "docs" / "readme.txt").write_text("hello")
    (Path(place) / "empty").mkdir()
    return _files(place)


def _files(place: str) -> dict[str, str]:
    root = Path(place)
    return {
        str(one.relative_to(root)): one.read_bytes().hex()
        for one in root.rglob("*")
        if one.is_file() and one.relative_to(root).parts[0] in ("run", "exp", "old", "docs")
    }


@pytest.mark.parametrize("name", ["run", "exp", "old", "docs"])
def test_nothing_is_made_over_what_is_no_array_of_the_group(name: str, tmp_path: Path) -> None:
    there = _strangers(str(tmp_path / "g"))
    with pmarray.open_group(f"zarr:{tmp_path}/g", mode="r+") as group:
        with pytest.raises(ConflictError, match=f"under the name '{name}'"):
            group.create(name, (2,))
        with pytest.raises(ConflictError), group.transaction():
            group.create(name, (2,))
        assert group.create("empty", (2,)).shape == (2,)
    assert _files(str(tmp_path / "g")) == there


def test_nor_over_a_group_of_icechunk(tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "i")))
    session = repository.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root.create_group("sub").create_array("y", data=np.arange(3.0))
    session.commit("one")
    with pytest.raises(ConflictError, match="under the name 'sub'"):
        pmarray.open(f"icechunk:{tmp_path}/i#sub", (2,))
    found: Any = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert found["sub/y"].shape == (3,)


def test_after_a_death_nothing_of_theirs_is_cleared_away(tmp_path: Path) -> None:
    there = _strangers(str(tmp_path / "g"))
    url = f"zarr:{tmp_path}/g"
    code = (
        f"import pmarray, os; a = pmarray.open('{url}#x', mode='r+'); a[0] = 9; a.flush(); "
        "os.makedirs(os.path.join(a.group.url[5:], 'ours', 'c')); "
        "open(os.path.join(a.group.url[5:], 'ours', 'c', '0'), 'w').close(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    with pmarray.open_group(url, mode="r+") as group:
        group.attrs["more"] = 1
        assert group["x"][:].tolist() == [9, 1, 1, 1]
    assert _files(str(tmp_path / "g")) == there
    assert not (tmp_path / "g" / "ours").exists()  # chunks alone: an array that never was


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_that_are_old_are_not_believed(tmp_path: Path) -> None:
    place = str(tmp_path / "g")
    with pmarray.open(f"zarr:{place}#x", (4,), chunks=2) as array:
        array[:] = 1
    zarr.consolidate_metadata(place)
    zarr.open_array(f"{place}/x", mode="r+").append(np.full(4, 2.0))
    with pmarray.open_group(f"zarr:{place}", mode="r") as group:
        assert group["x"].shape == (8,)
    with pmarray.open_group(f"zarr:{place}", mode="r+") as group:
        group.attrs["title"] = "t"
    theirs: Any = zarr.open_array(f"{place}/x", mode="r")
    assert theirs[:].tolist() == [1] * 4 + [2] * 4


def test_an_array_by_its_own_name_has_the_lock_of_its_group(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open_group(url) as group:
        for name in "xy":
            group.create(name, (4,))[:] = 0
    with pmarray.open_group(url, mode="r+") as group:
        group["x"][0] = 1
        with pmarray.open(f"{url}/x", mode="r+") as array, pytest.raises(GroupLockedError):
            array[1] = 2
    with (
        pmarray.open(f"{url}/x", mode="r+") as x,
        pmarray.open(f"{url}/y", mode="r+") as y,
        pmarray.open_group(url, mode="r+") as group,
    ):
        x[1], y[1] = 2, 3  # two arrays have two writers
        x.flush()
        with pytest.raises(GroupLockedError):
            group.attrs["more"] = 1
        y.close()
        with pytest.raises(GroupLockedError):
            group.attrs["more"] = 1
        x.close()
        group.attrs["more"] = 1
        assert (group["x"][:2].tolist(), group["y"][1]) == ([1, 2], 3)
    assert sorted(one.name for one in (tmp_path / "g").iterdir()) == ["x", "y", "zarr.json"]


def test_where_a_writer_of_the_group_has_died_it_is_recovered_first(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(f"{url}#x", (4,)) as array:
        array[:] = 0
    code = (
        f"import pmarray, os; g = pmarray.open_group('{url}', mode='r+')\n"
        "with g.transaction(): g['x'][0] = 9; g._session.cache.flush(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    with (
        pmarray.open(f"{url}/x", mode="r+") as array,
        pytest.raises(ConflictError, match="open the group"),
    ):
        array[1] = 2
    with pmarray.open_group(url, mode="r+") as group:
        group.attrs["more"] = 1
    with pmarray.open(f"{url}/x", mode="r+") as array:
        array[1] = 2
        assert array[:].tolist() == [0, 2, 0, 0]


@pytest.mark.parametrize("what", ["nothing", "group", "text"])
def test_a_group_of_format_2_is_left_as_it_is(what: str, tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "g"), mode="w", zarr_format=2)
    if what == "group":
        root.create_group("sub").create_array("y", data=np.arange(3.0))
    if what == "text":
        root.create_array("o", shape=(2,), dtype=str)[:] = ["a", "b"]
    with (
        pmarray.open_group(f"zarr:{tmp_path}/g", mode="r+") as group,
        pytest.raises(ForeignDataError, match="format 2, which is read only"),
    ):
        group.attrs["title"] = "t"
    assert not (tmp_path / "g" / "zarr.json").exists()


def test_one_array_that_nobody_understands_leaves_the_others(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "g"), mode="w")
    for name in ("good", "odd"):
        root.create_array(name, data=np.arange(4.0))
    document = tmp_path / "g" / "odd" / "zarr.json"
    value = json.loads(document.read_bytes())
    value["codecs"].append({"name": "https://codec.example/unknown"})
    document.write_text(json.dumps(value))
    with pmarray.open_group(f"zarr:{tmp_path}/g", mode="r+") as group:
        assert group["good"][:].tolist() == [0, 1, 2, 3]
        assert list(group) == ["good"]
        with pytest.raises(ForeignDataError, match="zarr-python does not take"):
            group["odd"]
        with pytest.raises(ForeignDataError, match="not replaced"):
            group.create("odd", (2,))
        group["good"][0] = 7
    assert json.loads(document.read_bytes()) == value


def test_raw_bytes_are_refused_in_shards(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group.create("y", (3,))[:] = 1
        with pytest.raises(LayoutError, match="raw bytes, in shards"):
            group.create("v", (4,), "V3", chunks=2, shards=(4,))
        assert list(group) == ["y"]


_FILTERS = {
    "wider": ([numcodecs.Delta(dtype="i2", astype="i4")], "i2"),
    "narrower": ([numcodecs.AsType(encode_dtype="f4", decode_dtype="f8")], "f8"),
    "bits": ([numcodecs.PackBits()], "?"),
    "several": (
        [numcodecs.FixedScaleOffset(offset=0, scale=1, dtype="f4", astype="i8"), numcodecs.CRC32()],
        "f4",
    ),
}


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("filters", _FILTERS)
@pytest.mark.parametrize("codec", ["zstd", "blosc", "zlib", "lz4", "bz2", "lzma", "gzip"])
def test_filters_of_format_2_may_change_the_size_of_items(
    codec: str, filters: str, tmp_path: Path
) -> None:
    chain, dtype = _FILTERS[filters]
    items = np.arange(70_000).astype(dtype)
    zarr.create_array(
        str(tmp_path / "x"),
        data=items,
        chunks=(70_000,),
        filters=chain,
        compressors=numcodecs.get_codec({"id": codec}),
        zarr_format=2,
    )
    with pmarray.open(f"zarr:{tmp_path}/x", mode="r") as array:
        np.testing.assert_array_equal(array[:], items)


def test_a_copy_says_what_it_leaves_out(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "g"), mode="w", zarr_format=2)
    root.create_array("t", data=np.arange(4.0))
    root.create_array("names", shape=(2,), dtype=str)[:] = ["a", "b"]
    with pytest.warns(LeftOutWarning, match="1 arrays that are not copied.*: names"):
        pmarray.copy_group(f"zarr:{tmp_path}/g", f"memmap:{tmp_path}/copy")
    with pmarray.open_group(tmp_path / "copy", mode="r") as group:
        assert list(group) == ["t"]


@pytest.mark.parametrize("scheme", ["zarr", "memmap"])
def test_attributes_that_are_not_finite_are_copied(scheme: str, tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "g"), mode="w", zarr_format=2)
    root.create_array("t", data=np.arange(4.0)).attrs["missing_value"] = float("nan")
    root.attrs["range"] = [float("-inf"), 0]
    target = f"{scheme}:{tmp_path}/copy"
    pmarray.copy_group(f"zarr:{tmp_path}/g", target)
    with pmarray.open_group(target, mode="r+") as group:
        assert np.isnan(group["t"].attrs["missing_value"])
        assert list(group.attrs["range"]) == [-np.inf, 0]
        group.attrs["more"] = np.float32("nan")
    with pmarray.open_group(target, mode="r") as group:
        assert np.isnan(group.attrs["more"])


def test_a_store_in_memory_has_no_options() -> None:
    with pytest.raises(URLError, match="takes no options"):
        pmarray.open_group("zarr:memory://stores?foo=bar", mode="w")
