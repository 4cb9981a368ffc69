"""What there is in a Zarr store, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

__all__ = ["Listing", "StoreListing"]


class Listing(Protocol):
    """Objects by their names, of which each "/" begins a directory."""

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none."""

    def entries(self, key: str) -> tuple[str, ...]:
        """Return the names in a directory, none if it is none."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a directory."""

    def is_directory(self, key: str) -> bool:
        """Whether objects are, or may be, below it."""


class StoreListing:
    """The objects of any store, one request after another; see `Listing`."""

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
