"""Fields of records, ``a["name"]`` and ``a[["name", "other"]]``, read and written in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._numpy.ufuncs import is_stored, make_result, part_of, root, walk

__all__ = ["names_fields", "read_fields", "write_fields"]

AnyArray = NDArray[Any]


def names_fields(index: Any, array: StoredArray) -> bool:
    """Whether an index is the name of a field, or a list of names."""
    if array.dtype.names is None:
        return False
    return isinstance(index, str) or (
        type(index) is list and bool(index) and all(isinstance(name, str) for name in index)
    )


def read_fields(array: StoredArray, names: Any) -> AnyArray:
    """Return the items of fields.

    Read-only: in NumPy the result would be a view, and a store to this one would be lost.
    """
    shape, kind = _of_field(array, names)
    result = make_result(shape, kind, array.layout)
    for piece in _pieces(array):
        result[(*piece, ...)] = np.asarray(array[piece])[names]
    result.flags.writeable = False
    return result


def write_fields(array: StoredArray, names: Any, value: Any) -> None:
    """Change fields; the others keep their values."""
    shape, kind = _of_field(array, names)
    values: Any = value if is_stored(value) else np.asarray(value)
    if is_stored(values) and root(values) is root(array):
        config.check_result(values.nbytes, "the value is a part of the array itself: copy it")
        values = values[...]
    if np.broadcast_shapes(values.shape, shape) != shape:
        raise ValueError(
            f"could not broadcast values of shape {values.shape} into {names!r} of shape {shape}"
        )
    np.empty(1, kind)[...] = np.zeros(1, values.dtype)  # refused before anything is changed
    inner = tuple(slice(0, n) for n in shape[array.ndim :])
    with array._turn():
        array._admit_writer()
        for piece in _pieces(array):
            block = np.array(array[piece], copy=True)
            block[names] = part_of(values, shape, (*piece, *inner))
            array[piece] = block


def _of_field(array: StoredArray, names: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape, with that of the field itself, and dtype; NumPy's own errors for what is none."""
    probe = np.empty((1,) * array.ndim, array.dtype)[names]
    return array.shape + probe.shape[array.ndim :], probe.dtype


def _pieces(array: StoredArray) -> Any:
    return walk(array.shape, 3 * array.itemsize, array.layout)
