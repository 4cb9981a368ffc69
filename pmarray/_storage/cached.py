"""Items that are reached by system calls, through the group's chunk cache."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.buffers import expect_long
from pmarray._cache.cache import ChunkCache
from pmarray._cache.lull import Lull
from pmarray._cache.source import CachedChunk, Pin, Write
from pmarray._dtypes import DType
from pmarray._formats.metadata import GroupMetadata
from pmarray._formats.records import Image
from pmarray._geometry.layout import Extent, Layout
from pmarray._selection.fancy import FancySelection
from pmarray._storage.arriving import Arrival
from pmarray._storage.items import Axes, Loan, Shown, nothing
from pmarray._storage.near import Near
from pmarray._system.uninterrupted import caller
from pmarray.errors import BudgetError, SelectionError

__all__ = ["CachedItems"]

AnyArray = NDArray[Any]


class CachedItems(ABC):
    """Reading, writing and lending items by way of chunks in the cache.

    What chunks are, and how they reach their medium, is for the subclass to say: it is the
    `ChunkSource` of the cache.
    """

    layout: Layout
    chunk_shape: tuple[int, ...]
    near: Near | None = None
    run_nbytes = 1
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
    def before_images(
        self,
        writes: Iterable[Write],
        committed: GroupMetadata,
        memory: Callable[[int], memoryview],
        /,
    ) -> Iterator[Image]: ...

    # -- the array's side -----------------------------------------------------------------------

    def come_near(self, lull: Lull, /) -> None:
        return

    def expect(self, axes: Axes, /) -> None:
        return  # chunk stores fetch ahead by themselves

    def cached(self) -> list[tuple[tuple[int, ...], int, int]]:
        return self._cache.cached(self)

    def share(self, view: AnyArray, /) -> None:
        return None

    def _read_directly(self, extent: Extent, target: AnyArray) -> bool:
        """Read items of which nothing is cached without caching them; False if that is no gain."""
        return False

    def _in_reading_order(self, axes: Axes) -> Iterator[Extent]:
        """Yield the extents of a read; the caller comes back when it has read one."""
        return self._extents(axes)

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        for extent in self._in_reading_order(axes):
            target = out[extent.block]
            self._cache.until(partial(self._read_extent, extent, target))
        self._cache.end_operation()

    def _read_extent(self, extent: Extent, target: AnyArray) -> None:
        if not self._has_some_of(extent) and self._read_directly(extent, target):
            return
        chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
        if not chunk.valid.covers(extent.spans[0][0], extent.spans[-1][1]):
            for span in extent.spans:
                self._cache.load(chunk, *span)
        target[...] = self._items(chunk)[extent.within]

    def held(self, axes: Axes, order: Literal["F", "C"], /) -> AnyArray | None:
        return None

    def deferred(self, axes: Axes, /) -> Callable[[AnyArray], bool] | None:
        return None

    def arriving(self, axes: Axes, /) -> Arrival | None:
        return None

    def shown(self, axes: Axes, /) -> Shown | None:
        return None

    def _set_aside(self, chunk: CachedChunk, extent: Extent) -> None:
        """Keep the old bytes of what is written next, where the journal wants them."""
        return

    def _has_some_of(self, extent: Extent) -> bool:
        """Whether any of these bytes is cached; called under the cache's lock."""
        chunk = self._cache.peek(self, extent.chunk)
        return chunk is not None and any(chunk.valid.intersects(*span) for span in extent.spans)

    def gather(self, selection: FancySelection, out: AnyArray, /) -> bool:
        return False

    def unchanged_stamp(self) -> tuple[int, ...] | None:
        return None

    @property
    def memory(self) -> None:
        return None

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        self._unsynced = True
        for extent in self._extents(axes):
            # Cast before anything is touched: from the first byte on nothing may fail.
            part = values[extent.block].astype(self._dtype, copy=False)
            self._cache.until(partial(self._write_extent, extent, part))
        self._cache.end_operation()

    def _write_extent(self, extent: Extent, values: AnyArray) -> None:
        cache = self._cache
        chunk = cache.acquire(self, extent.chunk, self._chunk_nbytes)
        # All at once: while one span waits, an ending loan could send another.
        cache.take_out_of_flight(chunk, extent.spans[0][0], extent.spans[-1][1])
        for start, stop in extent.spans:
            cache.prepare_write(chunk, start, stop, exact=extent.exact)
        self._set_aside(chunk, extent)
        expect_long(chunk.buffer, extent.spans[0][1] - extent.spans[0][0])
        cache.write(chunk, extent.spans, self._items(chunk)[extent.within], values)

    def lend(self, axes: Axes, /) -> Loan:
        extent = self._one_extent(axes)
        if extent is None:
            return self._empty(axes)
        pin = Pin(caller())
        torn = weakref.ref(pin)
        try:
            return self._lend(extent, pin)
        except BaseException:
            # No call of ours: a second exception could come at its beginning.
            self._cache.lost.append(torn)
            self._cache.forget_lost()
            raise

    def _lend(self, extent: Extent, pin: Pin) -> Loan:
        start, stop = extent.spans[0]

        def attempt() -> CachedChunk:
            is_new = self._cache.peek(self, extent.chunk) is None
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            if is_new and stop - start == self._chunk_nbytes:
                self._cache.memory.make_another_ready(chunk)  # who fills one fills the next
            self._cache.await_medium(chunk, start, stop)
            self._cache.prepare_write(chunk, start, stop, exact=True)
            self._set_aside(chunk, extent)
            expect_long(chunk.buffer, stop - start)
            self._cache.lend(chunk, start, stop, pin)
            return chunk

        chunk = self._cache.until(attempt)

        def end() -> None:
            self._cache.await_landing(chunk, start, stop)
            # A flush may have come since the loan began: the next one has work again.
            self._unsynced = True
            self._cache.mark_written(chunk, start, stop)
            self._cache.unpin(chunk, pin)

        def end_failed() -> None:
            self._cache.revert(chunk, start, stop)
            self._cache.unpin(chunk, pin)

        # Not checked: also when something else could not be written, these bytes are not lost.
        return Loan(
            self._items(chunk)[extent.within],
            lambda: self._cache.until(end, check=False),
            lambda: self._cache.until(end_failed, check=False),
        )

    def shows(self, values: AnyArray, /) -> bool:
        """Whether an array in memory may show items of this storage."""
        return False

    def retire(self) -> None:
        # What is written later could land on the next array of this name.
        self._cache.discard(self)

    def pin(self, axes: Axes, /) -> Loan:
        extent = self._one_extent(axes)
        if extent is None:
            return self._empty(axes)
        pin = Pin(caller())
        torn = weakref.ref(pin)
        try:
            return self._pin(extent, pin)
        except BaseException:
            # No call of ours: a second exception could come at its beginning.
            self._cache.lost.append(torn)
            self._cache.forget_lost()
            raise

    def _pin(self, extent: Extent, pin: Pin) -> Loan:
        def attempt() -> CachedChunk:
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            self._cache.load(chunk, *extent.spans[0])
            self._cache.pin(chunk, pin)
            return chunk

        chunk = self._cache.until(attempt)
        block = self._items(chunk)[extent.within]
        block.flags.writeable = False

        def end() -> None:
            self._cache.unpin(chunk, pin)

        def end_locked() -> None:
            self._cache.until(end, check=False)

        return Loan(block, end_locked, end_locked)

    def _one_extent(self, axes: Axes) -> Extent | None:
        """Return where a selection lies that is contiguous in one chunk; None if it is empty."""
        extents = list(self._extents(axes))
        if self._cache.write_through or len(extents) > 1:
            need = self._cache.memory.budget_for(self.layout.line_stride)
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
