"""Masks of a whole array with more true items than their coordinates have room in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._array.overlap import apart_from, is_stored
from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._numpy.ufuncs import part_of, walk

__all__ = ["is_large_mask", "read_masked", "write_masked"]

AnyArray = NDArray[Any]

_SMALL_BYTES = 64 << 10
"""Of a mask, which has a byte an item."""


def is_large_mask(index: Any, array: StoredArray) -> bool:
    """Whether an index is a mask to be walked through piece by piece."""
    kind = getattr(index, "dtype", None)
    if kind is None or kind != np.bool_ or index.shape != array.shape:  # most indices leave here
        return False
    if is_stored(index):
        return array.ndim > 0
    if index.size <= _SMALL_BYTES:
        return False
    # An index of coordinates holds several integers for each axis of each item.
    nbytes = int(np.count_nonzero(index)) * 64 * array.ndim
    return nbytes > config.work_memory


def read_masked(array: StoredArray, mask: Any) -> AnyArray:
    """``array[mask]``: the items in C order."""
    nbytes = int(np.count_nonzero(mask)) * array.itemsize
    config.check_result(nbytes, "read parts of it")
    result = np.empty(nbytes // array.itemsize, array.dtype)
    done = 0
    for piece in walk(array.shape, 3 * array.itemsize + 2, "row"):
        chosen = np.asarray(part_of(mask, array.shape, piece))
        count = int(np.count_nonzero(chosen))
        if count:
            result[done : done + count] = array[piece][chosen]
            done += count
    return result


def write_masked(array: StoredArray, mask: Any, values: Any) -> None:
    """``array[mask] = values``; a piece is read and written as a whole."""
    mask = apart_from(mask, [array], "the mask")
    values = apart_from(values, [array], "the value")
    if not is_stored(values):
        values = array._as_values(values)
    count = int(np.count_nonzero(mask))
    if values.size != 1 and values.shape != (count,):
        raise ValueError(
            f"NumPy boolean array indexing assignment cannot assign {values.size} input values to "
            f"the {count} output values where the mask is true"
        )
    single = values[...].reshape(-1) if values.size == 1 else None
    done = 0
    # One value may go there in the order of the medium; several go there in C order.
    order = "row" if single is None else array.layout
    for piece in walk(array.shape, 3 * array.itemsize + 2, order):
        chosen = np.asarray(part_of(mask, array.shape, piece))
        count = int(np.count_nonzero(chosen))
        if not count:
            continue
        part = values[done : done + count] if single is None else single
        done += count
        with array._turn():
            array._admit_writer()
            block = np.asarray(array[piece])
            block[chosen] = part
            array[piece] = block
