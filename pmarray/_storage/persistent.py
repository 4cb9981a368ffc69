"""Items in persistent memory, stored to in place, and journalled before."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.cache import ChunkCache
from pmarray._cache.source import CommittedStorage
from pmarray._commits.journal import MAX_PAYLOAD_BYTES
from pmarray._dtypes import DType
from pmarray._formats.records import Image
from pmarray._geometry.layout import BLOCK_BYTES, Layout
from pmarray._geometry.spans import SpanSet
from pmarray._storage.dead import Spans
from pmarray._storage.items import Axes, Loan
from pmarray._storage.mapped import MappedStorage
from pmarray._system.uninterrupted import uninterrupted
from pmarray.backends._protocols import PersistentRegion, ReservesUnfilled
from pmarray.errors import PoisonedError

__all__ = ["PersistentStorage"]

AnyArray = NDArray[Any]
Bounds = list[tuple[int, int]]
"""Where bytes of the region begin and end."""

# A run at least this long is copied past the processor's cache, which it would only sweep.
_MIN_STREAMED_BYTES = 4096


class PersistentStorage(MappedStorage):
    """Items in persistent memory: NumPy works on them in place, and what it stores is noted.

    1. In a transaction, before-images of the committed bytes that are about to change go to the
       journal, and are durable, before the first store; of those that are dead there are none.
    2. The stores are made.
    3. They are made durable by the barrier of a commit or a flush.

    Nothing is stored while an earlier transaction waits for its commit.

    Parameters
    ----------
    region
        Where they are.
    file_id
        By which the journal knows the region.
    cache
        Of the group: it knows the transaction that is open, and those that wait.
    keep
        Puts before-images of a transaction into the journal; they are durable on return.
    """

    region: PersistentRegion

    def __init__(
        self,
        region: PersistentRegion,
        layout: Layout,
        dtype: DType,
        chunk_shape: tuple[int, ...],
        *,
        file_id: int,
        cache: ChunkCache,
        keep: Callable[[int, list[Image]], None],
        new: bool,
        holds_fill: bool,
        unfilled: ReservesUnfilled | None,
        dead: Spans = (),
    ) -> None:
        super().__init__(
            region,
            layout,
            dtype,
            chunk_shape,
            new=new,
            holds_fill=holds_fill,
            unfilled=unfilled,
            dead=dead,
        )
        self.file_id = file_id
        self._cache = cache
        self._journal = keep
        self._read_nbytes = 0 if new else layout.nbytes
        """What readers may be at: before a commit that cut the array, it was longer."""
        self._kept = SpanSet()
        """What the open transaction has before-images of."""
        self._shared: list[tuple[weakref.ref[_Owner], int]] = []
        """Who else may store to the memory and will not say when, and to how much of it."""
        self._unsynced = new
        # A crash may have left an older header than the metadata have.
        self._stale_header = True

    # -- stores -----------------------------------------------------------------------------------

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        spans = self._protect(axes)
        block = self.items[axes]
        run = _same_run(block, values)
        if run is None:
            self._prepare(spans)
            self._note(spans)  # before: an exception may come in between
            block[...] = values
        else:
            start, data = run
            self.region.write(start - self.region.memory.ctypes.data, [data])

    def _protect(self, axes: Axes) -> Bounds:
        """Journal the committed bytes that are about to change, step 1; return where they are."""
        self._cache.settle()
        self.dead.revive(self.layout, axes)
        self._unsynced = True
        spans = list(self._spans(axes))
        number = self._cache.transaction
        if number is not None:
            self._keep_images(number, spans)
        return spans

    def _keep_images(self, number: int, spans: Bounds) -> None:
        end = min(-(-self._read_nbytes // BLOCK_BYTES) * BLOCK_BYTES, self.region.capacity)
        # Dead when the transaction began, whose predecessors are durable: what it forgets is not.
        dead = self.dead.at_begin
        wanted = SpanSet()
        for start, stop in spans:
            low, high = start // BLOCK_BYTES * BLOCK_BYTES, -(-stop // BLOCK_BYTES) * BLOCK_BYTES
            for first, last in self._kept.gaps(low, min(high, end)):
                wanted.add(first, last)
        if not wanted:
            return
        try:
            alive = [gap for start, stop in wanted for gap in dead.gaps(start, stop)]
            images = list(self._images(alive))
            uninterrupted(lambda: self._journal(number, images))
        except PoisonedError as error:
            self._cache.health.poison = error
            raise
        for start, stop in wanted:
            self._kept.add(start, stop)

    def _images(self, wanted: Bounds) -> Iterator[Image]:
        memory = self.region.memory
        for start, stop in wanted:
            for at in range(start, stop, MAX_PAYLOAD_BYTES):
                data = memory[at : min(at + MAX_PAYLOAD_BYTES, stop)]
                yield Image(self.file_id, at, data.data)

    def _prepare(self, spans: Bounds) -> None:
        """Tell the region what will be stored in place."""
        for start, stop in spans:
            self.region.will_store(start, stop - start)

    def _note(self, spans: Bounds) -> None:
        """Remember what was stored in place, for step 3."""
        for start, stop in spans:
            self.region.stored(start, stop - start)

    def _spans(self, axes: Axes) -> Iterator[tuple[int, int]]:
        for extent in self.layout.extents(axes, self.chunk_shape):
            first = self.layout.chunk_start(extent.chunk, self.chunk_shape)
            for start, stop in extent.spans:
                yield first + start, first + stop

    def lend(self, axes: Axes, /) -> Loan:
        spans = self._protect(axes)
        self._prepare(spans)
        self._note(spans)  # for whoever does not end the loan

        def over() -> None:
            self._note(spans)  # a barrier may have come in between

        return Loan(self.items[axes], over, over)

    def share(self, view: AnyArray, /) -> AnyArray:
        self._protect(tuple(slice(0, n, 1) for n in self.layout.shape))
        owner = _Owner(self.region.memory)
        self._shared.append((weakref.ref(owner), self.layout.nbytes))
        memory = np.asarray(owner)
        offset = view.ctypes.data - memory.ctypes.data
        return np.ndarray(view.shape, view.dtype, memory, offset, view.strides)

    def _note_shared(self) -> bool:
        """Take it that whoever shares the memory has stored to all of it; say if anyone does."""
        # Who has stopped since the last time may have stored until then: once more, and no more.
        there = [(owner, n) for owner, n in self._shared if owner() is not None]
        nbytes = max((n for _, n in self._shared), default=0)
        if there:
            nbytes = max(nbytes, self.layout.nbytes)
        if nbytes:
            self.region.stored(0, min(nbytes, self.region.capacity))
        self._shared = there
        return nbytes > 0

    # -- transactions -----------------------------------------------------------------------------

    def begin(self) -> None:
        self.dead.begin()
        self._kept.clear()
        if self._note_shared():
            # Before-images show what was stored, and the medium has to: if it does not have what
            # a torn one was made of, it passes for overwritten.
            self.region.barrier()

    def roll_back(self, layout: Layout, /) -> None:
        self.dead.roll_back()
        self._items = None
        self.layout = layout
        self._kept.clear()

    def seal(self) -> dict[CommittedStorage, int]:
        self._kept.clear()
        touched = self._note_shared() or self._unsynced
        self._unsynced = False
        return {self: self.layout.nbytes} if touched else {}

    def images_of_deletes(self, mark: int, /) -> Iterable[Image]:
        return ()

    def barrier(self, mark: int, /) -> None:
        self.region.barrier()

    def committed(self, mark: int, /) -> None:
        self._read_nbytes = max(self._read_nbytes, mark)

    # -- the rest ---------------------------------------------------------------------------------

    def set_shape(self, shape: tuple[int, ...], /) -> list[Axes] | None:
        self._cache.settle()
        result = super().set_shape(shape)
        if result is not None:
            self._unsynced = self._stale_header = True
        return result

    def make_durable(self, ndim: int, /) -> None:
        if self._stale_header:
            self.region.describe(self.layout, self._dtype, ndim)
        if self._note_shared() or self._stale_header or self._unsynced:
            self.region.barrier()
            self._stale_header = self._unsynced = False
        self._read_nbytes = self.layout.nbytes

    def trim(self) -> None:
        self._items = None
        self.region.trim(self.layout.nbytes)


class _Owner:
    """Whom arrays of shared memory keep alive, and nothing else does."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__


def _same_run(block: AnyArray, values: AnyArray) -> tuple[int, memoryview] | None:
    """Return address and new bytes of a long run that needs no conversion."""
    if (
        block.nbytes < _MIN_STREAMED_BYTES
        or block.dtype != values.dtype
        or block.shape != values.shape
        or np.may_share_memory(block, values)
    ):
        return None
    if block.flags.c_contiguous and values.flags.c_contiguous:
        return block.ctypes.data, values.reshape(-1).view(np.uint8).data
    if block.flags.f_contiguous and values.flags.f_contiguous:
        return block.ctypes.data, values.reshape(-1, order="F").view(np.uint8).data
    return None
