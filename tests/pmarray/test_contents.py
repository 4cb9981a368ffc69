"""A group as a mapping, arrays made of data, and groups within the group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
from hypothesis import given

import pmarray
from pmarray.errors import ArrayExistsError, ArrayNotFoundError, LayoutError, URLError
from pmarray.testing.strategies import array_dtypes, array_shapes, filled


@given(shape=array_shapes(2000), dtype=array_dtypes())
def test_an_array_of_any_data(shape: Any, dtype: Any) -> None:
    values = filled(shape, dtype, 1)
    group = pmarray.open_group("dram:")
    group["x"] = values
    assert (group["x"].shape, group["x"].dtype) == (shape, dtype)
    np.testing.assert_array_equal(group["x"][...], values)
    group["t"] = group["x"].T
    np.testing.assert_array_equal(group["t"][...], values.T)


def test_data_of_other_kinds(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(3, 4)
    chunked: Any = dask.array.from_array
    with pmarray.open_group(tmp_path / "g") as group:
        for name, data in {"list": values.tolist(), "dask": chunked(values, chunks=2)}.items():
            made = group.create(name, data=data, dtype="float32", layout="col")
            assert (made.dtype.name, made.layout) == ("float32", "col")
            np.testing.assert_array_equal(made[...], values)
        group["number"] = 3.5
        assert group["number"][()] == 3.5
        assert group.create("filled", data=[1], fill_value=7).fill_value == 7
        assert group.create("f", data=np.asfortranarray(values)).layout == "col"


def test_what_cannot_be_made_leaves_nothing() -> None:
    group = pmarray.open_group("dram:")
    group["x"] = [1, 2]
    with pytest.raises(ArrayExistsError):
        group["x"] = [3]
    with pytest.raises(LayoutError, match="asked for"):
        group.create("y", (3,), data=[1, 2])
    with pytest.raises(TypeError, match="shape= or data="):
        group.create("y")
    with pytest.raises(LayoutError, match="Python objects"):
        group["y"] = [object()]

    class Broken:
        shape, dtype = (3,), np.dtype("f4")

        def __getitem__(self, index: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        group["y"] = Broken()
    assert list(group) == ["x"]


def test_a_group_is_a_mapping() -> None:
    group = pmarray.open_group("dram:")
    group["b"], group["a"] = [1, 2], [3]
    assert list(group.keys()) == ["a", "b"]
    assert [(name, array.shape) for name, array in group.items()] == [("a", (1,)), ("b", (2,))]
    assert [array.name for array in group.values()] == ["a", "b"]
    assert group.get("b") is group["b"]
    assert group.get("c") is None
    assert group.get("c", 5) == 5
    assert {group: 1}[group] == 1
    assert group != pmarray.open_group("dram:")


def test_a_group_within_the_group(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        group["top"] = [0]
        layer = group.create_group("layer1")
        with layer.transaction():
            layer["w"] = [[1, 2]]
            layer.create("b", (2,), "float32")
            layer.create_group("head")["w"] = [3]
            layer.attrs["frozen"] = True
        assert list(layer) == ["b", "head.w", "w"]
        assert dict(layer.attrs) == {"frozen": True}
        assert list(group) == ["layer1.b", "layer1.head.w", "layer1.w", "top"]
        assert dict(group.attrs) == {"layer1.frozen": True}
        assert layer == group.create_group("layer1")
        assert "top" not in layer
        with pytest.raises(ZeroDivisionError), layer.transaction():
            del layer["w"], layer.attrs["frozen"]
            assert (len(layer), len(layer.attrs)) == (2, 0)
            raise ZeroDivisionError
        assert (len(layer), len(layer.attrs)) == (3, 1)
        with pytest.raises(ArrayNotFoundError):
            layer["top"]
        with pytest.raises(URLError):
            layer.create_group("../up")
    with pmarray.open_group(tmp_path / "g", mode="r") as group:
        assert group.create_group("layer1")["w"][0, 1] == 2
    assert np.load(tmp_path / "g" / "layer1.head.w.npy")[0] == 3
