"""`pmarray.open`: what it finds is what was described, or an error that states both."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray.backends import known_schemes
from pmarray.errors import (
    ArrayNotFoundError,
    BudgetError,
    GroupNotFoundError,
    LayoutError,
    PMArrayError,
    SelectionError,
    URLError,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A (30_000, 3) float32 col array, and a vector "v"."""
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("array", (30_000, 3), "float32", layout="col")[...] = 1
        group.create("v", (5,), layout="col")
    return str(tmp_path / "g")


# -- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
@pytest.mark.parametrize(
    "described",
    [
        {},
        {"shape": (30_000, 3)},
        {"shape": [30_000, 3]},
        {"shape": (np.int64(30_000), 3)},
        {"dtype": "float32"},
        {"dtype": np.float32, "layout": "col"},
        {"order": "F", "shape": (30_000, 3)},
        {"chunks": 2},
    ],
)
def test_what_agrees_opens(url: str, mode: Any, described: dict[str, Any]) -> None:
    with pmarray.open(url, mode=mode, **described) as array:
        assert (array.shape, array.layout) == ((30_000, 3), "col")
        assert array.dtype == "float32"
        if "chunks" in described:
            assert array.chunks == (30_000, 2)


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
@pytest.mark.parametrize(
    ("described", "both"),
    [
        ({"shape": (30_000, 4)}, ["shape", "(30000, 3)", "(30000, 4)"]),
        ({"shape": (3, 30_000)}, ["shape", "(30000, 3)", "(3, 30000)"]),
        ({"shape": 90_000}, ["shape", "(30000, 3)", "(90000,)"]),
        ({"dtype": "float64"}, ["dtype", "float32", "float64"]),
        ({"dtype": ">f4"}, ["dtype", "float32", ">f4"]),
        ({"layout": "row"}, ["layout", "col", "row"]),
        ({"order": "C", "shape": (30_000, 3)}, ["layout", "col", "row"]),
    ],
)
def test_what_disagrees_is_refused_and_both_are_stated(
    url: str, mode: Any, described: dict[str, Any], both: list[str]
) -> None:
    with pytest.raises(LayoutError) as caught:
        pmarray.open(url, mode=mode, **described)
    for word in both:
        assert word in str(caught.value)
    assert url in str(caught.value)
    with pmarray.open(url, mode="r+") as array:  # not locked, and as it was
        assert array[0].tolist() == [1, 1, 1]
        array[0] = 2


def test_a_vector_has_no_order_to_disagree_about(url: str) -> None:
    for layout in ("row", "col"):
        with pmarray.open(f"{url}#v", (5,), "float64", layout=layout) as array:
            assert array.shape == (5,)


def test_a_new_array_is_as_in_numpy(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "a", (3, 2)) as array:
        assert array.dtype == "float64"
        assert array.layout == "row"
        assert (array[...] == 0).all()
    with pmarray.open(tmp_path / "b", 4, "int8", fill_value=-1) as array:
        assert array.shape == (4,)
        assert array[...].tolist() == [-1] * 4
        assert array.fill_value == -1
        array.resize(6)
        assert array[...].tolist() == [-1] * 6
    with pmarray.open(tmp_path / "b") as array:
        array.resize(7)
        assert array[6] == -1


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        (object, "Python objects"),
        ([("a", object)], "Python objects"),
        ("S", "no fixed item size"),
        ("U0", "no fixed item size"),
        (np.dtype(("f4", (3,))), "no fixed item size"),
        (np.dtypes.StringDType(), "Python objects|variable-width"),
        ("no such type", "not a dtype"),
        (np.dtype({"names": ["b", "a"], "formats": ["i4", "i4"], "offsets": [4, 0]}), "cannot"),
    ],
)
def test_dtypes_that_cannot_be_stored(tmp_path: Path, dtype: Any, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        pmarray.open(tmp_path / "a", (3,), dtype)


@pytest.mark.parametrize("name", ["int4", "uint4", "float8_e4m3b11fnuz"])
def test_small_floats_that_metadata_have_no_name_for_are_refused(tmp_path: Path, name: str) -> None:
    """They would come back as bytes of no type."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (getattr(ml_dtypes, name), [("a", ml_dtypes.bfloat16)]):
        with pytest.raises(LayoutError, match="no name"):
            pmarray.open(tmp_path / "a", (3,), dtype)


@pytest.mark.parametrize(
    "dtype",
    [
        "?", "i1", ">u2", "f2", "g", "c8", "S5", "U3", "M8[us]", "m8[10s]", "V7", "bfloat16",
        "float8_e5m2", [("a", "<i4"), ("b", "?", (2, 3))], [("n", [("x", ">f8")])],
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
    ],
    ids=str,
)  # fmt: skip
def test_dtypes_come_back_as_they_were(tmp_path: Path, dtype: Any) -> None:
    with pmarray.open(tmp_path / "a", (3,), dtype) as array:
        wanted = array.dtype
        zeros = np.frombuffer(bytes(array.nbytes), wanted)  # also of text
        np.testing.assert_array_equal(array[...], zeros)  # but for the gaps, which hold anything
    with pmarray.open(tmp_path / "a", (3,), dtype, mode="r") as array:
        assert array.dtype == wanted


# -- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["plain", "with space", "a#b", "a?b=c", "a%20b", "dram:x", "ünïcode", "x.y.z", "-dash"]
)
def test_a_path_object_is_the_path_that_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pmarray.open(path, (3,)) as array:
        array[:] = 1
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert np.load(path / "array.npy").tolist() == [1, 1, 1]
    with pmarray.open(path, mode="r") as array:
        assert array.name == "array"
    with pmarray.open_group(path) as group:
        assert list(group) == ["array"]
        group.attrs["a"] = 1
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_bare_string_is_a_path_and_may_pick_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pmarray.open("here#weights", (3,)) as array:
        assert array.name == "weights"
        assert array.group.url == f"memmap:{tmp_path / 'here'}"
        array[:] = 2
    with pmarray.open("memmap:./here#weights", mode="r") as array:
        assert array[:].tolist() == [2, 2, 2]
    monkeypatch.setenv("HOME", str(tmp_path))
    with pmarray.open("~/here#weights", mode="r") as array:
        assert array.shape == (3,)


def test_a_relative_path_stays_what_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pmarray.open("g", (3,)) as array:
        array[:] = 1
        monkeypatch.chdir(tmp_path / "elsewhere")
        array.group.attrs["a"] = 1
        array.append([4])
        array.group.create("more", (2,))
        array.flush()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with pmarray.open_group(tmp_path / "g", mode="r") as group:
        assert dict(group.attrs) == {"a": 1}
        assert list(group) == ["array", "more"]
        assert group["array"].shape == (4,)


def test_nothing_is_left_by_a_path_that_was_mistyped(tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: pmarray.open(tmp_path / "typo"),
        lambda: pmarray.open(tmp_path / "typo", mode="r"),
        lambda: pmarray.open(tmp_path / "typo", mode="w"),
        lambda: pmarray.open(tmp_path / "typo", (3,), object),
        lambda: pmarray.open(tmp_path / "typo", (3,), cache="many"),
        lambda: pmarray.open(f"{tmp_path}/typo#../up", (3,)),
    ]
    for call in calls:
        with pytest.raises((PMArrayError, ValueError)):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("floppy:/a", "no backend for 'floppy:'; known: .*dram.*memmap"),
        ("dram:x?direct=no", "takes no options"),
        ("memmap:/tmp/x?direct=perhaps", "direct=yes or no and"),
        ("memmap:/tmp/x?speed=high", "direct=yes or no and"),
        ("memmap:", "needs a directory"),
        ("#name", "needs a directory"),
        ("", "not a URL"),
        (None, "not a URL"),
    ],
)
def test_urls_of_nothing(url: Any, why: str) -> None:
    with pytest.raises(URLError, match=why):
        pmarray.open(url, (3,))


@pytest.mark.parametrize("scheme", ["dram", "memmap", "shelf", "zarr", "icechunk"])
@pytest.mark.filterwarnings("ignore::pmarray.errors.PersistenceWarning")
def test_names_of_files_that_a_group_has_are_names_of_arrays(scheme: str, tmp_path: Path) -> None:
    names = ["data", "journal", "lock", "pmarray.json", "array", "000001", "x.npy", "lock.data"]
    url = f"dram:{uuid.uuid4()}" if scheme == "dram" else f"{scheme}:{tmp_path}/g"
    with pmarray.open_group(url) as kept:
        for i, name in enumerate(names):
            kept[name] = np.full(5, i)
        with kept.transaction():
            kept["data"][...] = 9
        kept.flush()
        del kept["lock"]
        found = {name: array[...].tolist() for name, array in kept.items()}
    if scheme != "dram":
        with pmarray.open_group(url, mode="r") as kept:
            assert {name: array[...].tolist() for name, array in kept.items()} == found
        assert pmarray.verify(url) == []
    assert found == {n: [9 if n == "data" else i] * 5 for i, n in enumerate(names) if n != "lock"}


def test_names(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        for name in ("../up", "", "a/b", ".hidden", "zarr.json", "x" * 200):
            with pytest.raises(URLError, match="cannot be called"):
                group.create(name, (3,))
        for name in ("a.b-c_d", "0", "X" * 128):
            group.create(name, (3,))
        assert len(group) == 3
        with pytest.raises(ArrayNotFoundError, match="it holds 0, "):
            group["x"]
        assert 3 not in group  # type: ignore[comparison-overlap]


# -- backends of others ------------------------------------------------------------------------

BACKEND = """
from pmarray.backends.dram import DRAMBackend

SHELVES = {}
OPENED = []

def open_backend(url, *, writable):
    OPENED.append((url.path, url.options, writable))
    return SHELVES.setdefault(url.path, DRAMBackend(str(url)))
"""


def test_a_backend_registers_itself_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_backend.py").write_text(BACKEND)
    info = tmp_path / "their_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pmarray.backends]\ntheirs = their_backend:open_backend\n"
    )
    with pytest.raises(URLError, match="no backend for 'theirs:'"):
        pmarray.open("theirs:shelf", (3,))
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in known_schemes()
    with pmarray.open("theirs:shelf?speed=high#a", (3,)) as array:
        array[:] = 4
        array.append([5])
    with pmarray.open("THEIRS:shelf#a", mode="r") as array:
        assert array[:].tolist() == [4, 4, 4, 5]
    opened = sys.modules["their_backend"].OPENED
    assert opened == [("shelf", {"speed": "high"}, True), ("shelf", {}, False)]


def test_what_a_group_says_of_itself(url: str) -> None:
    with pmarray.open_group(url) as group:
        assert group.url == f"memmap:{url}"
        assert repr(group) == f"<Group memmap:{url} mode='a' 2 arrays>"
        array = group["array"]
        assert repr(array).startswith(f"<PMArray memmap:{url}#array (30000, 3) float32")
        assert array.group is group
        assert group["array"] is array
        assert (array.ndim, array.size, array.itemsize, array.nbytes) == (2, 90_000, 4, 360_000)
        assert len(array) == 30_000
        with pytest.raises(TypeError, match="without axes"):
            len(group.create("scalar", ()))
        assert group["scalar"][()] == 0


def test_descriptors_are_given_back(url: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for mode in ("r", "r+", "a"):
        with pmarray.open_group(url, mode=mode) as group:
            np.asarray(group["array"]).sum()
            group["v"][:]
            if mode != "r":
                group["v"][0] = 1
    for _ in range(5):
        with pytest.raises(LayoutError):
            pmarray.open(url, (1,))
        with pytest.raises(ArrayNotFoundError):
            pmarray.open(url + "#none", mode="r")
        with pytest.raises(GroupNotFoundError):
            pmarray.open(url + "x", mode="r")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_group_is_not_opened_by_the_name_of_an_array(tmp_path: Path) -> None:
    with pytest.raises(pmarray.errors.URLError, match="names an array"):
        pmarray.open_group(f"memmap:{tmp_path}/g#weights")
    assert not list(tmp_path.iterdir())


def test_a_sparse_file_takes_what_was_written(scratch: Path) -> None:
    url, shape = f"memmap:{scratch}/g?sparse=yes", (1 << 20, 1024)
    with pmarray.open(url, shape, "f8", layout="col") as a:  # of 8 GiB
        a.flush()
        file = scratch / "g" / "array.npy"
        assert file.stat().st_blocks * 512 < 64 << 10
        with a.transaction():
            a[:, 1000] = 3
        with pytest.raises(KeyError), a.transaction():
            a[:, 1001] = 4
            raise KeyError
        assert a.append(np.ones(1 << 20)) == (1 << 20, 1025)
    assert file.stat().st_size > 8 << 30
    assert file.stat().st_blocks * 512 < 64 << 20
    with pmarray.open(url.partition("?")[0], mode="r") as a:
        assert a[5, [0, 999, 1000, 1001, 1024]].tolist() == [0, 0, 3, 0, 1]


FRACTION: Any = 1.5
TEXT: Any = "1"
NUMBER: Any = 1


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: pmarray.open("dram:", (3,), cache=FRACTION), ValueError, "not a number of bytes"),
        (lambda: pmarray.open_group("dram:", commit_window=TEXT), ValueError, "in seconds"),
        (
            lambda: pmarray.open("dram:", (3,), fil_value=1),
            TypeError,
            "no parameter of a new array",
        ),
        (lambda: pmarray.open("dram:", (3,)).view[[0]], SelectionError, "cannot index with list"),
        (lambda: pmarray.open("dram:#" + "a" * 129, (3,)), URLError, "at most 128 characters"),
        (lambda: pmarray.verify("dram:x#a"), URLError, "a whole group is meant"),
        (
            lambda: pmarray.open_group("dram:").create_group("l").attrs.update({NUMBER: 2}),
            TypeError,
            "attribute names are strings",
        ),
    ],
)
def test_what_is_no_argument_is_told(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        call()
    assert type(raised.value) is error


@pytest.mark.parametrize("cache", ["16 KiB", 0])
@pytest.mark.parametrize(("n", "dtype"), [(5000, "f4"), (20000, "i1"), (33333, "i1"), (1000, "f8")])
def test_the_cache_that_a_loan_asks_for_is_enough(
    cache: Any, n: int, dtype: str, tmp_path: Path
) -> None:
    with pmarray.open(tmp_path / "g", (n, 2), dtype, layout="col", cache=cache) as a:
        try:
            with a.writing(np.s_[:, 0]):
                return
        except BudgetError as error:
            found = re.search(r"cache=(\d+)", str(error))
    assert found is not None
    with (
        pmarray.open(tmp_path / "g", cache=int(found[1])) as a,
        a.writing(np.s_[:, 0]) as lent,
    ):
        lent[...] = 1
