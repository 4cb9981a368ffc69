"""Old bytes on their way into the journal: several requests under way while others are written.

What is still in memory is not read (`_cache.aside`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from pmarray._cache.source import Write
from pmarray._commits.journal import IMAGES_UNDER_WAY, MAX_PAYLOAD_BYTES
from pmarray._config import config
from pmarray._formats.records import Image
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._geometry.requests import Request
from pmarray._geometry.spans import SpanSet
from pmarray._system.crew import readers
from pmarray._system.uninterrupted import Task
from pmarray.backends._protocols import Beside, ReadsBeside, Region

__all__ = ["images_before", "images_of"]

Memory = Callable[[int], memoryview]
_MIN_BYTES = 1 << 20
"""Less is read before a thread has woken up."""


def images_before(
    region: Region,
    beside: ReadsBeside | None,
    file_id: int,
    writes: Iterable[Write],
    dead: SpanSet,
    end: int,
    memory: Memory,
) -> Iterator[Image]:
    """Yield images of what a region has where some writes go.

    What a write has with it is not read.

    Parameters
    ----------
    region, beside, file_id, memory
        See `images_of`.
    writes
        To the region.
    dead
        Bytes that nobody wants.
    end
        No byte from here on is wanted either.
    """
    pieces: list[tuple[int, int]] = []
    for write in writes:
        address = write.address - write.start
        for first, stop in _living(write, dead, end):
            rest = SpanSet.of([(first, stop)])
            for old in write.olds:
                low = max(first, -(-(address + old.start) // BLOCK_BYTES) * BLOCK_BYTES)
                high = min(stop, (address + old.stop) // BLOCK_BYTES * BLOCK_BYTES)
                data = old.data[low - address - old.start : high - address - old.start]
                for start, nbytes in _cut(low, high):
                    yield Image(file_id, start, data[start - low : start - low + nbytes])
                rest.remove(low, high)
            for gap in rest:
                pieces += _cut(*gap)
    yield from images_of(region, beside, file_id, pieces, memory)


def _living(write: Write, dead: SpanSet, end: int) -> Iterable[tuple[int, int]]:
    """Return the stretches of blocks where a write goes that somebody wants."""
    low = write.address // BLOCK_BYTES * BLOCK_BYTES
    high = -(-(write.address + write.stop - write.start) // BLOCK_BYTES) * BLOCK_BYTES
    return dead.gaps(low, min(high, end))


def _cut(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of pieces that a record has room for."""
    for at in range(start, stop, MAX_PAYLOAD_BYTES):
        yield at, min(MAX_PAYLOAD_BYTES, stop - at)


def images_of(
    region: Region,
    beside: ReadsBeside | None,
    file_id: int,
    pieces: Sequence[tuple[int, int]],
    memory: Memory,
) -> Iterator[Image]:
    """Yield images of pieces of a region.

    Parameters
    ----------
    region, beside
        Where the bytes are, and what reads it on other threads, where there is such a thing.
    file_id
        Of the region.
    pieces
        Start and length of each.
    memory
        Gives memory for so many bytes, that begins on a block and goes on to the end of one. It is
        used again, but not while `IMAGES_UNDER_WAY` more are asked for.
    """
    if beside is None or sum(nbytes for _, nbytes in pieces) < _MIN_BYTES:
        return _one_by_one(region, file_id, pieces, memory)
    return _side_by_side(beside.beside(), file_id, pieces, memory)


def _one_by_one(
    region: Region, file_id: int, pieces: Sequence[tuple[int, int]], memory: Memory
) -> Iterator[Image]:
    following = iter(pieces)
    under_way = 0
    for start, nbytes in pieces:
        # What is copied into the journal meanwhile must not leave the medium idle.
        while under_way < config.read_ahead and (coming := next(following, None)):
            region.will_read(*coming)
            under_way += coming[1]
        under_way -= nbytes
        data = memory(nbytes)
        region.read_into(start, data)
        yield Image(file_id, start, data)


def _side_by_side(
    reader: Beside, file_id: int, pieces: Sequence[tuple[int, int]], memory: Memory
) -> Iterator[Image]:
    coming: deque[tuple[Image, Task[None]]] = deque()
    try:
        for start, nbytes in pieces:
            if len(coming) == IMAGES_UNDER_WAY:
                yield _landed(coming)
            image = Image(file_id, start, memory(nbytes))
            first = reader.offset + start
            request = Request(first, first + nbytes, first + nbytes, 0)
            aligned = not (first | nbytes) % BLOCK_BYTES
            task = Task(partial(reader.read, request, image.data, direct=aligned))
            coming.append((image, task))  # before it begins: it is waited for
            readers.start(task)
        while coming:
            yield _landed(coming)
    finally:
        for _, task in coming:
            task.give_up()
        for _, task in coming:
            task.wait()  # the memory is used again


def _landed(coming: deque[tuple[Image, Task[None]]]) -> Image:
    image, task = coming[0]
    task.wait()
    coming.popleft()
    if task.error is not None:
        raise task.error
    return image
