"""One array written into another, or into other places of itself, piece by piece.

Where the source has items that the target overwrites before they are read, NumPy copies the source
first. Here the copy goes through an unnamed file beside the data, which the system removes whatever
happens, once forward and once back; nothing of the target has changed until it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pmarray._array.overlap import apart_from, is_stored, overlap
from pmarray._array.stored import StoredArray
from pmarray._array.views import selection_view, slice_view
from pmarray._config import config
from pmarray._numpy.ufuncs import Index, part_of, walk
from pmarray._selection.basic import Selection
from pmarray._selection.fancy import FancySelection
from pmarray._system import osops
from pmarray._system.files import read_fully, write_fully
from pmarray._url import URL
from pmarray.errors import StorageError

__all__ = ["assign", "copy_items"]

AnyArray = NDArray[Any]


def assign(target: StoredArray, selection: Selection | FancySelection, value: StoredArray) -> None:
    """``target[selection] = value``, with NumPy's result where they overlap.

    Raises
    ------
    ValueError
        `value` does not broadcast to the selection.
    BudgetError
        The index is of arrays, and `value` would not fit into memory.
    """
    room = config.work_memory // 2
    small = value.nbytes <= min(room, room if config.max_result is None else config.max_result)
    if small or isinstance(selection, FancySelection):
        config.check_result(value.nbytes, "assign parts of it, or at a slice")
        block = value[...]
        with target._turn():
            target._admit_writer()
            target._write(selection, block)
        return
    while value.ndim > len(selection.shape) and value.shape[0] == 1:
        value = slice_view(value, 0)
    if _broadcast(value.shape, selection.shape) != selection.shape:
        raise ValueError(
            f"could not broadcast values of shape {value.shape} into shape {selection.shape}"
        )
    copy_items(selection_view(target, selection), value)


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(one, other)
    except ValueError:
        return None


def copy_items(target: Any, source: Any, casting: Any = "unsafe", where: Any = True) -> None:
    """`numpy.copyto` of which either is a `PMArray`, in the order in which the target lies."""
    itemsizes = (target.dtype.itemsize, source.dtype.itemsize)
    lead = target if is_stored(target) else source

    def pieces() -> Iterator[Index]:
        return walk(target.shape, 3 * max(itemsizes), lead.layout)

    where = apart_from(where, [target], "where=")
    shared = overlap(target, source)
    if shared and not is_stored(source):
        source = source.copy()
    parts: Iterator[Any] = (part_of(source, target.shape, piece) for piece in pieces())
    if shared and is_stored(source):
        parts = _spooled(parts, pieces, source, target.shape)
    for piece, part in zip(pieces(), parts, strict=True):
        if where is True:
            target[piece] = part
        else:
            block = np.asarray(target[piece])
            np.copyto(block, part, casting, where=part_of(where, target.shape, piece))
            target[piece] = block


def _spooled(
    parts: Iterator[Any], pieces: Callable[[], Iterator[Index]], source: Any, shape: tuple[int, ...]
) -> Iterator[AnyArray]:
    """Write all parts out before the first is given back."""
    with _Spool(_directory_of(source)) as spool:
        for part in parts:
            spool.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        for piece in pieces():
            extents = [one.stop - one.start for one in piece]
            lead = len(shape) - source.ndim
            part = np.empty(
                [1 if n == 1 else m for n, m in zip(source.shape, extents[lead:], strict=True)],
                source.dtype,
            )
            spool.read_into(part.reshape(-1).view(np.uint8).data)
            yield part


class _Spool:
    """A file without a name, to which bytes are written and from which they are then read."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        try:
            self._fd = osops.open_nameless(directory)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a temporary file: {error.strerror}", directory
            ) from error
        self._written = self._read = 0

    def write(self, data: memoryview) -> None:
        write_fully(self._fd, [data], self._written, path=self._directory)
        self._written += data.nbytes

    def read_into(self, out: memoryview) -> None:
        read_fully(self._fd, out, self._read, path=self._directory)
        self._read += out.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        osops.close(self._fd)


def _directory_of(array: StoredArray) -> str:
    """Where the array has its room; if that is memory, the system's place for temporary files."""
    path = URL.parse(array._group.url).path
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        return os.path.dirname(os.path.abspath(path))
    return osops.temporary_directory()
