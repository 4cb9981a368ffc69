"""Old bytes that stay in memory for the journal, so that nobody reads them from the medium again.

A transaction needs a before-image of what it overwrites. Where a chunk in memory has just what the
medium has, that is *set aside* before it is overwritten: all of a chunk by giving it another
buffer, a part by a copy. The next write of these bytes takes them along, and they go when it has
landed.

What is set aside and was not taken along yet is what the medium has: nothing but a write of the
chunk changes that. Old bytes are buffers of the cache's memory, and count in its budget; where
there is none left for them, images are read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter

from pmarray._cache.memory import Memory
from pmarray._cache.source import CachedChunk, Old, Write
from pmarray._geometry.spans import SpanSet

__all__ = ["give_back", "landed", "set_aside", "take_along"]


def set_aside(
    chunk: CachedChunk, spans: Iterable[tuple[int, int]], memory: Memory, *, whole: bool
) -> None:
    """Keep what the medium has in some spans of a chunk, if the chunk has it.

    Called under the lock by who will write to these spans next: all items of the chunk, if `whole`.
    """
    nbytes = chunk.buffer.nbytes
    if chunk.olds and not chunk.old and chunk.evictable:
        give_back(chunk, memory)  # who set them aside was torn away
    if whole and _is_as_stored(chunk, 0, nbytes) and not (chunk.old or chunk.pins):
        _change_buffer(chunk, memory)
        return
    found = []
    for span in SpanSet.of(spans):
        for start, stop in _not_kept(chunk, *span):
            if not _is_as_stored(chunk, start, stop):
                continue
            buffer = memory.for_old(stop - start, chunk)
            if buffer is None:
                break
            chunk.olds[id(buffer)] = buffer
            buffer[:] = chunk.buffer[start:stop]
            found.append(Old(start, stop, buffer))
    if found:
        chunk.old = tuple(sorted([*chunk.old, *found], key=_start))


def _is_as_stored(chunk: CachedChunk, start: int, stop: int) -> bool:
    return (
        chunk.valid.covers(start, stop)
        and not chunk.dirty.intersects(start, stop)
        and not chunk.is_leaving(start, stop)
    )


def _not_kept(chunk: CachedChunk, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield what of a span is neither dirty nor set aside already."""
    olds = chunk.old
    for low, high in list(chunk.dirty.gaps(start, stop)):
        at = low
        for old in olds[bisect_right(olds, low, key=_stop) :]:
            if old.start >= high:
                break
            if at < old.start:
                yield at, old.start
            at = old.stop
        if at < high:
            yield at, high


def _change_buffer(chunk: CachedChunk, memory: Memory) -> None:
    fresh = memory.for_old(chunk.buffer.nbytes, chunk)
    if fresh is None:
        return
    chunk.source.prepare(chunk.index, fresh)
    before, nothing = chunk.buffer, SpanSet()
    old = (Old(0, before.nbytes, before),)
    chunk.olds[id(before)] = before
    # Rule 8: no call from here to the end.
    chunk.valid = nothing
    chunk.old = old
    chunk.buffer = fresh


def take_along(chunk: CachedChunk, start: int, stop: int) -> tuple[tuple[Old, ...], ...]:
    """Return what a write of a span takes along, and what it leaves."""
    olds = chunk.old
    if not olds:
        return (), ()
    first = bisect_right(olds, start, key=_stop)  # they do not overlap
    last = bisect_left(olds, stop, key=_start)
    return olds[first:last], (*olds[:first], *olds[last:])


def landed(write: Write, memory: Memory) -> None:
    """Let go of the old bytes that a write had with it, which is over; under the lock."""
    for old in write.olds:
        memory.give_old(write.chunk.olds.pop(id(old.data), None))


def give_back(chunk: CachedChunk, memory: Memory) -> None:
    """Let go of all old bytes of a chunk of which nothing is on its way; under the lock."""
    chunk.old = ()
    while chunk.olds:
        memory.give_old(chunk.olds.popitem()[1])


_start, _stop = attrgetter("start"), attrgetter("stop")
