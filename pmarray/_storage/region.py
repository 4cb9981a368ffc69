"""Items in a region that is reached by system calls, through the group's chunk cache."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.cache import ChunkCache
from pmarray._cache.lull import Lull
from pmarray._cache.source import CachedChunk, CommittedStorage, Write
from pmarray._commits.snapshot import Snapshot
from pmarray._config import config
from pmarray._dtypes import DType
from pmarray._formats.metadata import GroupMetadata
from pmarray._formats.records import Image
from pmarray._geometry.chunking import unfilled
from pmarray._geometry.layout import BLOCK_BYTES, Extent, Layout
from pmarray._geometry.reach import meeting, reach_of
from pmarray._geometry.requests import plan_requests
from pmarray._selection.fancy import FancySelection
from pmarray._storage.ahead import ReadAhead
from pmarray._storage.arriving import Arrival, FileArrival
from pmarray._storage.cached import CachedItems
from pmarray._storage.dead import DeadBytes, Spans
from pmarray._storage.items import Axes, Loan, Shown, as_array, make_room, nothing
from pmarray._storage.oldbytes import images_before
from pmarray._storage.runs import runs_of
from pmarray._storage.warm import LONG_RUN_BYTES, WarmReads
from pmarray.backends._protocols import (
    Appendable,
    KeepsMapping,
    ReadsBeside,
    Region,
    ReservesUnfilled,
    TellsChanges,
)

__all__ = ["RegionStorage"]

AnyArray = NDArray[Any]


class RegionStorage(CachedItems):
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
        holds_fill: bool,
        snapshot: Snapshot | None,
        mapping: KeepsMapping | None,
        changes: TellsChanges | None,
        beside: ReadsBeside | None,
        appendable: Appendable | None,
        unfilled: ReservesUnfilled | None,
        dead: Spans = (),
    ) -> None:
        self.region = region
        self.file_id = file_id
        self.layout = layout
        self.chunk_shape = chunk_shape
        self.holds_fill = holds_fill
        self.protected_nbytes = self._read_nbytes = 0 if new else layout.nbytes
        """What readers may be at: before a commit that cut the array, it was longer."""
        self.snapshot = snapshot
        """Through which a handle reads that does not hold the lock."""
        self.dead = DeadBytes(dead)
        self._dtype = dtype
        self._cache = cache
        self._chunk_nbytes = layout.chunk_nbytes(chunk_shape)
        self._ahead = ReadAhead(region)
        self._warm = (
            None
            if mapping is None
            else WarmReads(mapping, file_id, dtype, snapshot, cache.budget_bytes)
        )
        self._changes = changes
        self._beside = beside
        self._events = 0
        """How often something was done that may change what the array holds."""
        self._appendable = appendable
        self._unfilled = unfilled
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
    def block_bytes(self) -> int:  # type: ignore[override]  # direct I/O may turn out not to work
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

    def complete(self, chunk: CachedChunk, /) -> None:
        """Any run of whole blocks can be written."""

    def before_images(
        self,
        writes: Iterable[Write],
        committed: GroupMetadata,
        memory: Callable[[int], memoryview],
        /,
    ) -> Iterator[Image]:
        end = min(-(-self._read_nbytes // BLOCK_BYTES) * BLOCK_BYTES, self.region.capacity)
        dead = committed.dead_in(self.file_id)
        return images_before(self.region, self._beside, self.file_id, writes, dead, end, memory)

    def _set_aside(self, chunk: CachedChunk, extent: Extent) -> None:
        if self._cache.transaction is None or self.block_bytes % BLOCK_BYTES:
            return
        address = self.address(chunk.index)
        if address >= self.protected_nbytes:
            return
        dead = self.dead.at_begin
        spans = [(a, b) for a, b in extent.spans if not dead.covers(address + a, address + b)]
        items = sum(stop - start for start, stop in spans) // self._dtype.itemsize
        whole = extent.exact and items == math.prod(self.chunk_shape)
        self._cache.set_aside(chunk, spans, whole=whole)

    def images_of_deletes(self, mark: int, /) -> Iterable[Image]:
        return ()

    def barrier(self, mark: int, /) -> None:
        self.region.barrier()

    def committed(self, mark: int, /) -> None:
        self._read_nbytes = max(self._read_nbytes, mark)

    def _fetch(self, offset: int, out: memoryview) -> None:
        if self.snapshot is None:
            self.region.read_into(offset, out)
        else:
            self.snapshot.read_into(self.file_id, self.region, offset, out)

    # -- the array's side -----------------------------------------------------------------------

    def expect(self, axes: Axes, /) -> None:
        """Hint that items are wanted soon, so that the medium has many requests to work on."""
        for extent in self._extents(axes):
            first = self.layout.chunk_start(extent.chunk, self.chunk_shape)
            for start, stop in extent.spans:
                self.region.will_read(first + start, stop - start)

    def item(self, position: tuple[int, ...], offset: int, /) -> Any:
        if self._dtype.kind == "V" or not position:
            return None
        cache, warm = self._cache, self._warm
        with cache.lock:
            cache.check()
            if warm is not None and warm.knows(self.layout, offset) and cache.quiet:
                return warm.item(self.layout, position, offset)
            if cache.write_through:
                return None
            index = tuple([i // n for i, n in zip(position, self.chunk_shape, strict=False)])
            chunk = cache.peek(self, index)
            if chunk is not None:
                start = offset - self.address(index)
                if chunk.valid.covers(start, start + self._dtype.itemsize):
                    return np.ndarray((), self._dtype, chunk.buffer, start)[()]
                if chunk.valid.intersects(start, start + self._dtype.itemsize):
                    return None
            if warm is not None:
                found = warm.item(self.layout, position, offset)
                if found is not None:
                    return found
            data = bytearray(self._dtype.itemsize)
            self._fetch(offset, memoryview(data))
            return np.ndarray((), self._dtype, data)[()]

    def come_near(self, lull: Lull, /) -> None:
        warm = self._warm
        if warm is None or not warm.is_mapped(self.layout):
            self.near = None  # what is read comes out of the cache
            return
        of_cache = self._cache.begin_lull()  # it ends with the other, and at every write
        self.near = None if of_cache is None else warm.near(self.layout, of_cache)

    def _drop_mapping(self) -> None:
        self.near = None
        if self._warm is not None:
            self._warm.drop()

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        if self._warm is None or not out.size or not self._read_mapped(self._warm, axes, out):
            super().read(axes, out)

    def _read_mapped(self, warm: WarmReads, axes: Axes, out: AnyArray) -> bool:
        """Read through the file's mapping, and by the cache what is not in the file."""
        with self._cache.lock:
            self._cache.check()
            unsettled = [] if self._cache.quiet else self._cache.unsettled(self)
        # Of what becomes unsettled from here on, which is what is lent to other threads, either
        # may be read; what lands from here on has not changed in the cache.
        if not warm.read(self.layout, axes, out):
            return False
        for chunk in unsettled:
            box = tuple(
                slice(i * n, (i + 1) * n)
                for i, n in zip(chunk.index, self.chunk_shape, strict=True)
            )
            if (found := meeting(axes, box)) is not None:
                items, where = found
                for extent in self._extents(items):
                    target = out[where][extent.block]
                    self._cache.until(partial(self._read_extent, extent, target))
        self._cache.end_operation()
        return True

    def arriving(self, axes: Axes, /) -> Arrival | None:
        """Plan to read items of which the medium has all, and the cache nothing.

        What other threads write meanwhile may be read or not, but nothing is taken that was read
        before this one wrote, or before what a reader must not see.
        """
        snapshot, file_id = self.snapshot, self.file_id
        if self._beside is None or (snapshot is not None and not snapshot.could_tell(file_id)):
            return None
        beside = self._beside.beside()
        requests = plan_requests(self.layout, axes, beside.offset)
        if requests is None:
            return None
        with self._cache.lock:
            self._cache.check()
            if self._cache.has_any(self) and any(map(self._has_some_of, self._extents(axes))):
                return None
        events = self._events
        return FileArrival(
            requests,
            beside,
            self._dtype,
            tuple(len(range(one.start, one.stop, one.step)) for one in axes),
            lambda: self._events == events and (snapshot is None or snapshot.is_unmoved(file_id)),
            in_place=None if self._warm is None else self._warm.fetching(self.layout, axes),
        )

    def unchanged_stamp(self) -> tuple[int, ...] | None:
        return None if self._changes is None else self._changes.unchanged_stamp()

    def held(self, axes: Axes, order: Literal["F", "C"], /) -> AnyArray | None:
        cache = self._cache
        with cache.lock:
            cache.check()
            if cache.write_through or not cache.has_any(self):
                return None
            extents = self._extents(axes)
            extent = next(extents)
            chunk = cache.peek(self, extent.chunk)
            if chunk is None or not all(chunk.valid.covers(*span) for span in extent.spans):
                return None
            if next(extents, None) is not None:
                return None
            return self._items(chunk)[extent.within].copy(order)

    def deferred(self, axes: Axes, /) -> Callable[[AnyArray], bool] | None:
        """Return what reads at least one item later without the group's lock, if that is right.

        See `WarmReads.deferred`. Here it is right where the medium has what the array holds, and
        the cache has none of it: what other threads write from here on may be read or not.
        """
        if self._warm is None:
            return None
        cache = self._cache
        with cache.lock:
            cache.check()
            if not cache.quiet and cache.unsettled(self):
                return None
            reach = reach_of(self.layout, axes)
            # Long runs of what is cached are at hand there, and perhaps nowhere else.
            if (
                reach.run >= LONG_RUN_BYTES
                and cache.has_any(self)
                and any(map(self._has_some_of, self._extents(axes)))
            ):
                return None
            return self._warm.deferred(self.layout, axes, reach, self._ahead)

    def shown(self, axes: Axes, /) -> Shown | None:
        if self._warm is None:
            return None
        with self._cache.lock:
            self._cache.check()
            if not self._cache.quiet and self._cache.unsettled(self):
                return None
            return self._warm.shown(self.layout, axes)

    def gather(self, selection: FancySelection, out: AnyArray, /) -> bool:
        warm = self._warm
        if warm is None or not out.size:
            return False
        with self._cache.lock:
            self._cache.check()
            if not self._cache.quiet and self._cache.unsettled(self):
                return False
        return warm.gather(self.layout, selection, out)

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        self._events += 1
        if self.shows(values):
            values = values.copy()  # the file changes under it as soon as the first chunk leaves
        self.dead.revive(self.layout, axes)
        super().write(axes, values)

    def lend(self, axes: Axes, /) -> Loan:
        self._events += 1
        self.dead.revive(self.layout, axes)
        return super().lend(axes)

    def forget(self, axes: Axes, /) -> None:
        self.dead.forget(self.layout, axes)

    def shows(self, values: AnyArray, /) -> bool:
        if not self._views:
            return False
        owner = _owner(values)
        return any(view() is owner for view in self._views)

    def set_shape(self, shape: tuple[int, ...], /) -> list[Axes] | None:
        layout, before = self.layout.with_lines(shape[self.layout.slow_axis]), self.layout
        if layout.shape != shape:
            return None
        self._events += 1
        self._cache.raise_failure()
        if layout.lines < before.lines:
            self._cache.discard_from(self, layout.nbytes)
            self.dead.cut(layout.nbytes)
        else:
            self._used = max(self._used, make_room(self.region, self._unfilled, layout.nbytes))
            if self._appendable is not None:
                self._appendable.will_grow(layout.nbytes, layout.nbytes - before.nbytes)
        self._unsynced = self._stale_header = True
        self.layout = layout
        used, self._used = self._used, max(self._used, layout.nbytes)
        return unfilled(before, layout, used if self.holds_fill else layout.nbytes)

    def view(self) -> AnyArray | None:
        snapshot, nbytes = self.snapshot, self.layout.nbytes
        if self._cache.transaction is not None or (
            snapshot is not None and not snapshot.reads(self.file_id, 0, nbytes, nothing)
        ):
            return None  # the file does not hold, or not only, what the caller should see
        self._cache.flush(self)
        data = self.region.view(self.layout.nbytes)
        if data is None:
            return None
        views = [view for view in self._views if view() is not None]
        if data.nbytes:
            views.append(weakref.ref(_owner(data)))
        self._views = views
        return as_array(data, self.layout, self._dtype, self.layout.shape)

    def make_durable(self, ndim: int, /) -> None:
        if self._stale_header:
            self.region.describe(self.layout, self._dtype, ndim)
        if self._stale_header or self._unsynced:
            self.region.barrier()
            self._stale_header = self._unsynced = False
        self.protected_nbytes = self._read_nbytes = self.layout.nbytes

    def begin(self) -> None:
        self.dead.begin()

    def seal(self) -> dict[CommittedStorage, int]:
        if not self._unsynced:
            return {}
        self._unsynced = False
        self.protected_nbytes = max(self.protected_nbytes, self.layout.nbytes)
        return {self: self.layout.nbytes}

    def roll_back(self, layout: Layout, /) -> None:
        self._events += 1
        self.dead.roll_back()
        self.layout = layout

    def trim(self) -> None:
        self._drop_mapping()
        self.region.trim(self.layout.nbytes)

    def discard(self) -> None:
        self.retire()
        self.close()

    def close(self) -> None:
        self._drop_mapping()
        self.region.close()

    def _extents(self, axes: Axes) -> Iterator[Extent]:
        return self.layout.extents(axes, self.chunk_shape)

    def _in_reading_order(self, axes: Axes) -> Iterator[Extent]:
        """Yield extents, and ask for those that follow while one is worked on."""
        extents = self._extents(axes)
        coming = deque(islice(extents, 1))
        asked_for: deque[int] = deque()
        """Bytes of the first of those that are coming."""
        while coming:
            yield coming.popleft()
            if asked_for:
                asked_for.popleft()
            coming.extend(islice(extents, not coming))
            if not coming or not self._ahead.comes_from_device():
                continue
            while sum(asked_for) < config.read_ahead:
                coming.extend(islice(extents, len(asked_for) == len(coming)))
                if len(asked_for) == len(coming):
                    break
                asked_for.append(self._ask_for(coming[len(asked_for)]))

    def _ask_for(self, extent: Extent) -> int:
        """Ask for the bytes of an extent; return how many."""
        first = self.layout.chunk_start(extent.chunk, self.chunk_shape)
        for start, stop in extent.spans:
            self._ahead.ask(first + start, first + stop)
        return sum(stop - start for start, stop in extent.spans)

    def _items(self, chunk: CachedChunk) -> AnyArray:
        # A full chunk, also at the edge of the array: an edge that moves stays inside.
        return as_array(chunk.buffer, self.layout, self._dtype, self.chunk_shape)

    def _read_directly(self, extent: Extent, target: AnyArray) -> bool:
        """Read uncached items straight into the caller's memory, where the runs are long."""
        layout = self.layout
        if not extent.exact and len(extent.spans) == 1 and target.shape[layout.slow_axis] > 1:
            return False
        start = layout.chunk_start(extent.chunk, self.chunk_shape)
        runs = runs_of(layout, extent, target)
        if runs is None:
            return False
        for offset, run in runs:
            self._fetch(start + offset, run.data)
            self._ahead.was_read(
                start + offset,
                run.nbytes,
                gap=layout.line_stride - layout.line_nbytes,  # the padding is not read
                end=layout.nbytes,
            )
        return True


def _owner(array: AnyArray) -> Any:
    """The object that has the memory of an array."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner
