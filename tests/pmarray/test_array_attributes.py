"""Attributes of arrays, and values of NumPy as attributes, over the backends that keep them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import ReadOnlyError

SCHEMES = ["dram", "memmap", "zarr", "icechunk"]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def place(scheme: str, directory: Path) -> str:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    return f"dram:{uuid.uuid4()}" if scheme == "dram" else f"{scheme}:{directory}/group"


@given(of_array=st.dictionaries(st.text(), JSON), of_group=st.dictionaries(st.text(), JSON))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_json_comes_back(
    scheme: str, of_array: Any, of_group: Any, tmp_path_factory: Any
) -> None:
    url = place(scheme, tmp_path_factory.mktemp("attributes"))
    with pmarray.open_group(url) as group:
        array = group.create("x", (3,))
        array.attrs.update(of_array)
        group.attrs.update(of_group)
        group.create("y", (3,)).attrs["other"] = 1
    with pmarray.open_group(url, mode="r") as group:
        assert dict(group["x"].attrs) == of_array
        assert dict(group["x"].view[1:].T.attrs) == of_array
        assert dict(group.attrs) == of_group
        with pytest.raises(ReadOnlyError):
            group["x"].attrs["a"] = 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attributes_of_an_array_are_part_of_a_transaction(scheme: str, tmp_path: Path) -> None:
    url = place(scheme, tmp_path)
    with pmarray.open_group(url) as group:
        x = group.create("x", (2, 0), layout="col")
        with group.transaction():
            x.append([1, 2])
            x.attrs["step"] = 1
        with pytest.raises(ZeroDivisionError), group.transaction():
            x.append([3, 4])
            x.attrs["step"] = 2
            raise ZeroDivisionError
        assert (x.shape, dict(x.attrs)) == ((2, 1), {"step": 1})
        x.append([3, 4])
        x.resize((3, 2))
        assert dict(x.attrs) == {"step": 1}
    with pmarray.open_group(url, mode="r") as group:
        assert dict(group["x"].attrs) == {"step": 1}


def test_attributes_of_zarr_arrays_are_theirs(tmp_path: Path) -> None:
    with pmarray.open(f"zarr:{tmp_path}/g", (3,)) as a:
        a.attrs["units"] = "m"
    theirs: Any = zarr.open_group(f"{tmp_path}/g", mode="r+")
    assert theirs["array"].attrs["units"] == "m"
    theirs["array"].attrs["long_name"] = "length"
    expected = {"units": "m", "long_name": "length"}
    with pmarray.open(f"zarr:{tmp_path}/g") as a:
        assert dict(a.attrs) == expected
        a[0] = 1  # and the next flush keeps them
    with pmarray.open(f"zarr:{tmp_path}/g/array", mode="r") as a:
        assert dict(a.attrs) == expected


def test_copies_have_them(tmp_path: Path) -> None:
    with pmarray.open("dram:attributes#x", (3,)) as a:
        a.attrs["units"] = "m"
        with pmarray.from_array(a, tmp_path / "one") as b:
            assert dict(b.attrs) == {"units": "m"}
    pmarray.copy("dram:attributes#x", f"zarr:{tmp_path}/two#x")
    pmarray.copy_group(f"zarr:{tmp_path}/two", tmp_path / "three")
    with pmarray.open(f"{tmp_path}/three#x", mode="r") as c:
        assert dict(c.attrs) == {"units": "m"}


@pytest.mark.parametrize(
    "value",
    [np.float32(0.5), np.int8(-3), np.bool_(True), np.str_("x"), np.arange(3), np.eye(2),
     {"a": [np.uint64(2**63), np.zeros(0)]}, np.array(["a", "b"])],
    ids=repr,
)  # fmt: skip
def test_values_of_numpy_become_numbers_and_lists(value: Any) -> None:
    attrs = pmarray.open("dram:", (3,)).attrs
    attrs["a"] = value
    assert attrs["a"] == json.loads(json.dumps(value, default=lambda v: v.tolist()))


def test_numbers_that_are_not_finite_are_what_zarr_python_makes_of_them() -> None:
    attrs = pmarray.open("dram:", (3,)).attrs
    attrs["a"], attrs["b"] = float("-inf"), [np.float32("nan")]
    assert attrs["a"] == -np.inf
    assert np.isnan(attrs["b"][0])


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.zeros(10_001), "make it an array"), (np.complex64(1), "complex64"),
     (np.datetime64("2020"), "datetime64"), ({1, 2}, "set")],
)  # fmt: skip
def test_what_json_has_no_word_for_is_refused(value: Any, says: str) -> None:
    attrs = pmarray.open("dram:", (3,)).attrs
    with pytest.raises(TypeError, match=says):
        attrs["a"] = value
    assert not attrs
