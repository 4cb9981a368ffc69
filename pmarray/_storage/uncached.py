"""Chunks that lie in local files and are not compressed, read past the cache.

Where an array is larger than the cache, what is fetched into it is gone before it is wanted again.
Those files stay in the system's cache, as far as there is room. So

- whole chunks are read straight into the caller's memory,
- and of many chunks of which few bytes are wanted, as for a row of columns, just those: the cache
  would make room for each chunk whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._geometry.grid import ChunkGrid
from pmarray._geometry.layout import Extent
from pmarray._storage.items import Axes
from pmarray._storage.storereads import StoreReads
from pmarray._system.chunkthreads import on_threads

__all__ = ["ArrivingChunks", "Scattered", "WholeChunks", "are_whole", "uncached"]

AnyArray = NDArray[Any]

_FEWEST = 4
"""Of fewer chunks, the cache keeps what is around the items for who comes again."""
_MOST_BYTES = 64 << 10
_SHARE = 8
"""Who wants more of a chunk than one of so many parts may want the rest, too."""
_FEW = 64
"""Chunks that a thread reads at a time: small parts are mostly Python's work, and threads that take
turns with the interpreter do it no sooner."""


class _Window(NamedTuple):
    """The items that are wanted of a chunk, and where the bytes around them are in it."""

    extent: Extent
    start: int
    stop: int


class Scattered:
    """A selection that is read by small parts of many chunks.

    Parameters
    ----------
    windows
        The parts.
    grid
        Of the chunks.
    dtype
        Of the items.
    reads
        Reads them.
    """

    def __init__(
        self, windows: list[_Window], grid: ChunkGrid, dtype: DType, reads: StoreReads
    ) -> None:
        self._windows = windows
        self._strides = grid.chunk.strides
        self._dtype = dtype
        self._reads = reads

    @property
    def first(self) -> tuple[tuple[int, ...], int] | None:
        """Where the first of the items is, about, if they are of few chunks."""
        if len(self._windows) >= _FEWEST:
            return None
        window = self._windows[0]
        return window.extent.chunk, window.start // _MOST_BYTES

    def read(self, out: AnyArray) -> bool:
        """Fill a block with the items of the selection; takes no lock."""
        parts = [self._windows[i : i + _FEW] for i in range(0, len(self._windows), _FEW)]
        left = [part for part in parts if not self._fetch(part, out, at_hand=True)]
        on_threads(partial(self._fetch, part, out, at_hand=False) for part in left)
        return True

    def _fetch(self, windows: list[_Window], out: AnyArray, *, at_hand: bool) -> bool:
        # Made here: of many chunks, only some are in memory at a time.
        buffers = [np.empty(one.stop - one.start, np.uint8) for one in windows]
        wanted = (
            (one.extent.chunk, one.start, data) for one, data in zip(windows, buffers, strict=True)
        )
        if at_hand:
            if not self._reads.read_windows_at_hand(wanted):
                return False
        else:
            self._reads.read_windows(wanted)
        for (extent, start, _), data in zip(windows, buffers, strict=True):
            place = zip(extent.within, self._strides, strict=True)
            first = sum(one.start * step for one, step in place)
            out[extent.block] = np.ndarray(
                [len(range(one.start, one.stop, one.step)) for one in extent.within],
                self._dtype,
                data,
                first - start,
                [o.step * step for o, step in zip(extent.within, self._strides, strict=True)],
            )
        return True


class WholeChunks:
    """A selection of whole chunks, as far as the array goes.

    Parameters
    ----------
    extents
        Where they go.
    grid
        Of the chunks.
    reads
        Reads them.
    """

    def __init__(self, extents: list[Extent], grid: ChunkGrid, reads: StoreReads) -> None:
        self._extents = extents
        self._grid = grid
        self._reads = reads

    first = None
    """There are no few items of theirs that would be kept."""

    def read(self, out: AnyArray) -> bool:
        """Fill a block with the items of the selection; takes no lock."""
        if len(self._extents) > 1 or not self._fetch_at_hand(self._extents[0], out):
            on_threads(
                partial(_fetch, self._reads, self._grid, one, out[one.block])
                for one in self._extents
            )
        return True

    def _fetch_at_hand(self, extent: Extent, out: AnyArray) -> bool:
        in_columns = self._grid.layout.order == "col"
        in_order = out.flags.f_contiguous if in_columns else out.flags.c_contiguous
        if out.shape != self._grid.chunk_shape or not in_order:
            return False
        data = out.reshape(-1, order="A").view(np.uint8)
        return self._reads.read_windows_at_hand([(extent.chunk, 0, data)])


def _fetch(reads: StoreReads, grid: ChunkGrid, extent: Extent, out: AnyArray) -> None:
    """Fill a block with a chunk, as far as the array goes."""
    if out.shape == grid.chunk_shape:
        reads.read_into(extent.chunk, out)
    else:
        whole = reads.fresh()
        reads.read_into(extent.chunk, whole)
        out[...] = whole[extent.within]


class ArrivingChunks(NamedTuple):
    """An `Arrival` of whole chunks, as far as the array goes; see `_storage.arriving`."""

    axes: Axes
    """The selection."""
    grid: ChunkGrid
    dtype: DType
    reads: StoreReads
    is_right: Callable[[], bool]
    look: Callable[[AnyArray], AnyArray] = lambda block: block

    @property
    def in_place(self) -> None:
        return None  # files are many, and each would be a mapping of its own

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(len(range(one.start, one.stop, one.step)) for one in self.axes)

    @property
    def nbytes(self) -> int:
        return math.prod(self._shape) * self.dtype.itemsize

    def calls(self, buffer: memoryview, *, direct: bool) -> Iterator[Callable[[], None]]:
        out = self._items(buffer)
        for extent in self.grid.extents(self.axes):
            yield partial(_fetch, self.reads, self.grid, extent, out[extent.block])

    def is_at_hand(self) -> bool:
        return False  # to copy them takes threads as well

    def block(self, buffer: memoryview) -> AnyArray:
        return self.look(self._items(buffer))

    def _items(self, buffer: memoryview) -> AnyArray:
        order: Literal["F", "C"] = "F" if self.grid.layout.order == "col" else "C"
        return np.ndarray(self._shape, self.dtype, buffer, order=order)

    def seen_by(self, look: Callable[[AnyArray], AnyArray]) -> ArrivingChunks:
        before = self.look
        return self._replace(look=lambda block: look(before(block)))


def are_whole(axes: Axes, grid: ChunkGrid) -> bool:
    """Whether a selection is of whole chunks, as far as the array goes."""
    return all(
        one.step == 1 and one.start % size == 0 and (one.stop % size == 0 or one.stop == n)
        for one, size, n in zip(axes, grid.chunk_shape, grid.layout.shape, strict=True)
    )


def uncached(
    extents: Iterable[Extent], grid: ChunkGrid, dtype: DType, reads: StoreReads
) -> Scattered | WholeChunks | None:
    """Return what reads a selection past the cache; None if it is none for that."""
    most = min(_MOST_BYTES, grid.chunk_nbytes // _SHARE)
    windows, whole = [], []
    for extent in extents:
        start, stop = extent.spans[0][0], extent.spans[-1][1]
        if stop - start <= most:
            windows.append(_Window(extent, start, stop))
        elif _count(extent.within) == _count(grid.clip(extent.chunk)):
            whole.append(extent)
        else:
            return None
        if windows and whole:
            return None
    return WholeChunks(whole, grid, reads) if whole else Scattered(windows, grid, dtype, reads)


def _count(axes: tuple[slice, ...]) -> int:
    return math.prod(len(range(one.start, one.stop, one.step)) for one in axes)
