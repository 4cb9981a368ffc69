"""What a crash has left in a Zarr hierarchy, and no metadata speak of.

- temporary files, in a directory, of objects that were never renamed into place;
- chunks beyond the edge of an array, which a transaction that grew it had written;
- arrays that were never committed: chunks without a ``zarr.json``;
- arrays that were deleted, and not all of their files: a ``zarr.json`` with a number of ours that
  is no array's any more.

What other programs have put into the hierarchy is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from pmarray._formats.metadata import ArrayMetadata, GroupMetadata, check_integer, parse_json
from pmarray._geometry.grid import ChunkGrid
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.files import NEW

__all__ = ["Listing", "in_array", "in_group"]


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


def in_group(store: Listing, metadata: GroupMetadata, session: str) -> Iterator[str]:
    """Yield the names of leftover objects of a group; one that ends in "/" is a whole tree."""
    known = {array.file_id for array in metadata.arrays.values()}
    for name in store.entries(""):
        array = metadata.arrays.get(name)
        if array is not None:
            yield from in_array(store, name, array)
        elif name == "zarr.json" + NEW:
            yield name
        elif name != session and store.is_directory(name):
            number = _number(store.read(f"{name}/zarr.json"))
            deleted = number is not None and number < metadata.next_file_id and number not in known
            if deleted or _is_unfinished(store.entries(name)):
                yield f"{name}/"


def _number(document: bytes | None) -> int | None:
    """Return the number that we have given an array."""
    try:
        ours = parse_json(document or b"{}")["attributes"][zarr_format.OURS]
        return check_integer(ours["id"])
    except (ValueError, KeyError, TypeError):
        return None


def _is_unfinished(names: tuple[str, ...]) -> bool:
    return "zarr.json" not in names and {n.removesuffix(NEW) for n in names} <= {"c", "zarr.json"}


def in_array(store: Listing, path: str, array: ArrayMetadata) -> Iterator[str]:
    """Yield the names of leftover objects of an array."""
    grid = ChunkGrid(array.layout, zarr_format.stored_chunk_shape(array) or (1,))
    encode = zarr_format.to_zarr(array).encode_chunk_key
    prefix = f"{path}/" if path else ""
    for key in store.keys(path):
        if key.endswith(NEW):
            yield key
            continue
        places = re.findall(r"\d+", key.removeprefix(prefix))
        chunk = tuple(int(place) for place in places)
        if (
            len(chunk) == len(array.shape)
            and prefix + encode(chunk) == key
            and not grid.holds(chunk or (0,))
        ):
            yield key
