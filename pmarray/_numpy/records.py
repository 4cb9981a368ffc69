"""Comparison of records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._numpy.ufuncs import make_result, part_of, walk

__all__ = ["compared_records"]


def compared_records(compare: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """Compare records, which NumPy does in its operators and not in its ufuncs."""
    values: Any = other if is_stored(other) else np.asarray(other)
    shape = np.broadcast_shapes(one.shape, values.shape)
    compare(np.empty((1,) * one.ndim, one.dtype), np.empty((1,) * values.ndim, values.dtype))
    result = make_result(shape, bool, one.layout)
    for piece in walk(shape, one.itemsize + values.dtype.itemsize + 1, one.layout):
        result[piece] = compare(
            np.asarray(part_of(one, shape, piece)), np.asarray(part_of(values, shape, piece))
        )
    return result if shape else result[()]
