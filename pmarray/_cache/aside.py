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

from bisect import bisect_left
from collections.abc import Iterable
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
    if whole and _is_as_stored(chunk, 0, nbytes) and not (chunk.old or chunk.pins):
        _change_buffer(chunk, memory)
        return
    found = []
    for start, stop in _not_kept(chunk, SpanSet.of(spans)):
        if _is_as_stored(chunk, start, stop):
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


def _not_kept(chunk: CachedChunk, spans: SpanSet) -> Iterable[tuple[int, int]]:
    """Yield what of some spans is neither dirty nor set aside already."""
    if not (chunk.dirty or chunk.old):
        return spans
    rest = spans.with_span(0, 0)
    for start, stop in chunk.dirty:
        rest.remove(start, stop)
    for old in chunk.old:
        rest.remove(old.start, old.stop)
    return rest


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
    first = bisect_left(olds, start, key=_stop)  # they do not overlap
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
