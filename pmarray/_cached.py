"""Items in a region that is reached by system calls, through the group's chunk cache."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._cache import CachedChunk, ChunkCache
from pmarray._dtypes import DType
from pmarray._snapshot import Snapshot
from pmarray._storage import TARGET_CHUNK_BYTES, Axes, Loan, as_array, nothing
from pmarray._writer import Write
from pmarray.backends import Region
from pmarray.errors import BudgetError, SelectionError
from pmarray.layout import Extent, Layout

__all__ = ["CachedStorage"]

AnyArray = NDArray[Any]

# A run shorter than this is cheaper to copy out of a chunk than to fetch with its own system call.
_MIN_DIRECT_READ_BYTES = 16 << 10


class CachedStorage:
    """Items in a region that is reached by system calls, through the group's chunk cache."""

    def __init__(
        self,
        region: Region,
        layout: Layout,
        dtype: DType,
        cache: ChunkCache,
        chunk_shape: tuple[int, ...],
        *,
        file_id: int,
        new: bool,
        snapshot: Snapshot | None,
    ) -> None:
        self.region = region
        self.file_id = file_id
        self.layout = layout
        self.chunk_shape = chunk_shape
        self.committed_nbytes = self.protected_nbytes = 0 if new else layout.nbytes
        self.snapshot = snapshot
        """Through which a handle reads that does not hold the lock."""
        self._dtype = dtype
        self._cache = cache
        self._chunk_nbytes = layout.chunk_nbytes(chunk_shape)
        self._sequential_at = 0
        self._views: list[weakref.ref[Any]] = []
        """The mappings that `view` has handed out and somebody still has."""
        self._unsynced = new
        # A crash may have left an older header than the metadata have.
        self._stale_header = True
        # A new file holds zeros; an old one may hold, beyond its last line, what was cut off.
        self._used = layout.nbytes if new else region.capacity

    @staticmethod
    def is_aligned(layout: Layout, chunk_shape: tuple[int, ...]) -> bool:
        """Whether all chunks begin on a block of the medium, as direct I/O needs it."""
        return layout.is_aligned(chunk_shape)

    # -- the cache's side -----------------------------------------------------------------------

    @property
    def block_bytes(self) -> int:
        return self.region.block_bytes

    def address(self, chunk: tuple[int, ...], /) -> int:
        return self.layout.chunk_start(chunk, self.chunk_shape)

    def load(self, chunk: tuple[int, ...], start: int, out: memoryview, /) -> None:
        offset = self.address(chunk) + start
        # The last chunk may reach beyond what is reserved; nothing is stored there.
        there = max(0, min(out.nbytes, self.region.capacity - offset))
        if there:
            self._fetch(offset, out[:there])
        if there < out.nbytes:
            np.frombuffer(out, np.uint8)[there:] = 0

    def prepare(self, chunk: tuple[int, ...], out: memoryview, /) -> None:
        layout = self.layout
        stride, used = layout.line_stride, layout.line_nbytes
        if stride == used:
            return
        data = np.frombuffer(out, np.uint8)
        # Counted from the chunk's start, padding lies at [used, stride) of every line.
        start = self.address(chunk) % stride
        for line in range(0, start + out.nbytes, stride):
            data[max(0, line + used - start) : max(0, line + stride - start)] = 0

    def store(self, writes: list[Write], /) -> None:
        self.region.write(writes[0].address, [write.data for write in writes])

    def _fetch(self, offset: int, out: memoryview) -> None:
        if self.snapshot is None:
            self.region.read_into(offset, out)
        else:
            self.snapshot.read_into(self.file_id, self.region, offset, out)

    # -- the array's side -----------------------------------------------------------------------

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        with self._cache.operation():
            for extent in self.layout.extents(axes, self.chunk_shape):
                target = out[extent.block]
                chunk = self._cache.peek(self, extent.chunk)
                cached = chunk is not None and any(
                    chunk.valid.intersects(*span) for span in extent.spans
                )
                if not cached and self._read_directly(extent, target):
                    continue
                chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
                for span in extent.spans:
                    self._cache.load(chunk, *span)
                target[...] = self._items(chunk)[extent.within]

    def expect(self, axes: Axes, /) -> None:
        """Hint that items are wanted soon, so that the medium has many requests to work on."""
        for extent in self.layout.extents(axes, self.chunk_shape):
            first = self.layout.chunk_start(extent.chunk, self.chunk_shape)
            for start, stop in extent.spans:
                self.region.will_read(first + start, stop - start)

    def item(self, position: tuple[int, ...], offset: int, /) -> Any:
        if self._cache.write_through or self._dtype.kind == "V" or not position:
            return None
        with self._cache.lock:
            self._cache.check()
            index = tuple([i // n for i, n in zip(position, self.chunk_shape, strict=False)])
            chunk = self._cache.peek(self, index)
            if chunk is not None:
                start = offset - self.address(index)
                if chunk.valid.covers(start, start + self._dtype.itemsize):
                    return np.ndarray((), self._dtype, chunk.buffer, start)[()]
                if chunk.valid.intersects(start, start + self._dtype.itemsize):
                    return None
            data = bytearray(self._dtype.itemsize)
            self._fetch(offset, memoryview(data))
            return np.ndarray((), self._dtype, data)[()]

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        if any(view() is _owner(values) for view in self._views):
            values = values.copy()  # the file changes under it as soon as the first chunk leaves
        with self._cache.operation():
            self._unsynced = True
            for extent in self.layout.extents(axes, self.chunk_shape):
                chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
                chunk.pins += 1
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
                    chunk.pins -= 1
                for start, stop in extent.spans:
                    self._cache.mark_written(chunk, start, stop)

    def lend(self, axes: Axes, /) -> Loan:
        with self._cache.operation():
            extent = self._one_extent(axes)
            if extent is None:
                return self._empty(axes)
            start, stop = extent.spans[0]
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            chunk.pins += 1
            try:
                self._cache.prepare_write(chunk, start, stop, exact=True)
            except BaseException:
                chunk.pins -= 1
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
                    chunk.pins -= 1

        def failed() -> None:
            with self._cache.lock:
                self._cache.revert(chunk, start, stop)
                chunk.pins -= 1

        return Loan(self._items(chunk)[extent.within], done, failed)

    def pin(self, axes: Axes, /) -> Loan:
        with self._cache.operation():
            extent = self._one_extent(axes)
            if extent is None:
                return self._empty(axes)
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            self._cache.load(chunk, *extent.spans[0])
            chunk.pins += 1

        def done() -> None:
            with self._cache.lock:
                chunk.pins -= 1

        block = self._items(chunk)[extent.within]
        block.flags.writeable = False
        return Loan(block, done, done)

    def _one_extent(self, axes: Axes) -> Extent | None:
        """Return where a selection lies that is contiguous in one chunk; None if it is empty."""
        extents = list(self.layout.extents(axes, self.chunk_shape))
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

    def set_lines(self, lines: int, /) -> int:
        with self._cache.operation():
            layout = self.layout.with_lines(lines)
            if lines < self.layout.lines:
                self._cache.discard_from(self, layout.nbytes)
            else:
                self.region.reserve(layout.nbytes)
            self._unsynced = self._stale_header = True
            self.layout = layout
            used, self._used = self._used, max(self._used, layout.nbytes)
            return used

    def view(self) -> AnyArray | None:
        with self._cache.operation():
            if self._cache.transaction is not None or (self.snapshot and self.snapshot.images):
                return None  # the file does not hold, or not only, what the caller should see
            self._cache.flush(self)
            data = self.region.view(self.layout.nbytes)
            if data is None:
                return None
            self._views = [view for view in self._views if view() is not None]
            if data.nbytes:
                self._views.append(weakref.ref(_owner(data)))
            return as_array(data, self.layout, self._dtype, self.layout.shape)

    def make_durable(self, ndim: int, /) -> None:
        if self._stale_header:
            self.region.describe(self.layout, self._dtype, ndim)
        if self._stale_header or self._unsynced:
            self.region.barrier()
            self._stale_header = self._unsynced = False
        self.committed_nbytes = self.protected_nbytes = self.layout.nbytes

    def begin(self) -> None:
        pass

    def seal(self) -> int | None:
        if not self._unsynced:
            return None
        self._unsynced = False
        self.protected_nbytes = max(self.protected_nbytes, self.layout.nbytes)
        return self.layout.nbytes

    def roll_back(self, lines: int, /) -> None:
        self.layout = self.layout.with_lines(lines)

    def trim(self) -> None:
        self.region.trim(self.layout.nbytes)

    def discard(self) -> None:
        self._cache.discard(self)
        self.close()

    def close(self) -> None:
        self.region.close()

    def _items(self, chunk: CachedChunk) -> AnyArray:
        # A full chunk, also at the edge of the array: an edge that moves stays inside.
        return as_array(chunk.buffer, self.layout, self._dtype, self.chunk_shape)

    def _describe(self, axes: Axes) -> str:
        return f"[{', '.join(f'{s.start}:{s.stop}:{s.step}' for s in axes)}]"

    def _read_directly(self, extent: Extent, target: AnyArray) -> bool:
        """Read uncached items straight into the caller's memory, where the runs are long."""
        layout = self.layout
        if not extent.exact and len(extent.spans) == 1 and target.shape[layout.slow_axis] > 1:
            return False
        start = layout.chunk_start(extent.chunk, self.chunk_shape)
        runs = self._runs(extent, target)
        if runs is None:
            return False
        for offset, run in runs:
            self._read_ahead(start + offset, run.nbytes)
            self._fetch(start + offset, run.data)
        return True

    def _runs(self, extent: Extent, target: AnyArray) -> list[tuple[int, AnyArray]] | None:
        """Pair each contiguous run of the chunk with the contiguous memory it goes to."""
        layout = self.layout
        flag: Literal["F", "C"] = "F" if layout.order == "col" else "C"
        first = extent.spans[0][0]
        if not extent.exact:
            return None
        if len(layout.shape) == 1 or layout.line_stride == layout.line_nbytes:
            if len(extent.spans) == 1 and target.flags[flag] and target.nbytes:
                return [(first, _as_bytes(target))]
            if len(extent.spans) == 1:
                return None
        slow = layout.slow_axis
        lines = extent.within[slow]
        count = target.shape[slow]
        runs = []
        for i in range(count):
            run = target[(slice(None),) * slow + (i,)]
            if not run.flags[flag] or (count > 1 and run.nbytes < _MIN_DIRECT_READ_BYTES):
                return None
            offset = first + i * lines.step * layout.line_stride
            runs.append((offset, _as_bytes(run)))
        return runs

    def _read_ahead(self, offset: int, nbytes: int) -> None:
        """Ask for the next bytes when a reader goes through the array in order."""
        # The padding between two lines is not read, and no step out of order.
        padding = self.layout.line_stride - self.layout.line_nbytes
        if 0 <= offset - self._sequential_at <= padding:
            ahead = min(nbytes, TARGET_CHUNK_BYTES)
            if offset + nbytes < self.layout.nbytes:
                self.region.will_read(offset + nbytes, ahead)
        self._sequential_at = offset + nbytes


def _owner(array: AnyArray) -> Any:
    """The object that has the memory of an array."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


def _as_bytes(run: AnyArray) -> AnyArray:
    # reshape in memory order is a view because the run is contiguous; ml_dtypes arrays have no
    # buffer interface of their own, bytes do.
    return run.reshape(-1, order="A").view(np.uint8)
