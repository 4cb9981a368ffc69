"""What a backend is: one that keeps a region an array, or one object a chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._geometry.layout import Layout
from pmarray._geometry.reach import Reach
from pmarray._geometry.requests import Request
from pmarray._protocols import RememberedProtocol
from pmarray._system.counter import Counter
from pmarray._system.keptfiles import Parts
from pmarray._url import URL

__all__ = [
    "Appendable",
    "Backend",
    "Beside",
    "ChunkBackend",
    "Chunks",
    "CountsChanges",
    "ImageTarget",
    "KeepsCopies",
    "KeepsImages",
    "KeepsMapping",
    "LeavesOrphans",
    "LosesLock",
    "Mapped",
    "Measures",
    "OpenBackend",
    "Overwritable",
    "PersistentRegion",
    "Publishes",
    "ReadsBeside",
    "Region",
    "RegionBackend",
    "RemovesOrphans",
    "ReservesUnfilled",
    "Settles",
    "TellsChanges",
]


class Region(Protocol):
    """The bytes of one array on their medium, counted from its first item."""

    @property
    def capacity(self) -> int:
        """Bytes that may be read and written."""

    @property
    def block_bytes(self) -> int:
        """Every write starts and ends at a multiple of this (1 where any will do)."""

    @property
    def memory(self) -> NDArray[np.uint8] | None:
        """The bytes themselves, where loads and stores are the fast way to them."""

    def read_into(self, offset: int, out: memoryview, /) -> None:
        """Fill `out` from `offset` on. May run on any thread, also during `write`."""

    def will_read(self, offset: int, nbytes: int, /) -> None:
        """A hint that these bytes are wanted next; returns at once."""

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        """Write `buffers` from `offset` on; on one thread at a time, if `memory` is not None."""

    def barrier(self) -> None:
        """Return when everything written before is durable."""

    def reserve(self, nbytes: int, /) -> None:
        """Make `capacity` at least `nbytes`, or raise and change nothing; new bytes are zeros."""

    def refresh(self) -> None:
        """Take note of a `capacity` that another process has changed."""

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        """Note shape and dtype beside the bytes, for the convenience of other programs."""

    def trim(self, nbytes: int, /) -> None:
        """Give back the space beyond `nbytes`."""

    def view(self, nbytes: int, /) -> NDArray[np.uint8] | None:
        """Return the first `nbytes` bytes as a read-only array without copying, if possible."""

    def close(self) -> None:
        """Release the handles; what was written stays."""


@runtime_checkable
class PersistentRegion(Region, Protocol, metaclass=RememberedProtocol):
    """A region that is memory and keeps what is stored to it: what `write` wrote is durable."""

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes themselves; others after `reserve` and `trim`, which old arrays outlive."""

    def will_store(self, offset: int, nbytes: int, /) -> None:
        """Make ready bytes that are about to be stored to `memory`; they keep their values."""

    def stored(self, offset: int, nbytes: int, /) -> None:
        """Note that bytes have been stored to `memory`; `barrier` makes them durable."""


class Mapped(Protocol):
    """Bytes of a region as memory, which must be asked for before they are loaded.

    It outlives the region, and may be used on any thread.
    """

    budget_bytes: int
    """How much of what is read in long runs may stay in this process's pages; 0 unless set."""

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes, read-only."""

    @property
    def offset(self) -> int:
        """How many bytes of the medium lie before them."""

    @property
    def known(self) -> bytearray:
        """For each page of the medium, whether it was asked for: 1, or 0."""

    def reaches(self, stop: int, /) -> bool:
        """Whether the medium has so many bytes now."""

    def read_into(self, offset: int, out: memoryview, /) -> None:
        """Fill `out` from `offset` on, by system call."""

    def ask(self, reach: Reach, /) -> bool:
        """Return when bytes can be loaded, or false; raise where the medium does not give them."""

    def ask_each(self, offsets: NDArray[np.int64], nbytes: int, /) -> bool:
        """The same for some bytes at each of `offsets`."""

    def ask_item(self, offset: int, nbytes: int, /) -> bool:
        """The same for the bytes of one item."""

    def knows(self, offset: int, nbytes: int, /) -> bool:
        """Whether the bytes of one item were asked for already."""

    def show(self, reach: Reach, /) -> bool:
        """Whether bytes can be loaded, and all of them are in memory already."""

    @property
    def reads_ahead(self) -> bool:
        """Whether the system reads so far ahead that `fetch` keeps the medium busy."""

    def fetch(self, reach: Reach, /) -> None:
        """Have bytes come into memory; `show` tells whether they have."""

    def expect(self, reach: Reach, /) -> None:
        """Hint that bytes are asked for next."""

    def is_crowded(self) -> bool:
        """Whether so much was asked for that some of it should be given up."""

    def let_go(self, reach: Reach, /) -> None:
        """Give up the pages of bytes that were asked for."""


@runtime_checkable
class KeepsMapping(Region, Protocol, metaclass=RememberedProtocol):
    """A region on a medium that can be mapped for reading, beside system calls."""

    def keep_mapped(self, nbytes: int, /) -> Mapped | None:
        """Return its first `nbytes` bytes as memory, if possible; the same as long as they do.

        The mapping ends with `trim` and `close`, when nobody has it any more.
        """


class Beside(Protocol):
    """What reads a region on any thread, without the region, and outlives it."""

    @property
    def offset(self) -> int:
        """How many bytes of the medium lie before the region."""

    def read(self, request: Request, out: memoryview, /, *, direct: bool) -> None:
        """Fill `out`, which begins on a block, past the system's cache if that is better.

        Raises
        ------
        StorageError, DamagedError
            The medium cannot be read, or ends before `request.least`.
        """

    def are_resident(self, stretches: Sequence[tuple[int, int]], /) -> bool:
        """Whether bytes are in the system's cache: starts and ends, counted as in a request."""


@runtime_checkable
class ReadsBeside(Region, Protocol, metaclass=RememberedProtocol):
    """A region of which several parts can be read at a time, on threads of the library."""

    def beside(self) -> Beside:
        """Return what does that; the same until `close`."""


@runtime_checkable
class TellsChanges(Protocol, metaclass=RememberedProtocol):
    """A region that can tell whether anybody has written to it."""

    def unchanged_stamp(self) -> tuple[int, ...] | None:
        """Tell this state of the region from all others.

        None where something was written since it was opened, or so shortly before that it cannot
        be told.
        """


@runtime_checkable
class Appendable(Region, Protocol, metaclass=RememberedProtocol):
    """A region that can be made larger behind, ahead of who appends to it."""

    def will_grow(self, nbytes: int, more: int, /) -> None:
        """A hint that `reserve` follows again; returns at once.

        What is used has just grown by `more` bytes to `nbytes`. `capacity` stays as it is until
        then, and what is not used in the end is given back by `trim`.
        """


@runtime_checkable
class ReservesUnfilled(Region, Protocol, metaclass=RememberedProtocol):
    """A region that is filled with zeros to be one of zeros, which an append would overwrite."""

    def reserve_unfilled(self, nbytes: int, /) -> None:
        """As `reserve`, but new bytes may hold anything."""


class ImageTarget(Protocol):
    """Where before-images are put back; a `Region` is one."""

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        """Put back one image."""

    def barrier(self) -> None:
        """Return when everything put back before is durable."""

    def close(self) -> None:
        """Release the handles."""


class Backend(Protocol):
    """One group on its medium: what all backends have."""

    @property
    def can_create(self) -> bool:
        """Whether arrays can be created and deleted, and attributes kept."""

    @property
    def has_journal(self) -> bool:
        """Whether transactions can be made to survive a crash, by `open_journal`."""

    def load(self) -> Checkpoint | None:
        """Return what `save` wrote last, or None where there is no group."""

    def save(self, checkpoint: Checkpoint, /) -> None:
        """Replace the metadata in one durable step."""

    def admit(self, array: ArrayMetadata, /) -> None:
        """Raise `LayoutError` where an array cannot become like this; asked before it does."""

    def stamp(self) -> object:
        """Return, cheaply, a value that differs after each `save`."""

    def open_journal(self, *, create: bool) -> Region | None:
        """Open the region of the journal; None where there is none and `create` is false."""

    def lock(self) -> None:
        """Become the group's one writer, or raise `GroupLockedError`."""

    def remove(self, file_id: int, /) -> None:
        """Delete the data of an array that no metadata name any more."""

    def close(self) -> None:
        """Release the lock and the handles."""

    def abandon(self) -> None:
        """Close this process's copies of the handles in a forked child; release nothing."""


@runtime_checkable
class RegionBackend(Backend, Protocol, metaclass=RememberedProtocol):
    """A backend that keeps one byte-addressable region an array."""

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> Region:
        """Make a new region of zeros; `aligned` promises writes in whole blocks."""

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> Region:
        """Open the region of an array that needs `nbytes` bytes."""


class Chunks(Protocol):
    """The chunks of one array in their store. All methods may be called on any thread."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of a chunk along each axis of the array."""

    def grow(self, array_shape: tuple[int, ...], /) -> None:
        """The array has grown to this shape; the metadata say so when they are saved."""

    def read_into(self, chunk: tuple[int, ...], out: NDArray[Any], /) -> None:
        """Fill `out`, an array of the shape of a chunk; with the fill value if there is none."""

    @property
    def part_nbytes(self) -> int:
        """How long parts of a chunk are, or a multiple of it, which are best for `read_parts_into`.

        0 where a chunk is stored in one piece, and only `read_into` can be used.
        """

    @property
    def is_near(self) -> bool:
        """Whether a part comes as fast as a part of a local file."""

    def read_parts_into(self, chunk: tuple[int, ...], parts: Parts, /) -> None:
        """Fill bytes of a chunk, of each part from its place on, as `read_into` would."""

    def read_parts_at_hand(self, chunk: tuple[int, ...], parts: Parts, /) -> bool:
        """The same without waiting, or opening anything; else False, and they hold anything."""

    def write(self, chunk: tuple[int, ...], values: NDArray[Any], /) -> None:
        """Replace a whole chunk."""

    def delete(self, chunk: tuple[int, ...], /) -> None:
        """Remove a chunk, if it is there."""

    def key(self, chunk: tuple[int, ...], /) -> bytes:
        """The name of a chunk in the store."""

    def before_image(self, chunk: tuple[int, ...], /) -> tuple[int, bytes] | None:
        """Keep what is there now; return what brings it back, as offset and bytes of an image.

        The bytes are the chunk's `key`. None where the store's transactions need no images.
        """

    def read_image_into(self, offset: int, chunk: tuple[int, ...], out: NDArray[Any], /) -> None:
        """Fill `out` with the chunk as a before-image kept it."""


@runtime_checkable
class ChunkBackend(Backend, Protocol, metaclass=RememberedProtocol):
    """A backend that keeps chunks as objects of their own."""

    @property
    def commits(self) -> bool:
        """Whether `save` makes everything since the last one appear in one step."""

    def has_changes(self) -> bool:
        """Whether something waits for `save`, even where the metadata are the same."""

    def roll_back(self) -> None:
        """Where the backend commits itself: forget everything since the last `save`."""

    def merged(self) -> Checkpoint | None:
        """Return what is there now, if the last `save` has joined it with what others saved."""

    def plan(
        self,
        name: str,
        array: ArrayMetadata,
        chunks: str | int | tuple[int, ...],
        max_nbytes: int,
        options: Mapping[str, Any],
        /,
    ) -> ArrayMetadata:
        """Complete the metadata of a new array by all that decides how chunks are stored."""

    def create_chunks(self, name: str, array: ArrayMetadata, /) -> Chunks:
        """Make room for a new array, of which nothing is there afterwards."""

    def open_chunks(self, name: str, array: ArrayMetadata, /) -> Chunks:
        """Open the chunks of an array."""

    def images_of_name(self, name: str, /, *, had_array: bool) -> list[tuple[int, bytes]]:
        """Keep all that a name has, under which an array is about to be created.

        Returns offset and bytes of each before-image. With `had_array`, the last commit has an
        array there: that nothing of it is stored has to be known too, or chunks of the new one
        would pass for its own.
        """

    def images(self) -> ImageTarget:
        """Return where before-images are put back."""

    def images_kept(self) -> None:
        """Return when what `before_image` kept is durable."""

    def barrier(self) -> None:
        """Return when all chunks written and deleted before are durable."""


@runtime_checkable
class LeavesOrphans(Protocol, metaclass=RememberedProtocol):
    """A backend on a medium that keeps what a crash left there of arrays that never came to be."""

    def orphans(self, metadata: GroupMetadata, /) -> Sequence[str]:
        """Return where there are data that belong to no array of `metadata`."""


@runtime_checkable
class RemovesOrphans(LeavesOrphans, Protocol, metaclass=RememberedProtocol):
    """One whose writer can remove it, since nobody else is writing."""

    def remove_orphans(self, metadata: GroupMetadata, /) -> None:
        """Delete them; called by the writer, when `metadata` are durable."""


@runtime_checkable
class KeepsCopies(Protocol, metaclass=RememberedProtocol):
    """A backend that keeps something twice, and goes on where one of the two is damaged."""

    def flaws(self) -> Sequence[tuple[str, str, bool]]:
        """Return where there are not two, what is the matter, and whether that is damage."""


@runtime_checkable
class Publishes(Protocol, metaclass=RememberedProtocol):
    """A backend whose data other programs find by the names of the arrays."""

    def publish(self, names: Mapping[str, int], /) -> None:
        """Make the arrays findable by name; durable some time, and no authority."""

    def data_path(self, file_id: int, /) -> str:
        """Return the path of an array's ``.npy`` file."""


@runtime_checkable
class Measures(Protocol, metaclass=RememberedProtocol):
    """A backend that can tell what an array takes on its medium."""

    def occupied_nbytes(self, name: str, array: ArrayMetadata, /) -> int | None:
        """Return the bytes that an array takes there, headers included; None if it cannot."""


@runtime_checkable
class Settles(Protocol, metaclass=RememberedProtocol):
    """A backend that keeps something only as long as a writer is there."""

    def settle(self) -> None:
        """The writer closes, and all is durable: drop what only a crash would have needed."""


@runtime_checkable
class KeepsImages(Protocol, metaclass=RememberedProtocol):
    """A backend that keeps before-images itself, and tells the journal only where they are."""

    def committed(self) -> None:
        """A commit is durable: they are needed no more."""


@runtime_checkable
class LosesLock(Protocol, metaclass=RememberedProtocol):
    """A backend whose lock is a file that somebody can remove."""

    def refuse_lost_lock(self) -> None:
        """Raise `LockLostError` where it has been; asked, cheaply, before anything is written."""


@runtime_checkable
class CountsChanges(Protocol, metaclass=RememberedProtocol):
    """A backend whose writer tells readers, by a counter, before it changes what they may see."""

    def advance(self) -> None:
        """Move the counter on; the caller has the lock, and an error means that it must not go on.

        `lock` does so as well.
        """

    def counter(self) -> Counter | None:
        """Return a reader's look at it; None where there is none to rely on."""


@runtime_checkable
class Overwritable(Protocol, metaclass=RememberedProtocol):
    """A backend on a medium that may hold something else, as a device does."""

    def make_way(self) -> None:
        """Overwrite what is there, if it is no group of ours: ``mode="w"`` was asked for."""


@runtime_checkable
class OpenBackend(Protocol):
    """The object behind an entry point."""

    def __call__(self, url: URL, *, writable: bool) -> RegionBackend | ChunkBackend:
        """Return the backend for `url`; nothing is created and nothing is locked yet."""
