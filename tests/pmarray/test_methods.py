"""Methods of `numpy.ndarray`, records and their fields, and what an index may be, beside NumPy."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pmarray
from pmarray.errors import AxisError, BudgetError, PMArrayError, SelectionError
from pmarray.testing.strategies import array_shapes, filled, layouts

SHAPES = array_shapes(400)
KINDS = st.sampled_from(["f4", "i8", "?", "c8", "M8[s]", "S3", "<U2", ">i2"])


REFUSALS = (ValueError, IndexError, TypeError, KeyError)


def outcome(call: Callable[[], Any]) -> Any:
    """A value, or the kind of its refusal."""
    try:
        return call()
    except REFUSALS as error:
        return next(kind for kind in type(error).__mro__ if kind in REFUSALS)


def agree(found: Any, expected: Any) -> None:
    if isinstance(expected, type):
        assert found is expected
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            agree(one, other)
    else:
        assert np.shape(found) == np.shape(expected)
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(found, expected)


axes = st.integers(-4, 3)
CALLS: dict[str, st.SearchStrategy[Callable[[Any], Any]]] = {
    "reshape": st.tuples(
        st.sampled_from([(-1,), (1, -1), ((-1, 1),), (2, -1), (0,), ((),), (7, 3)]),
        st.sampled_from("CFA"),
    ).map(lambda p: lambda a: a.reshape(*p[0], order=p[1])),
    "ravel": st.sampled_from("CF").map(lambda order: lambda a: a.ravel(order)),
    "flatten": st.sampled_from("CF").map(lambda order: lambda a: a.flatten(order)),
    "squeeze": st.one_of(st.none(), axes, st.tuples(axes), st.tuples(axes, axes)).map(
        lambda axis: lambda a: np.asarray(a.squeeze(axis))
    ),
    "item": st.one_of(st.just(()), st.tuples(st.integers(-9, 9)), st.tuples(axes, axes)).map(
        lambda index: lambda a: a.item(*index)
    ),
    "tobytes": st.sampled_from("CFA").map(lambda order: lambda a: a.tobytes(order)),
    "nonzero": st.just(lambda a: a.nonzero() if a.ndim else None),
    "argsort": axes.map(lambda axis: lambda a: a.argsort(axis, kind="stable")),
    "take": st.tuples(st.lists(st.integers(-3, 3), max_size=4), st.none() | axes).map(
        lambda p: lambda a: a.take(np.array(p[0], int), p[1])
    ),
    "repeat": st.none().map(lambda axis: lambda a: a.repeat(2, axis)),
    "diagonal": st.tuples(axes, axes, axes).map(lambda p: lambda a: a.diagonal(*p)),
    "transpose": st.lists(axes, max_size=4).map(lambda p: lambda a: np.asarray(a.transpose(*p))),
    "reduction": st.tuples(
        st.sampled_from(["sum", "prod", "max", "min", "all", "any", "argmax", "argmin", "cumsum"]),
        st.none() | axes | st.tuples(axes),
    ).map(lambda p: lambda a: getattr(a, p[0])(p[1])),
    "reduction with its parameters in order": st.tuples(
        st.sampled_from(
            [
                ("sum", "c16"),
                ("prod", "c16", None, True),
                ("mean", "c16", None, True),
                ("max", None, True),
                ("cumsum", "c16"),
                ("argmin", None),
            ]
        ),
        st.none() | axes,
    ).map(lambda p: lambda a: getattr(a, str(p[0][0]))(p[1], *p[0][1:])),
    "copy": st.sampled_from("CFAK").map(lambda o: lambda a: (a.copy(o), a.copy(order=o).flags.fnc)),
    "conjugate": st.just(lambda a: _conjugate(a)),
    "bytes": st.just(lambda a: bytes(a) if a.ndim and a.dtype.kind != "M" else None),
    "iteration": st.just(lambda a: [(type(x), np.asarray(x)) for x in a] if a.ndim else None),
    "swapaxes": st.tuples(axes, axes).map(lambda p: lambda a: np.asarray(a.swapaxes(*p))),
}


def _conjugate(a: Any) -> Any:
    """What has none is refused; before NumPy 2.3, with a warning that it will be."""
    try:
        return a.conjugate()
    except DeprecationWarning as warning:
        raise TypeError from warning


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")
@given(data=st.data(), shape=SHAPES, dtype=KINDS, layout=layouts())
def test_a_method_is_that_of_numpy(
    name: str, data: Any, shape: Any, dtype: str, layout: Any
) -> None:
    values = np.array(filled(shape, np.dtype(dtype), 3), order="F" if layout == "col" else "C")
    array = pmarray.from_array(values, "dram:", layout=layout)
    call = data.draw(CALLS[name])
    agree(outcome(lambda: call(array)), outcome(lambda: call(values)))


@given(shape=SHAPES, dtype=KINDS, layout=layouts(), axis=axes, memory=st.sampled_from([64, 4096]))
def test_sorting_in_place(shape: Any, dtype: str, layout: Any, axis: int, memory: int) -> None:
    values = np.array(filled(shape, np.dtype(dtype), 5), copy=True)
    array = pmarray.from_array(values, "dram:", layout=layout)
    with pmarray.config.set(work_memory=memory):
        found = outcome(lambda: array.sort(axis))
    agree(found, outcome(lambda: values.sort(axis)))
    np.testing.assert_array_equal(array[...], values)


COMPARED = np.dtype([("a", "f4"), ("b", "i8", (2,)), ("c", "S2")])


@given(
    shape=array_shapes(60), layout=layouts(), changed=st.integers(0, 59),
    memory=st.integers(8, 400), differ=st.booleans(), stored=st.booleans(), one=st.booleans(),
)  # fmt: skip
def test_records_are_compared_as_by_numpy(
    shape: Any,
    layout: Any,
    changed: int,
    memory: int,
    differ: bool,
    stored: bool,
    one: bool,
) -> None:
    values = np.zeros(shape, COMPARED)
    values["a"] = np.arange(values.size).reshape(shape)
    other = values.copy()
    if differ and other.size:
        other.reshape(-1)["b"][changed % other.size, 1] = 7
    if one and other.size:
        other = other.reshape(-1)[:1]
    array = pmarray.from_array(values, "dram:", layout=layout)
    against: Any = pmarray.from_array(other, "dram:") if stored else other
    with pmarray.config.set(work_memory=memory):
        for found, expected in (
            (array == against, values == other), (array != against, values != other),
            (against == array, other == values), (array == array, values == values),
        ):  # fmt: skip
            agree(found, expected)
    for what in (0, None, "text"):
        agree(
            outcome(partial(operator.eq, array, what)), outcome(partial(operator.eq, values, what))
        )


@pytest.mark.parametrize("layout", ["row", "col"])
def test_a_loop_sees_what_is_written_meanwhile(layout: pmarray.LayoutName) -> None:
    values = np.arange(300.0).reshape(100, 3)
    array = pmarray.from_array(values, "dram:", layout=layout)
    for target in (values, array):
        for i, row in enumerate(target):
            if i % 7 == 3 and i + 2 < 100:
                target[i + 2] += row  # a line that was read with this one
            if target is array:
                row[:] = -1  # its own
    assert np.array_equal(array[...], values)
    seen = []
    with pytest.raises(ZeroDivisionError), array.group.transaction():
        for i, row in enumerate(array):
            seen.append(row[0])
            if i == 10:
                array[...] = 0
            if i == 20:
                raise ZeroDivisionError
    assert seen[:11] == [*values[:11, 0]]
    assert not any(seen[11:])
    rows = iter(array)
    with pytest.raises(ZeroDivisionError), array.transaction():
        array[...] = 0
        assert not next(rows).any()
        raise ZeroDivisionError
    assert np.array_equal(next(rows), values[1])


def test_a_loop_of_a_reader_goes_on_with_what_it_has_refreshed_to(tmp_path: Path) -> None:
    with pmarray.open(f"memmap:{tmp_path}/g#x", (100, 3)) as written:
        written[...] = 1
        written.flush()
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as read:
            lines = iter(read)
            for _ in range(20):
                assert next(lines).tolist() == [1, 1, 1]
            with written.transaction():
                written[...] = 2
            read.group.refresh()
            assert next(lines).tolist() == [2, 2, 2]


def test_what_does_not_fit_names_the_way_out() -> None:
    array = pmarray.open("dram:", (100, 10))
    with pmarray.config.set(max_result=1000):
        for call in (
            lambda: array.reshape(-1), array.ravel, array.flatten, array.tobytes, array.nonzero,
            array.argsort, lambda: array.repeat(2),
        ):  # fmt: skip
            with pytest.raises(BudgetError, match="iter_chunks"):
                call()
        with pytest.raises(BudgetError, match="sort parts"):
            array.sort(0)
        array.sort(1)
        assert array.squeeze().shape == (100, 10)
        assert array.diagonal().shape == (10,)
        assert array.item(-1) == 0


def test_a_store_that_would_be_lost_is_an_error() -> None:
    array = pmarray.open("dram:", (2, 3), [("x", "f4"), ("y", "i4")])
    for result in (array.ravel(), array.reshape(-1), array.diagonal(), array["x"]):
        with pytest.raises(ValueError, match="read-only"):
            result[0] = 1
    array.flatten()[0] = 1
    array.reshape(-1, copy=True)[0] = 1
    array.T.squeeze()["x"] = 1
    assert array["x"].all()
    with pytest.raises(ValueError, match="avoid"):
        array.reshape(-1, copy=False)


RECORDS = [
    np.dtype([("x", "<f4"), ("y", "i2")]),
    np.dtype([("x", "u1", (2, 2)), ("y", [("a", "f8"), ("b", "S2")])]),
    np.dtype({"names": ["y", "x"], "formats": ["f8", "i4"], "offsets": [8, 0], "itemsize": 24}),
]


@given(
    shape=SHAPES, kind=st.sampled_from(RECORDS), layout=layouts(),
    names=st.sampled_from(["x", "y", ["x"], ["y", "x"], "z", ["x", "z"]]),
    memory=st.sampled_from([128, 4096]),
)  # fmt: skip
def test_fields_of_records(shape: Any, kind: Any, layout: Any, names: Any, memory: int) -> None:
    values = np.zeros(shape, kind)
    raw = np.frombuffer(np.random.default_rng(1).bytes(values.nbytes), "u1") % 64
    if values.size:
        values = np.frombuffer(raw.tobytes(), kind).reshape(shape).copy()
    array = pmarray.from_array(values, "dram:", layout=layout)
    with pmarray.config.set(work_memory=memory):
        found, expected = outcome(lambda: array[names]), outcome(lambda: values[names])
        if isinstance(expected, type):
            assert found is expected
            return
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
        new = np.zeros_like(expected)
        array[names] = new
    values[names] = new
    np.testing.assert_array_equal(array[...], values)


def test_fields_take_what_an_assignment_takes() -> None:
    array = pmarray.open("dram:", (4, 3), RECORDS[0])
    array["x"] = [1, 2, 3]
    array["y"] = array["x"]
    array["x"] = pmarray.from_array([[5], [6], [7], [8]], "dram:")
    np.testing.assert_array_equal(array["x"], [[5] * 3, [6] * 3, [7] * 3, [8] * 3])
    np.testing.assert_array_equal(array["y"][0], [1, 2, 3])
    with pytest.raises(ValueError, match="broadcast"):
        array["x"] = [1, 2]
    with pytest.raises(ValueError, match="could not convert"):
        array["x"] = "text"
    with pytest.raises(ValueError, match="no field"):
        array["z"] = 1
    with pytest.raises(IndexError):
        pmarray.open("dram:", (3,))["x"]


@given(data=st.data(), shape=array_shapes(200))
def test_empty_masks(data: Any, shape: Any) -> None:
    mask_shape = data.draw(st.lists(st.sampled_from([0, 1, 3]), min_size=1, max_size=3))
    mask = np.zeros(mask_shape, bool)
    values = np.arange(float(np.prod(shape, dtype=int))).reshape(shape)
    array = pmarray.from_array(values, "dram:")
    agree(outcome(lambda: array[mask]), outcome(lambda: values[mask]))

    def store(target: Any) -> None:
        target[mask] = 5

    agree(outcome(lambda: store(array)), outcome(lambda: store(values)))
    np.testing.assert_array_equal(array[...], values)


@given(
    index=hnp.basic_indices((2, 3), allow_newaxis=False)
    | st.sampled_from([2, -3, (0, 3), (0, 0, 0), slice(5, 9), slice(-9, 1), (..., slice(4, 5))])
)  # fmt: skip
def test_blocks_are_bounded_as_those_of_zarr(index: Any) -> None:
    values = np.arange(20.0).reshape(4, 5)
    theirs: Any = zarr.array(values, chunks=(2, 2))
    ours = pmarray.from_array(values, "zarr:memory://blocks", chunks=(2, 2), mode="w")
    with ours.group:
        try:
            expected = theirs.blocks[index]
        except IndexError:
            with pytest.raises(SelectionError):
                ours.blocks[index]
        else:
            np.testing.assert_array_equal(ours.blocks[index], expected)


def test_an_axis_that_is_not_there() -> None:
    array = pmarray.open("dram:", (2, 3))
    for call in (
        lambda: array.transpose(0, 2), lambda: array.swapaxes(0, -3), lambda: array.squeeze(2),
        lambda: array.append([1], axis=2), lambda: array.sort(5), lambda: array.diagonal(0, 2, 0),
    ):  # fmt: skip
        with pytest.raises(AxisError, match="out of bounds for array of dimension 2") as caught:
            call()
        assert isinstance(caught.value, PMArrayError)
        assert isinstance(caught.value, np.exceptions.AxisError)
