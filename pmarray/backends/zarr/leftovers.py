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

from pmarray._formats.metadata import ArrayMetadata, GroupMetadata, check_integer, parse_json
from pmarray._geometry.grid import ChunkGrid
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.files import NEW
from pmarray.backends.zarr.listing import Listing

__all__ = ["in_array", "in_group", "is_unfinished"]


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
            if deleted or is_unfinished(store, name):
                yield f"{name}/"


def _number(document: bytes | None) -> int | None:
    """Return the number that we have given an array."""
    try:
        ours = parse_json(document or b"{}")["attributes"][zarr_format.OURS]
        return check_integer(ours["id"])
    except (ValueError, KeyError, TypeError):
        return None


def is_unfinished(store: Listing, name: str) -> bool:
    """Whether a directory holds an array of ours that was never committed: chunks, if anything.

    One that holds nothing may be somebody else's, and he loses nothing; one with a node in it is.
    """
    names = store.entries(name)
    if "zarr.json" in names or not {n.removesuffix(NEW) for n in names} <= {"c", "zarr.json"}:
        return False
    chunk = re.compile(rf"{re.escape(name)}/c(/\d+)*")
    return all(
        chunk.fullmatch(key.removesuffix(NEW)) or key == f"{name}/zarr.json{NEW}"
        for key in store.keys(name)
    )


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
