"""Carry every item of an array into another one, in memory that does not depend on their size.

On two levels. A *tile* (`_geometry.tiles`) is collected in memory in the order in which it is
written, and is written run by run. It is collected from *pieces*, which are read in the order in
which they lie, and are small enough to be turned around within the processor's caches. So every
item is read once and written once, and neither side sees runs that are shorter than they must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._geometry.layout import Layout, Order
from pmarray._geometry.tiles import Box, box_within, boxes, plan_tile, runs_of
from pmarray._streams.reading import read_pieces
from pmarray.errors import LayoutError

__all__ = ["ArraySource", "SlicedSource", "Source", "stream"]

AnyArray = NDArray[Any]

_PIECE_BYTES = 4 << 20
_SAME_LAYOUT_TILE_BYTES = 8 << 20
"""More would only put off the moment when the writer has something to do."""


class Source(Protocol):
    """Where items come from."""

    @property
    def layout(self) -> Order:
        """The order in which they are read fastest."""

    def expect(self, box: Box, /) -> None:
        """Take the hint that `box` is read next."""

    def read(self, box: Box, out: AnyArray, /) -> None:
        """Fill `out`, which has the shape of `box` and any strides."""

    def read_each(self, boxes: list[Box], nbytes: int, /) -> Iterator[AnyArray]:
        """Yield one box after another, in memory that is used again: `nbytes`, or one box."""


class ArraySource:
    """A `PMArray`; each run is read straight into memory that is contiguous likewise."""

    __slots__ = ("array",)

    def __init__(self, array: StoredArray) -> None:
        self.array = array

    @property
    def layout(self) -> Order:
        """The array's."""
        return self.array.layout

    def expect(self, box: Box, /) -> None:
        """Pass the hint on."""
        with self.array._turn():
            self.array._admit()
            storage = self.array._storage
            for part in runs_of(box, storage.layout):
                storage.expect(part)

    def read(self, box: Box, out: AnyArray, /) -> None:
        """Fill `out`."""
        array = self.array
        with array._turn():
            array._admit()
            if any(one.stop > n for one, n in zip(box, array.shape, strict=False)):
                raise LayoutError(f"{array!r} has shrunk while it was copied")
            for part in runs_of(box, array._layout):
                array._storage.read(part, out[_within(part, box)])

    def read_each(self, boxes: list[Box], nbytes: int, /) -> Iterator[AnyArray]:
        """Yield one box after another, and have those that follow read meanwhile."""
        if self.array.ndim:
            return read_pieces(self.array, boxes, nbytes)
        return (block.reshape(1) for block in read_pieces(self.array, [()], nbytes))


class SlicedSource:
    """Anything that gives an array for slices: `numpy.ndarray` and its kin."""

    __slots__ = ("array", "layout")

    def __init__(self, array: Any, layout: Order) -> None:
        self.array = array
        self.layout = layout

    def expect(self, box: Box, /) -> None:
        """Leave it to the array."""

    def read(self, box: Box, out: AnyArray, /) -> None:
        """Fill `out`."""
        out[...] = self.array[box]

    def read_each(self, boxes: list[Box], nbytes: int, /) -> Iterator[AnyArray]:
        """Yield one box after another."""
        memory = _Memory(self.array.dtype, self.layout)
        for box in boxes:
            tile = memory.take(_extents(box))
            self.read(box, tile)
            yield tile


def stream(source: Source, target: StoredArray, nbytes: int) -> Iterator[int]:
    """Write every item of `target`; yield the bytes of each step when it is done.

    Parameters
    ----------
    source
        Has the shape and the dtype of `target`.
    nbytes
        What may be held besides the caches: a tile and a piece of it.
    """
    written = target._layout
    read = Layout.plan(target.shape, target.itemsize, source.layout)
    turned = read.order != written.order and target.ndim > 1
    # A piece is a quarter of the memory at most, and a tile has the rest.
    tile_bytes = nbytes * 3 // 4 if turned else min(nbytes, _SAME_LAYOUT_TILE_BYTES)
    piece_bytes = min(nbytes // 4, _PIECE_BYTES)
    shape = plan_tile(read, written, tile_bytes)
    order = list(boxes(written.shape, shape, written))
    if not turned:
        for box, tile in zip(order, source.read_each(order, nbytes), strict=True):
            _write(target, box, tile)
            yield tile.nbytes
        return
    tile_memory = _Memory(target.dtype, written.order)
    piece_memory = _Memory(target.dtype, read.order)
    following = iter(order)
    next(following, None)
    for box in order:
        tile = tile_memory.take(_extents(box))
        for piece in _pieces(tile.shape, read, piece_bytes):
            buffer = piece_memory.take(_extents(piece))
            source.read(_moved(piece, box), buffer)
            tile[piece] = buffer
        if (coming := next(following, None)) is not None:
            # One request after another would leave the medium idle between short runs.
            source.expect(coming)
        _write(target, box, tile)
        yield tile.nbytes


def _pieces(shape: tuple[int, ...], read: Layout, nbytes: int) -> Iterator[Box]:
    layout = Layout.plan(shape, read.itemsize, read.order)
    return boxes(shape, box_within(shape, layout, max(1, nbytes // read.itemsize)), layout)


def _write(target: StoredArray, box: Box, tile: AnyArray) -> None:
    with target._turn():
        target._admit_writer()
        for part in runs_of(box, target._layout):
            target._storage.write(part, tile[_within(part, box)])


def _extents(box: Box) -> tuple[int, ...]:
    return tuple(one.stop - one.start for one in box)


def _within(part: Box, box: Box) -> Box:
    return tuple(
        slice(a.start - b.start, a.stop - b.start, 1) for a, b in zip(part, box, strict=True)
    )


def _moved(part: Box, box: Box) -> Box:
    return tuple(
        slice(a.start + b.start, a.stop + b.start, 1) for a, b in zip(part, box, strict=True)
    )


class _Memory:
    """Memory that one block after another is made in; the first block is the largest."""

    def __init__(self, dtype: np.dtype[Any], order: Order) -> None:
        self._dtype = dtype
        self._order: Literal["C", "F"] = "F" if order == "col" else "C"
        self._items = np.empty(0, dtype)

    def take(self, shape: tuple[int, ...]) -> AnyArray:
        count = int(np.prod(shape, dtype=np.int64))
        if self._items.size < count:
            self._items = np.empty(count, self._dtype)
        return self._items[:count].reshape(shape, order=self._order)
