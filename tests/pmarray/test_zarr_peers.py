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
from hypothesis.extra import numpy as npst
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore
from zarr.testing.strategies import array_shapes as zarr_shapes
from zarr.testing.strategies import arrays as zarr_arrays
from zarr.testing.strategies import (
    basic_indices,
    chunk_shapes,
    dimension_names,
    numpy_arrays,
    shard_shapes,
)

import pmarray
from pmarray._dtypes import without_gaps
from pmarray._exchange.xarray import StoredArrays
from pmarray.errors import DamagedError, ForeignDataError, LayoutError
from pmarray.testing.strategies import filled
from tests.sampling import examples

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

KINDS: list[Any] = [
    "S3", "U4", ">U2", "V5", "bfloat16", [("a", "i4"), ("b", "f8"), ("c", "S2")],
    [("outer", [("x", "u1"), ("y", "c8")])], "M8[us]", "m8[h]", ">f8", "f2", "?", "longlong",
    [("a", "ulonglong")],
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


@pytest.mark.parametrize("sharded", [False, True])
def test_bfloat16_of_another_order_of_bytes_is_refused_by_name(
    tmp_path: Path, sharded: bool
) -> None:
    """Valid, and what other programs write; nothing is damaged."""
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs the package ml_dtypes")
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        group.create("x", (4,), "bfloat16", chunks=(4,))
        group.create("y", (4,))
    path = tmp_path / "g/x/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"] = {}
    codecs = [{"name": "bytes", "configuration": {"endian": "big"}}]
    if sharded:
        inner = {"chunk_shape": [2], "codecs": codecs, "index_location": "end"}
        last = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        codecs = [{"name": "sharding_indexed", "configuration": inner | {"index_codecs": last}}]
    path.write_text(json.dumps(document | {"codecs": codecs}))
    with pmarray.open_group(f"zarr:{tmp_path}/g", mode="r") as group:
        assert list(group) == ["y"]
        with pytest.raises(ForeignDataError, match="big-endian"):
            group["x"]


GAPS: Any = {"names": ["x", "y"], "formats": [">i4", "S3"], "offsets": [4, 9], "itemsize": 16}


@pytest.mark.parametrize("scheme", ["zarr", "icechunk"])
@pytest.mark.parametrize(
    "kind",
    [[("a", ">i4"), ("b", "<f8")], GAPS, np.dtype([("a", "u1"), ("b", "c8")], align=True),
     [("outer", GAPS), ("c", ">U2")]],
    ids=["bytes of the other order", "gaps", "aligned", "records in records"],
)  # fmt: skip
def test_records_come_back_whatever_their_bytes(scheme: str, kind: Any, tmp_path: Path) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    url, dtype = f"{scheme}:{tmp_path}/g", np.dtype(kind)
    values = np.zeros((5, 4), dtype)
    packed = values_of(without_gaps(dtype), values.shape).copy()
    if dtype[-1].kind == "U":
        packed["c"] = "\u00e4\u03b1"  # a fill value is written as text: it has to be some
    values[...] = packed
    fill = values[1, 1]
    with (
        warnings.catch_warnings(action="error"),
        pmarray.open_group(url) as group,
    ):
        a = group.create("x", (5, 0), dtype, layout="col", chunks=(2, 2), fill_value=fill)
        a.resize((5, 6))
        a[:, :4] = values
    for mode in ("r", "r+"):
        with pmarray.open(f"{url}#x", mode=mode) as a:
            assert a.dtype == dtype
            np.testing.assert_array_equal(a[:, :4], values)
            assert (a[:, 4:] == fill).all()
            assert a.fill_value == fill
            if mode == "r+":
                a[0, 0] = values[2, 2]
                assert a[0, 0] == values[2, 2]
    if scheme == "zarr":
        theirs: Any = zarr.open_array(f"{tmp_path}/g/x", mode="r")
        assert theirs.dtype == packed.dtype
        np.testing.assert_array_equal(theirs[1:, :4], packed[1:])


def test_records_that_would_come_back_as_others_are_refused() -> None:
    with pmarray.open_group("zarr:memory://records") as group:
        with pytest.raises(LayoutError, match=r"would be stored as|subarray"):
            group.create("x", (3,), [("a", "i4", (2,))])


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


def assert_reads_equal(place: Path, name: str, array: Any) -> None:
    """Compare what this library and zarr-python read of an array in ``place/g``."""
    with warnings.catch_warnings(action="ignore"):
        stored = array[...]
    assume(stored.dtype.kind not in "OT")  # of no fixed size: refused
    try:
        opened = pmarray.open_group(f"zarr:{place}/g", mode="r")
    except ForeignDataError:
        raise AssertionError(f"{array.metadata} was refused") from None
    with opened as group:
        if name not in group:
            assert stored.dtype.itemsize == 0  # empty text
            return
        assert group[name].shape == stored.shape
        np.testing.assert_array_equal(group[name][...], stored)


@examples(0.5)
@given(data=st.data())
def test_any_array_of_zarr_python_reads_equal(data: Any, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("zarr")
    name = data.draw(st.sampled_from(["x", "deep"]))
    stores = st.just(LocalStore(place))
    with warnings.catch_warnings(action="ignore"):
        array = data.draw(zarr_arrays(stores=stores, paths=st.just("g"), array_names=st.just(name)))
    assert_reads_equal(place, name, array)


COMPRESSORS: dict[int, list[Any]] = {
    2: [None, numcodecs.Zstd(level=1), numcodecs.Blosc(shuffle=1), numcodecs.GZip(level=1),
        numcodecs.BZ2(level=1), numcodecs.LZ4()],
    3: [None, ZstdCodec(), BloscCodec(typesize=4), GzipCodec(level=1), Crc32cCodec(),
        (GzipCodec(level=1), Crc32cCodec())],
}  # fmt: skip


@st.composite
def foreign_arrays(draw: st.DrawFn, place: Path) -> Any:
    """Draw an array of zarr-python's with codecs, and not all of it written."""
    with warnings.catch_warnings(action="ignore"):
        values = draw(numpy_arrays(shapes=zarr_shapes | st.just(())))
    ndim = values.ndim
    zarr_format: Any = draw(st.sampled_from([2, 3]))
    chunks = draw(chunk_shapes(shape=values.shape))
    options: dict[str, Any] = {"compressors": draw(st.sampled_from(COMPRESSORS[zarr_format]))}
    if zarr_format == 2:
        options["order"] = draw(st.sampled_from("CF"))
        if values.dtype.kind in "iu" and draw(st.booleans()):
            options["filters"] = numcodecs.Delta(dtype=values.dtype)
        values = values.astype(values.dtype.newbyteorder(draw(st.sampled_from("<>"))))
    else:
        options["dimension_names"] = draw(dimension_names(ndim=ndim))
        if values.dtype.kind in "iufc":
            options["serializer"] = BytesCodec(endian=draw(st.sampled_from(["little", "big"])))
        if ndim > 1:
            order = tuple(draw(st.permutations(range(ndim))))
            options["filters"] = draw(st.sampled_from([None, TransposeCodec(order=order)]))
        if all(values.shape) and ndim:
            options["shards"] = draw(
                st.none() | shard_shapes(shape=values.shape, chunk_shape=chunks)
            )
    group = zarr.create_group(LocalStore(place), path="g", zarr_format=zarr_format)
    array: Any = group.create_array(
        "x",
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        fill_value=draw(st.none() | npst.from_dtype(values.dtype)),
        **options,
    )
    if draw(st.booleans()):
        array[...] = values
    elif ndim:
        part = draw(basic_indices(shape=values.shape))
        array[part] = values[part]
    return array


@examples(0.5)
@given(data=st.data())
def test_any_array_with_codecs_reads_equal(data: Any, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("zarr")
    with warnings.catch_warnings(action="ignore"):
        array = data.draw(foreign_arrays(place))
    assert_reads_equal(place, "x", array)


def test_an_array_whose_chunks_have_no_extent(tmp_path: Path) -> None:
    """As zarr-python before 3.2 makes them of arrays without items."""
    with warnings.catch_warnings(action="ignore"):
        zarr.create_array(tmp_path / "x", shape=(0, 3), chunks=(1, 3), dtype="f4")
    document = json.loads((tmp_path / "x" / "zarr.json").read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [0, 3]
    (tmp_path / "x" / "zarr.json").write_text(json.dumps(document))
    with warnings.catch_warnings(action="ignore"):
        try:
            theirs: Any = zarr.open_array(tmp_path / "x", mode="r")
        except ValueError:
            with pytest.raises(DamagedError, match="must be >= 1"):
                pmarray.open(f"zarr:{tmp_path}/x")
            pytest.skip("some versions of zarr-python, such as 3.4.0, do not read such arrays")
    with pmarray.open(f"zarr:{tmp_path}/x") as a:
        assert a[...].shape == a.shape == (0, 3)
        assert np.sum(a) == 0
        if theirs.chunks == (0, 3):  # zarr-python 3.4.2 reads them as those of one line
            with pytest.raises(LayoutError, match=r"pmarray\.copy"):
                a.append(np.ones((2, 3)))
            assert a.shape == (0, 3)
        pmarray.copy(a, f"zarr:{tmp_path}/y")
    with pmarray.open(f"zarr:{tmp_path}/y") as b:
        assert b.append(np.ones((2, 3))) == (2, 3)
