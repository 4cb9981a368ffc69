"""Lazy views against NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._dtypes import DType
from pmarray.errors import ArrayNotFoundError, LayoutError, SelectionError
from pmarray.testing import (
    advanced_indices,
    array_dtypes,
    array_shapes,
    basic_indices,
    budgets,
    filled,
    layouts,
)
from tests.pmarray.test_differential import create, place, same, schemes


def views(
    data: st.DataObject, array: pmarray.PMArray, model: NDArray[Any]
) -> tuple[pmarray.PMArray, NDArray[Any]]:
    """The same chain of views over both."""
    for _ in range(data.draw(st.integers(1, 3), "views")):
        if data.draw(st.booleans()):
            axes = data.draw(st.permutations(range(model.ndim)))
            array, model = array.transpose(*axes), model.transpose(axes)
            if not axes:
                array = array.T
        else:
            index = data.draw(basic_indices(model.shape))
            parts = np.index_exp[index]
            if not any(part is ... for part in parts):
                parts = (*parts, ...)  # a view also where NumPy makes a scalar
            array, model = array.view[index], model[parts]
    return array, model


@given(st.data(), schemes, array_shapes(600), array_dtypes(), layouts(), budgets())
def test_a_view_reads_and_writes_the_items_of_its_array(
    data: st.DataObject,
    scheme: str,
    shape: tuple[int, ...],
    dtype: DType,
    layout: str,
    cache: int | str,
) -> None:
    model = filled(shape, dtype, 1)
    with place(scheme) as url, pmarray.open_group(url, cache=cache) as group:
        array = create(group, model, layout)
        array[...] = model
        seen, expected = views(data, array, model)
        assert seen.shape == expected.shape
        same(seen[...], expected)
        same(np.asarray(seen), expected)
        pieces = np.zeros(expected.shape, int)
        for piece in seen.iter_chunks(nbytes=data.draw(st.integers(1, 5000))):
            pieces[piece] += 1
            same(np.asarray(seen[piece]), np.asarray(expected[piece]))
        assert (pieces == 1).all()
        index = data.draw(basic_indices(seen.shape) | advanced_indices(seen.shape))
        try:
            values = filled(np.shape(expected[index]), dtype, 2)
        except IndexError:
            return
        same(np.asarray(seen[index]), np.asarray(expected[index]))
        expected[index] = seen[index] = values
        same(array[...], model)
        same(seen[...], expected)


def test_the_rows_of_a_transposed_matrix_can_be_lent() -> None:
    array = pmarray.open("dram:", (5, 3), layout="col")
    with array.T.writing(1) as row:
        row[...] = np.arange(5)
    assert array[:, 1].tolist() == [0, 1, 2, 3, 4]
    with array.T.view[1, ::-1].reading(...) as back:
        assert back.tolist() == [4, 3, 2, 1, 0]


def test_a_view_sees_what_is_written_later_and_keeps_its_shape() -> None:
    array = pmarray.open("dram:", (2, 0), layout="col")
    array.append([1, 2])
    view = array.view[:]
    array.append([3, 4])
    array[0, 0] = 9
    assert view[...].tolist() == [[9], [2]]
    assert array.T.shape == (2, 2)


@pytest.mark.parametrize("args", [(), ("u1",), (np.matrix,)])
def test_a_view_is_not_called_as_that_of_an_ndarray(args: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"a\.view\[\.\.\.\] reads nothing"):
        pmarray.open("dram:", (2,)).view(*args)


def test_a_view_of_what_is_no_more_says_so() -> None:
    group = pmarray.open_group("dram:")
    array = group.create("x", (4, 4))
    view = array.view[2:]
    array.resize((3, 4))
    with pytest.raises(SelectionError, match="shrunk"):
        view[...]
    assert view[0].tolist() == [0, 0, 0, 0]
    del group["x"]
    with pytest.raises(ArrayNotFoundError):
        view[0]


def test_a_view_cannot_grow() -> None:
    view = pmarray.open("dram:", (4, 4)).T
    with pytest.raises(LayoutError):
        view.append(np.zeros(4))
    with pytest.raises(LayoutError):
        view.append(np.zeros(4), axis=0)
    with pytest.raises(LayoutError):
        view.resize((5, 5))
    with pytest.raises(LayoutError), view.appending():
        pass


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (0, 1, 2)])
def test_axes_that_are_no_permutation_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises((LayoutError, SelectionError)):
        pmarray.open("dram:", (4, 4)).transpose(*axes)


def test_a_view_takes_no_arrays() -> None:
    with pytest.raises(SelectionError, match=r"list here: give integers, slices, \.\.\. and None"):
        pmarray.open("dram:", (4, 4)).view[[0, 1]]
    with pytest.raises(SelectionError, match="3 indices are too many for 2 axes"):
        pmarray.open("dram:", (4, 4)).view[0, 0, 0]


def test_nothing_of_a_view_can_be_lent_and_forgotten() -> None:
    array = pmarray.open("dram:", (4, 4))
    for view in (array.view[:, 1:3], array.view[::-1], array.T.view[2:2], array.view[None, 1]):
        with view.writing(np.s_[:, 0:0]) as out, view.reading(np.s_[:, 0:0]) as lent:
            assert out.shape == lent.shape == (view.shape[0], 0)
        with array.transaction():
            view.forget(np.s_[0:0])


def test_a_transaction_covers_what_a_view_writes() -> None:
    array = pmarray.open("dram:", (4, 4))
    with pytest.raises(ZeroDivisionError), array.T.transaction():
        array.T[0] = 1
        raise ZeroDivisionError
    assert not array[...].any()
