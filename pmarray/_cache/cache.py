"""The DRAM chunk cache of one group: write-combining above, large ordered writes below.

Books. A cached chunk keeps three sets of byte spans. *Valid* bytes hold what the array holds.
*Dirty* bytes are valid and newer than the medium. *In-flight* bytes are valid and being written by
the writer thread. A byte is dirty or in flight, never both; a chunk may be evicted when it has
neither and is not pinned by a loan.

Rules.

1. All books are kept under one lock, the cache's own. Nobody waits with it held: what cannot go on
   raises `MustWait`, and `until` waits without the lock and makes the attempt again, from its
   beginning. So an attempt changes nothing before its last wait.
2. Reads from the medium happen under the lock; chunk stores fetch on threads of their own, without.
   Writes happen on the writer thread, without the lock.
3. In-flight bytes do not change. A write that would touch them waits until they have landed, or
   takes them out of flight: what is queued gets a copy of its own (`_cache.copies`).
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
   foresee, so the wait for loans has an end too (`_cache.attempts`).
7. A failed write leaves its bytes dirty, so that nothing is lost, and is raised once, by the next
   operation on the group; `flush` then tries again.
8. An exception may arrive at any call (see `_system.uninterrupted`). So bytes are marked dirty
   before they change, in the same breath: between the two there is no call, which is where an
   exception could arrive. A span that leaves is in flight and queued in one breath, too. What is
   counted besides (`_torn`) is counted anew by whoever finds that an attempt did not end. A pin
   and a loan live as long as what holds them; lent bytes whose loan died unended are forgotten,
   unless written since.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray

from pmarray._cache import aside, copies
from pmarray._cache.attempts import Attempts
from pmarray._cache.lull import Lull
from pmarray._cache.memory import Memory
from pmarray._cache.source import CachedChunk, ChunkSource, Commit, Pin, Sink, Write
from pmarray._cache.waiting import MustWait
from pmarray._cache.writer import Writer
from pmarray._geometry.spans import SpanSet

__all__ = [
    "ChunkCache",
]


class ChunkCache(Attempts):
    """The chunk cache of one group.

    Parameters
    ----------
    budget_bytes
        Bytes of DRAM for chunks, clean and dirty together. 0 keeps nothing: every operation works
        through one transient chunk and returns when its writes have left.
    """

    def __init__(self, budget_bytes: int, sink: Sink) -> None:
        self.budget_bytes = budget_bytes
        self.write_through = budget_bytes == 0
        super().__init__()
        self._chunks: OrderedDict[tuple[int, tuple[int, ...]], CachedChunk] = OrderedDict()
        self._dirty_bytes = 0
        self.memory = Memory(
            budget_bytes, self.waiting, self._chunks.values, self._make_room, self._evict_one
        )
        self._writer = Writer(
            self.lock, self.health, self._taken, self._landed, self.waiting.signal, sink
        )
        self.lost: deque[tuple[CachedChunk, int, int] | weakref.ref[Pin]] = deque()
        """What was lent to somebody who is no more, and never ended the loan; and pins of callers
        who were torn away from taking them, and whose exceptions may keep them."""
        self.on_loan = False
        """Whether anything was ever lent: who waits for the group is noted from then on."""
        self.lull = Lull(lasts=False)
        """In which the medium has all that was written; ended before anything becomes dirty."""
        self.transaction: int | None = None
        """The number of the open transaction, to which everything dirty belongs."""

    def set_window(self, seconds: float) -> None:
        """Let commits that nobody waits for wait so long for others, in a quarter of the memory."""
        self._writer.window_seconds = seconds
        self._writer.window_bytes = self.memory.budget_bytes // 4

    def set_sink(self, sink: Sink) -> None:
        """Write to another sink from now on; nothing is queued."""
        self._writer.sink = sink

    def raise_failure(self) -> None:
        """Raise what failed behind the caller's back."""
        with self.lock:
            self.health.raise_failure()

    def end_operation(self) -> None:
        """Let go of what a group without memory does not keep; after each operation."""
        if self.write_through:
            self.flush()
            self.until(self._evict_all)

    def _count_anew(self) -> None:
        """Put right what an attempt that was torn away may have left uncounted."""
        self._dirty_bytes = sum(chunk.dirty.nbytes for chunk in self._chunks.values())
        self.memory.count_anew()

    def forget_lost(self) -> None:
        """Forget it now, and not before the next attempt: somebody may wait for the memory."""
        with self.lock:
            self._forget_lost()

    def _forget_lost(self) -> None:
        while self.lost:
            match self.lost[0]:
                case weakref.ref() as torn:
                    if (pin := torn()) is not None:
                        self._let_go(pin)
                case lent:
                    self.revert(*lent)
            self.lost.popleft()  # not before: this may be torn away, too

    def _let_go(self, pin: Pin) -> None:
        for chunk in list(self._chunks.values()):
            for died in chunk.told_of(pin):
                died(None)  # first: what nobody has any more cannot be found again
            chunk.unpin(pin)

    # -- reading ------------------------------------------------------------------------------

    def peek(self, source: ChunkSource, index: tuple[int, ...]) -> CachedChunk | None:
        """Return the chunk if it is cached; it counts as used."""
        key = (id(source), index)
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    @property
    def quiet(self) -> bool:
        """Whether the medium has all that was written; called under the lock."""
        return not (self._dirty_bytes or self._torn or self.on_loan or self._writer.busy)

    def begin_lull(self) -> Lull | None:
        """Return the lull that lasts, or one that begins now; None where there is something."""
        with self.lock:
            if not self.lull.lasts and self.quiet and not self.lost and self.health.is_well:
                self.lull = Lull()
            return self.lull if self.lull.lasts else None

    def has_any(self, source: ChunkSource) -> bool:
        """Whether any chunk of `source` is cached; called under the lock."""
        return any(chunk.source is source for chunk in self._chunks.values())

    def unsettled(self, source: ChunkSource) -> list[CachedChunk]:
        """The chunks of which the medium does not have, or not only, what the array holds.

        Called under the lock.
        """
        return [c for c in self._chunks.values() if c.source is source and not c.evictable]

    def acquire(
        self, source: ChunkSource, index: tuple[int, ...], nbytes: int, *, needed: bool = True
    ) -> CachedChunk:
        """Return the chunk, with nothing valid in it where it was not cached. May wait.

        One that is not `needed` is not worth waiting for other threads' loans to end.
        """
        chunk = self.peek(source, index)
        if chunk is None:
            buffer = self.memory.take(nbytes, needed=needed)
            source.prepare(index, buffer)
            chunk = CachedChunk(source, index, buffer)
            self._chunks[id(source), index] = chunk
        return chunk

    def load(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Make the bytes ``[start, stop)`` of the chunk valid."""
        for gap_start, gap_stop in chunk.valid.gaps(start, stop):
            chunk.source.load(chunk.index, gap_start, chunk.buffer[gap_start:gap_stop])
        chunk.valid.add(start, stop)

    def pin(self, chunk: CachedChunk, pin: Pin) -> None:
        """Keep a chunk in memory as long as `pin` is kept; see `unpin`."""
        self.lull.lasts = False
        self.on_loan = True
        chunk.pin(pin, self.waiting.released)

    def lend(self, chunk: CachedChunk, start: int, stop: int, pin: Pin) -> None:
        """Pin a chunk whose bytes ``[start, stop)`` somebody fills who will say when he is done.

        They count as valid, so that nobody reads the medium into memory that the borrower is
        filling: not a reader, and not the writer of another part of a block.
        """
        self.lull.lasts = False
        self.on_loan = True

        def died(_: Any) -> None:
            self.lost.append((chunk, start, stop))
            self.waiting.released()

        chunk.pin(pin, died)
        chunk.valid.add(start, stop)

    def unpin(self, chunk: CachedChunk, pin: Pin) -> None:
        """Let go of a chunk, on any thread."""
        chunk.unpin(pin)
        self.waiting.released()

    # -- writing ------------------------------------------------------------------------------

    def prepare_write(self, chunk: CachedChunk, start: int, stop: int, *, exact: bool) -> None:
        """Make the blocks of ``[start, stop)`` valid, of which nothing is in flight.

        With `exact`, the caller will write every byte, and only the rest of the outer blocks is
        read.
        """
        low, high = self._blocks(chunk, start, stop)
        if exact:
            self.load(chunk, low, start)
            self.load(chunk, stop, high)
        else:
            self.load(chunk, low, high)

    def await_landing(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Go on when no byte of the blocks of ``[start, stop)`` is in flight."""
        if chunk.inflight.intersects(*self._blocks(chunk, start, stop)):
            raise MustWait

    def await_medium(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Go on when the medium has the blocks of ``[start, stop)``, as far as they have left."""
        if chunk.is_leaving(*self._blocks(chunk, start, stop)):
            raise MustWait

    def take_out_of_flight(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """The same as `await_landing` without waiting for what can be copied instead."""
        low, high = self._blocks(chunk, start, stop)
        if not copies.free(self._writer.queue, self.memory, chunk, low, high):
            raise MustWait

    def set_aside(
        self, chunk: CachedChunk, spans: Iterable[tuple[int, int]], *, whole: bool
    ) -> None:
        """Keep the old bytes of what is written next, for the journal; see `aside.set_aside`."""
        blocks = [self._blocks(chunk, start, stop) for start, stop in spans]
        aside.set_aside(chunk, blocks, self.memory, whole=whole)

    def write(
        self,
        chunk: CachedChunk,
        spans: Iterable[tuple[int, int]],
        items: NDArray[Any],
        values: NDArray[Any],
    ) -> None:
        """Store `values`, of the same dtype, into `items`, which lie at `spans` of the chunk."""
        self.lull.lasts = False
        valid, dirty = chunk.valid, chunk.dirty
        for start, stop in spans:
            low, high = self._blocks(chunk, start, stop)
            valid, dirty = valid.with_span(low, high), dirty.with_span(low, high)
        added = dirty.nbytes - chunk.dirty.nbytes
        # Rule 8: no call from here to the store, and items of one dtype are copied without any.
        chunk.valid = valid
        chunk.dirty = dirty
        items[...] = values
        self._dirty_bytes += added
        self._pass_on(chunk)

    def mark_written(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Note that ``[start, stop)`` has been written, and pass on what should leave now."""
        self.lull.lasts = False
        low, high = self._blocks(chunk, start, stop)
        chunk.valid.add(low, high)
        before = chunk.dirty.nbytes
        chunk.dirty.add(low, high)
        self._dirty_bytes += chunk.dirty.nbytes - before
        self._pass_on(chunk)

    def _pass_on(self, chunk: CachedChunk) -> None:
        address = chunk.source.address(chunk.index)
        may_leave = self.transaction is None or address >= chunk.source.protected_nbytes
        if may_leave and chunk.dirty.covers(0, chunk.buffer.nbytes):
            self._send(chunk)
        elif self._dirty_bytes > self.memory.budget_bytes // 2:
            for oldest in list(self._chunks.values()):
                self._send(oldest)
                if self._dirty_bytes <= self.memory.budget_bytes // 4:
                    break

    def invalidate(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Forget ``[start, stop)``: the next reader takes it from the medium."""
        before = chunk.dirty.nbytes
        chunk.dirty.remove(start, stop)
        chunk.valid.remove(start, stop)
        self._dirty_bytes -= before - chunk.dirty.nbytes

    def revert(self, chunk: CachedChunk, start: int, stop: int) -> None:
        """Go back to what the medium has in ``[start, stop)``, but for what is on its way there."""
        under_way = [(copy.start, copy.stop) for copy in chunk.copies]
        kept = SpanSet.of([*chunk.dirty, *chunk.inflight, *under_way])
        for gap in kept.gaps(start, stop):
            self.invalidate(chunk, *gap)

    def discard(self, source: ChunkSource) -> None:
        """Forget every chunk of `source`, written or not, after what is in flight has landed."""
        self.discard_chunks(source, lambda _: True)

    def discard_from(self, source: ChunkSource, address: int) -> None:
        """Forget the bytes of `source` at `address` and above, written or not."""

        def attempt() -> None:
            self._await_writer()
            for key, chunk in list(self._chunks.items()):
                if chunk.source is source:
                    start = max(0, address - source.address(chunk.index))
                    if start == 0 and not chunk.pins:
                        self._forget(key, chunk)
                    else:
                        # The block that the end cuts stays whole (rule 4).
                        _, start = self._blocks(chunk, start, start)
                        self.invalidate(chunk, start, chunk.buffer.nbytes)

        self.until(attempt, check=False)

    def discard_chunks(self, source: ChunkSource, gone: Callable[[tuple[int, ...]], bool]) -> None:
        """Forget the chunks of `source` that are `gone`, written or not."""

        def attempt() -> None:
            self._await_writer()
            for key, chunk in list(self._chunks.items()):
                if chunk.source is source and gone(chunk.index):
                    self._drop(key, chunk)

        self.until(attempt, check=False)

    def forget(self) -> None:
        """Forget everything, written or not, after what was handed over has landed.

        What an open transaction has spilled is cached as if it were there for good: that is why
        a rollback forgets clean chunks too. That something could not be written is forgotten with
        it: nobody wants it any more.
        """

        def attempt() -> None:
            self._await_writer()
            self.health.unreported = None  # nobody wants any more what could not be written
            for key, chunk in list(self._chunks.items()):
                self._drop(key, chunk)
            self.transaction = None

        self.until(attempt, check=False)

    def flush(self, source: ChunkSource | None = None) -> None:
        """Write out everything that is dirty (of one source), and wait until it has landed.

        This hands the bytes to the operating system; it is no barrier.
        """
        self.until(lambda: self._send_all(source))
        self.settle()

    def seal(self, commit: Commit) -> None:
        """Hand over the open transaction: its dirty bytes, then the commit itself."""

        def attempt() -> None:
            self._send_all(None)
            self._writer.put_commit(commit)
            self.transaction = None

        self.until(attempt)

    def settle(self) -> None:
        """Return when nothing is queued; raise if anything failed."""
        self.until(self._await_writer)

    def _send_all(self, source: ChunkSource | None) -> None:
        dirty = [chunk for chunk in self._chunks.values() if chunk.dirty]
        chunks = [chunk for chunk in dirty if source is None or chunk.source is source]
        chunks.sort(key=lambda chunk: (id(chunk.source), chunk.source.address(chunk.index)))
        for chunk in chunks:
            self._send(chunk)

    def cached(self, source: ChunkSource) -> list[tuple[tuple[int, ...], int, int]]:
        """Return index, valid bytes and bytes not yet landed of each cached chunk of `source`."""
        with self.lock:
            return [
                (chunk.index, chunk.valid.nbytes, chunk.unlanded_nbytes)
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
        hand_over = self._writer.queue.append
        for start, stop in chunk.dirty:
            # A span that was written again while it was in flight waited for it (rule 3), so the
            # two sets are disjoint here.
            inflight = chunk.inflight.with_span(start, stop)
            dirty = chunk.dirty.with_span(0, 0)
            dirty.remove(start, stop)
            olds, left = aside.take_along(chunk, start, stop)
            write = Write(chunk.source, chunk, start, stop, self.transaction, olds=olds)
            # Rule 8: no call from here to the one that hands it over.
            chunk.old = left
            chunk.dirty = dirty
            chunk.inflight = inflight
            hand_over(write)
            self._dirty_bytes -= stop - start
        self._writer.kick()

    def _taken(self, write: Write) -> Write:
        """Called by the writer, under the lock, when it takes a write out of the queue."""
        return copies.copied_when_taken(write, self.memory)

    def _landed(self, write: Write, succeeded: bool) -> None:
        """Called by the writer, under the lock, when a write is over."""
        chunk = write.chunk
        aside.landed(write, self.memory)
        if write.copy is None:
            chunk.inflight.remove(write.start, write.stop)
        else:
            copies.landed(write, self.memory)
        if not succeeded:
            before = chunk.dirty.nbytes
            for start, stop in list(chunk.inflight.gaps(write.start, write.stop)):
                chunk.dirty.add(start, stop)
            self._dirty_bytes += chunk.dirty.nbytes - before

    def _make_room(self) -> bool:
        """Evict a chunk, or send one away and wait for it; false where none may go."""
        if self._evict_one():
            return True
        dirty = next((chunk for chunk in self._chunks.values() if chunk.dirty), None)
        if dirty is not None:
            self._send(dirty)
        if self._writer.busy:
            raise MustWait
        return dirty is not None  # it has been written at once, where there is no other thread

    def _evict_one(self, but: CachedChunk | None = None) -> bool:
        for key, chunk in self._chunks.items():
            if chunk.evictable and chunk is not but:
                self._forget(key, chunk)
                return True
        return False

    def _evict_all(self) -> None:
        while self._evict_one():
            pass

    def _forget(self, key: tuple[int, tuple[int, ...]], chunk: CachedChunk) -> None:
        self.invalidate(chunk, 0, chunk.buffer.nbytes)
        aside.give_back(chunk, self.memory)
        del self._chunks[key]
        self.memory.give(chunk.buffer)

    def _drop(self, key: tuple[int, tuple[int, ...]], chunk: CachedChunk) -> None:
        """Forget a chunk, or the bytes of one that somebody holds."""
        if chunk.pins:
            self.invalidate(chunk, 0, chunk.buffer.nbytes)
            aside.give_back(chunk, self.memory)  # what the medium has may be another's by now
        else:
            self._forget(key, chunk)

    def _await_writer(self) -> None:
        """Go on when nothing is queued or in flight."""
        if self._writer.busy:
            raise MustWait
