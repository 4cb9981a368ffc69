"""What `PMArray` does with an index that it reads: an item, a mask, a field, or a selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._array.views import selection_view
from pmarray._numpy.assignment import copy_items
from pmarray._numpy.fields import names_fields, read_fields
from pmarray._numpy.masks import is_large_mask, read_masked
from pmarray._selection.fancy import FancySelection, parse
from pmarray.errors import LayoutError

__all__ = ["begin_read", "read_into"]


def begin_read(a: StoredArray, index: Any) -> tuple[Any, Callable[[], Any] | None]:
    """Read ``a[index]`` with the lock; or return what reads it without; see `_begin_read`."""
    if type(index) is tuple and len(index) == len(a._array.shape):
        item = a._item(index)
        if item is not None:
            a._come_near()
            return item, None
    elif is_large_mask(index, a):
        return read_masked(a, index), None
    elif names_fields(index, a):
        return read_fields(a, index), None
    return a._begin_read(index)


def read_into(a: StoredArray, index: Any, out: NDArray[Any]) -> None:
    """`PMArray.read`."""
    with a._turn():
        a._admit()
        selection = parse(index, a.shape)
        if out.shape != selection.shape:
            raise LayoutError(f"out has shape {out.shape}, the selection {selection.shape}")
        if 0 in out.shape:
            return
        if isinstance(selection, FancySelection):
            a._gather_into(selection, out)
        elif out.dtype == a.dtype and a.ndim:
            a._storage.read(selection.axes, out[selection.to_block])
        else:
            copy_items(out, selection_view(a, selection))
