"""Attributes of groups: kept whatever they are called, and not changed unnoticed."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import zarr

import pmarray

SCHEMES = ["dram", "memmap", "zarr"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [{"mine": [1, {}]}, "text", None, {"uuid": "", "next": 1}])
def test_an_attribute_may_be_called_as_we_are(scheme: str, value: Any, scratch: Path) -> None:
    url = f"{scheme}:{scratch}/group"
    with pmarray.open_group(url) as group:
        group.create("x", (3,))
        group.attrs["pmarray"] = value
        group.attrs["other"] = 1
        group.flush()
        if scheme != "dram":
            with pmarray.open_group(url, mode="r") as reader:
                assert dict(reader.attrs) == {"pmarray": value, "other": 1}
                assert reader["x"].shape == (3,)
        del group.attrs["pmarray"]
        assert dict(group.attrs) == {"other": 1}
    if scheme != "dram":
        with pmarray.open_group(url) as group:
            assert dict(group.attrs) == {"other": 1}
            group["x"].append([1.0])
            assert group["x"].shape == (4,)


@pytest.mark.parametrize("value", ["1.0", 3, [], {}, {"version": 2}, {"dtype": "?", "id": "x"}])
def test_an_attribute_of_another_program_is_its_own(value: Any, scratch: Path) -> None:
    root = zarr.open_group(scratch / "group", mode="w", attributes={"pmarray": value})
    array = root.create_array("x", shape=(3,), dtype="f4", attributes={"pmarray": value})
    array[:] = 2
    with pmarray.open_group(f"zarr:{scratch}/group") as group:
        assert group.attrs["pmarray"] == value
        group["x"][0] = 1
        group.attrs["more"] = 1
    with pmarray.open_group(f"zarr:{scratch}/group", mode="r") as group:
        assert dict(group.attrs) == {"pmarray": value, "more": 1}
        assert group["x"][...].tolist() == [1, 2, 2]
    with pmarray.open(f"zarr:{scratch}/group/x") as alone:
        assert alone.group.attrs["pmarray"] == value
        alone.append([5])
    with pmarray.open(f"zarr:{scratch}/group/x", mode="r") as alone:
        assert dict(alone.group.attrs) == {"pmarray": value}
        assert alone[...].tolist() == [1, 2, 2, 5]


CHANGES = {
    "append": lambda attrs: attrs["list"].append(3),
    "item": lambda attrs: attrs["list"].__setitem__(0, 3),
    "sort": lambda attrs: attrs["list"].sort(),
    "delete": lambda attrs: attrs["list"].__delitem__(0),
    "nested list": lambda attrs: attrs["dict"]["a"].append(3),
    "nested item": lambda attrs: attrs["dict"].__setitem__("b", 3),
    "update": lambda attrs: attrs["dict"].update(b=3),
    "nested dict": lambda attrs: attrs["list"][1].setdefault("b", 3),
    "pop": lambda attrs: attrs["dict"].pop("a"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_is_not_changed_unnoticed(change: str) -> None:
    attrs = pmarray.open_group("dram:").attrs
    attrs["list"], attrs["dict"] = [2, {"a": 1}], {"a": [1]}
    with pytest.raises(TypeError, match="assign a changed copy"):
        CHANGES[change](attrs)
    assert dict(attrs) == {"list": [2, {"a": 1}], "dict": {"a": [1]}}


def test_a_copy_can_be_changed_and_assigned() -> None:
    attrs = pmarray.open_group("dram:").attrs
    attrs["list"], attrs["dict"] = [1, {"a": 1}], {"a": [1]}
    attrs["list"] += [2]
    attrs["dict"] |= {"b": 2}
    assert attrs["list"] == [1, {"a": 1}, 2]
    assert attrs["dict"] == {"a": [1], "b": 2}
    for copied in (attrs["list"].copy(), copy.deepcopy(attrs["list"]),
                   pickle.loads(pickle.dumps(attrs["list"]))):  # fmt: skip
        assert type(copied) is list
        copied[1]["b"] = copied
    assert json.dumps(attrs["dict"]) == '{"a": [1], "b": 2}'
    assert isinstance(attrs["dict"], dict)
