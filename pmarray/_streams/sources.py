"""Arrays of NumPy, dask and other libraries, as sources of items that are stored."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pmarray._array.stored import StoredArray
from pmarray._dtypes import as_ndarray
from pmarray._geometry.layout import Order, parse_shape
from pmarray._streams.progress import Progress
from pmarray._streams.stream import ArraySource, SlicedSource, Source, stream
from pmarray.errors import LayoutError
from pmarray.locks import Lock

__all__ = ["as_source", "is_dask", "layout_of", "shape_of", "source_of", "store_dask", "write_from"]


def as_source(x: Any) -> Any:
    """Return `x`, or an `numpy.ndarray` of it, with a shape and a dtype, to be read by slices."""
    if isinstance(x, str | os.PathLike):
        raise TypeError(f"{x!r} is a path, and no array: pmarray.copy copies what is stored there")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("a masked array has a mask, which could not be stored: give x.filled(...)")
    if isinstance(x, StoredArray) or is_dask(type(x)):
        return x
    sliced = isinstance(getattr(x, "dtype", None), np.dtype) and hasattr(x, "__getitem__")
    if sliced and not isinstance(x, np.ndarray) and len(x.shape) > 0:
        return x
    return as_ndarray(x)  # a numpy.matrix too, whose slices have more axes than were asked for


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape, if it is known."""
    if any(n != n for n in x.shape):
        raise LayoutError(
            f"the shape {x.shape} is not known before it is computed: call "
            "x.compute_chunk_sizes() first"
        )
    return parse_shape(tuple(x.shape))


def layout_of(x: Any) -> Order:
    """The layout in which its items lie."""
    if isinstance(x, StoredArray):
        return x.layout
    if not isinstance(x, np.ndarray) or x.ndim < 2 or x.flags.c_contiguous:
        return "row"
    return "col" if abs(x.strides[0]) < abs(x.strides[-1]) else "row"


def source_of(x: Any) -> Source:
    """What `as_source` has returned, for `stream`."""
    if isinstance(x, StoredArray):
        return ArraySource(x)
    return SlicedSource(x if x.shape else x.reshape(1), layout_of(x))


def write_from(x: Any, target: StoredArray, nbytes: int) -> None:
    """Write the items of what `as_source` has returned, holding `nbytes` at once."""
    if is_dask(type(x)):
        store_dask(x, target, lambda done, total: None)
        return
    for _ in stream(source_of(x), target, nbytes):
        pass


def store_dask(x: Any, target: StoredArray, report: Progress) -> None:
    """Compute each chunk once, and store it."""
    import dask.array

    report(0, target.nbytes)
    # By dask itself: block by block from here, what blocks share would be computed again for each.
    store: Any = dask.array.store
    store(x, _Counted(target, report), lock=False, scheduler="threads")


class _Counted:
    """A place for dask to store to, which reports what has arrived."""

    def __init__(self, target: StoredArray, report: Progress) -> None:
        self._target = target
        self._report = report
        self._lock = Lock()
        self._done = 0

    def __setitem__(self, index: Any, values: Any) -> None:
        self._target[index] = values
        with self._lock:
            self._done += values.nbytes
            self._report(self._done, self._target.nbytes)


def is_dask(kind: type) -> bool:
    """Whether it is a class of dask's arrays; asked so that dask is not imported for others."""
    return any(base.__module__.startswith("dask.array") for base in kind.__mro__)
