"""Chunks that threads fetch into the cache, for readers who wait for them or come later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pmarray._cache.cache import ChunkCache
from pmarray._cache.source import CachedChunk, ChunkSource, Pin
from pmarray._storage.storereads import StoreReads
from pmarray._system.chunkthreads import start
from pmarray._system.uninterrupted import Task

__all__ = ["Fetches"]

AnyArray = NDArray[Any]
Chunk = tuple[int, ...]
Spans = Sequence[tuple[int, int]]


class Fetches:
    """The fetches of one array's chunks.

    Parameters
    ----------
    source
        Whose chunks they are, for the cache.
    cache
        Where they go.
    reads
        Reads them.
    nbytes
        Of a chunk in memory.
    as_chunk
        Looks at such memory as an array of the shape of a chunk.
    """

    def __init__(
        self,
        source: ChunkSource,
        cache: ChunkCache,
        reads: StoreReads,
        nbytes: int,
        as_chunk: Callable[[memoryview], AnyArray],
    ) -> None:
        self._source = source
        self._cache = cache
        self._reads = reads
        self._nbytes = nbytes
        self._as_chunk = as_chunk
        self._coming: dict[Chunk, _Fetch] = {}
        """Chunks in the cache, pinned, that a thread is filling."""

    def begin(self, index: Chunk, spans: Spans, *, needed: bool) -> Task[None] | None:
        """Have a thread fill bytes of a chunk in the cache, as far as they are not there yet.

        Returns what is filling the chunk, if anything is.

        Raises
        ------
        BudgetError
            All of the cache is on loan.
        """

        def attempt() -> None:
            handed_over = False
            cached = self._cache.peek(self._source, index)
            missing = self._reads.missing(spans, None if cached is None else cached.valid)
            if index in self._coming or not missing:
                return
            chunk = self._cache.acquire(self._source, index, self._nbytes, needed=needed)
            items = self._as_chunk(chunk.buffer)
            pin = Pin(None)
            fetch = _Fetch(
                chunk,
                pin,
                missing,
                Task(
                    lambda: self._reads.read_parts_into(index, items, missing),
                    lambda: self._arrived(index, fetch),
                ),
            )
            # Whoever is torn away before it has a thread has left it to who wants the memory.
            self._cache.memory.before_eviction.append(
                lambda: None if handed_over else self._start_noted(index, fetch)
            )
            # Before it begins: the thread must not fill memory that nobody keeps for it. Noted with
            # no call after the pin: one that nobody knew of would be kept by an exception's frames.
            self._cache.pin(chunk, pin)
            self._coming[index] = fetch
            start(fetch.task)
            handed_over = True

        self._cache.until(attempt)
        coming = self._coming.get(index)
        return None if coming is None or coming.task.over else coming.task

    def _start_noted(self, index: Chunk, fetch: _Fetch) -> None:
        if self._coming.get(index) is fetch:
            start(fetch.task)

    def _arrived(self, index: Chunk, fetch: _Fetch) -> None:
        # A chunk that nobody comes for must not stay pinned; an error waits for who comes. Not
        # here: whoever has the lock may be waiting for this thread to do something else.
        if fetch.task.error is None:
            self._cache.memory.before_eviction.append(lambda: self._note_landed(index, fetch))
            self._cache.waiting.signal()

    def land(self, index: Chunk) -> None:
        """Wait until a chunk that a thread is filling is there."""
        fetch = self._coming.get(index)
        if fetch is not None:
            start(fetch.task)  # where it has never been handed over
            fetch.task.wait()
            self._cache.until(lambda: self._note_landed(index, fetch))
            fetch.task.result()

    def forget_failures(self) -> None:
        """What could not be fetched ahead for an earlier reader may be there for this one."""
        for index, fetch in list(self._coming.items()):
            if fetch.task.over and fetch.task.error is not None:
                self._cache.until(partial(self._note_landed, index, fetch))

    def land_all(self) -> None:
        """Wait for all of them; errors are met again by whoever wants the chunk."""
        for index, fetch in list(self._coming.items()):
            start(fetch.task)
            fetch.task.wait()
            self._cache.until(partial(self._note_landed, index, fetch), check=False)

    def _note_landed(self, index: Chunk, fetch: _Fetch) -> None:
        """Keep the books of a chunk that has arrived, or has not; under the cache's lock."""
        if self._coming.get(index) is not fetch:
            return  # somebody else was faster
        if fetch.task.error is None:
            for part in fetch.parts:
                fetch.chunk.valid.add(*part)
        # Without a call in between: torn away, it is noted again, or is over.
        del self._coming[index]
        fetch.pin.ended = True
        self._cache.unpin(fetch.chunk, fetch.pin)


class _Fetch(NamedTuple):
    """A chunk of the cache that a thread is filling."""

    chunk: CachedChunk
    pin: Pin
    parts: list[tuple[int, int]]
    """Which bytes of it."""
    task: Task[None]
