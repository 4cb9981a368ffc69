"""What the cache and the writer know of arrays, of a medium and of commits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from pmarray._formats.metadata import GroupMetadata
from pmarray._formats.records import Image
from pmarray._geometry.spans import SpanSet
from pmarray.locks import Lock

__all__ = [
    "CachedChunk",
    "ChunkSource",
    "Commit",
    "CommittedStorage",
    "Old",
    "Pin",
    "Sink",
    "Write",
]


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

    def before_images(
        self,
        writes: Iterable[Write],
        committed: GroupMetadata,
        memory: Callable[[int], memoryview],
        /,
    ) -> Iterator[Image]:
        """Yield what the last durable commit has where `writes` go; on the writer thread.

        That commit is `committed`. What is dead in it needs no image. `memory` gives so many bytes
        of it for the next image, aligned for direct I/O (`Journal.memory`).
        """

    @property
    def protected_nbytes(self) -> int:
        """Up to this address there may be bytes of a commit that was sealed."""


class Pin:
    """Keeps a chunk in memory until it has ended, or nobody keeps the pin itself."""

    __slots__ = ("__weakref__", "ended", "holder")

    def __init__(self, holder: int | None) -> None:
        self.holder = holder
        """The thread that has it; None for one of our own, which ends by itself."""
        self.ended = False
        """Set without a call, in which an exception could arrive that keeps the pin alive."""


class Old(NamedTuple):
    """What the medium has in bytes ``[start, stop)`` of a chunk that is newer in memory."""

    start: int
    stop: int
    data: memoryview


class CachedChunk:
    """One chunk in DRAM, and the state of its bytes."""

    __slots__ = (
        "_pins",
        "buffer",
        "copies",
        "dirty",
        "index",
        "inflight",
        "old",
        "olds",
        "rewritten",
        "source",
        "valid",
    )

    def __init__(self, source: ChunkSource, index: tuple[int, ...], buffer: memoryview) -> None:
        self.source = source
        self.index = index
        self.buffer = buffer
        self.valid = SpanSet()
        self.dirty = SpanSet()
        self.inflight = SpanSet()
        self.copies: tuple[Write, ...] = ()
        """Those of its bytes that are on their way, and may have changed here since."""
        self.old: tuple[Old, ...] = ()
        """What the medium has where the next writes go (`_cache.aside`), in ascending order."""
        self.olds: dict[int, memoryview] = {}
        """The memory of these, and of those that writes on their way have taken along."""
        self.rewritten = False
        """Whether bytes in flight were ever to be written again."""
        self._pins: tuple[weakref.ref[Pin], ...] = ()

    @property
    def pins(self) -> list[Pin]:
        """Those that somebody has."""
        return [pin for ref in self._pins if (pin := ref()) is not None and not pin.ended]

    @property
    def evictable(self) -> bool:
        return not (self.dirty or self.inflight or self.copies or (self._pins and self.pins))

    @property
    def unlanded_nbytes(self) -> int:
        """How many of its bytes the medium does not have, or not yet."""
        under_way = [(copy.start, copy.stop) for copy in self.copies]
        return SpanSet.of([*self.dirty, *self.inflight, *under_way]).nbytes

    def is_leaving(self, start: int, stop: int) -> bool:
        """Whether any byte of ``[start, stop)`` is on its way, as it is or as it was."""
        return self.inflight.intersects(start, stop) or any(
            copy.start < stop and start < copy.stop for copy in self.copies
        )

    def pin(self, pin: Pin, died: Callable[[Any], object] | None = None) -> None:
        """Stay for as long as `pin` is kept; tell `died` when nobody has it any more."""
        self._pins = (*(ref for ref in self._pins if ref() is not None), weakref.ref(pin, died))

    def unpin(self, pin: Pin) -> None:
        """Stay for others only."""
        pin.ended = True  # first: what follows may be torn away
        self._pins = tuple([ref for ref in self._pins if ref() is not pin])

    def told_of(self, pin: Pin) -> list[Callable[[Any], object]]:
        """Who is to be told when nobody has it any more."""
        found = [ref.__callback__ for ref in self._pins if ref() is pin]
        return [callback for callback in found if callback is not None]


class Write(NamedTuple):
    """Bytes ``[start, stop)`` of a chunk that have to reach the medium."""

    source: ChunkSource
    chunk: CachedChunk
    start: int
    stop: int
    number: int | None
    """The transaction they belong to, if any."""
    copy: memoryview | None = None
    """The bytes, where those of the chunk may have changed since (`_cache.copies`)."""
    olds: tuple[Old, ...] = ()
    """What the medium has there until this is written, as far as it was set aside."""

    @property
    def address(self) -> int:
        """Where on the medium the bytes belong."""
        return self.source.address(self.chunk.index) + self.start

    @property
    def data(self) -> memoryview:
        """The bytes."""
        return self.copy if self.copy is not None else self.chunk.buffer[self.start : self.stop]


class Sink(Protocol):
    """What the writer thread does with what it is given."""

    def store(self, writes: list[Write], /) -> None:
        """Write adjacent pieces in one go."""

    def commit(self, writes: list[list[Write]], commits: list[Commit], /) -> None:
        """Commit sealed transactions with what is left of their writes, grouped by adjacency."""


class CommittedStorage(Protocol):
    """What a commit asks of the storage of an array that it changes."""

    def images_of_deletes(self, mark: int, /) -> Iterable[Image]:
        """Yield before-images of what `barrier` will delete."""

    def barrier(self, mark: int, /) -> None:
        """Delete what the transaction deletes; return when everything stored is durable."""

    def committed(self, mark: int, /) -> None:
        """The commit is durable."""


class Commit:
    """A sealed transaction in the writer's queue.

    Parameters
    ----------
    number, metadata
        Its number, and the group as it leaves it.
    marks
        The storages it touched, and what `Storage.seal` returned for each.
    removed
        Files of arrays that it deletes or moves; unlinked after the commit point.
    waited_for
        Whether the caller waits for the outcome.
    forgets
        Whether bytes are dead from it on.
    """

    __slots__ = (
        "_over",
        "error",
        "forgets",
        "marks",
        "metadata",
        "number",
        "removed",
        "waited_for",
    )

    def __init__(
        self,
        number: int,
        metadata: GroupMetadata,
        marks: dict[CommittedStorage, int],
        removed: list[int],
        *,
        waited_for: bool,
        forgets: bool,
    ) -> None:
        self.number = number
        self.metadata = metadata
        self.marks = marks
        self.removed = removed
        self.waited_for = waited_for
        self.forgets = forgets
        self.error: BaseException | None = None
        self._over = Lock()
        self._over.acquire()

    def finish(self, error: BaseException | None) -> None:
        """Note the outcome; the writer thread, and nobody else, does so."""
        self.error = error
        self._over.release()

    def wait(self) -> None:
        """Return when the outcome is known."""
        with self._over:
            pass
