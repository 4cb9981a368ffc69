"""Items that are reached by system calls, through the group's chunk cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._cache import CachedChunk, ChunkCache
from pmarray._dtypes import DType
from pmarray._journal import Image
from pmarray._storage import Axes, Loan, nothing
from pmarray._writer import Write
from pmarray.errors import BudgetError, SelectionError
from pmarray.layout import Extent, Layout

__all__ = ["CachedItems"]

AnyArray = NDArray[Any]


class CachedItems(ABC):
    """Reading, writing and lending items by way of chunks in the cache.

    What chunks are, and how they reach their medium, is for the subclass to say: it is the
    `ChunkSource` of the cache.
    """

    layout: Layout
    chunk_shape: tuple[int, ...]
    _dtype: DType
    _cache: ChunkCache
    _chunk_nbytes: int
    """Bytes of a chunk in memory."""
    _unsynced: bool
    """Whether anything was written since the last `make_durable`."""

    @abstractmethod
    def _extents(self, axes: Axes) -> Iterator[Extent]:
        """Say where the selected items are, chunk by chunk."""

    @abstractmethod
    def _items(self, chunk: CachedChunk) -> AnyArray:
        """Return a chunk in memory as an array."""

    # -- the cache's side, see `ChunkSource` ----------------------------------------------------

    block_bytes: int
    protected_nbytes: int

    @abstractmethod
    def address(self, chunk: tuple[int, ...], /) -> int: ...

    @abstractmethod
    def load(self, chunk: tuple[int, ...], start: int, out: memoryview, /) -> None: ...

    @abstractmethod
    def prepare(self, chunk: tuple[int, ...], out: memoryview, /) -> None: ...

    @abstractmethod
    def complete(self, chunk: CachedChunk, /) -> None: ...

    @abstractmethod
    def store(self, writes: list[Write], /) -> None: ...

    @abstractmethod
    def before_images(self, writes: Iterable[Write], /) -> Iterator[Image]: ...

    # -- the array's side -----------------------------------------------------------------------

    def _read_directly(self, extent: Extent, target: AnyArray) -> bool:
        """Read items of which nothing is cached without caching them; False if that is no gain."""
        return False

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        with self._cache.operation():
            for extent in self._extents(axes):
                self._read_extent(extent, out[extent.block])

    def _read_extent(self, extent: Extent, target: AnyArray) -> None:
        chunk = self._cache.peek(self, extent.chunk)
        cached = chunk is not None and any(chunk.valid.intersects(*span) for span in extent.spans)
        if not cached and self._read_directly(extent, target):
            return
        chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
        for span in extent.spans:
            self._cache.load(chunk, *span)
        target[...] = self._items(chunk)[extent.within]

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        with self._cache.operation():
            self._unsynced = True
            for extent in self._extents(axes):
                chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
                release = self._cache.pin(chunk)
                try:
                    # All at once: while one span waits, an ending loan could send another.
                    self._cache.await_landing(chunk, extent.spans[0][0], extent.spans[-1][1])
                    for start, stop in extent.spans:
                        self._cache.prepare_write(chunk, start, stop, exact=extent.exact)
                    try:
                        self._items(chunk)[extent.within] = values[extent.block]
                    except BaseException:  # values that cannot be cast
                        for start, stop in extent.spans:
                            self._cache.revert(chunk, start, stop)
                        raise
                finally:
                    release()
                for start, stop in extent.spans:
                    self._cache.mark_written(chunk, start, stop)

    def lend(self, axes: Axes, /) -> Loan:
        with self._cache.operation():
            extent = self._one_extent(axes)
            if extent is None:
                return self._empty(axes)
            start, stop = extent.spans[0]
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            release = self._cache.pin(chunk)
            try:
                self._cache.prepare_write(chunk, start, stop, exact=True)
            except BaseException:
                release()
                raise
            # Lent bytes count as valid, so that nobody reads the medium into memory that the
            # borrower is filling: not a reader, and not the writer of another part of a block.
            chunk.valid.add(start, stop)

        def done() -> None:
            with self._cache.lock:
                try:
                    self._cache.await_landing(chunk, start, stop)
                finally:
                    # Also when something else could not be written: these bytes are not lost. And
                    # a flush may have come since the loan began: the next one has work again.
                    self._unsynced = True
                    self._cache.mark_written(chunk, start, stop)
                    release()

        def failed() -> None:
            with self._cache.lock:
                self._cache.revert(chunk, start, stop)
                release()

        return Loan(self._items(chunk)[extent.within], done, failed)

    def retire(self) -> None:
        # What is written later could land on the next array of this name.
        self._cache.discard(self)

    def pin(self, axes: Axes, /) -> Loan:
        with self._cache.operation():
            extent = self._one_extent(axes)
            if extent is None:
                return self._empty(axes)
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            self._cache.load(chunk, *extent.spans[0])
            release = self._cache.pin(chunk)

        block = self._items(chunk)[extent.within]
        block.flags.writeable = False
        return Loan(block, release, release)

    def _one_extent(self, axes: Axes) -> Extent | None:
        """Return where a selection lies that is contiguous in one chunk; None if it is empty."""
        extents = list(self._extents(axes))
        if self._cache.write_through or len(extents) > 1:
            need = 2 * self.layout.line_stride
            raise BudgetError(
                f"cannot lend {self._describe(axes)}: it is cached in {len(extents)} pieces of "
                f"{self.chunk_shape}; open the group with cache={need} or more, or use a[index]"
            )
        if extents and (len(extents[0].spans) > 1 or not extents[0].exact):
            raise SelectionError(
                f"cannot lend {self._describe(axes)}: it is not contiguous in "
                f"layout={self.layout.order!r}; use a[index]"
            )
        return extents[0] if extents else None

    def _empty(self, axes: Axes) -> Loan:
        shape = [len(range(s.start, s.stop, s.step)) for s in axes]
        return Loan(np.empty(shape, self._dtype), nothing, nothing)

    def _describe(self, axes: Axes) -> str:
        return f"[{', '.join(f'{s.start}:{s.stop}:{s.step}' for s in axes)}]"
