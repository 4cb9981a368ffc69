"""Arrays that other programs of Zarr make and read: types, names of axes, codecs, xarray."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st
from zarr.storage import LocalStore
from zarr.testing.strategies import arrays as zarr_arrays

import pmarray
from pmarray._exchange.xarray import StoredArrays
from pmarray.errors import ForeignDataError, LayoutError
from pmarray.testing.strategies import filled
from tests.sampling import examples

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

KINDS: list[Any] = [
    "S3", "U4", ">U2", "V5", "bfloat16", [("a", "i4"), ("b", "f8"), ("c", "S2")],
    [("outer", [("x", "u1"), ("y", "c8")])], "M8[us]", "m8[h]", ">f8", "f2", "?",
]  # fmt: skip


def values_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    if dtype.name == "bfloat16" or dtype.kind not in "VSU":
        return filled(shape, dtype, 7)
    count = int(np.prod(shape))
    if dtype.kind == "U":
        text = np.array(["ab", "", "äß", "x"])
        return np.resize(text, count).astype(dtype).reshape(shape)
    raw = np.random.default_rng(1).integers(65, 91, count * dtype.itemsize, dtype=np.uint8)
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("scheme", ["zarr", "icechunk"])
def test_types_come_back_and_others_read_them(scheme: str, kind: Any, tmp_path: Path) -> None:
    if kind == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs the package ml_dtypes")
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    url = f"{scheme}:{tmp_path}/g"
    with warnings.catch_warnings(action="error"):  # not one of them is the user's business
        with pmarray.open(url, (5, 4), kind, layout="col", chunks=(2, 2)) as a:
            values = values_of(a.dtype, a.shape)
            a[...] = values
            a.append(values[:, :1])
        with pmarray.open(url, mode="r") as a:
            assert a.dtype == values.dtype
            expected = np.concatenate([values, values[:, :1]], 1, dtype=values.dtype)
            assert a[...].tobytes() == expected.tobytes()
    if scheme == "zarr":
        theirs: Any = zarr.open_array(f"{tmp_path}/g/array", mode="r")
        np.testing.assert_array_equal(theirs[:, :4], values)


@pytest.mark.parametrize(
    "dtype",
    [[("a", ">i4")], [("a", "i4", (2,))],
     {"names": ["x"], "formats": ["i4"], "offsets": [4], "itemsize": 16}],
    ids=["bytes of the other order", "arrays as fields", "gaps"],
)  # fmt: skip
def test_records_that_would_come_back_as_others_are_refused(dtype: Any) -> None:
    with pmarray.open_group("zarr:memory://records") as group:
        with pytest.raises(LayoutError, match="would be stored as"):
            group.create("x", (3,), dtype)


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group["good"], group["bad"] = np.arange(3), np.arange(3, dtype="u1")
    path = tmp_path / "g" / "bad" / "zarr.json"
    document = json.loads(path.read_text())
    document["data_type"] = "int4"
    path.write_text(json.dumps(document))
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        assert list(group) == ["good"]
        assert group["good"][2] == 2
        with pytest.raises(ForeignDataError, match="bad is of type int4"):
            group["bad"]
        with pytest.raises(ForeignDataError, match="choose another name"):
            group.create("bad", (3,))
    assert json.loads(path.read_text()) == document
    with pytest.raises(ForeignDataError, match="of type int4"):
        pmarray.open_group(f"zarr:{tmp_path}/g/bad", mode="r")


@pytest.mark.parametrize(
    ("codec", "name"),
    [(numcodecs.BitRound(keepbits=10), "numcodecs.bitround"), (numcodecs.Zstd(level=3), "zstd"),
     (numcodecs.Blosc(cname="lz4", shuffle=numcodecs.Blosc.SHUFFLE), "numcodecs.blosc"),
     (numcodecs.GZip(level=2), "gzip"), (numcodecs.Delta(dtype="<f4"), "numcodecs.delta")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_codecs_of_numcodecs(codec: Any, name: str, tmp_path: Path) -> None:
    values = np.linspace(0, 1, 600, dtype="f4").reshape(20, 30)
    with pmarray.open(f"zarr:{tmp_path}/g", values.shape, "f4", codecs=[codec]) as a:
        a[...] = values
    stored = json.loads((tmp_path / "g" / "array" / "zarr.json").read_text())["codecs"]
    assert name in [one["name"] for one in stored]
    with pmarray.open(f"zarr:{tmp_path}/g", mode="r") as a:
        np.testing.assert_allclose(a[...], values, atol=2e-3 if "bitround" in name else 1e-6)


def test_xarray_opens_what_was_made_without_a_thought_of_it(tmp_path: Path) -> None:
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group["weight"], group["bias"] = np.ones((3, 4)), np.arange(5)
        group["scalar"] = 3.5
        group["bias"].attrs["units"] = "m"
    data: Any = xarray.open_zarr(tmp_path / "g", consolidated=False)
    assert data["weight"].dims == ("weight_axis0", "weight_axis1")
    assert data["bias"].attrs["units"] == "m"
    assert float(data["bias"].sum()) == 10
    assert float(data["scalar"]) == 3.5


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register what the installed package registers, where it was installed before it did."""
    if "pmarray" not in entry_points(group="xarray.chunkmanagers").names:
        from xarray.namedarray import parallelcompat

        known = {**parallelcompat.list_chunkmanagers(), "pmarray": StoredArrays()}
        monkeypatch.setattr(parallelcompat, "list_chunkmanagers", lambda: known)


@pytest.mark.usefixtures("manager")
def test_a_data_array_of_an_array_loads() -> None:
    values = np.arange(12.0).reshape(3, 4)
    a = pmarray.from_array(values, "dram:")
    wrapped: Any = xarray.DataArray(a, dims=("x", "y"))
    assert wrapped.data is a
    np.testing.assert_array_equal(wrapped.values, values)
    np.testing.assert_array_equal(wrapped.isel(x=1).load(), values[1])
    np.testing.assert_array_equal(wrapped.load().data, values)
    again: Any = xarray.DataArray(a, dims=("x", "y"))
    assert float(again.sum()) == values.sum()
    np.testing.assert_array_equal((again + 1).values, values + 1)
    assert again.compute().data is not a
    lazy: Any = xarray.DataArray(a.to_dask(), dims=("x", "y"))
    assert float(lazy.sum().compute()) == values.sum()


@examples(0.5)
@given(data=st.data())
def test_any_array_of_zarr_python_reads_equal(data: Any, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("zarr")
    stores = st.just(LocalStore(place))
    path = data.draw(st.sampled_from(["x", "deep"]))
    with warnings.catch_warnings(action="ignore"):
        array = data.draw(zarr_arrays(stores=stores, paths=st.just("g"), array_names=st.just(path)))
        stored = array[...]
    assume(stored.dtype.kind not in "OT")  # of no fixed size: refused
    assume(0 not in array.chunks)
    try:
        opened = pmarray.open_group(f"zarr:{place}/g", mode="r")
    except ForeignDataError:
        raise AssertionError(f"{array.metadata} was refused") from None
    with opened as group:
        if path not in group:
            assert stored.dtype.itemsize == 0  # empty text
            return
        assert group[path].shape == stored.shape
        np.testing.assert_array_equal(group[path][...], stored)
