"""Arrays against NumPy: any shape, dtype, layout, budget, chunk and basic index."""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

import pmarray
from pmarray._dtypes import DType, parse_dtype
from pmarray.errors import BudgetError, LayoutError
from pmarray.testing import array_dtypes, array_shapes, basic_indices, budgets, filled, layouts
from tests.persistent import persistent_place

schemes = st.sampled_from(["dram:", "memmap:", "memmap:?direct=no", "shelf:", "device:"])
numbers = ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64"]
chunk_choices = st.sampled_from(["auto", 1, 3, 100])


@contextmanager
def place(scheme: str) -> Iterator[str]:
    """A URL of that kind where nothing is yet."""
    if scheme == "dram:":
        yield f"dram:{uuid.uuid4()}"
        return
    if scheme in ("shelf:", "device:"):
        with persistent_place(scheme.rstrip(":")) as url:
            yield url
        return
    with tempfile.TemporaryDirectory(prefix="pmarray-differential-") as directory:
        yield scheme.replace("memmap:", f"memmap:{directory}/group")


def create(
    group: pmarray.Group, model: NDArray[Any], layout: Any, chunks: Any = "auto"
) -> pmarray.PMArray:
    try:
        return group.create("x", model.shape, model.dtype, layout=layout, chunks=chunks)
    except BudgetError:
        assert chunks != "auto", "chunks of our own choice fit any budget"
        return group.create("x", model.shape, model.dtype, layout=layout)


def same(found: Any, expected: Any) -> None:
    assert np.shape(found) == np.shape(expected)
    assert found.dtype == expected.dtype
    assert isinstance(found, np.ndarray) == isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(found, expected)


@given(st.data(), schemes, array_shapes(3000), array_dtypes(), layouts(), budgets(), chunk_choices)
def test_reads_and_writes_like_numpy(
    data: st.DataObject,
    scheme: str,
    shape: tuple[int, ...],
    dtype: DType,
    layout: Any,
    cache: int | str,
    chunks: Any,
) -> None:
    model = filled(shape, dtype, 1)
    with place(scheme) as url:
        with pmarray.open_group(url, cache=cache) as group:
            array = create(group, model, layout, chunks)
            array[...] = model
            for seed in range(data.draw(st.integers(0, 5), "writes")):
                index = data.draw(basic_indices(shape))
                values = filled(np.shape(model[index]), dtype, seed)
                model[index] = array[index] = values
                index = data.draw(basic_indices(shape))
                same(array[index], model[index])
            same(array[...], model)
        ways: list[tuple[Any, Any]] = [("r", "auto"), ("r+", cache)]
        for mode, budget in ways:
            with pmarray.open_group(url, mode=mode, cache=budget) as group:
                array = group["x"]
                assert (array.shape, array.dtype, array.layout) == (shape, dtype, layout)
                index = data.draw(basic_indices(shape))
                same(array[index], model[index])
                same(np.asarray(array), model)
                same(array[...], model)


@given(st.data(), schemes, st.sampled_from(numbers), st.sampled_from(numbers), layouts())
def test_broadcasts_and_casts_like_numpy(
    data: st.DataObject, scheme: str, source: str, target: str, layout: Any
) -> None:
    model = np.zeros((4, 5, 3), target)
    with place(scheme) as url, pmarray.open_group(url, cache="16 KiB") as group:
        array = create(group, model, layout)
        for seed in range(4):
            index = data.draw(basic_indices(model.shape))
            wanted = np.shape(model[index])
            shape = data.draw(
                npst.broadcastable_shapes(wanted, min_side=0 if 0 in wanted else 1, max_dims=4)
                if wanted
                else st.just(())  # into one item NumPy puts no array with axes
            )
            values = filled(shape, np.dtype(source), seed)
            if values.dtype.kind in "fc" and target.startswith("u"):
                values = np.abs(values)  # what C makes of a negative float is anybody's guess
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
                try:
                    model[index] = values
                except ValueError:
                    with pytest.raises(ValueError, match="broadcast"):
                        array[index] = values
                else:
                    array[index] = values
            same(array[...], model)


@pytest.mark.parametrize("url", ["dram:", "memmap:", "shelf:", "device:"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 300),
        ("uint8", [1, -1]),
        ("float64", "x"),
        ("int64", [[1], [2, 3]]),
        ("int32", None),
        ("datetime64[s]", 1j),
        ("float32", np.array([object(), object()])),
    ],
)
def test_what_numpy_cannot_assign_changes_nothing(url: str, dtype: str, value: Any) -> None:
    model = filled((6, 2), np.dtype(dtype), 3)
    expected: type[Exception] = Exception
    try:
        np.zeros((6, 2), dtype)[...] = value
    except Exception as error:
        expected = type(error)
    assert expected is not Exception, "NumPy refuses it"
    with place(url) as where, pmarray.open(where, (6, 2), dtype, layout="col") as array:
        array[...] = model
        with pytest.raises(expected):
            array[...] = value
        same(array[...], model)
        with pytest.raises((expected, LayoutError)):
            array.append(value)
        assert array.shape == (6, 2)


@pytest.mark.parametrize("url", ["dram:", "memmap:", "shelf:", "device:"])
def test_a_cast_that_raises_changes_nothing(url: str) -> None:
    """ComplexWarning is an error in this suite: raised by NumPy, half-way through."""
    with place(url) as where, pmarray.open(where, (4, 3), "float32", layout="col") as array:
        array[...] = 7
        for act in (
            lambda: array.append(np.ones(4) * 1j),
            lambda: array.__setitem__(..., np.ones((4, 3)) * 1j),
            lambda: array.__setitem__(np.s_[1, ::2], np.ones(2) * 1j),
        ):
            with pytest.raises(np.exceptions.ComplexWarning):
                act()
            assert array.shape == (4, 3)
            assert (array[...] == 7).all()
        array.append([1, 2, 3, 4])
        assert array[:, 3].tolist() == [1, 2, 3, 4]


# Lines of 64 KiB and more are padded; above half of the budget they are cached in parts.
long_lines = st.sampled_from(
    [
        ((16_384, 3), "float32"),  # exactly the limit, a multiple of a block
        ((16_385, 4), "float32"),
        ((65_537, 3), "int8"),
        ((30_011, 3), "float64"),
        ((9_001, 2), "complex128"),
        ((40_000, 3), "bfloat16"),
        ((70_001, 2), "bool"),
        ((300, 70, 3), "float32"),  # three axes: padded along the middle one
        ((3000, 8, 3), "float32"),  # not padded: it would waste too much
        ((1024, 17, 2), "float64"),
        ((100_003,), "float64"),
    ]
)


@given(
    st.data(),
    st.sampled_from(["memmap:", "memmap:?direct=no", "dram:", "shelf:", "device:"]),
    long_lines,
    layouts(),
    st.sampled_from([0, "16 KiB", 20_000, "100 kB", "300 KiB", "8 MiB"]),
)
def test_long_lines(
    data: st.DataObject,
    scheme: str,
    case: tuple[tuple[int, ...], str],
    layout: Any,
    cache: int | str,
) -> None:
    shape = case[0] if layout == "col" else case[0][::-1]
    dtype = parse_dtype(case[1])
    model = np.zeros(shape, dtype)
    with place(scheme) as url:
        with pmarray.open_group(url, cache=cache) as group:
            array = create(group, model, layout)
            for seed in range(data.draw(st.integers(1, 4), "writes")):
                index = data.draw(basic_indices(shape) | slabs(shape))
                values = filled(np.shape(model[index]), dtype, seed)
                model[index] = array[index] = values
                index = data.draw(basic_indices(shape) | slabs(shape))
                same(array[index], model[index])
                if data.draw(st.booleans(), "flush"):
                    group.flush()
            more = filled(array[..., :1].shape if layout == "col" else array[:1].shape, dtype, 9)
            array.append(more)
            model = np.concatenate([model, more], axis=-1 if layout == "col" else 0)
            assert group.cache_bytes <= max(group._session.cache.budget_bytes, 2 << 20)
        with pmarray.open_group(url, mode="r", cache="1 MiB") as group:
            same(group["x"][...], model)
            same(np.asarray(group["x"]), model)


def slabs(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[slice, ...]]:
    """Slices that begin and end anywhere, where a draw of `basic_indices` is mostly tiny."""

    def one(extent: int) -> st.SearchStrategy[slice]:
        bound = st.integers(0, extent)
        return st.tuples(bound, bound, st.sampled_from([1, 1, 1, 2, 7])).map(
            lambda t: slice(min(t[:2]), max(t[:2]), t[2])
        )

    return st.tuples(*map(one, shape))


@given(
    schemes,
    st.sampled_from([(5, 0), (20_000, 0), (100, 200, 0), (0,), (3, 0)]),
    layouts(),
    st.lists(
        st.tuples(st.sampled_from(["append", "lend", "shrink", "grow", "fail"]), st.integers(0, 5)),
        max_size=12,
    ),
    budgets(),
    st.sampled_from([0, 7]),
)
def test_grows_and_shrinks_like_a_list_of_lines(
    scheme: str,
    shape: tuple[int, ...],
    layout: Any,
    steps: list[tuple[str, int]],
    cache: int | str,
    fill: int,
) -> None:
    """Shrinking and growing again never shows what was cut off."""
    slow = -1 if layout == "col" else 0
    shape = shape if layout == "col" else shape[::-1]
    model = np.zeros(shape, "float32")

    def lines(count: int, value: float) -> NDArray[Any]:
        extents = list(shape)
        extents[slow] = count
        return np.full(extents, value, "float32")

    with place(scheme) as url:
        with pmarray.open_group(url, cache=cache) as group:
            array = group.create("x", shape, "float32", layout=layout, fill_value=fill)
            for value, (what, count) in enumerate(steps, 100):
                if what == "append":
                    array.append(lines(count, value))
                    model = np.concatenate([model, lines(count, value)], axis=slow)
                elif what in ("lend", "fail"):
                    model = np.concatenate(
                        [model, lines(count, fill if what == "fail" else value)], axis=slow
                    )
                    try:
                        with array.appending(count) as out:
                            out[...] = value
                            if what == "fail":
                                raise RuntimeError
                    except RuntimeError:
                        pass
                    except BudgetError:
                        array.append(model[..., model.shape[-1] - count :] if layout == "col"
                                     else model[len(model) - count :])  # fmt: skip
                else:
                    extents = list(model.shape)
                    before = extents[slow]
                    extents[slow] = max(0, before - count) if what == "shrink" else before + count
                    array.resize(tuple(extents))
                    if what == "grow":
                        model = np.concatenate([model, lines(count, fill)], axis=slow)
                    else:
                        model = model[tuple(slice(0, n) for n in extents)]
                assert array.shape == model.shape
                if value % 3 == 0:
                    group.flush()
            same(array[...], model)
        with pmarray.open_group(url, mode="r") as group:
            same(group["x"][...], model)


def test_views_of_padded_columns_are_read_only_and_whole() -> None:
    with place("memmap:") as url, pmarray.open(url, (20_001, 3), "f4", layout="col") as array:
        model = filled((20_001, 3), np.dtype("f4"), 0)
        array[...] = model
        view = np.asarray(array)
        assert not view.flags.writeable
        assert not view.flags.owndata
        same(view, model)
        assert view[:, 1].ctypes.data % 4096 == view[:, 0].ctypes.data % 4096
        copied = np.array(array)
        copied[0, 0] += 1
        same(array[...], model)


@pytest.mark.parametrize("url", ["dram:", "memmap:", "shelf:", "device:"])
@pytest.mark.parametrize("index", [np.s_[:, 1:], np.s_[:, :-1], np.s_[1:], np.s_[::-1, ::-1]])
def test_an_array_can_be_assigned_to_itself_shifted(url: str, index: Any) -> None:
    """Through its own view, whose memory changes while the chunks are written."""
    model = np.array(np.arange(30_000.0 * 40).reshape(30_000, 40), "float32", order="F")
    with (
        place(url) as where,
        pmarray.open(where, (30_000, 40), "float32", layout="col", cache="1 MiB") as array,
    ):
        array[...] = model
        view = np.asarray(array)
        moved = model[index].copy()
        source = tuple(slice(0, n) for n in moved.shape)
        model[index] = model[source].copy()
        array[index] = view[source]
        same(array[...], model)
