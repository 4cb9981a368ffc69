"""A group in a store that is not on this machine, and has no lock."""

from __future__ import annotations

from collections.abc import Iterator

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pmarray._formats.metadata import GroupMetadata
from pmarray.backends.zarr import leftovers
from pmarray.backends.zarr.store import ZarrBackend

__all__ = ["RemoteZarrBackend"]


class RemoteZarrBackend(ZarrBackend):
    """One group there. What a crash has left is told and not removed: another may be writing it."""

    survives_fork = False  # the threads of obstore and fsspec do not

    def orphans(self, metadata: GroupMetadata, /) -> list[str]:
        listing = _Listed(self._store)
        if self.can_create:
            return list(leftovers.in_group(listing, metadata, session=""))
        return list(leftovers.in_array(listing, "", metadata.arrays["array"]))


class _Listed:
    """The objects of a store, one request after another; see `leftovers.Listing`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, key: str) -> bytes | None:
        buffer = sync(self._store.get(key, default_buffer_prototype()))
        return None if buffer is None else buffer.to_bytes()

    def entries(self, key: str) -> tuple[str, ...]:
        async def names() -> tuple[str, ...]:
            return tuple([name.rstrip("/") async for name in self._store.list_dir(key)])

        return sync(names())

    def keys(self, prefix: str) -> Iterator[str]:
        async def names() -> list[str]:
            below = f"{prefix}/" if prefix else ""
            return [key async for key in self._store.list_prefix(below)]

        return iter(sync(names()))

    def is_directory(self, key: str) -> bool:
        return bool(self.entries(key))
