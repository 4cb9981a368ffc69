"""The items of one array on one kind of medium."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmarray._lazy import attach

if TYPE_CHECKING:
    from pmarray._storage.chunked import STORE_ID, ChunkStorage
    from pmarray._storage.mapped import MappedStorage
    from pmarray._storage.persistent import PersistentStorage
    from pmarray._storage.region import RegionStorage

__all__ = ["STORE_ID", "ChunkStorage", "MappedStorage", "PersistentStorage", "RegionStorage"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "pmarray._storage.chunked": ["STORE_ID", "ChunkStorage"],
        "pmarray._storage.mapped": ["MappedStorage"],
        "pmarray._storage.persistent": ["PersistentStorage"],
        "pmarray._storage.region": ["RegionStorage"],
    },
)
