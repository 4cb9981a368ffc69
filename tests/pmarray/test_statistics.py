"""`histogram`, `average`, and what goes by the rule: `quantile`, `sort`, `unique`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pmarray
from pmarray.errors import BudgetError
from pmarray.testing import array_shapes, budgets, layouts
from tests.pmarray.test_arithmetic import both, dtypes, numbers, schemes, stored

work = st.sampled_from([1, 64, 500, 1 << 20])
small = array_shapes(300)


@given(st.data(), schemes, small, dtypes, layouts(), budgets(), work)
def test_histograms(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, layout: str,
    cache: int | str, memory: int,
) -> None:  # fmt: skip
    assume(np.dtype(dtype).kind != "c")
    model = numbers(shape, dtype, 1)
    bins: Any = data.draw(
        st.integers(0, 12)
        | st.lists(st.integers(-4, 6), max_size=6).map(lambda x: np.sort(x))
        | st.just([3, 1])
    )
    options: dict[str, Any] = {
        "range": data.draw(st.sampled_from([None, (0, 2), (1.5, 1.5), (3, 1)])),
        "density": data.draw(st.sampled_from([None, False, True])),
    }
    weights = numbers(shape, data.draw(st.sampled_from(["float64", "int8", "float32"])), 2)
    with stored(scheme, model, layout, cache, memory) as array:
        both(
            lambda: np.histogram(array, bins, **options),
            lambda: np.histogram(model, bins, **options),
        )
        given_ones: list[Any] = [weights]
        second = array.group.create("w", shape, weights.dtype, layout=data.draw(layouts()))
        second[...] = weights
        given_ones.append(second)
        for one in given_ones:
            for x in (array, model):
                both(
                    lambda: np.histogram(x, bins, weights=one, **options),  # noqa: B023
                    lambda: np.histogram(model, bins, weights=weights, **options),
                )
        both(
            lambda: np.histogram_bin_edges(array, bins, options["range"]),
            lambda: np.histogram_bin_edges(model, bins, options["range"]),
        )


def test_a_histogram_of_what_is_not_finite_is_refused() -> None:
    array = pmarray.open("dram:", (3,), fill_value=np.nan)
    with pytest.raises(ValueError, match="finite"):
        np.histogram(array)
    assert np.histogram(array, range=(0, 1))[0].sum() == 0


def test_bins_that_numpy_chooses_are_in_memory_only() -> None:
    model = numbers((60, 3), "float64", 1)
    array = pmarray.open("dram:", model.shape)
    array[...] = model
    both(lambda: np.histogram(array, "auto"), lambda: np.histogram(model, "auto"))
    with pmarray.config.set(max_result="1 KiB"), pytest.raises(BudgetError, match="histogram"):
        np.histogram(array, "auto")


@given(st.data(), schemes, small, dtypes, layouts(), budgets(), work)
def test_averages(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, layout: str,
    cache: int | str, memory: int,
) -> None:  # fmt: skip
    model = numbers(shape, dtype, 1)
    axes: Any = st.none()
    if shape:
        axes |= st.integers(-len(shape), len(shape) - 1)
        axes |= st.permutations(range(len(shape))).map(lambda x: tuple(x[:2]))
    axis = data.draw(axes)
    few = shape if axis is None else tuple(np.array(shape)[np.atleast_1d(axis)])
    form = data.draw(st.sampled_from([shape, few, (3,)]))
    kind = data.draw(st.sampled_from(["float64", "int8", "float32", "bool", "complex64"]))
    weights = numbers(form, kind, 2) + np.ones((), kind)
    if data.draw(st.booleans()):
        weights = np.zeros_like(weights)
    options: dict[str, Any] = {"axis": axis, "returned": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        options["keepdims"] = data.draw(st.booleans())

    def average(x: Any, w: Any) -> Any:
        try:
            return np.average(x, weights=w, **options)
        except ZeroDivisionError:
            return np.array("no weight")

    with stored(scheme, model, layout, cache, memory) as array:
        both(lambda: average(array, None), lambda: average(model, None))
        both(lambda: average(array, weights), lambda: average(model, weights))
        second = array.group.create("w", form, weights.dtype, layout=data.draw(layouts()))
        second[...] = weights
        both(lambda: average(array, second), lambda: average(model, weights))
        both(lambda: average(model, second), lambda: average(model, weights))


@pytest.mark.parametrize(
    ("function", "instead"),
    [(lambda x: np.median(x, axis=0), "histogram"), (lambda x: np.quantile(x, 0.5), "histogram"),
     (lambda x: np.percentile(x, [10, 90]), "histogram"), (np.unique, "parts"),
     (np.sort, "parts"), (lambda x: np.argsort(x, axis=0), "parts")],
)  # fmt: skip
def test_what_needs_all_items_at_once(function: Any, instead: str) -> None:
    model = numbers((60, 7), "float64", 1)
    array = pmarray.open("dram:", model.shape, layout="col")
    array[...] = model
    both(lambda: function(array), lambda: function(model))
    with (
        pmarray.config.set(max_result="1 KiB"),
        pytest.raises(BudgetError, match=rf"would need 3\.28 KiB in memory.*{instead}"),
    ):
        function(array)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2", ">c8", ">i4"])
def test_means_of_items_in_the_other_byte_order(dtype: str) -> None:
    values = np.arange(12).reshape(4, 3).astype(dtype)
    a = pmarray.open("dram:", values.shape, dtype)
    a[...] = values
    for axis in (None, 0, 1):
        for function in (np.mean, np.var, np.std):
            expected = function(values, axis=axis)
            found = function(a, axis=axis)
            assert np.array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_variances_in_a_dtype_of_another_kind() -> None:
    values = np.array([[1 + 2j, 3 - 1j], [0 + 0j, 2 + 5j]])
    stored = pmarray.open("dram:", values.shape, values.dtype)
    stored[...] = values
    # NumPy forgets the imaginary part of the mean, and does not measure from the mean.
    assert np.var(stored, dtype="f8") == pytest.approx(np.var(values))
    assert np.var(stored, dtype="f8").dtype == np.float64
    whole = pmarray.open("dram:", (2, 3), "i4")
    whole[...] = [[1, 5, 2], [4, 4, 0]]
    for function in (np.var, np.std):
        found, expected = (function(a, axis=0, dtype="c8") for a in (whole, whole[...]))
        assert found.dtype == expected.dtype == np.complex64
        assert np.allclose(found, expected)


def test_the_mean_of_times_is_a_time_whatever_the_dtype() -> None:
    spans = np.arange(6, dtype="m8[s]")
    stored = pmarray.open("dram:", spans.shape, spans.dtype)
    stored[...] = spans
    found, expected = np.mean(stored, dtype="f8"), np.mean(spans, dtype="f8")
    assert found == expected
    assert found.dtype == expected.dtype
