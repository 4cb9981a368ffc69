"""Other looks at the same items, as lazy views: nothing is read, and what is stored is stored.

NumPy's functions of these names return views, through which users write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from pmarray._array.overlap import is_stored
from pmarray._numpy.functions.axes import axes_of
from pmarray._numpy.functions.registry import STREAMED, Function, streams, unstreamed

# -- axes in another order ------------------------------------------------------------------------


@streams(np.transpose)
def _transpose(a: Any, axes: Any = None) -> Any:
    return a.transpose() if axes is None else a.transpose(*axes)


@streams(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    return a.swapaxes(axis1, axis2)


def _permuted(a: Any, axes: Sequence[int]) -> Any:
    return a.transpose(*axes) if axes else a.transpose()


@streams(np.moveaxis)
def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    of = normalize_axis_tuple(source, a.ndim, "source")
    to = normalize_axis_tuple(destination, a.ndim, "destination")
    if len(of) != len(to):
        raise ValueError(
            "`source` and `destination` arguments must have the same number of elements"
        )
    order = [i for i in range(a.ndim) if i not in of]
    for at, axis in sorted(zip(to, of, strict=True)):
        order.insert(at, axis)
    return _permuted(a, order)


@streams(np.rollaxis)
def _rollaxis(a: Any, axis: int, start: int = 0) -> Any:
    axis = normalize_axis_index(axis, a.ndim)
    first = start + a.ndim if start < 0 else start
    if not 0 <= first <= a.ndim:
        raise np.exceptions.AxisError(
            f"'start' arg requires {-a.ndim} <= start < {a.ndim + 1}, but {start} was passed in"
        )
    order = [i for i in range(a.ndim) if i != axis]
    order.insert(first - (axis < first), axis)
    return _permuted(a, order)


@streams(np.matrix_transpose)
def _matrix_transpose(x: Any, /) -> Any:
    return _last_two_swapped(x)


@streams(np.linalg.matrix_transpose)
def _linalg_matrix_transpose(x: Any, /) -> Any:
    return _last_two_swapped(x)


def _last_two_swapped(x: Any) -> Any:
    if x.ndim < 2:
        raise ValueError(f"Input array must be at least 2-dimensional, but it is {x.ndim}")
    return x.mT


# -- axes that come and go -------------------------------------------------------------------------


@streams(np.squeeze)
def _squeeze(a: Any, axis: Any = None) -> Any:
    return a.squeeze(axis)


@streams(np.expand_dims)
def _expand_dims(a: Any, axis: Any) -> Any:
    ndim = a.ndim + (len(axis) if isinstance(axis, tuple | list) else 1)
    new = normalize_axis_tuple(axis, ndim)
    return a.view[tuple(None if i in new else slice(None) for i in range(ndim))]


# -- turned around --------------------------------------------------------------------------------


@streams(np.flip)
def _flip(m: Any, axis: Any = None) -> Any:
    axes = axes_of(m, axis)
    return m.view[tuple(slice(None, None, -1 if i in axes else 1) for i in range(m.ndim))]


@streams(np.flipud)
def _flipud(m: Any) -> Any:
    if m.ndim < 1:
        raise ValueError("Input must be >= 1-d.")
    return m.view[::-1]


@streams(np.fliplr)
def _fliplr(m: Any) -> Any:
    if m.ndim < 2:
        raise ValueError("Input must be >= 2-d.")
    return m.view[:, ::-1]


@streams(np.rot90)
def _rot90(m: Any, k: int = 1, axes: Any = (0, 1)) -> Any:
    if len(axes) != 2:
        raise ValueError("len(axes) must be 2.")
    one, other = normalize_axis_tuple(axes, m.ndim)
    # A quarter turn is a flip and an exchange of axes; a half turn is two flips.
    turns = k % 4
    if turns == 2:
        return _flip(m, (one, other))
    if turns == 1:
        return _flip(m, other).swapaxes(one, other)
    return _flip(m.swapaxes(one, other), other) if turns else m.view[...]


def _at_least(count: int, x: Any) -> Any:
    if not is_stored(x):
        return {1: np.atleast_1d, 2: np.atleast_2d, 3: np.atleast_3d}[count](x)
    if x.ndim >= count:
        return x
    if count == 3 and x.ndim:
        return x.view[(..., None) if x.ndim == 2 else (None, slice(None), None)]
    return x.view[(*[None] * (count - x.ndim), ...)]


@streams(np.atleast_1d)
def _atleast_1d(*arys: Any) -> Any:
    found = tuple(_at_least(1, x) for x in arys)
    return found if len(found) != 1 else found[0]


@streams(np.atleast_2d)
def _atleast_2d(*arys: Any) -> Any:
    found = tuple(_at_least(2, x) for x in arys)
    return found if len(found) != 1 else found[0]


@streams(np.atleast_3d)
def _atleast_3d(*arys: Any) -> Any:
    found = tuple(_at_least(3, x) for x in arys)
    return found if len(found) != 1 else found[0]


# -- parts ----------------------------------------------------------------------------------------


@streams(np.unstack)
def _unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    if not x.ndim:
        raise ValueError("Input array must be at least 1-d.")
    lead = (slice(None),) * normalize_axis_index(axis, x.ndim)
    return tuple(x.view[(*lead, i)] for i in range(x.shape[len(lead)]))


def _splits(function: Any) -> Callable[[Function], Function]:
    """Register what cuts its first parameter; places may be stored, too."""

    def register(implementation: Function) -> Function:
        @functools.wraps(implementation)
        def split(ary: Any, indices_or_sections: Any, *args: Any, **options: Any) -> Any:
            if not is_stored(ary):
                return unstreamed(function, (ary, indices_or_sections, *args), options)
            return implementation(ary, np.asarray(indices_or_sections), *args, **options)

        STREAMED[function] = split
        return implementation

    return register


@_splits(np.array_split)
def _array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    lead = (slice(None),) * normalize_axis_index(axis, ary.ndim)
    # NumPy cuts the places of the axis as it would cut the array.
    places = np.array_split(np.arange(ary.shape[len(lead)]), indices_or_sections)
    return [
        ary.view[(*lead, slice(part[0], part[-1] + 1) if part.size else slice(0, 0))]
        for part in places
    ]


@_splits(np.split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    if np.ndim(indices_or_sections) == 0 and ary.shape[axis] % indices_or_sections:
        raise ValueError("array split does not result in an equal division")
    return _array_split(ary, indices_or_sections, axis)


@_splits(np.hsplit)
def _hsplit(ary: Any, indices_or_sections: Any) -> list[Any]:
    if not ary.ndim:
        raise ValueError("hsplit only works on arrays of 1 or more dimensions")
    return _split(ary, indices_or_sections, 1 if ary.ndim > 1 else 0)


@_splits(np.vsplit)
def _vsplit(ary: Any, indices_or_sections: Any) -> list[Any]:
    if ary.ndim < 2:
        raise ValueError("vsplit only works on arrays of 2 or more dimensions")
    return _split(ary, indices_or_sections, 0)


@_splits(np.dsplit)
def _dsplit(ary: Any, indices_or_sections: Any) -> list[Any]:
    if ary.ndim < 3:
        raise ValueError("dsplit only works on arrays of 3 or more dimensions")
    return _split(ary, indices_or_sections, 2)
