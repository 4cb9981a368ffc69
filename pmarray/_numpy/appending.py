"""Values at the end of an axis; along the slow one, they are appended or nothing has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._array.growth import Growing
from pmarray._array.stored import StoredArray
from pmarray._array.views import slice_view
from pmarray._numpy.assignment import assign
from pmarray._selection.basic import normal_axis, select
from pmarray.errors import LayoutError

__all__ = ["append"]

AnyArray = NDArray[Any]


def append(a: Growing, values: StoredArray | AnyArray, axis: int | None) -> tuple[int, ...]:
    """`PMArray.append`, in turn, of values that are in an array already."""
    if not a.ndim:
        raise LayoutError("an array without axes has nowhere to append to")
    slow = a._layout.slow_axis
    along = slow if axis is None else normal_axis(axis, a.ndim)
    new = _with_axis(values, along, a.ndim)
    expected = [n for i, n in enumerate(a.shape) if i != along]
    if new.ndim != a.ndim or [n for i, n in enumerate(new.shape) if i != along] != expected:
        raise LayoutError(
            f"cannot append values of shape {np.shape(values)} to shape {a.shape} "
            f"along axis {along}"
        )
    before = a.shape[along]
    shape = list(a.shape)
    shape[along] += new.shape[along]
    if along == slow:
        a._set_lines(shape[along], fill=False)
    else:
        a._resize(tuple(shape))
    try:
        _write(a, (slice(None),) * along + (slice(before, None),), new)
    except BaseException:
        if along == slow:
            a._set_lines(before, fill=False)
        raise
    return a.shape


def _with_axis(values: StoredArray | AnyArray, along: int, ndim: int) -> StoredArray | AnyArray:
    """Return the values with as many axes as the array has, if they lack the one."""
    if isinstance(values, StoredArray):
        new = slice_view(values, ...)  # a view keeps the shape that it has now, also of `a`
        return slice_view(new, (*[slice(None)] * along, None)) if new.ndim == ndim - 1 else new
    return np.expand_dims(values, along) if values.ndim == ndim - 1 else values


def _write(a: StoredArray, index: tuple[slice, ...], values: StoredArray | AnyArray) -> None:
    selection = select(index, a.shape)
    if isinstance(values, StoredArray):
        assign(a, selection, values)
    else:
        a._write(selection, values)
