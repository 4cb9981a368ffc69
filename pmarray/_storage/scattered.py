"""A few bytes of each of many chunks, read past the cache.

Who wants a row of an array whose chunks are columns wants some bytes of every chunk. The cache
would make room for each chunk whole; and where the array is larger than the cache, none of them
would be there for the next row. So just the bytes are read that hold the items, where that is
cheap: of chunks that lie in local files and are not compressed. They stay in the system's cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._geometry.grid import ChunkGrid
from pmarray._geometry.layout import Extent
from pmarray._storage.storereads import StoreReads
from pmarray._system.chunkthreads import THREADS, on_threads

__all__ = ["Scattered", "scattered"]

AnyArray = NDArray[Any]

_FEWEST = 4
"""Of fewer chunks, the cache keeps what is around the items: who comes again finds it."""
_MOST_BYTES = 64 << 10
_SHARE = 8
"""Who wants more of a chunk than one of so many parts may want the rest, too."""
_FEW = 4
"""Chunks that one thread reads at least: to hand them over takes longer than to read one."""


class _Window(NamedTuple):
    """The items that are wanted of a chunk, and the bytes around them."""

    extent: Extent
    start: int
    """The place of the bytes in the chunk."""
    data: NDArray[np.uint8]


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

    def read(self, out: AnyArray) -> bool:
        """Fill a block with the items of the selection; takes no lock."""
        each = max(_FEW, -(-len(self._windows) // THREADS))
        on_threads(
            partial(self._fetch, self._windows[i : i + each])
            for i in range(0, len(self._windows), each)
        )
        for window in self._windows:
            within = window.extent.within
            first = sum(o.start * step for o, step in zip(within, self._strides, strict=True))
            out[window.extent.block] = np.ndarray(
                [len(range(one.start, one.stop, one.step)) for one in within],
                self._dtype,
                window.data,
                first - window.start,
                [one.step * step for one, step in zip(within, self._strides, strict=True)],
            )
        return True

    def _fetch(self, windows: list[_Window]) -> None:
        self._reads.read_windows([(one.extent.chunk, one.start, one.data) for one in windows])


def scattered(
    extents: Iterable[Extent], grid: ChunkGrid, dtype: DType, reads: StoreReads
) -> Scattered | None:
    """Return what reads a selection by small parts of many chunks; None if it has not those."""
    most = min(_MOST_BYTES, grid.chunk_nbytes // _SHARE)
    windows = []
    for extent in extents:
        start, stop = extent.spans[0][0], extent.spans[-1][1]
        if stop - start > most:
            return None
        windows.append(_Window(extent, start, np.empty(stop - start, np.uint8)))
    return Scattered(windows, grid, dtype, reads) if len(windows) >= _FEWEST else None
