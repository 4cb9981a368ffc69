"""How one array's items are reached: through the chunk cache, or directly in memory.

Both storages take canonical selections and blocks (`_indexing.Selection`), so that the array
above does not know which it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pmarray._cache import CachedChunk, ChunkCache
from pmarray._dtypes import DType
from pmarray._sizes import format_bytes
from pmarray._snapshot import Snapshot
from pmarray._writer import Write
from pmarray.backends import Region
from pmarray.errors import BudgetError, SelectionError
from pmarray.layout import BLOCK_BYTES, Extent, Layout

__all__ = ["CachedStorage", "Loan", "MappedStorage", "Storage", "plan_chunks"]

AnyArray = NDArray[Any]
Axes = tuple[slice, ...]

TARGET_CHUNK_BYTES = 4 << 20
"""Chunks of small lines collect about this much; one large line is a chunk of its own."""
# A run shorter than this is cheaper to copy out of a chunk than to fetch with its own system call.
_MIN_DIRECT_READ_BYTES = 16 << 10


@dataclass(slots=True)
class Loan:
    """A writable block that belongs to the storage, until `done` or `failed` ends the loan."""

    block: AnyArray
    """The items, with the shape of the selection; unspecified contents."""
    done: Callable[[], None]
    """The items have been written."""
    failed: Callable[[], None]
    """The items have not, or not all; old values where they can be had."""


class Storage(Protocol):
    """The items of one array."""

    layout: Layout

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The unit of caching."""

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        """Copy the selected items into `out`."""

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        """Copy `values`, broadcast to the selection, into the selected items."""

    def lend(self, axes: Axes, /) -> Loan:
        """Lend the memory of a contiguous selection itself."""

    def set_lines(self, lines: int, /) -> int:
        """Change the extent of the slow axis.

        Return the byte from which on new lines are known to hold zeros; before it they hold
        anything until they are written.
        """

    def view(self) -> AnyArray | None:
        """Return the whole as a read-only array without copying, if possible."""

    def make_durable(self, ndim: int, /) -> None:
        """Return when what was flushed from the cache is durable, and described for others."""

    def begin(self) -> None:
        """A transaction begins: be ready to go back to this moment."""

    def seal(self) -> int | None:
        """The transaction ends: return how many bytes it commits, None if it touched nothing."""

    def roll_back(self, lines: int, /) -> None:
        """Go back to the moment of `begin`, with this extent; the cache has forgotten its part."""

    def trim(self) -> None:
        """Give back space that was reserved ahead of need."""

    def discard(self) -> None:
        """Drop everything that is cached, written or not, and release the handles."""

    def close(self) -> None:
        """Release the handles; the caller has flushed."""


def plan_chunks(
    layout: Layout, chunks: str | int | tuple[int, ...], max_nbytes: int
) -> tuple[int, ...]:
    """Return the chunk shape that ``chunks=`` asks for.

    Raises
    ------
    ValueError
        Not a number of lines, nor a shape that is contiguous in this layout.
    BudgetError
        One chunk would take more than `max_nbytes`.
    """
    if chunks == "auto":
        result = layout.chunk_shape(min(TARGET_CHUNK_BYTES, max_nbytes), max_nbytes)
    else:
        full = list(layout.shape)
        if isinstance(chunks, int) and chunks > 0:
            full[layout.slow_axis] = chunks
            chunks = tuple(full)
        if not isinstance(chunks, tuple) or any(
            n != chunks[i] for i, n in enumerate(full) if i != layout.slow_axis
        ):
            raise ValueError(
                f"chunks={chunks!r}: give 'auto', a number of lines, or a shape of whole lines"
            )
        result = tuple(max(1, n) for n in chunks)
    if layout.chunk_nbytes(result) > max_nbytes:
        raise BudgetError(
            f"one chunk of shape {result} needs {format_bytes(layout.chunk_nbytes(result))}; the "
            f"cache has room for {format_bytes(max_nbytes)} a chunk: open the group with a "
            "larger cache="
        )
    return result


def _as_array(buffer: Any, layout: Layout, dtype: DType, shape: tuple[int, ...]) -> AnyArray:
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing to point at, perhaps not even a buffer
    return np.ndarray(shape, dtype, buffer, strides=layout.strides)


class MappedStorage:
    """Items in byte-addressable memory: NumPy works on them in place."""

    def __init__(
        self,
        region: Region,
        layout: Layout,
        dtype: DType,
        chunk_shape: tuple[int, ...],
        *,
        new: bool,
    ) -> None:
        self.region = region
        self.layout = layout
        self.chunk_shape = chunk_shape
        self._dtype = dtype
        self._items: AnyArray | None = None
        # As in `CachedStorage`.
        self._used = layout.nbytes if new else region.capacity
        self._undo: list[tuple[Axes, AnyArray]] | None = None

    @property
    def items(self) -> AnyArray:
        """The whole array, in place."""
        if self._items is None:
            memory = self.region.memory
            assert memory is not None
            self._items = _as_array(memory, self.layout, self._dtype, self.layout.shape)
        return self._items

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        out[...] = self.items[axes]

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        self._keep(axes)
        self.items[axes] = values

    def _keep(self, axes: Axes) -> None:
        """Note, in a transaction, the committed items that are about to change."""
        if self._undo is None:
            return
        slow = self.layout.slow_axis
        lines = axes[slow]
        stop = min(lines.stop, self._undo_lines)
        if stop > lines.start:
            old = (*axes[:slow], slice(lines.start, stop, lines.step), *axes[slow + 1 :])
            self._undo.append((old, self.items[old].copy()))

    def begin(self) -> None:
        self._undo = []
        self._undo_lines = self.layout.lines

    def roll_back(self, lines: int, /) -> None:
        undo, self._undo = self._undo or [], None
        if lines > self.layout.lines:
            self.set_lines(lines)
        for axes, old in reversed(undo):
            self.items[axes] = old
        self.set_lines(lines)

    def lend(self, axes: Axes, /) -> Loan:
        self._keep(axes)
        memory = self.region.memory
        block = self.items[axes]

        def done() -> None:
            if self.region.memory is not memory:
                self.items[axes] = block  # the array has grown into other memory meanwhile

        return Loan(block, done, _nothing)

    def set_lines(self, lines: int, /) -> int:
        layout = self.layout.with_lines(lines)
        self._items = None  # memory that nobody looks at can grow in place
        self.region.reserve(layout.nbytes)
        self.layout = layout
        used, self._used = self._used, max(self._used, layout.nbytes)
        return used

    def view(self) -> AnyArray | None:
        result = self.items[...]
        result.flags.writeable = False
        return result

    def seal(self) -> int | None:
        self._undo = None
        return None

    def make_durable(self, ndim: int, /) -> None:
        self.region.barrier()

    def trim(self) -> None:
        pass

    def discard(self) -> None:
        self.close()

    def close(self) -> None:
        self._items = None
        self.region.close()


def _nothing() -> None:
    pass


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
        self._unsynced = new
        # A crash may have left an older header than the metadata have.
        self._stale_header = True
        # A new file holds zeros; an old one may hold, beyond its last line, what was cut off.
        self._used = layout.nbytes if new else region.capacity

    @staticmethod
    def is_aligned(layout: Layout, chunk_shape: tuple[int, ...]) -> bool:
        """Whether all chunks begin on a block of the medium, as direct I/O needs it."""
        steps = [layout.chunk_nbytes(chunk_shape)]
        if len(layout.shape) > 1:
            steps.append(layout.line_stride)
        return all(step % BLOCK_BYTES == 0 for step in steps)

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

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        with self._cache.operation():
            self._unsynced = True
            for extent in self.layout.extents(axes, self.chunk_shape):
                chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
                chunk.pins += 1
                try:
                    for start, stop in extent.spans:
                        self._cache.prepare_write(chunk, start, stop, exact=extent.exact)
                    self._items(chunk)[extent.within] = values[extent.block]
                finally:
                    chunk.pins -= 1
                for start, stop in extent.spans:
                    self._cache.mark_written(chunk, start, stop)

    def lend(self, axes: Axes, /) -> Loan:
        with self._cache.operation():
            extents = list(self.layout.extents(axes, self.chunk_shape))
            if self._cache.write_through or len(extents) > 1:
                need = 2 * self.layout.line_stride
                raise BudgetError(
                    f"cannot lend {self._describe(axes)}: it is cached in {len(extents)} pieces "
                    f"of {self.chunk_shape}; open the group with cache={need} or more, or assign "
                    "with a[index] = value"
                )
            if not extents:
                empty = np.empty([len(range(s.start, s.stop, s.step)) for s in axes], self._dtype)
                return Loan(empty, _nothing, _nothing)
            extent = extents[0]
            if len(extent.spans) > 1 or not extent.exact:
                raise SelectionError(
                    f"cannot lend {self._describe(axes)}: it is not contiguous in "
                    f"layout={self.layout.order!r}; assign with a[index] = value"
                )
            start, stop = extent.spans[0]
            chunk = self._cache.acquire(self, extent.chunk, self._chunk_nbytes)
            chunk.pins += 1
            try:
                self._cache.prepare_write(chunk, start, stop, exact=True)
            except BaseException:
                chunk.pins -= 1
                raise
            if not chunk.dirty.intersects(start, stop):
                # Until the loan ends, and if it fails, readers see what the medium has.
                self._cache.invalidate(chunk, start, stop)
            self._unsynced = True

        def done() -> None:
            with self._cache.lock:
                try:
                    self._cache.await_landing(chunk, start, stop)
                    self._cache.mark_written(chunk, start, stop)
                finally:
                    chunk.pins -= 1

        def failed() -> None:
            with self._cache.lock:
                chunk.pins -= 1

        return Loan(self._items(chunk)[extent.within], done, failed)

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
            return _as_array(data, self.layout, self._dtype, self.layout.shape)

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
        return _as_array(chunk.buffer, self.layout, self._dtype, self.chunk_shape)

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
        if offset == self._sequential_at:
            ahead = min(nbytes, TARGET_CHUNK_BYTES)
            if offset + nbytes < self.layout.nbytes:
                self.region.will_read(offset + nbytes, ahead)
        self._sequential_at = offset + nbytes


def _as_bytes(run: AnyArray) -> AnyArray:
    # reshape in memory order is a view because the run is contiguous; ml_dtypes arrays have no
    # buffer interface of their own, bytes do.
    return run.reshape(-1, order="A").view(np.uint8)
