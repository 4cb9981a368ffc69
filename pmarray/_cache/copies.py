"""Writes that have a copy of their bytes, so that nobody waits for them who writes there again.

Bytes in flight do not change (rule 3 of `_cache.cache`). Small arrays that every transaction
changes would make each wait for the one before: what waits in the queue is copied instead, where it
is small, and the chunk's own bytes are free to change. Once that has happened to a chunk, what the
writer thread takes of it is copied, too.

A chunk with copies under way stays in memory: only there is what the medium will have. Copies are
buffers of the cache's memory, and count in its budget; where there is none left, one waits.
"""

from __future__ import annotations

from collections import deque

from pmarray._cache.memory import Memory
from pmarray._cache.source import CachedChunk, Commit, Write
from pmarray._geometry.spans import SpanSet

__all__ = ["copied_when_taken", "free", "landed", "without_superseded"]

_MOST_BYTES = 1 << 20
"""What is larger takes about as long to copy as to write."""
_MOST_COPIES = 256
"""Of one chunk, under way at a time."""


def free(
    queue: deque[Write | Commit], memory: Memory, chunk: CachedChunk, start: int, stop: int
) -> bool:
    """Take ``[start, stop)`` of a chunk out of flight, as far as it is only queued.

    Called under the lock. Returns whether no byte of it is in flight any more.
    """
    if not chunk.inflight.intersects(start, stop):
        return True
    chunk.rewritten = True
    for at in range(len(queue) - 1, -1, -1):  # what was written last is what is written again
        item = queue[at]
        if not isinstance(item, Write) or item.chunk is not chunk or item.copy is not None:
            continue
        if item.start < stop and start < item.stop:
            copied = _copy_of(item, memory)
            if copied is None:
                return False
            copies, inflight = (*chunk.copies, copied), chunk.inflight.with_span(0, 0)
            inflight.remove(item.start, item.stop)
            # Rule 8: no call from here to the one that replaces it.
            chunk.copies = copies
            chunk.inflight = inflight
            queue[at] = copied
            if not inflight.intersects(start, stop):
                return True
    return False


def copied_when_taken(write: Write, memory: Memory) -> Write:
    """Return what is written in place of a write that has left the queue; under the lock."""
    chunk = write.chunk
    copied = _copy_of(write, memory) if chunk.rewritten and write.copy is None else None
    if copied is None:
        return write
    copies, inflight = (*chunk.copies, copied), chunk.inflight.with_span(0, 0)
    inflight.remove(write.start, write.stop)
    chunk.copies = copies
    chunk.inflight = inflight
    return copied


def landed(write: Write, memory: Memory) -> None:
    """Give the copy of a write back that is over; under the lock."""
    chunk = write.chunk
    if write.copy is not None:
        chunk.copies = tuple([copy for copy in chunk.copies if copy is not write])
        memory.give(write.copy)


def without_superseded(writes: list[Write]) -> list[Write]:
    """Leave out what is overwritten by later ones of the same commit."""
    if all(write.copy is None for write in writes):
        return writes
    later: dict[int, SpanSet] = {}
    last: list[Write] = []
    for write in reversed(writes):
        covered = later.setdefault(id(write.chunk), SpanSet())
        if not covered.covers(write.start, write.stop):
            covered.add(write.start, write.stop)
            last.append(write)
    last.reverse()
    return last


def _copy_of(write: Write, memory: Memory) -> Write | None:
    """Return the same with bytes of its own; None where it is too large, or there is no room."""
    nbytes = write.stop - write.start
    if nbytes > _MOST_BYTES or len(write.chunk.copies) >= _MOST_COPIES:
        return None
    buffer = memory.spare(nbytes)
    if buffer is None:
        return None
    buffer[:] = write.data
    return write._replace(copy=buffer)
