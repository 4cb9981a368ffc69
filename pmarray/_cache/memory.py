"""The DRAM of a cache: buffers under one budget, and what is done where there is no room."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable

from pmarray._cache.buffers import HUGE_BYTES, BufferPool, expect_long
from pmarray._cache.source import CachedChunk
from pmarray._cache.waiting import MustWait, Waiting
from pmarray._sizes import format_bytes
from pmarray._system.touching import touch_behind
from pmarray._system.uninterrupted import caller
from pmarray.errors import BudgetError

__all__ = ["Memory"]

WRITE_THROUGH_BYTES = 1 << 20
"""The transient chunk of a group that was opened with ``cache=0``."""
MIN_BUDGET_BYTES = 16 * 1024
_SHARE_OF_OLD = 2
"""Of the memory, the part that old bytes may take (`_cache.aside`)."""


class Memory:
    """The buffers of the chunks of one cache; used under its lock.

    Parameters
    ----------
    budget_bytes
        Bytes for all of them, or 0 for one transient chunk.
    waiting
        Those that wait for room, and end no loan meanwhile.
    chunks
        Returns what is cached.
    make_room
        Called where there is no room: evicts a chunk, or raises `MustWait` for one that is on its
        way to the medium. Returns false where none may go.
    evict
        Evicts a chunk other than one that is given; returns false where none may go.
    """

    def __init__(
        self,
        budget_bytes: int,
        waiting: Waiting,
        chunks: Callable[[], Iterable[CachedChunk]],
        make_room: Callable[[], bool],
        evict: Callable[[CachedChunk], bool],
    ) -> None:
        if 0 < budget_bytes < MIN_BUDGET_BYTES:
            raise BudgetError(
                f"a cache of {format_bytes(budget_bytes)} is too small to work with: "
                f"give 0 (none) or at least {format_bytes(MIN_BUDGET_BYTES)}"
            )
        self._pool = BufferPool(budget_bytes or 2 * WRITE_THROUGH_BYTES)
        self.budget_bytes = self._pool.budget_bytes
        self._waiting = waiting
        self._chunks = chunks
        self._make_room = make_room
        self._evict = evict
        self._old_bytes = 0
        self.before_eviction: deque[Callable[[], None]] = deque()
        """What other threads want done, under the lock, at the latest when memory is wanted."""

    @property
    def max_chunk_bytes(self) -> int:
        """The largest chunk that leaves room for a second one; buffers are whole pages."""
        return self.budget_bytes // 2 // mmap.PAGESIZE * mmap.PAGESIZE

    @staticmethod
    def budget_for(chunk_nbytes: int) -> int:
        """The least budget in which chunks may have so many bytes."""
        pages = -(-chunk_nbytes // mmap.PAGESIZE)
        return max(MIN_BUDGET_BYTES, 2 * pages * mmap.PAGESIZE)

    @property
    def used_bytes(self) -> int:
        """Bytes of DRAM that chunks occupy now."""
        return self._pool.allocated_bytes

    def take(self, nbytes: int, *, needed: bool) -> memoryview:
        """Return a buffer; raise `MustWait` where there may be one later.

        One that is not `needed` is not worth waiting for other threads' loans to end.
        """
        if nbytes > self.budget_bytes:
            raise BudgetError(
                f"one chunk needs {format_bytes(nbytes)}, the cache has "
                f"{format_bytes(self.budget_bytes)}: open the group with a larger cache="
            )
        while True:
            while self.before_eviction:
                self.before_eviction[0]()
                self.before_eviction.popleft()
            buffer = self._pool.take(nbytes)
            if buffer is not None:
                return buffer
            if not self._make_room():
                self._refuse_if_hopeless(needed=needed)
                raise MustWait(for_loans=True)

    def spare(self, nbytes: int) -> memoryview | None:
        """Return a buffer if there is one without making room."""
        try:
            return self._pool.take(nbytes)
        except (MemoryError, OSError):  # the system has none
            return None

    def make_another_ready(self, chunk: CachedChunk) -> None:
        """Have memory for another chunk as large as one, touched behind where it is fresh.

        It takes the room of what would make room for that chunk.
        """
        nbytes, pool = chunk.buffer.nbytes, self._pool
        if nbytes < HUGE_BYTES:
            return
        while not (pool.has_free(nbytes) or pool.has_room(nbytes)):
            if not self._evict(chunk):
                return
        if not pool.has_free(nbytes) and (buffer := self.spare(nbytes)) is not None:
            expect_long(buffer, nbytes)
            touch_behind(buffer)
            pool.give(buffer)

    def for_old(self, nbytes: int, chunk: CachedChunk) -> memoryview | None:
        """Return a buffer for old bytes of a chunk, if there is one without waiting."""
        if self._old_bytes + nbytes > self.budget_bytes // _SHARE_OF_OLD:
            return None
        while (buffer := self.spare(nbytes)) is None:
            if not self._evict(chunk):
                return None
        self._old_bytes += nbytes
        return buffer

    def give_old(self, buffer: memoryview | None) -> None:
        """Take it back."""
        if buffer is not None:
            self._old_bytes -= buffer.nbytes
            self.give(buffer)

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        self._pool.give(buffer)

    def count_anew(self) -> None:
        """Take it that what is cached is all that is lent: a buffer may have got lost."""
        chunks = list(self._chunks())
        copies = [write.copy for chunk in chunks for write in chunk.copies if write.copy]
        olds = [old for chunk in chunks for old in chunk.olds.values()]
        self._old_bytes = sum(old.nbytes for old in olds)
        self._pool.count_anew([*(chunk.buffer for chunk in chunks), *copies, *olds])

    def _refuse_if_hopeless(self, *, needed: bool) -> None:
        holders = {pin.holder for chunk in self._chunks() for pin in chunk.pins}
        if not needed or holders <= {*self._waiting.blocked, caller()}:
            raise self.all_on_loan()

    def all_on_loan(self) -> BudgetError:
        """Return the error where nobody is left who could give memory back."""
        return BudgetError(
            f"all {format_bytes(self.budget_bytes)} of the cache are on loan or pinned: end "
            "some loans, or open the group with a larger cache="
        )
