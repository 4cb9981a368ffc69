"""NumPy's basic indices, reduced to one canonical form. Pure.

An index becomes a `Selection`: one ascending slice an axis, which is all that the stages below
ever see, and two index tuples that turn the block of selected items into what NumPy would return
and back. That takes about 2 us with the built-in `slice.indices`, where ndindex needs 40 to 50;
`_selection.fancy` takes every other index.
"""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np

from pmarray.errors import AxisError, SelectionError

__all__ = [
    "NotBasicError",
    "Selection",
    "ascending",
    "integer",
    "normal_axis",
    "select",
    "select_if_basic",
    "storage_axes",
]


class NotBasicError(SelectionError):
    """The index has an array, a list or a mask: `_selection.fancy` takes it."""


class Selection(NamedTuple):
    """What a basic index selects.

    Examples
    --------
    >>> s = select((3, slice(None, None, -2)), (10, 5))
    >>> s.axes
    (slice(3, 4, 1), slice(0, 5, 2))
    >>> s.shape
    (3,)
    >>> block = np.arange(50).reshape(10, 5)[s.axes]
    >>> block[s.to_result]
    array([19, 17, 15])
    """

    axes: tuple[slice, ...]
    """One ascending slice an axis of the array, within bounds."""
    block_shape: tuple[int, ...]
    """How many items `axes` select, per axis."""
    shape: tuple[int, ...]
    """The shape that NumPy's result has."""
    to_result: tuple[Any, ...]
    """Indexes a block of `block_shape` to give the result."""
    to_block: tuple[Any, ...]
    """Indexes an array of `shape` to give the block."""
    scalar: bool
    """Whether NumPy would return a scalar and not an array without axes."""


def select(index: Any, shape: tuple[int, ...]) -> Selection:
    """Reduce `index` on an array of `shape` to a `Selection`.

    Raises
    ------
    SelectionError
        Out of bounds, too many indices, or something else than integers, slices, ``...`` and None.
    """
    try:
        return select_if_basic(index, shape)
    except NotBasicError as error:
        raise SelectionError(f"{error}; a[...] takes lists, arrays and masks, too") from None


def select_if_basic(index: Any, shape: tuple[int, ...]) -> Selection:
    """The same, for those who can do something else.

    Raises
    ------
    SelectionError
        Out of bounds, or too many indices.
    NotBasicError
        Something else than integers, slices, ``...`` and None.
    """
    parts = index if isinstance(index, tuple) else (index,)
    used = 0
    ellipses = 0
    for part in parts:
        if part is Ellipsis:
            ellipses += 1
        elif part is not None:
            if type(part) is not int and type(part) is not slice:
                _check_basic(part)
            used += 1
    if ellipses > 1:
        raise SelectionError("an index can only have a single ellipsis ('...')")
    if used > len(shape):
        raise NotBasicError(f"{used} indices are too many for {len(shape)} axes")
    if not ellipses:
        parts = (*parts, Ellipsis)
    axes: list[slice] = []
    block_shape: list[int] = []
    result: list[int] = []
    to_result: list[Any] = []
    to_block: list[Any] = []
    for part in parts:
        if part is None:
            result.append(1)
            to_result.append(None)
            to_block.append(0)
            continue
        expanded: tuple[Any, ...] = (part,)
        if isinstance(part, EllipsisType):
            expanded = (slice(None),) * (len(shape) - used)
        for one in expanded:
            extent = shape[len(axes)]
            if isinstance(one, slice):
                items, flipped = ascending(one, extent)
                count = len(range(items.start, items.stop, items.step))
                result.append(count)
                flip = slice(None, None, -1) if flipped else slice(None)
                to_result.append(flip)
                to_block.append(flip)
            else:
                i = integer(one, len(axes), extent)
                items = slice(i, i + 1, 1)
                count = 1
                to_result.append(0)
                to_block.append(None)
            axes.append(items)
            block_shape.append(count)
    return Selection(
        tuple(axes),
        tuple(block_shape),
        tuple(result),
        tuple(to_result),
        tuple(to_block),
        scalar=not result and not ellipses,
    )


def _check_basic(part: Any) -> None:
    # bool is an int to Python and a mask to NumPy.
    if (
        isinstance(part, bool | np.bool_)
        or not hasattr(part, "__index__")
        or (hasattr(part, "ndim") and (part.ndim > 0 or part.dtype == bool))
    ):
        raise NotBasicError(
            f"cannot index with {type(part).__name__} here: give integers, slices, ... and None"
        )


def ascending(one: slice, extent: int) -> tuple[slice, bool]:
    """Return the slice that selects the same items upwards, within bounds; whether `one` fell."""
    try:
        start, stop, step = one.indices(extent)
    except ValueError as error:
        raise SelectionError(f"{one}: {error}") from error
    indices = range(start, stop, step)
    if not indices:
        return slice(0, 0, 1), False
    if step < 0:
        return slice(indices[-1], indices[0] + 1, -step), True
    return slice(start, indices[-1] + 1, step), False


def integer(one: Any, axis: int, extent: int) -> int:
    """Return an integer index on an axis, counted from its start."""
    try:
        i = operator.index(one)
    except TypeError as error:
        raise SelectionError(f"cannot index with {one!r}: {error}") from error
    if not -extent <= i < extent:
        raise SelectionError(f"index {i} is out of bounds for axis {axis} with size {extent}")
    return i + extent if i < 0 else i


def storage_axes(selection: Selection) -> tuple[slice, ...]:
    """Arrays without axes are stored as arrays of one item."""
    return selection.axes or (slice(0, 1, 1),)


def normal_axis(axis: int, ndim: int) -> int:
    """Return the axis, counted from 0.

    Raises
    ------
    AxisError
        There is none.
    """
    axis = operator.index(axis)
    if not -ndim <= axis < ndim:
        raise AxisError(axis, ndim)
    return axis % ndim
