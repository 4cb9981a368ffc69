"""Items in a chunk store: whole chunks are decoded into the cache and encoded from it.

A chunk is read, decoded, encoded and written by the store's library, several at a time on threads
of our own, since a store far away answers slowly and a codec takes a core. Writes collect in the
cache until a chunk is full, or has to leave: so a chunk is encoded once, not once a write. What
was not written of it is then read from the store.

Chunks that an array has lost by shrinking are *doomed*: they count as absent at once, and are
deleted from the store with the commit, or at the flush, that makes the new shape durable.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.cache import ChunkCache
from pmarray._cache.source import CachedChunk, CommittedStorage, Write
from pmarray._commits.snapshot import Snapshot
from pmarray._dtypes import DType
from pmarray._formats.metadata import GroupMetadata
from pmarray._formats.records import Image
from pmarray._geometry.grid import ChunkGrid
from pmarray._geometry.layout import Extent, Layout
from pmarray._storage.arriving import Arrival
from pmarray._storage.cached import CachedItems
from pmarray._storage.dead import DeadBytes
from pmarray._storage.fetching import Fetches
from pmarray._storage.items import Axes, Loan, as_array, nothing
from pmarray._storage.storereads import STORE_ID, StoreReads, bytes_of
from pmarray._storage.uncached import ArrivingChunks, are_whole, uncached
from pmarray._system.chunkthreads import THREADS, on_a_thread, on_threads, start
from pmarray.backends._protocols import ChunkBackend, Chunks
from pmarray.errors import BudgetError

__all__ = ["STORE_ID", "ChunkStorage"]

AnyArray = NDArray[Any]
Chunk = tuple[int, ...]
Spans = Sequence[tuple[int, int]]

_EVERYTHING = 1 << 62
_LOOKED_AT = 64
_FETCHED_UNLOCKED = 2
"""How many chunks of a selection a reader waits for while others go on."""


class ChunkStorage(CachedItems):
    """The items of one array in a chunk store, through the group's chunk cache.

    Parameters
    ----------
    chunks
        Its chunks in the store.
    layout
        Of the array, without padding.
    dtype
        Of the items.
    fill
        One item, as new items are.
    cache
        Of the group.
    backend
        Of the group.
    new
        Whether no commit has any of it yet.
    snapshot, file_id
        Through which a handle reads that does not hold the lock, and the array's number there.
    """

    holds_fill = True
    block_bytes = 1

    def __init__(
        self,
        chunks: Chunks,
        layout: Layout,
        dtype: DType,
        fill: bytes,
        cache: ChunkCache,
        backend: ChunkBackend,
        *,
        new: bool,
        snapshot: Snapshot | None,
        file_id: int,
    ) -> None:
        self._chunks = chunks
        self._dtype = dtype
        self._fill = np.frombuffer(fill, dtype)[0]
        self._cache = cache
        self._backend = backend
        self.chunk_shape = chunks.shape or (1,)
        self._adopt(layout)
        self._chunk_nbytes = self._grid.chunk_nbytes
        self._committed_grid = None if new else self._grid
        """As of the last durable commit; the writer thread's to know."""
        self._unsynced = new
        self.dead = DeadBytes()
        self._doomed: set[Chunk] = set()
        self._doomed_before: set[Chunk] = set()
        self._reads = StoreReads(
            chunks,
            self._fill,
            self._chunk_nbytes,
            self._fresh,
            snapshot,
            file_id,
            lambda chunk: chunk in self._doomed,
        )
        self._events = 0
        """How often something was done that may change what the array holds."""
        self._marks = 0
        self._sealed: dict[int, tuple[ChunkGrid, set[Chunk]]] = {}
        """By the mark that `seal` returned: shape and doomed chunks of a transaction."""
        self._fetches = Fetches(self, cache, self._reads, self._chunk_nbytes, self._as_chunk)
        self._looked_at: deque[tuple[Chunk, int]] = deque(maxlen=_LOOKED_AT)
        """Where few items were read past the cache, lately."""
        self._next_line = -1
        """The place along the slow axis that a reader in order would go to now."""
        self._protect()

    def _adopt(self, layout: Layout) -> None:
        self.layout = layout
        fast = layout.slow_to_fast[-1]
        self.run_nbytes = self.chunk_shape[fast] * layout.itemsize
        self._grid = ChunkGrid(layout, self.chunk_shape)
        self._all_nbytes = math.prod(self._grid.shape) * self._grid.chunk_nbytes

    def _protect(self) -> None:
        """What lies beyond the last line of today may leave while a transaction is open."""
        self.protected_nbytes = (
            self._committed_grid.shape[self.layout.slow_axis] * self._line_of_chunks_nbytes
            if self._committed_grid is not None
            else 0
        )

    @property
    def _line_of_chunks_nbytes(self) -> int:
        slow = self.layout.slow_axis
        first = tuple(int(axis == slow) for axis in range(len(self.chunk_shape)))
        return self._grid.number(first) * self._chunk_nbytes

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk in memory."""
        return self._chunk_nbytes

    # -- the cache's side -----------------------------------------------------------------------

    def address(self, chunk: Chunk, /) -> int:
        return self._grid.number(chunk) * self._chunk_nbytes

    def load(self, chunk: Chunk, start: int, out: memoryview, /) -> None:
        whole = self._whole(chunk, start)
        np.frombuffer(out, np.uint8)[:] = bytes_of(whole)[start : start + out.nbytes]

    def _whole(self, chunk: Chunk, start: int) -> AnyArray:
        """Return a chunk as the store has it, of which bytes from `start` on are wanted.

        In memory of its own: the thread that fills it goes on when its caller is torn away.
        """
        whole = self._fresh()
        if start < self._grid.used_nbytes(chunk):
            on_a_thread(lambda: self._reads.read_into(chunk, whole))
        else:
            whole[...] = self._fill
        return whole

    def prepare(self, chunk: Chunk, out: memoryview, /) -> None:
        if self._grid.used_nbytes(chunk) < self._chunk_nbytes:
            self._as_chunk(out)[...] = self._fill  # what is beyond the edge may reach the store

    def complete(self, chunk: CachedChunk, /) -> None:
        gaps = list(chunk.valid.gaps(0, self._chunk_nbytes))
        if gaps:
            data = bytes_of(self._whole(chunk.index, gaps[0][0]))
            for start, stop in gaps:
                chunk.buffer[start:stop] = data[start:stop].data
            chunk.valid.add(0, self._chunk_nbytes)
        chunk.dirty.add(0, self._chunk_nbytes)

    def store(self, writes: list[Write], /) -> None:
        if len(writes) == 1:
            self._store_one(writes[0])
            return
        on_threads([partial(self._store_one, write) for write in writes])

    def _store_one(self, write: Write) -> None:
        chunk = write.chunk.index
        self._chunks.write(chunk, self._as_chunk(write.data))
        self._doomed.discard(chunk)

    def before_images(
        self,
        writes: Iterable[Write],
        committed: GroupMetadata,
        memory: Callable[[int], memoryview],
        /,
    ) -> Iterator[Image]:
        yield from self._images(write.chunk.index for write in writes)

    def _images(self, chunks: Iterable[Chunk]) -> Iterator[Image]:
        committed = self._committed_grid
        if committed is None:
            return
        kept = [self._chunks.before_image(chunk) for chunk in chunks if committed.holds(chunk)]
        images = [image for image in kept if image is not None]
        if images:
            self._backend.images_kept()
        for offset, data in images:
            yield Image(STORE_ID, offset, memoryview(data))

    def images_of_deletes(self, mark: int, /) -> Iterator[Image]:
        for sealed in self._sealed_up_to(mark):
            yield from self._images(self._sealed[sealed][1])

    def barrier(self, mark: int, /) -> None:
        for sealed in self._sealed_up_to(mark):
            self._delete(self._sealed[sealed][1] & self._doomed)
        self._backend.barrier()

    def committed(self, mark: int, /) -> None:
        for sealed in self._sealed_up_to(mark):
            self._committed_grid, _ = self._sealed.pop(sealed)

    def _sealed_up_to(self, mark: int) -> list[int]:
        """Return what a commit covers; meanwhile the caller's thread may seal the next one."""
        return [sealed for sealed in list(self._sealed) if sealed <= mark]

    def _delete(self, chunks: set[Chunk]) -> None:
        on_threads([partial(self._chunks.delete, chunk) for chunk in chunks])
        self._doomed.difference_update(chunks)

    # -- the array's side -----------------------------------------------------------------------

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        extents = list(self._extents(axes))
        window = self._window()
        self._fetches.forget_failures()
        try:
            for i, extent in enumerate(extents):
                for other in extents[i + window - 1 if i else 0 : i + window]:
                    self._fetches.begin(other.chunk, other.spans, needed=True)
                self._fetches.land(extent.chunk)
                target = out[extent.block]
                self._cache.until(partial(self._read_extent, extent, target))
        except BaseException:
            self._fetches.land_all()
            raise
        self._cache.end_operation()
        if extents and window > 1:
            self._read_ahead([extent.chunk for extent in extents])

    def deferred(self, axes: Axes, /) -> Callable[[AnyArray], bool] | None:
        """Return what waits for chunks without the group's lock, of which others then have need.

        They are in the cache afterwards, where they are read with the lock; or they go past it.
        """
        past_cache = self._past_cache(axes)
        if past_cache is not None:
            return past_cache
        if self._window() < _FETCHED_UNLOCKED:
            return None
        self._fetches.forget_failures()
        tasks = []
        for extent in islice(self._extents(axes), _FETCHED_UNLOCKED):
            task = self._fetches.begin(extent.chunk, extent.spans, needed=True)
            if task is not None:
                tasks.append(task)
        if not tasks:
            return None

        def wait(_: AnyArray) -> bool:
            for task in tasks:
                start(task)  # where it has never been handed over
                task.wait()
            return False

        return wait

    def arriving(self, axes: Axes, /) -> Arrival | None:
        """Plan to read whole chunks past the cache, which has none; as `RegionStorage.arriving`."""
        if not (are_whole(axes, self._grid) and self._may_pass_cache()):
            return None
        for chunk, _, _ in self._cache.cached(self):
            if self._grid.meets(chunk, axes):
                return None
        events = self._events
        return ArrivingChunks(
            axes, self._grid, self._dtype, self._reads, lambda: self._events == events
        )

    def item(self, position: tuple[int, ...], offset: int, /) -> Any:
        if self._dtype.kind == "V" or not position:
            return None
        index, start = [], 0
        for i, n, stride in zip(position, self.chunk_shape, self._grid.chunk.strides, strict=True):
            index.append(i // n)
            start += i % n * stride
        with self._cache.lock:
            self._cache.check()
            chunk = self._cache.peek(self, tuple(index))
            if chunk is not None:
                if not chunk.valid.covers(start, start + self._dtype.itemsize):
                    return None
                return np.ndarray((), self._dtype, chunk.buffer, start)[()]
        return self._item_at_hand(tuple(index), start) if self._may_pass_cache() else None

    def _item_at_hand(self, chunk: Chunk, start: int) -> Any:
        data = np.empty(self._dtype.itemsize, np.uint8)
        there = self._reads.read_windows_at_hand([(chunk, start, data)])
        return data.view(self._dtype)[0] if there else None

    def lend(self, axes: Axes, /) -> Loan:
        self._events += 1
        extents = list(self._extents(axes))
        if (
            len(extents) == 1
            and extents[0].spans == ((0, self._chunk_nbytes),)
            and not self._cache.write_through
        ):
            self._fetches.land_all()
            return super().lend(axes)
        block = self._scratch(axes)
        return Loan(block, lambda: self.write(axes, block), nothing)

    def pin(self, axes: Axes, /) -> Loan:
        block = self._scratch(axes)
        self.read(axes, block)
        block.flags.writeable = False
        return Loan(block, nothing, nothing)

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        self._events += 1
        self._fetches.land_all()
        super().write(axes, values)

    def set_shape(self, shape: tuple[int, ...], /) -> list[Axes] | None:
        self._events += 1
        self._cache.raise_failure()
        self._fetches.land_all()
        before = self._grid
        plain = Layout(shape, self.layout.itemsize, self.layout.order, 0)
        layout = Layout(shape, plain.itemsize, plain.order, plain.line_nbytes)
        grid = ChunkGrid(layout, self.chunk_shape)
        if any(new < old for new, old in zip(grid.shape, before.shape, strict=True)):
            self._cache.discard_chunks(self, lambda chunk: not grid.holds(chunk))
            self._doomed.update(before.outside(grid))
        if any(new > old for new, old in zip(shape, before.layout.shape, strict=True)):
            self._chunks.grow(shape)
        self._unsynced = True
        self._adopt(layout)
        if shape[: layout.slow_axis] != before.layout.shape[: layout.slow_axis] or (
            shape[layout.slow_axis + 1 :] != before.layout.shape[layout.slow_axis + 1 :]
        ):
            self.protected_nbytes = _EVERYTHING  # the numbers of the chunks have changed
        return before.uncovered(layout)

    def forget(self, axes: Axes, /) -> None:
        return  # a before-image is a link, and costs nothing

    def view(self) -> AnyArray | None:
        return None

    def make_durable(self, ndim: int, /) -> None:
        if self._doomed:
            self._delete(set(self._doomed))
        if self._unsynced:
            self._backend.barrier()
            self._unsynced = False
        self._committed_grid = self._grid
        self._protect()

    def begin(self) -> None:
        self._doomed_before = set(self._doomed)

    def seal(self) -> dict[CommittedStorage, int]:
        if not self._unsynced:
            return {}
        self._unsynced = False
        self._marks += 1
        self._sealed[self._marks] = self._grid, set(self._doomed)
        self.protected_nbytes = max(
            self.protected_nbytes,
            self._grid.shape[self.layout.slow_axis] * self._line_of_chunks_nbytes,
        )
        return {self: self._marks}

    def roll_back(self, layout: Layout, /) -> None:
        self._events += 1
        self._fetches.land_all()
        self._cache.discard(self)  # what was fetched ahead may be what is taken back now
        tried = self._grid
        self._adopt(layout)
        if self._backend.commits:
            self._doomed = self._doomed_before  # the store has taken everything back
            return
        # What the transaction has written beyond the old edge is in the store, or may be.
        beyond = {chunk for chunk in self._doomed if not self._grid.holds(chunk)}
        self._doomed = self._doomed_before | beyond | set(tried.outside(self._grid))

    def retire(self) -> None:
        self._fetches.land_all()
        super().retire()

    def trim(self) -> None:
        pass

    def discard(self) -> None:
        self.retire()
        self.close()

    def close(self) -> None:
        self._fetches.land_all()

    # -- reading the store ----------------------------------------------------------------------

    def _past_cache(self, axes: Axes) -> Callable[[AnyArray], bool] | None:
        """Return what reads a selection past the cache, if that is right and better."""
        if not self._may_pass_cache():
            return None
        slow, size = self.layout.slow_axis, self.chunk_shape[self.layout.slow_axis]
        lines = axes[slow]
        if lines.start // size == self._next_line:
            return None  # what comes next in order is fetched meanwhile
        found = uncached(self._extents(axes), self._grid, self._dtype, self._reads)
        if found is None or found.first in self._looked_at:
            return None  # who comes again may come often
        if found.first is not None:
            self._looked_at.append(found.first)
            return found.read
        self._next_line = (lines.stop - 1) // size + 1
        return found.read

    def _may_pass_cache(self) -> bool:
        """Whether the store has all that the array holds, near, and the cache has no room for it.

        Where all chunks find room in half of the cache, each is fetched once.
        """
        return (
            self._all_nbytes > self._cache.memory.budget_bytes // 2
            and self._reads.are_near
            and self._is_settled()
        )

    def _is_settled(self) -> bool:
        """Whether the store has all that the array holds."""
        with self._cache.lock:
            self._cache.check()
            return self._cache.quiet or not self._cache.unsettled(self)

    def _window(self) -> int:
        """How many chunks may be decoded at a time: they take a quarter of the cache."""
        if self._cache.write_through:
            return 1
        pages = -(-self._chunk_nbytes // mmap.PAGESIZE)  # buffers are whole ones
        return min(THREADS, self._cache.memory.max_chunk_bytes // 2 // (pages * mmap.PAGESIZE))

    def _read_ahead(self, chunks: list[Chunk]) -> None:
        """Fetch what comes next when a reader goes through the array in order."""
        slow = self.layout.slow_axis
        first, last = chunks[0], chunks[-1]
        if first[slow] == self._next_line and last[slow] > self._next_line - 1:
            after = (*last[:slow], last[slow] + 1, *last[slow + 1 :])
            if self._grid.holds(after):
                try:
                    self._fetches.begin(after, ((0, self._chunk_nbytes),), needed=False)
                except BudgetError:
                    pass  # all of the cache is on loan: whoever wants the chunk will say so
        self._next_line = last[slow] + 1

    # -- memory ---------------------------------------------------------------------------------

    def _extents(self, axes: Axes) -> Iterator[Extent]:
        return self._grid.extents(axes)

    def _items(self, chunk: CachedChunk) -> AnyArray:
        return self._as_chunk(chunk.buffer)

    def _as_chunk(self, buffer: memoryview) -> AnyArray:
        return as_array(buffer, self._grid.chunk, self._dtype, self.chunk_shape)

    def _fresh(self) -> AnyArray:
        return self._empty_block(self.chunk_shape)

    def _scratch(self, axes: Axes) -> AnyArray:
        return self._empty_block(tuple(len(range(a.start, a.stop, a.step)) for a in axes))

    def _empty_block(self, shape: tuple[int, ...]) -> AnyArray:
        return np.empty(shape, self._dtype, order="F" if self.layout.order == "col" else "C")
