"""The DRAM chunk cache of one group: write-combining above, large ordered writes below.

Books. A cached chunk keeps three sets of byte spans. *Valid* bytes hold what the array holds.
*Dirty* bytes are valid and newer than the medium. *In-flight* bytes are valid and being written by
the writer thread. A byte is dirty or in flight, never both; a chunk may be evicted when it has
neither and is not pinned by a loan.

Rules.

1. All books are kept under one re-entrant lock, the group's. Waiting releases it.
2. Reads from the medium happen under the lock. Writes to it happen on the writer thread, without.
3. In-flight bytes do not change. A write that would touch them waits until they have landed.
4. Spans become dirty in whole blocks of the storage (`block_bytes`), so that what leaves is always
   aligned; the rest of a block is read before the first write to a part of it.
5. A chunk leaves when every byte of it is dirty (a sequential writer fills one chunk after
   another), when more than half of the budget is dirty (oldest first), and at `flush`. In a
   transaction a full chunk waits for the end if it holds committed bytes; leaving early would cost
   a barrier of the journal.
6. The pool's budget is never exceeded: whoever needs a buffer evicts the least recently used chunk
   that may go, or waits for the writer, then for other threads to end their loans. It fails with
   `BudgetError` when nobody is left who could: everything is on loan to threads that wait
   themselves. A loan may be ended by another thread than the one that began it, which nobody can
   foresee, so the wait for loans has an end too (`LOAN_WAIT_SECONDS`).
7. A failed write leaves its bytes dirty, so that nothing is lost, and is raised once, by the next
   operation on the group; `flush` then tries again.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from pmarray._buffers import BufferPool
from pmarray._commits import Commit
from pmarray._journal import Image
from pmarray._sizes import format_bytes
from pmarray._spans import SpanSet
from pmarray._writer import Sink, Write, Writer
from pmarray.errors import BudgetError, PoisonedError

__all__ = ["CachedChunk", "ChunkCache", "ChunkSource"]

WRITE_THROUGH_BYTES = 1 << 20
"""The transient chunk of a group that was opened with ``cache=0``."""
MIN_BUDGET_BYTES = 16 * 1024
LOAN_WAIT_SECONDS = 30.0
"""How long memory that is wanted waits for loans of other threads, of which none ends."""
_LOOK_SECONDS = 0.05
"""How often it looks whether chunks that are being fetched have arrived: they cannot say so."""


class ChunkSource(Protocol):
    """One array's chunks on their medium, as the cache sees them."""

    @property
    def block_bytes(self) -> int:
        """Writes begin and end at multiples of this."""

    def load(self, chunk: tuple[int, ...], start: int, out: memoryview, /) -> None:
        """Fill `out` with the bytes of `chunk` from `start` on; called under the lock."""

    def prepare(self, chunk: tuple[int, ...], out: memoryview, /) -> None:
        """Set the padding in a fresh buffer, which may hold anything."""

    def store(self, writes: list[Write], /) -> None:
        """Write adjacent pieces in one go; called on the writer thread, without the lock."""

    def address(self, chunk: tuple[int, ...], /) -> int:
        """The position of `chunk` on the medium; adjacent chunks have adjacent addresses."""

    def complete(self, chunk: CachedChunk, /) -> None:
        """Make all that has to be written together with the dirty bytes dirty; under the lock."""

    def before_images(self, writes: Iterable[Write], /) -> Iterator[Image]:
        """Yield what the last durable commit has where `writes` go; on the writer thread."""

    @property
    def protected_nbytes(self) -> int:
        """Up to this address there may be bytes of a commit that was sealed."""


class CachedChunk:
    """One chunk in DRAM, and the state of its bytes."""

    __slots__ = ("buffer", "dirty", "index", "inflight", "pins", "source", "valid")

    def __init__(self, source: ChunkSource, index: tuple[int, ...], buffer: memoryview) -> None:
        self.source = source
        self.index = index
        self.buffer = buffer
        self.valid = SpanSet()
        self.dirty = SpanSet()
        self.inflight = SpanSet()
        self.pins: list[int | None] = []
        """The threads that hold it; None for one of our own, which ends by itself."""

    @property
    def evictable(self) -> bool:
        return not (self.dirty or self.inflight or self.pins)


class ChunkCache:
    """The chunk cache of one group.

    Parameters
    ----------
    budget_bytes
        Bytes of DRAM for chunks, clean and dirty together. 0 keeps nothing: every operation works
        through one transient chunk and returns when its writes have left.
    """

    def __init__(self, budget_bytes: int, sink: Sink) -> None:
        if 0 < budget_bytes < MIN_BUDGET_BYTES:
            raise BudgetError(
                f"a cache of {format_bytes(budget_bytes)} is too small to work with: "
                f"give 0 (none) or at least {format_bytes(MIN_BUDGET_BYTES)}"
            )
        self.budget_bytes = budget_bytes
        self.write_through = budget_bytes == 0
        self._pool = BufferPool(budget_bytes or 2 * WRITE_THROUGH_BYTES)
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._chunks: OrderedDict[tuple[int, tuple[int, ...]], CachedChunk] = OrderedDict()
        self._dirty_bytes = 0
        self._writer = Writer(self._changed, self._landed, sink)
        self._waiting: set[int] = set()
        self._releases = 0
        self.before_eviction: deque[Callable[[], None]] = deque()
        """What other threads want done, under the lock, at the latest when memory is wanted."""
        self.transaction: int | None = None
        """The number of the open transaction, to which everything dirty belongs."""

    def set_sink(self, sink: Sink) -> None:
        """Write to another sink from now on; nothing is queued."""
        self._writer.sink = sink

    @property
    def poison(self) -> PoisonedError | None:
        """Why the group can only be closed, if so; set by whoever finds out."""
        return self._writer.poison

    @poison.setter
    def poison(self, error: PoisonedError) -> None:
        self._writer.poison = error

    @property
    def unreported(self) -> BaseException | None:
        """A failure behind the caller's back that nobody has been told of."""
        return self._writer.unreported

    @property
    def on_writer_thread(self) -> bool:
        """Whether it is the writer that asks, which must not wait for itself."""
        return self._writer.is_current_thread

    @property
    def max_chunk_bytes(self) -> int:
        """The largest chunk that leaves room for a second one; buffers are whole pages."""
        return self._pool.budget_bytes // 2 // mmap.PAGESIZE * mmap.PAGESIZE

    @property
    def used_bytes(self) -> int:
        """Bytes of DRAM that chunks occupy now."""
        return self._pool.allocated_bytes

    def check(self) -> None:
        """Raise what failed behind the caller's back; under the lock."""
        self._writer.raise_failure()

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Hold the lock for one operation of the caller; raise what failed behind its back."""
        with self.lock:
            self._writer.raise_failure()
            yield
            if self.write_through:
                self.flush()
                self._evict_all()

    # -- reading ------------------------------------------------------------------------------

    def peek(self, source: ChunkSource, index: tuple[int, ...]) -> CachedChunk | None:
        """Return the chunk if it is cached; it counts as used."""
        key = (id(source), index)
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    def acquire(
        self, source: ChunkSource, index: tuple[int, ...], nbytes: int, *, needed: bool = True
    ) -> CachedChunk:
        """Return the chunk, with nothing valid in it where it was not cached. May wait.

        One that is not `needed` is not worth waiting for other threads' loans to end.
        """
        chunk = self.peek(source, index)
        if chunk is None:
            buffer = self._take_buffer(nbytes, needed=needed)
            # The wait for a buffer gave up the lock: another thread may have brought the chunk.
            chunk = self.peek(source, index)
            if chunk is not None:
                self._pool.give(buffer)
                return chunk
            source.prepare(index, buffer)
            chunk = CachedChunk(source, index, buffer)
            self._chunks[id(source), index] = chunk
        return chunk

    def load(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Make the bytes ``[start, stop)`` of the chunk valid."""
        for gap_start, gap_stop in chunk.valid.gaps(start, stop):
            chunk.source.load(chunk.index, gap_start, chunk.buffer[gap_start:gap_stop])
        chunk.valid.add(start, stop)

    def pin(self, chunk: CachedChunk, *, ours: bool = False) -> Callable[[], None]:
        """Keep a chunk in memory until what is returned is called, on any thread.

        With `ours`, a thread of the library holds it, and lets go without being asked.
        """
        holder = None if ours else threading.get_ident()
        chunk.pins.append(holder)

        def release() -> None:
            with self._changed:
                chunk.pins.remove(holder)
                self._releases += 1
                self._changed.notify_all()

        return release

    # -- writing ------------------------------------------------------------------------------

    def prepare_write(self, chunk: CachedChunk, start: int, stop: int, *, exact: bool) -> None:
        """Make ``[start, stop)`` ready to be written: nothing in flight, whole blocks valid.

        With `exact`, the caller will write every byte, and only the rest of the outer blocks is
        read. The caller has pinned the chunk.
        """
        self.await_landing(chunk, start, stop)
        low, high = self._blocks(chunk, start, stop)
        if exact:
            self.load(chunk, low, start)
            self.load(chunk, stop, high)
        else:
            self.load(chunk, low, high)

    def await_landing(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Return when no byte of the blocks of ``[start, stop)`` is in flight.

        The caller has pinned the chunk, since waiting gives up the lock.
        """
        low, high = self._blocks(chunk, start, stop)
        waited = False
        while chunk.inflight.intersects(low, high):
            self._changed.wait()
            waited = True
        if waited:
            self._writer.raise_failure()

    def mark_written(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Note that ``[start, stop)`` has been written, and pass on what should leave now."""
        low, high = self._blocks(chunk, start, stop)
        chunk.valid.add(low, high)
        before = chunk.dirty.nbytes
        chunk.dirty.add(low, high)
        self._dirty_bytes += chunk.dirty.nbytes - before
        address = chunk.source.address(chunk.index)
        may_leave = self.transaction is None or address >= chunk.source.protected_nbytes
        if may_leave and chunk.dirty.covers(0, chunk.buffer.nbytes):
            self._send(chunk)
        elif self._dirty_bytes > self._pool.budget_bytes // 2:
            for oldest in list(self._chunks.values()):
                self._send(oldest)
                if self._dirty_bytes <= self._pool.budget_bytes // 4:
                    break

    def invalidate(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Forget ``[start, stop)``: the next reader takes it from the medium."""
        before = chunk.dirty.nbytes
        chunk.dirty.remove(start, stop)
        chunk.valid.remove(start, stop)
        self._dirty_bytes -= before - chunk.dirty.nbytes

    def revert(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Go back to what the medium has in ``[start, stop)``, unless it is on its way there."""
        if not chunk.dirty.intersects(start, stop) and not chunk.inflight.intersects(start, stop):
            self.invalidate(chunk, start, stop)

    def discard(self, source: ChunkSource) -> None:
        """Forget every chunk of `source`, written or not, after what is in flight has landed."""
        with self.lock:
            self._settle()
            self._forget_all(source)

    def _forget_all(self, source: ChunkSource) -> None:
        for key, chunk in list(self._chunks.items()):
            if chunk.source is source:
                self._forget(key, chunk)

    def discard_from(self, source: ChunkSource, address: int) -> None:
        """Forget the bytes of `source` at `address` and above, written or not."""
        self._settle()
        for key, chunk in list(self._chunks.items()):
            if chunk.source is source:
                start = max(0, address - source.address(chunk.index))
                if start == 0 and not chunk.pins:
                    self._forget(key, chunk)
                else:
                    # The block that the end cuts stays whole (rule 4).
                    _, start = self._blocks(chunk, start, start)
                    self.invalidate(chunk, start, chunk.buffer.nbytes)

    def discard_chunks(self, source: ChunkSource, gone: Callable[[tuple[int, ...]], bool]) -> None:
        """Forget the chunks of `source` that are `gone`, written or not."""
        self._settle()
        for key, chunk in list(self._chunks.items()):
            if chunk.source is source and gone(chunk.index):
                if chunk.pins:
                    self.invalidate(chunk, 0, chunk.buffer.nbytes)
                else:
                    self._forget(key, chunk)

    def flush(self, source: ChunkSource | None = None) -> None:
        """Write out everything that is dirty (of one source), and wait until it has landed.

        This hands the bytes to the operating system; it is no barrier.
        """
        with self.lock:
            self._writer.raise_failure()
            self._send_all(source)
            self._settle()
            self._writer.raise_failure()

    def seal(self, commit: Commit) -> None:
        """Hand over the open transaction: its dirty bytes, then the commit itself."""
        with self.lock:
            self._writer.raise_failure()
            self._send_all(None)
            self._writer.put(commit)
            self.transaction = None

    def wait_for(self, commit: Commit) -> None:
        """Return when the commit is over, one way or the other."""
        with self.lock:
            while not commit.finished:
                self._changed.wait()

    def forget(self) -> None:
        """Forget everything, written or not, after what was handed over has landed.

        What an open transaction has spilled is cached as if it were there for good: that is why
        a rollback forgets clean chunks too.
        """
        with self.lock:
            self._settle()
            for key, chunk in list(self._chunks.items()):
                if chunk.pins:
                    self.invalidate(chunk, 0, chunk.buffer.nbytes)
                else:
                    self._forget(key, chunk)
            self.transaction = None

    def settle(self) -> None:
        """Return when nothing is queued; raise if anything failed."""
        with self.lock:
            self._settle()
            self._writer.raise_failure()

    def _send_all(self, source: ChunkSource | None) -> None:
        chunks = [c for c in self._chunks.values() if source is None or c.source is source]
        chunks.sort(key=lambda chunk: (id(chunk.source), chunk.source.address(chunk.index)))
        for chunk in chunks:
            self._send(chunk)

    def cached(self, source: ChunkSource) -> list[tuple[tuple[int, ...], int, int]]:
        """Return index, valid bytes and bytes not yet landed of each cached chunk of `source`."""
        with self.lock:
            return [
                (chunk.index, chunk.valid.nbytes, chunk.dirty.nbytes + chunk.inflight.nbytes)
                for chunk in self._chunks.values()
                if chunk.source is source
            ]

    def close(self) -> None:
        """Stop the writer thread and free the buffers; the caller has flushed."""
        self._writer.close()
        with self.lock:
            self._chunks.clear()

    # -- books --------------------------------------------------------------------------------

    def _blocks(self, chunk: CachedChunk, start: int, stop: int) -> tuple[int, int]:
        block = chunk.source.block_bytes
        return start // block * block, min(-(-stop // block) * block, chunk.buffer.nbytes)

    def _send(self, chunk: CachedChunk) -> None:
        """Hand the dirty bytes of a chunk to the writer."""
        if not chunk.dirty:
            return
        before = chunk.dirty.nbytes
        chunk.source.complete(chunk)
        self._dirty_bytes += chunk.dirty.nbytes - before
        for start, stop in chunk.dirty:
            # A span that was written again while it was in flight waited for it (rule 3), so the
            # two sets are disjoint here.
            chunk.inflight.add(start, stop)
            self._dirty_bytes -= stop - start
            self._writer.put(Write(chunk.source, chunk, start, stop, self.transaction))
        chunk.dirty.clear()

    def _landed(self, write: Write, succeeded: bool) -> None:
        """Called by the writer, under the lock, when a write is over."""
        chunk = write.chunk
        chunk.inflight.remove(write.start, write.stop)
        if not succeeded:
            before = chunk.dirty.nbytes
            chunk.dirty.add(write.start, write.stop)
            self._dirty_bytes += chunk.dirty.nbytes - before

    def _take_buffer(self, nbytes: int, *, needed: bool) -> memoryview:
        if nbytes > self._pool.budget_bytes:
            raise BudgetError(
                f"one chunk needs {format_bytes(nbytes)}, the cache has "
                f"{format_bytes(self._pool.budget_bytes)}: open the group with a larger cache="
            )
        while True:
            while self.before_eviction:
                self.before_eviction.popleft()()
            buffer = self._pool.take(nbytes)
            if buffer is not None:
                return buffer
            if self._evict_one():
                continue
            for chunk in self._chunks.values():
                if chunk.dirty:
                    self._send(chunk)
                    break
            if self._writer.busy:
                self._wait()
            else:
                self._wait_for_release(LOAN_WAIT_SECONDS if needed else 0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that this thread waits for another one, and ends no loan until it is done."""
        me = threading.get_ident()
        with self._changed:
            self._waiting.add(me)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self.lock:
                self._waiting.discard(me)

    def _wait_for_release(self, seconds: float) -> None:
        """Wait until another thread lets go of a chunk; raise where none is going to."""
        releases, deadline = self._releases, time.monotonic() + seconds
        with self.waiting():
            while self._releases == releases and not self.before_eviction:
                holders = {holder for chunk in self._chunks.values() for holder in chunk.pins}
                if holders <= self._waiting or time.monotonic() >= deadline:
                    raise BudgetError(
                        f"all {format_bytes(self._pool.budget_bytes)} of the cache are on loan or "
                        "pinned: end some loans, or open the group with a larger cache="
                    )
                self._changed.wait(_LOOK_SECONDS if None in holders else seconds)

    def _evict_one(self) -> bool:
        for key, chunk in self._chunks.items():
            if chunk.evictable:
                self._forget(key, chunk)
                return True
        return False

    def _evict_all(self) -> None:
        while self._evict_one():
            pass

    def _forget(self, key: tuple[int, tuple[int, ...]], chunk: CachedChunk) -> None:
        self.invalidate(chunk, 0, chunk.buffer.nbytes)
        del self._chunks[key]
        self._pool.give(chunk.buffer)

    def _settle(self) -> None:
        """Wait until nothing is in flight."""
        while self._writer.busy:
            self._changed.wait()

    def _wait(self) -> None:
        """Wait for the writer to land something; raise if it failed instead."""
        self._changed.wait()
        self._writer.raise_failure()
