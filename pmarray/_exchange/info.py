"""What an array takes on its medium and in the cache: `PMArray.info`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pmarray._array.stored import StoredArray
from pmarray._sizes import format_bytes
from pmarray._url import URL

__all__ = ["ArrayInfo", "ChunkState", "chunk_states", "describe"]


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array in numbers, as of one moment."""

    url: str
    """Of the group."""
    name: str
    """In the group."""
    shape: tuple[int, ...]
    """Extent of each axis."""
    dtype: np.dtype[Any]
    """Type of the items."""
    layout: str
    """Either "row" or "col"."""
    chunks: tuple[int, ...]
    """Unit of caching and writing."""
    nbytes: int
    """Bytes of the items."""
    stored_nbytes: int
    """Bytes on the medium, the padding of lines included; what is reserved ahead is not.

    In files, what they occupy: less than the items where they are sparse or compressed.
    """
    cached_nbytes: int
    """Bytes of the array that the cache holds."""
    dirty_nbytes: int
    """Bytes of the cache that are newer than the medium."""
    mode: str
    """As the group was opened."""
    backend: str
    """Scheme of the URL."""

    def rows(self) -> list[tuple[str, str]]:
        """Return what `repr` shows, line by line."""
        return [
            ("url", self.url),
            ("name", self.name),
            ("shape", str(self.shape)),
            ("dtype", str(self.dtype)),
            ("layout", self.layout),
            ("chunks", str(self.chunks)),
            ("size", format_bytes(self.nbytes)),
            ("stored", format_bytes(self.stored_nbytes)),
            ("cached", format_bytes(self.cached_nbytes)),
            ("dirty", format_bytes(self.dirty_nbytes)),
            ("mode", self.mode),
            ("backend", self.backend),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{key:<7} {value}" for key, value in self.rows())


@dataclass(frozen=True, slots=True)
class ChunkState:
    """A chunk that is in the cache."""

    index: tuple[int, ...]
    """Its place in the grid of chunks."""
    cached_nbytes: int
    dirty_nbytes: int
    """Those that have not landed on the medium: waiting, or on their way."""


def describe(a: StoredArray) -> ArrayInfo:
    """Return the numbers of `a`; see `PMArray.info`."""
    with a._turn():
        a._admit()
        states = chunk_states(a)
        # Of a view, what its own items would take.
        stored = None if a._base is not None else a._group._catalog.occupied_nbytes(a._name)
        return ArrayInfo(
            url=a._group.url,
            name=a.name,
            shape=a.shape,
            dtype=a.dtype,
            layout=a.layout,
            chunks=a.chunks,
            nbytes=a.nbytes,
            stored_nbytes=a._layout.nbytes if stored is None else stored,
            cached_nbytes=sum(state.cached_nbytes for state in states),
            dirty_nbytes=sum(state.dirty_nbytes for state in states),
            mode=a._group.mode,
            backend=URL.parse(a._group.url).scheme,
        )


def chunk_states(a: StoredArray) -> list[ChunkState]:
    """Return the chunks of `a` that are cached; none of a view, whose chunks are another's."""
    found = None if a._base is not None else a._storage.cached()
    return [ChunkState(*state) for state in found or ()]
