"""What no array can be is refused before anything is made, or deleted, for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._geometry.layout import parse_shape, refuse_unaddressable
from pmarray.errors import LayoutError, URLError

SCHEMES = ["dram", "memmap", "zarr", "icechunk"]

IMPOSSIBLE: list[dict[str, Any]] = [
    {"shape": (2**40, 2**40)},
    {"shape": (2**63,)},
    {"shape": (2**62,)},  # of 8 bytes
    {"shape": (0, 2**63)},
    {"shape": (0, 2**61, 8)},
    {"shape": (1,) * 65},
    {"shape": (-1,)},
    {"shape": (3,), "dtype": object},
    {"shape": (3,), "layout": "diagonal"},
    {"shape": (3,), "chunks": 0},
    {"shape": (3,), "chunks": -2},
    {"shape": (3,), "chunks": (2, 2)},
    {"shape": (3,), "chunks": (-2,)},
    {"shape": (3,), "fill_value": "x"},
    {"shape": (3,), "nonsense": 1},
    {"shape": (3,), "name": "zarr.json"},
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("asked", IMPOSSIBLE, ids=str)
def test_what_cannot_be_leaves_nothing_behind(
    scheme: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk is not installed")
    url = "dram:bounds" if scheme == "dram" else f"{scheme}:{tmp_path}/group"
    asked = dict(asked)
    name = asked.pop("name", "array")
    shape = asked.pop("shape")
    for mode in ("a", "w", "w-"):
        with pytest.raises((LayoutError, URLError, TypeError)):
            pmarray.open(f"{url}#{name}", shape, mode=mode, **asked)
    assert not (tmp_path / "group").exists() or not os.listdir(tmp_path / "group")
    # Nor is what is there given up for it.
    with pmarray.open_group(url, mode="w") as group:
        group.create("array", (2,))[:] = 7
        group.flush()
        with pytest.raises((LayoutError, URLError, TypeError)):
            group.create(name if name != "array" else "other", shape, **asked)
        assert list(group) == ["array"]
    with pytest.raises((LayoutError, URLError, TypeError)):
        pmarray.open(f"{url}#{name}", shape, mode="w", **asked)
    with pmarray.open_group(url, mode="r") as group:
        assert list(group) == ["array"]
        assert group["array"][...].tolist() == [7, 7]
    if scheme == "dram":
        pmarray.open_group(url, mode="w").close()


@pytest.mark.parametrize("scheme", ["dram", "memmap", "zarr"])
def test_an_array_does_not_grow_beyond_bounds(scheme: str, tmp_path: Path) -> None:
    url = "dram:" if scheme == "dram" else f"{scheme}:{tmp_path}/group"
    with pmarray.open(url, (3, 4)) as array:
        array[...] = 1
        for shape in [(2**60, 4), (2**80, 4), (3, 2**60)]:
            with pytest.raises(LayoutError, match="4 EiB"):
                array.resize(shape)
        assert array.shape == (3, 4)
        assert array.sum() == 12


def test_shards_have_extents(tmp_path: Path) -> None:
    for shards in [(0,), (-4,)]:
        with pytest.raises(LayoutError, match="shards"):
            pmarray.open(f"zarr:{tmp_path}/group", (4,), chunks=(2,), shards=shards)
    assert not (tmp_path / "group").exists()


@given(
    st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**70)), max_size=70), st.integers(1, 64)
)
def test_every_shape_that_is_not_refused_is_one_of_numpys(shape: list[int], itemsize: int) -> None:
    try:
        extents = parse_shape(tuple(shape))
        refuse_unaddressable(extents, itemsize)
    except LayoutError:
        return
    item = np.zeros((), f"V{itemsize}")
    assert np.broadcast_to(item, extents).shape == extents


def test_a_foreign_array_beyond_bounds_is_left_out(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "z"), mode="w")
    group.create_array("large", shape=(2**63,), chunks=(4,), dtype="u1")
    group.create_array("small", shape=(4,), chunks=(4,), dtype="u1")
    with pmarray.open_group(f"zarr:{tmp_path}/z", mode="r") as found:
        assert list(found) == ["small"]
