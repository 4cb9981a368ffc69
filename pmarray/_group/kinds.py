"""What a group's backend can do, and which storage an array gets by that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pmarray import _storage
from pmarray._cache.cache import ChunkCache
from pmarray._commits.recovery import Target
from pmarray._commits.snapshot import Snapshot
from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._formats.records import Image
from pmarray._geometry.chunking import plan_chunks, refuse_large_chunk
from pmarray._geometry.layout import Layout
from pmarray._storage.items import Storage
from pmarray.backends._capabilities import Capabilities
from pmarray.backends._history import Versions
from pmarray.backends._protocols import (
    Appendable,
    ChunkBackend,
    Chunks,
    KeepsMapping,
    PersistentRegion,
    ReadsBeside,
    Region,
    RegionBackend,
    ReservesUnfilled,
    TellsChanges,
)
from pmarray.errors import TransactionError

__all__ = ["Kind", "StorageMaker", "kind_of"]

ChunkPlan = str | int | tuple[int, ...]
"""What `chunks=` may be."""
Options = Mapping[str, Any]


class StorageMaker(NamedTuple):
    """Makes the storages of a group's arrays."""

    cache: ChunkCache
    snapshot: Snapshot | None
    """Through which a handle reads that does not hold the lock."""
    keep: Callable[[int, list[Image]], None]
    """Puts before-images of a transaction into the journal; they are durable on return."""
    in_place: bool
    """Whether to store to persistent memory without a cache in front of it."""

    def in_region(
        self,
        backend: RegionBackend,
        array: ArrayMetadata,
        chunks: ChunkPlan,
        *,
        new: bool,
    ) -> Storage:
        """Return the storage of an array whose items are one run of bytes."""
        layout = array.layout
        shape = plan_chunks(layout, chunks, self.cache.memory.max_chunk_bytes)
        make = backend.create if new else backend.open
        region = make(array.file_id, layout.nbytes, aligned=layout.is_aligned(shape))
        holds_fill = not any(array.fill)
        unfilled = region if isinstance(region, ReservesUnfilled) else None
        if self.in_place and isinstance(region, PersistentRegion):
            return _storage.PersistentStorage(
                region,
                layout,
                array.dtype,
                shape,
                file_id=array.file_id,
                cache=self.cache,
                keep=self.keep,
                new=new,
                holds_fill=holds_fill,
                unfilled=unfilled,
                dead=array.dead,
            )
        if not backend.has_journal and region.memory is not None:
            return _storage.MappedStorage(
                region,
                layout,
                array.dtype,
                shape,
                new=new,
                holds_fill=holds_fill,
                unfilled=unfilled,
                dead=array.dead,
            )
        return _storage.RegionStorage(
            region,
            layout,
            array.dtype,
            self.cache,
            shape,
            file_id=array.file_id,
            new=new,
            holds_fill=holds_fill,
            snapshot=self.snapshot,
            dead=array.dead,
            mapping=region if isinstance(region, KeepsMapping) else None,
            changes=region if isinstance(region, TellsChanges) else None,
            beside=region if isinstance(region, ReadsBeside) else None,
            appendable=region if isinstance(region, Appendable) else None,
            unfilled=unfilled,
        )

    def in_chunks(
        self, backend: ChunkBackend, name: str, array: ArrayMetadata, *, new: bool
    ) -> Storage:
        """Return the storage of an array whose chunks are objects of their own."""
        chunks = (backend.create_chunks if new else backend.open_chunks)(name, array)
        storage = _storage.ChunkStorage(
            chunks,
            array.layout,
            array.dtype,
            array.fill,
            self.cache,
            backend,
            new=new,
            snapshot=self.snapshot,
            file_id=array.file_id,
        )
        refuse_large_chunk(
            storage.chunk_shape, storage.chunk_nbytes, self.cache.memory.max_chunk_bytes
        )
        return storage


class Medium(NamedTuple):
    """What an array's items are in: one of the two."""

    region: Region | None = None
    chunks: Chunks | None = None


class Kind(ABC):
    """What a group's backend can do, asked once: of regions, or of chunks.

    Parameters
    ----------
    url
        Where the group is, to say so.
    can
        The code behind it.
    """

    stores_by_name = False
    """Whether what an array has left is in the way of another one of its name."""
    commits_itself = False
    """Whether saving the metadata makes everything since the last time appear in one step."""

    def __init__(self, url: str, can: Capabilities) -> None:
        self.url = url
        self.can = can
        self.survives_fork = can.survives_fork
        self.is_volatile = can.is_volatile

    @property
    def has_journal(self) -> bool:
        """Whether transactions survive a crash by before-images; loading may find out."""
        return self.can.backend.has_journal

    @property
    def can_create(self) -> bool:
        """Whether arrays can be created and deleted; loading may find out."""
        return self.can.backend.can_create

    @property
    def can_commit(self) -> bool:
        """Whether several changes can be one step."""
        return True

    @property
    def versions(self) -> Versions:
        """The history that the backend keeps.

        Raises
        ------
        TransactionError
            It keeps none.
        """
        if self.can.versions is None:
            raise TransactionError(f"{self.url} keeps no history: icechunk: does")
        return self.can.versions

    @property
    def for_a_child(self) -> str:
        """What a forked process can do that has no more than its parent's handle."""
        if self.is_volatile:
            return (
                "it lies in that one's memory: use the start method 'spawn' with files (pmarray."
                "copy), or give the child a[...]"
            )
        return "open it again here, with mode='r'"

    def orphans(self, metadata: GroupMetadata) -> Sequence[str]:
        """Return where a crash has left data that belong to no array."""
        return () if self.can.orphans is None else self.can.orphans.orphans(metadata)

    def remove_orphans(self, metadata: GroupMetadata) -> None:
        """Delete them, on the writer, where nobody else can be making them."""
        if self.can.cleans is not None:
            self.can.cleans.remove_orphans(metadata)

    def flaws(self) -> Sequence[tuple[str, str, bool]]:
        """Return what is damaged and does not matter: where, what, whether it is damage."""
        return () if self.can.copies is None else self.can.copies.flaws()

    def publish(self, names: Mapping[str, int]) -> None:
        """Let other programs find the arrays by their names, where they can at all."""
        if self.can.publishes is not None:
            self.can.publishes.publish(names)

    def npy_path(self, file_id: int) -> str | None:
        """Return the path of an array's ``.npy`` file, where it has one."""
        return None if self.can.publishes is None else self.can.publishes.data_path(file_id)

    def occupied_nbytes(self, name: str, array: ArrayMetadata) -> int | None:
        """Return what an array takes on the medium; None where that cannot be told."""
        return None if self.can.measures is None else self.can.measures.occupied_nbytes(name, array)

    def make_way(self) -> None:
        """Overwrite what is no group of ours, on a medium that may hold something else."""
        if self.can.overwritable is not None:
            self.can.overwritable.make_way()

    def settle(self) -> None:
        """Drop what only a crash of this writer would have needed."""
        if self.can.settles is not None:
            self.can.settles.settle()

    @abstractmethod
    def plan(
        self, name: str, array: ArrayMetadata, chunks: ChunkPlan, most: int, options: Options
    ) -> ArrayMetadata:
        """Complete the metadata of a new array, or raise where there can be none like it."""

    @abstractmethod
    def medium(self, name: str, array: ArrayMetadata) -> Medium:
        """Open what an array's items are in, to look at it."""

    @abstractmethod
    def storage(
        self, make: StorageMaker, name: str, array: ArrayMetadata, chunks: ChunkPlan, *, new: bool
    ) -> Storage:
        """Return the storage of an array."""

    @abstractmethod
    def moved(self, make: StorageMaker, array: ArrayMetadata) -> Storage:
        """Return a new storage to which the items of another one are copied."""

    def refused(self) -> Mapping[str, str]:
        """Why arrays that are there cannot be opened, by name."""
        return {}

    def images_of_name(self, name: str, *, had_array: bool) -> list[Image]:
        """Return what brings back all that a name has, under which an array is created."""
        return []

    def targets(self, storages: Iterable[Storage]) -> dict[int, Target]:
        """Return where before-images are put back, by the id of the file."""
        return {}

    def has_changes(self) -> bool:
        """Whether something waits to be saved, even where the metadata are the same."""
        return False

    def forget_unsaved(self) -> None:  # noqa: B027  # most backends keep nothing to themselves
        """Where the backend commits itself: forget what was written since it has."""

    def merged(self) -> Checkpoint | None:
        """Return what is there now, if saving has joined it with what others saved."""
        return None


class RegionKind(Kind):
    """Each array is one run of bytes."""

    def __init__(self, url: str, can: Capabilities, backend: RegionBackend) -> None:
        super().__init__(url, can)
        self._backend = backend

    def plan(
        self, name: str, array: ArrayMetadata, chunks: ChunkPlan, most: int, options: Options
    ) -> ArrayMetadata:
        if options:
            raise TypeError(
                f"{', '.join(options)}: no parameter of a new array in {self.url} (codecs=, "
                "shards= and dimension_names= are for chunk stores such as zarr:, and commit= and "
                "commit_window= for open_group)"
            )
        plan_chunks(Layout.plan(array.shape, array.dtype.itemsize, array.order), chunks, most)
        return array

    def medium(self, name: str, array: ArrayMetadata) -> Medium:
        region = self._backend.open(array.file_id, array.layout.nbytes, aligned=False)
        return Medium(region=region)

    def storage(
        self, make: StorageMaker, name: str, array: ArrayMetadata, chunks: ChunkPlan, *, new: bool
    ) -> Storage:
        return make.in_region(self._backend, array, chunks, new=new)

    def moved(self, make: StorageMaker, array: ArrayMetadata) -> Storage:
        return make.in_region(self._backend, array, "auto", new=True)

    def targets(self, storages: Iterable[Storage]) -> dict[int, Target]:
        return {
            storage.file_id: Target.of_region(storage.region)
            for storage in storages
            if isinstance(storage, _storage.RegionStorage | _storage.PersistentStorage)
        }


class ChunkKind(Kind):
    """Each chunk is an object of its own."""

    stores_by_name = True

    def __init__(self, url: str, can: Capabilities, backend: ChunkBackend) -> None:
        super().__init__(url, can)
        self._backend = backend
        self.commits_itself = backend.commits

    @property
    def can_commit(self) -> bool:
        return self.has_journal or self.commits_itself

    def plan(
        self, name: str, array: ArrayMetadata, chunks: ChunkPlan, most: int, options: Options
    ) -> ArrayMetadata:
        return self._backend.plan(name, array, chunks, most, options)

    def medium(self, name: str, array: ArrayMetadata) -> Medium:
        return Medium(chunks=self._backend.open_chunks(name, array))

    def storage(
        self, make: StorageMaker, name: str, array: ArrayMetadata, chunks: ChunkPlan, *, new: bool
    ) -> Storage:
        return make.in_chunks(self._backend, name, array, new=new)

    def moved(self, make: StorageMaker, array: ArrayMetadata) -> Storage:
        raise AssertionError("chunk stores take any shape in place")

    def refused(self) -> Mapping[str, str]:
        found: Mapping[str, str] = getattr(self._backend, "refused", {})
        return found

    def images_of_name(self, name: str, *, had_array: bool) -> list[Image]:
        images = self._backend.images_of_name(name, had_array=had_array)
        return [Image(_storage.STORE_ID, offset, memoryview(data)) for offset, data in images]

    def targets(self, storages: Iterable[Storage]) -> dict[int, Target]:
        if self.commits_itself:
            return {}
        return {_storage.STORE_ID: Target(self._backend.images(), None)}

    def has_changes(self) -> bool:
        return self._backend.has_changes()

    def forget_unsaved(self) -> None:
        if self.commits_itself:
            self._backend.roll_back()

    def merged(self) -> Checkpoint | None:
        return self._backend.merged()


def kind_of(url: str, backend: RegionBackend | ChunkBackend) -> Kind:
    """Return what a backend can do."""
    can = Capabilities.of(backend)
    if can.chunks is not None:
        return ChunkKind(url, can, can.chunks)
    assert can.regions is not None
    return RegionKind(url, can, can.regions)
