"""`select` against NumPy: the same items, the same shape, the same refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pmarray._selection.basic import select
from pmarray.errors import SelectionError
from tests.sampling import examples

many = examples(8)  # they are fast
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
bounds = st.none() | st.integers(-9, 9)
slices = st.builds(slice, bounds, bounds, bounds.filter(lambda step: step != 0))
parts = (
    st.integers(-8, 8) | slices | st.just(...) | st.none() | st.builds(np.int32, st.integers(0, 8))
)
wild = parts | st.lists(parts, max_size=6).map(tuple)


def ordinals(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.arange(int(np.prod(shape))).reshape(shape)


def check(index: Any, shape: tuple[int, ...]) -> None:
    items = ordinals(shape)
    expected = items[index]
    found = select(index, shape)
    assert found.shape == np.shape(expected)
    assert found.scalar == (not isinstance(expected, np.ndarray))
    for one, extent in zip(found.axes, shape, strict=True):
        assert one.step >= 1
        assert 0 <= one.start <= one.stop <= extent
    block = items[found.axes]
    assert block.shape == found.block_shape
    np.testing.assert_array_equal(block[(*found.to_result, ...)], expected)
    back = np.empty(found.shape, int)
    back[...] = expected
    np.testing.assert_array_equal(back[found.to_block], block)


@many
@given(st.data(), shapes)
def test_selects_what_numpy_selects(data: st.DataObject, shape: tuple[int, ...]) -> None:
    check(data.draw(npst.basic_indices(shape, allow_newaxis=True)), shape)


@many
@given(wild, shapes)
@example((..., ...), (2, 3))
@example((0, 0, 0), (2, 3))
@example((), ())
@example(None, ())
@example(np.array(1), (3,))
@example(slice(5, 2), (3,))
@example(slice(None, None, -7), (3,))
def test_refuses_what_numpy_refuses(index: Any, shape: tuple[int, ...]) -> None:
    try:
        ordinals(shape)[index]
    except IndexError:
        with pytest.raises(IndexError) as caught:
            select(index, shape)
        assert isinstance(caught.value, SelectionError)
    else:
        check(index, shape)


@pytest.mark.parametrize(
    "index", [True, np.True_, [0, 1], np.array([0]), np.ones(3, bool), "x", 1.0, np.array(1.5), {}]
)
def test_refuses_what_is_not_basic(index: Any) -> None:
    with pytest.raises(SelectionError, match="cannot index"):
        select(index, (3, 4))


@pytest.mark.parametrize("index", [slice(None, None, 0), slice("a"), slice(1.5)])
def test_refuses_impossible_slices(index: Any) -> None:
    with pytest.raises((SelectionError, TypeError)):
        select(index, (3,))
