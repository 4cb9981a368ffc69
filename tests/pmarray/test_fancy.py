"""Integer arrays, masks, `oindex`, `vindex` and `blocks` against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._dtypes import DType
from pmarray._geometry.layout import Layout, Order
from pmarray._selection.fancy import fancy
from pmarray._selection.pieces import pieces
from pmarray.errors import BudgetError, LayoutError, SelectionError
from pmarray.testing import (
    advanced_indices,
    array_dtypes,
    array_shapes,
    budgets,
    filled,
    layouts,
    orthogonal_indices,
)
from tests.pmarray.test_differential import chunk_choices, create, place, same, schemes

small = array_shapes(600)


def outer(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """NumPy's index for an orthogonal one; ints stay axes of one item."""
    arrays = []
    for part, extent in zip(index, shape, strict=True):
        one = [part] if isinstance(part, int) else part
        arrays.append(np.arange(extent)[np.asarray(one, int) if isinstance(one, list) else one])
    return np.ix_(*arrays)


def integer_axes(index: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(i for i, part in enumerate(index) if isinstance(part, int))


@given(st.data(), schemes, small, array_dtypes(), layouts(), budgets(), chunk_choices)
def test_reads_and_writes_any_index_like_numpy(
    data: st.DataObject,
    scheme: str,
    shape: tuple[int, ...],
    dtype: DType,
    layout: str,
    cache: int | str,
    chunks: Any,
) -> None:
    model = filled(shape, dtype, 1)
    with place(scheme) as url, pmarray.open_group(url, cache=cache) as group:
        array = create(group, model, layout, chunks)
        array[...] = model
        for seed in range(data.draw(st.integers(1, 4), "operations")):
            index = data.draw(advanced_indices(shape))
            try:
                expected = model[index]
            except IndexError:  # masks that do not broadcast
                with pytest.raises(SelectionError):
                    array[index]
                with pytest.raises(SelectionError):
                    array[index] = 0
                continue
            same(array[index], expected)
            values = filled(np.shape(expected), dtype, seed)
            if data.draw(st.booleans()):
                values = filled(values.shape[1:], dtype, seed)
            model[index] = array[index] = values
            same(array[...], model)


@given(st.data(), schemes, small, layouts(), budgets(), chunk_choices)
def test_oindex_selects_each_axis_for_itself(
    data: st.DataObject,
    scheme: str,
    shape: tuple[int, ...],
    layout: str,
    cache: int | str,
    chunks: Any,
) -> None:
    assume(shape)
    model = filled(shape, np.dtype("int32"), 1)
    with place(scheme) as url, pmarray.open_group(url, cache=cache) as group:
        array = create(group, model, layout, chunks)
        array[...] = model
        index = data.draw(orthogonal_indices(shape))
        mesh, dropped = outer(index, shape), integer_axes(index)
        same(np.asarray(array.oindex[index]), model[mesh].squeeze(dropped))
        values = filled(model[mesh].shape, model.dtype, 2)
        model[mesh] = values
        array.oindex[index] = values.squeeze(dropped)
        same(array[...], model)


@given(st.data(), small, layouts(), budgets(), chunk_choices)
def test_vindex_takes_coordinates_or_a_mask(
    data: st.DataObject, shape: tuple[int, ...], layout: str, cache: int | str, chunks: Any
) -> None:
    assume(math.prod(shape))
    assume(shape)
    model = filled(shape, np.dtype("int32"), 1)
    with pmarray.open_group("dram:", cache=cache) as group:
        array = create(group, model, layout, chunks)
        array[...] = model
        count = data.draw(st.integers(0, 9))
        points = tuple(
            data.draw(st.lists(st.integers(-n, n - 1), min_size=count, max_size=count))
            for n in shape
        )
        at = tuple(np.array(axis, int) for axis in points)
        same(array.vindex[points], model[at])
        mask = model % 3 == 0
        same(array.vindex[mask], model[mask])
        array.vindex[mask] = -1
        array.vindex[points] = -2
        model[mask] = -1
        model[at] = -2
        same(array[...], model)


@given(st.data(), small, layouts(), budgets(), chunk_choices)
def test_blocks_select_chunks(
    data: st.DataObject, shape: tuple[int, ...], layout: str, cache: int | str, chunks: Any
) -> None:
    assume(math.prod(shape))
    assume(shape)
    model = filled(shape, np.dtype("int32"), 1)
    with place("memmap:") as url, pmarray.open_group(url, cache=cache) as group:
        array = create(group, model, layout, chunks)
        array[...] = model
        block = tuple(
            data.draw(st.integers(0, -(-n // chunk) - 1))
            for n, chunk in zip(shape, array.chunks, strict=True)
        )
        items = tuple(
            slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(block, array.chunks, strict=True)
        )
        same(array.blocks[block], model[items])
        array.blocks[block[:1]] = 5
        model[items[:1]] = 5
        same(array[...], model)


@given(st.data(), small, st.sampled_from(["row", "col"]), st.integers(1, 64), st.integers(0, 200))
def test_visits_each_chunk_once(
    data: st.DataObject, shape: tuple[int, ...], order: Order, nbytes: int, gap: int
) -> None:
    """One after the other, whatever the order of the index; and no box leaves its chunk."""
    assume(shape)
    layout = Layout.plan(shape, 4, order)
    chunk_shape = layout.chunk_shape(nbytes, nbytes)
    try:
        selection = fancy(data.draw(advanced_indices(shape)), shape)
    except SelectionError:
        return
    if 0 in selection.shape:
        return
    points = [
        axis for one in selection.selectors if hasattr(one, "coordinates") for axis in one.axes
    ]
    seen: list[tuple[int, ...]] = []
    for piece in pieces(selection, layout, chunk_shape, gap):
        first = tuple(piece.bounds[axis].start // chunk_shape[axis] for axis in sorted(points))
        last = tuple((piece.bounds[axis].stop - 1) // chunk_shape[axis] for axis in sorted(points))
        assert first == last
        slower = tuple(
            piece.bounds[axis].start // chunk_shape[axis]
            for axis in range(len(shape))
            if axis in points
            or any(layout.strides[axis] > layout.strides[point] for point in points)
        )
        if not seen or seen[-1] != slower:
            seen.append(slower)
    assert len(seen) == len(set(seen))


def test_the_last_of_several_values_for_one_item_wins() -> None:
    with (
        place("memmap:") as url,
        pmarray.open(url, (100, 3), "int64", layout="col") as array,
    ):
        array[[5, 90, 5, 2, 5], 1] = [1, 2, 3, 4, 5]
        assert array[5, 1] == 5


@pytest.mark.parametrize(
    "index",
    [
        ([0, 4],),
        ([-5],),
        ([0, 1], [0, 1, 2]),
        (np.ones((4, 4), bool),),
        (np.ones(3, bool),),
        ([0.5],),
        np.array([]),
        "name",
        ([0], 0, 0),
        ([[0, 1], [2]],),
        (True, 0, 0, 0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_refuses_what_numpy_refuses(index: Any) -> None:
    array = pmarray.open("dram:", (4, 3))
    with pytest.raises((IndexError, ValueError)):
        np.zeros((4, 3))[index]
    with pytest.raises(SelectionError):
        array[index]
    with pytest.raises(SelectionError):
        array[index] = 1


@pytest.mark.parametrize("index", [(None, 0), ([[0]], 0), (0, 0, 0), (..., ...)])
def test_oindex_refuses_what_has_no_meaning(index: Any) -> None:
    with pytest.raises(SelectionError):
        pmarray.open("dram:", (4, 3)).oindex[index]


@pytest.mark.parametrize("index", [([0],), (slice(None), [0]), ([0], None, [0]), np.ones(4, bool)])
def test_vindex_refuses_what_does_not_name_items(index: Any) -> None:
    with pytest.raises(SelectionError):
        pmarray.open("dram:", (4, 3)).vindex[index]


@pytest.mark.parametrize("index", [slice(None, None, 2), 7, (None, 0), [0]])
def test_blocks_refuse_what_is_no_range_of_chunks(index: Any) -> None:
    with pytest.raises(SelectionError):
        pmarray.open("dram:", (4, 3), chunks=2).blocks[index]


def test_a_result_that_does_not_fit_is_refused_before_it_is_made() -> None:
    array = pmarray.open("dram:", (1 << 20, 4))
    with pmarray.config.set(max_result="1 MiB"), pytest.raises(BudgetError, match="max_result"):
        array[np.arange(1 << 18)]


@given(st.data(), small, array_dtypes(), layouts())
def test_read_fills_memory_of_any_order(
    data: st.DataObject, shape: tuple[int, ...], dtype: DType, layout: str
) -> None:
    model = filled(shape, dtype, 1)
    array = create(pmarray.open_group("dram:"), model, layout)
    array[...] = model
    index = data.draw(advanced_indices(shape) | st.just((slice(None, None, -2), ...)))
    assume(model.ndim or index == ())
    try:
        # Of one item of text NumPy would make a shorter type.
        expected: NDArray[Any] = np.asarray(model[index], dtype)
    except IndexError:
        return  # no index: what is refused has a test of its own
    for order in ("C", "F"):
        out = np.empty(expected.shape, dtype, order=order)
        assert array.read(index, out=out) is out
        same(out, expected)


def test_read_casts_and_refuses_another_shape() -> None:
    array = pmarray.open("dram:", (3, 2), "int32", fill_value=3)
    assert array.read(0, out=np.zeros(2, "float16")).tolist() == [3, 3]
    with pytest.raises(LayoutError):
        array.read(0, out=np.zeros(3))


def test_an_array_like_of_one_integer_is_an_integer() -> None:
    class Like:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return np.array(1)

    model = np.arange(12.0).reshape(3, 4)
    array: Any = pmarray.open("dram:", model.shape)
    array[...] = model
    one: Any = Like()
    for index in (
        (one, one),
        (one, 2),
        (one,),
        (..., one),
        (one, [0, 2]),
        (one, slice(1, 3), None),
    ):
        expected, found = model[index], array[index]
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found, expected)
        array[index] = model[index] = 7
        np.testing.assert_array_equal(array[...], model)
    with pytest.raises(pmarray.errors.LayoutError, match="S1"):
        pmarray.open("dram:", (3,), "c")
