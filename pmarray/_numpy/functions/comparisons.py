"""Whole arrays compared."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._numpy.functions.registry import streams
from pmarray._numpy.ufuncs import part_of, walk


def _agree(compare: Callable[..., Any], *values: Any) -> bool:
    """Whether a comparison of values that are broadcast together holds everywhere."""
    arrays: list[Any] = [x if is_stored(x) else np.asarray(x) for x in values]
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    lead = next(x for x in arrays if is_stored(x))
    return all(
        bool(np.all(compare(*(part_of(x, shape, piece) for x in arrays))))
        for piece in walk(shape, 4 * max(x.dtype.itemsize for x in arrays), lead.layout)
    )


@streams(np.allclose)
def _allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> bool:
    return _agree(
        lambda x, y, relative, absolute: np.isclose(x, y, relative, absolute, equal_nan),
        a, b, rtol, atol,
    )  # fmt: skip


@streams(np.array_equal)
def _array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    if np.shape(a1) != np.shape(a2):
        return False
    return _agree(lambda x, y: np.array_equal(x, y, equal_nan), a1, a2)


@streams(np.array_equiv)
def _array_equiv(a1: Any, a2: Any) -> bool:
    try:
        np.broadcast_shapes(np.shape(a1), np.shape(a2))
    except ValueError:
        return False
    return _agree(operator.eq, a1, a2)  # which takes text beside numbers, unlike the ufunc
