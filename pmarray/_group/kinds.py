"""Which storage an array gets, by what its backend can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pmarray._cache.cache import ChunkCache
from pmarray._commits.snapshot import Snapshot
from pmarray._formats.metadata import ArrayMetadata
from pmarray._formats.records import Image
from pmarray._geometry.chunking import plan_chunks, refuse_large_chunk
from pmarray._storage.chunked import ChunkStorage
from pmarray._storage.items import Storage
from pmarray._storage.mapped import MappedStorage
from pmarray._storage.persistent import PersistentStorage
from pmarray._storage.region import RegionStorage
from pmarray.backends._protocols import ChunkBackend, PersistentRegion, RegionBackend

__all__ = ["StorageMaker"]


@dataclass(frozen=True, slots=True)
class StorageMaker:
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
        chunks: str | int | tuple[int, ...],
        *,
        new: bool,
    ) -> Storage:
        """Return the storage of an array whose items are one run of bytes."""
        layout = array.layout
        shape = plan_chunks(layout, chunks, self.cache.max_chunk_bytes)
        make = backend.create if new else backend.open
        region = make(array.file_id, layout.nbytes, aligned=layout.is_aligned(shape))
        holds_fill = not any(array.fill)
        if self.in_place and isinstance(region, PersistentRegion):
            return PersistentStorage(
                region,
                layout,
                array.dtype,
                shape,
                file_id=array.file_id,
                cache=self.cache,
                keep=self.keep,
                new=new,
                holds_fill=holds_fill,
            )
        if not backend.has_journal and region.memory is not None:
            return MappedStorage(region, layout, array.dtype, shape, new=new, holds_fill=holds_fill)
        return RegionStorage(
            region,
            layout,
            array.dtype,
            self.cache,
            shape,
            file_id=array.file_id,
            new=new,
            holds_fill=holds_fill,
            snapshot=self.snapshot,
        )

    def in_chunks(
        self, backend: ChunkBackend, name: str, array: ArrayMetadata, *, new: bool
    ) -> Storage:
        """Return the storage of an array whose chunks are objects of their own."""
        chunks = (backend.create_chunks if new else backend.open_chunks)(name, array)
        storage = ChunkStorage(
            chunks,
            array.layout,
            array.dtype,
            array.fill,
            self.cache,
            backend,
            new=new,
            snapshot=self.snapshot,
        )
        refuse_large_chunk(storage.chunk_shape, storage.chunk_nbytes, self.cache.max_chunk_bytes)
        return storage
