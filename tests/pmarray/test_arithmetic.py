"""Ufuncs, reductions and functions against NumPy: any dtype, layout, budget and piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray.errors import BudgetError
from pmarray.testing import array_shapes, budgets, layouts
from tests.pmarray.test_differential import place

dtypes = st.sampled_from(
    ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64", "complex128"]
)
work = st.sampled_from([1, 64, 500, 1 << 20])
schemes = st.sampled_from(["dram:", "memmap:", "shelf:", "device:"])
small = array_shapes(300)


def numbers(shape: tuple[int, ...], dtype: str, seed: int, nan: bool = False) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.asarray(rng.random(shape) < 0.7)
    if kind.kind in "iu":
        return np.asarray(rng.integers(1, 6, shape)).astype(kind)
    values = np.asarray(rng.integers(-8, 9, shape) / 4)
    if kind.kind == "c":
        values = values + 1j * rng.integers(-8, 9, shape) / 4
    elif nan:
        values = np.where(rng.random(shape) < 0.2, np.nan, values)
    return np.asarray(values).astype(kind)


@contextmanager
def stored(
    scheme: str, model: NDArray[Any], layout: Any, cache: int | str, memory: int
) -> Iterator[Any]:
    with (
        place(scheme) as url,
        pmarray.open_group(url, cache=cache) as group,
        pmarray.config.set(work_memory=memory),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        array = group.create("x", model.shape, model.dtype, layout=layout)
        array[...] = model
        yield array


def both(ours: Callable[[], Any], numpys: Callable[[], Any], rtol: float = 1e-3) -> None:
    """The same result, or the same kind of refusal."""
    try:
        expected = numpys()
    except (TypeError, ValueError, IndexError) as error:
        kind = next(k for k in (TypeError, ValueError, IndexError) if isinstance(error, k))
        with pytest.raises(kind):
            ours()
        return
    found = ours()
    for one, other in zip(
        found if isinstance(found, tuple) else (found,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert np.shape(one) == np.shape(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        if np.asarray(other).dtype.kind in "fc":
            np.testing.assert_allclose(
                np.asarray(one),
                other,
                rtol=rtol,
                atol=1e-2 if (np.asarray(other).dtype == np.float16) else 1e-4,
            )
        else:
            np.testing.assert_array_equal(np.asarray(one), other)


UNARY = [
    np.negative,
    np.sqrt,
    np.abs,
    np.exp,
    np.logical_not,
    np.isnan,
    np.sign,
    np.modf,
    np.invert,
]
BINARY = [
    np.add, np.subtract, np.multiply, np.true_divide, np.floor_divide, np.maximum, np.less,
    np.equal, np.logical_and, np.divmod, np.bitwise_or, np.power, np.hypot,
]  # fmt: skip


@given(st.data(), schemes, small, dtypes, layouts(), budgets(), work)
def test_ufuncs_are_numpys(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, layout: Any,
    cache: int | str, memory: int,
) -> None:  # fmt: skip
    model = numbers(shape, dtype, 1)
    with stored(scheme, model, layout, cache, memory) as array:
        one: Any = data.draw(st.sampled_from(UNARY))
        both(lambda: one(array), lambda: one(model))
        two: Any = data.draw(st.sampled_from(BINARY))
        start = data.draw(st.integers(0, len(shape)))
        narrow = tuple(data.draw(st.sampled_from([n, 1])) if n else n for n in shape[start:])
        other = numbers(narrow, data.draw(dtypes), 2)
        other_one: Any = data.draw(st.sampled_from([other, 2, 0.5]))
        both(lambda: two(array, other_one), lambda: two(model, other_one))
        both(lambda: two(other_one, array), lambda: two(other_one, model))
        both(lambda: two(array, array), lambda: two(model, model))
        where = numbers(shape, "bool", 3)
        both(
            lambda: np.add(array, 1, out=np.zeros(shape, dtype), where=where),
            lambda: np.add(model, 1, out=np.zeros(shape, dtype), where=where),
        )


@given(schemes, small, dtypes, dtypes, layouts(), layouts(), work)
def test_writes_into_a_stored_out(
    scheme: str, shape: tuple[int, ...], dtype: str, target: str, layout: Any, other: str,
    memory: int,
) -> None:  # fmt: skip
    model = numbers(shape, dtype, 1)
    with stored(scheme, model, layout, "auto", memory) as array:
        out = array.group.create("out", shape, target, layout=other)
        expected = np.zeros(shape, target)
        where = numbers(shape, "bool", 3)
        both(lambda: np.multiply(array, 2, out=out), lambda: np.multiply(model, 2, out=expected))
        both(
            lambda: np.add(array, 1, out=out, where=where),
            lambda: np.add(model, 1, out=expected, where=where),
        )
        both(lambda: out[...], lambda: expected[...])


@given(schemes, small, dtypes, layouts(), budgets(), work)
def test_operators_in_place(
    scheme: str, shape: tuple[int, ...], dtype: str, layout: Any, cache: int | str, memory: int
) -> None:
    model = numbers(shape, dtype, 1)
    with stored(scheme, model, layout, cache, memory) as array:

        def change(x: Any) -> Any:
            x += 1
            x *= x
            return x[...]

        both(lambda: change(array), lambda: change(model))
        if len(shape) == 2 and shape[0] == shape[1]:
            both(lambda: np.add(array, array.T, out=array)[...], lambda: model + model.T)


REDUCTIONS = [
    np.sum, np.prod, np.mean, np.var, np.std, np.min, np.max, np.ptp, np.any, np.all, np.argmin,
    np.argmax, np.count_nonzero, np.nansum, np.nanprod, np.nanmean, np.nanvar, np.nanstd,
    np.nanmin, np.nanmax,
]  # fmt: skip


@given(st.data(), schemes, small, dtypes, layouts(), budgets(), work)
def test_reductions_are_numpys(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, layout: Any,
    cache: int | str, memory: int,
) -> None:  # fmt: skip
    function: Any = data.draw(st.sampled_from(REDUCTIONS))
    nan = data.draw(st.booleans())
    model = numbers(shape, dtype, 1, nan)
    single = function in (np.argmin, np.argmax)
    axes: Any = st.none() | st.integers(-len(shape), len(shape) - 1) if shape else st.none()
    if not single and shape:
        axes |= st.sets(st.integers(0, len(shape) - 1)).map(tuple)
    options: dict[str, Any] = {"axis": data.draw(axes), "keepdims": data.draw(st.booleans())}
    assume(function not in (np.argmin, np.argmax) or np.dtype(dtype).kind != "c")
    if function in (np.prod, np.nanprod):
        assume(model.size < 40)
    if function in (np.sum, np.mean, np.min) and data.draw(st.booleans()):
        options["where"] = numbers(shape, "bool", 4)
        if function is np.min:
            options["initial"] = 3
    with stored(scheme, model, layout, cache, memory) as array:
        both(lambda: function(array, **options), lambda: function(model, **options))


@given(st.data(), small, dtypes, layouts(), work)
def test_other_methods_of_ufuncs(
    data: st.DataObject, shape: tuple[int, ...], dtype: str, layout: Any, memory: int
) -> None:
    assume(shape)
    model = numbers(shape, dtype, 1)
    axis = data.draw(st.integers(0, len(shape) - 1))
    with stored("memmap:", model, layout, "64 KiB", memory) as array:
        ufunc: Any = data.draw(st.sampled_from([np.add, np.maximum, np.subtract]))
        both(lambda: ufunc.accumulate(array, axis), lambda: ufunc.accumulate(model, axis))
        both(lambda: ufunc.reduce(array, axis), lambda: ufunc.reduce(model, axis))
        few = numbers((3,), dtype, 2)
        both(lambda: np.multiply.outer(array, few), lambda: np.multiply.outer(model, few))
        both(lambda: np.multiply.outer(few, array), lambda: np.multiply.outer(few, model))
        if shape[0]:
            index = np.array([0, shape[0] - 1, 0, 0])

            def at(x: Any) -> Any:
                np.add.at(x, index, 1)
                return x[...]

            both(lambda: at(array), lambda: at(model))


@given(small, dtypes, layouts(), work)
def test_comparisons_and_copies(
    shape: tuple[int, ...], dtype: str, layout: Any, memory: int
) -> None:
    model = numbers(shape, dtype, 1)
    with stored("memmap:", model, layout, "64 KiB", memory) as array:
        assert np.array_equal(array, model)
        assert np.allclose(array, model)
        assert not np.array_equal(array, np.zeros((*shape, 2)))
        other: Any = array.group.create("other", shape, dtype, layout="row")
        np.copyto(other, array)
        assert np.array_equal(other, array)
        both(lambda: np.where(array, array, 0), lambda: np.where(model, model, 0))
        if shape:
            both(
                lambda: np.concatenate([array, model, array]),
                lambda: np.concatenate([model, model, model]),
            )
        if model.size:
            assert model.flat[0] in array
        both(lambda: np.zeros_like(array), lambda: np.zeros_like(model))
        both(lambda: array.clip(0, 2), lambda: model.clip(0, 2))
        both(lambda: np.tile(array, 2), lambda: np.tile(model, 2))


def test_sums_are_exact_where_numpys_are() -> None:
    model = np.random.default_rng(0).integers(-1000, 1000, (300, 70))
    array = pmarray.open("dram:", model.shape, model.dtype, layout="col")
    array[...] = model
    with pmarray.config.set(work_memory=512):
        assert array.sum() == model.sum()
        np.testing.assert_array_equal(array.sum(axis=0), model.sum(axis=0))
        np.testing.assert_allclose(array.var(axis=1), model.var(axis=1), rtol=1e-12)


def test_a_variance_far_from_zero_does_not_cancel() -> None:
    model = 1e9 + np.random.default_rng(0).normal(size=(1000, 4))
    array = pmarray.open("dram:", model.shape, layout="col")
    array[...] = model
    with pmarray.config.set(work_memory=1000):
        np.testing.assert_allclose(np.var(array, axis=0), model.var(axis=0), rtol=1e-6)


def test_what_would_not_fit_is_refused_before_it_is_made() -> None:
    array = pmarray.open("dram:", (1000, 10))
    with pmarray.config.set(max_result="10 KiB"):
        for refused in (
            lambda: array + 1,
            lambda: np.sort(array, axis=0),
            lambda: np.multiply.outer(array, np.ones(3)),
            lambda: array.astype("float32"),
            lambda: array.copy(),
        ):
            with pytest.raises(BudgetError):
                refused()
        array += 1
        assert array.sum() == 10_000


def test_matrix_products_go_to_linalg() -> None:
    array = pmarray.open("dram:", (50, 4), layout="col", fill_value=2)
    assert (array @ np.ones(4) == 8).all()
    assert (np.ones(50) @ array == 100).all()
    assert (array.T @ np.ones((50, 2)) == 100).all()
    assert np.linalg.norm(array) == pytest.approx(np.sqrt(200 * 4))
    out: Any = pmarray.open("dram:", (50, 3))
    np.matmul(array, np.ones((4, 3)), out=out)
    assert (out[...] == 8).all()


def test_gives_way_to_types_that_it_does_not_know() -> None:
    class Other:
        __array_ufunc__ = None

        def __radd__(self, other: Any) -> str:
            return "theirs"

    assert pmarray.open("dram:", (2,)) + Other() == "theirs"


def test_scalars_convert() -> None:
    array = pmarray.open("dram:", (1, 1), "int64", fill_value=3)
    assert int(array) == 3
    assert float(array) == 3.0
    assert complex(array) == 3
    assert bool(array)
    assert array.item() == 3
    assert array.tolist() == [[3]]
    with pytest.raises(ValueError, match="ambiguous"):
        bool(pmarray.open("dram:", (2,)))


@given(st.data(), small, dtypes, layouts(), work)
def test_running_sums(
    data: st.DataObject, shape: tuple[int, ...], dtype: str, layout: Any, memory: int
) -> None:
    model = numbers(shape, dtype, 1)
    axis: Any = data.draw(st.none() | st.integers(0, len(shape) - 1) if shape else st.none())
    with stored("memmap:", model, layout, "64 KiB", memory) as array:
        both(lambda: np.cumsum(array, axis), lambda: np.cumsum(model, axis), rtol=1e-2)
        expected = np.cumsum(model, axis)
        out = array.group.create("out", expected.shape, expected.dtype, layout=layout)
        assert np.cumsum(array, axis, out=out) is out
        both(lambda: out[...], lambda: expected, rtol=1e-2)
        few = model[:, :3] if len(shape) > 1 else model
        if few.size < 40:
            array[...] = 1
            both(lambda: np.cumprod(array), lambda: np.cumprod(np.ones_like(model)))


@pytest.mark.parametrize(
    "reduce",
    [np.sum, np.mean, np.var, np.max, np.argmax, np.ptp, np.nansum, np.nanmean, np.cumsum,
     np.add.reduce, np.any],
)  # fmt: skip
def test_an_array_in_memory_is_reduced_into_a_stored_one(reduce: Any) -> None:
    model = numbers((4, 3), "float64", 1)
    expected = reduce(model, axis=0)
    out = pmarray.open("dram:", expected.shape, expected.dtype)
    assert reduce(model, axis=0, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(2, None, -1), ..., (), 1, (slice(None), [1, 2, 1]), (np.array([0, 0]), 2),
     np.array([1, 1]), (None, 0), np.arange(12).reshape(3, 4) % 2 == 0],
    ids=repr,
)  # fmt: skip
def test_at_takes_every_index(index: Any) -> None:
    values = np.arange(12.0).reshape(3, 4)
    a = pmarray.from_array(values, "dram:", layout="col")
    np.add.at(values, index, 2)
    np.add.at(a, index, 2)
    np.negative.at(values, index)
    np.negative.at(a, index)
    np.testing.assert_array_equal(a[...], values)


def test_at_of_an_ndarray_takes_a_stored_index() -> None:
    index = np.array([1, 1, 0])
    stored_index: Any = pmarray.from_array(index, "dram:")
    pairs: list[Any] = [(index, stored_index), ((0, index), (0, stored_index))]
    for one, other in pairs:
        values, expected = np.zeros((2, 2)), np.zeros((2, 2))
        np.add.at(expected, one, 1)
        np.add.at(values, other, 1)
        np.testing.assert_array_equal(values, expected)
    a = pmarray.open("dram:", (2, 2))
    np.add.at(a, (0, stored_index), 1)
    assert a[...].tolist() == [[1, 2], [0, 0]]


def test_a_mask_is_cast_as_numpy_casts_it() -> None:
    values = np.arange(4.0)
    a = pmarray.from_array(values, "dram:")
    masks: list[Any] = [[1, 0, 0, 2], (True, False, True, False), [[0, 1, 1, 1]]]
    for where in masks:
        out, expected = np.zeros((1, 4)), np.zeros((1, 4))
        np.add(a, 1, out=out, where=where)
        np.add(values, 1, out=expected, where=where)
        np.testing.assert_array_equal(out, expected)
    assert np.add.reduce(a, where=masks[0]) == 3
    for array in (values, a):
        with pytest.raises(TypeError, match="Cannot cast array data"):
            np.add(array, 1, out=np.zeros(4), where=np.array([1, 0, 0, 2]))


def test_types_are_refused_before_shapes() -> None:
    for array in (np.array([1.0, 2.0]), pmarray.from_array([1.0, 2.0], "dram:")):
        with pytest.raises(TypeError):
            np.add(array, 1, out=np.zeros((), int))
        with pytest.raises(TypeError):
            np.add(array, np.array(["1", "2", "3"]))
