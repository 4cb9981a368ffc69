"""Whole arrays compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pmarray._functions._registry import streams
from pmarray._ufuncs import is_stored, part_of, walk


def _agree(a: Any, b: Any, compare: Callable[[Any, Any], Any]) -> bool:
    a, b = (x if is_stored(x) else np.asarray(x) for x in (a, b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    lead = a if is_stored(a) else b
    return all(
        bool(np.all(compare(part_of(a, shape, piece), part_of(b, shape, piece))))
        for piece in walk(shape, 4 * max(a.dtype.itemsize, b.dtype.itemsize), lead.layout)
    )


@streams(np.allclose)
def _allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> bool:
    return _agree(a, b, lambda x, y: np.isclose(x, y, rtol, atol, equal_nan))


@streams(np.array_equal)
def _array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    if np.shape(a1) != np.shape(a2):
        return False
    return _agree(a1, a2, lambda x, y: np.array_equal(x, y, equal_nan))


@streams(np.array_equiv)
def _array_equiv(a1: Any, a2: Any) -> bool:
    try:
        np.broadcast_shapes(np.shape(a1), np.shape(a2))
    except ValueError:
        return False
    return _agree(a1, a2, np.equal)
