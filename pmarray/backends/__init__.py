"""What a backend is, and which there are.

A backend keeps the metadata of one group. A *region backend* keeps one byte-addressable *region*
an array, a *chunk backend* one object a chunk. A third party registers its own under the
entry-point group ``pmarray.backends``, with the scheme as the name and a callable
``open(url, *, writable)`` as the object.
"""

from pmarray.backends._protocols import (
    Backend,
    ChunkBackend,
    Chunks,
    ImageTarget,
    KeepsImages,
    LeavesOrphans,
    LosesLock,
    Measures,
    OpenBackend,
    Overwritable,
    PersistentRegion,
    Publishes,
    Region,
    RegionBackend,
    RemovesOrphans,
    Settles,
)
from pmarray.backends._registry import known_schemes, open_backend

__all__ = [
    "Backend",
    "ChunkBackend",
    "Chunks",
    "ImageTarget",
    "KeepsImages",
    "LeavesOrphans",
    "LosesLock",
    "Measures",
    "OpenBackend",
    "Overwritable",
    "PersistentRegion",
    "Publishes",
    "Region",
    "RegionBackend",
    "RemovesOrphans",
    "Settles",
    "known_schemes",
    "open_backend",
]
