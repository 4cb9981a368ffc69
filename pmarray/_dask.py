"""A `PMArray` as a `dask.array.Array`."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from pmarray._config import config

if TYPE_CHECKING:
    from pmarray.array import PMArray

__all__ = ["to_dask", "token"]


def to_dask(a: PMArray, chunks: Any) -> Any:
    """Return a `dask.array.Array`; see `PMArray.to_dask`."""
    import dask.array
    from dask.base import tokenize

    if chunks is None:
        nbytes = config.work_memory // 2
        lines = a._layout.chunk_shape(nbytes, nbytes)
        chunks = tuple(max(1, min(n, m)) for n, m in zip(lines, a.shape, strict=False))
    from_array: Any = dask.array.from_array
    return from_array(
        a,
        chunks=chunks,
        name=f"pmarray-{tokenize(a, chunks)}",
        lock=False,  # the group has its own
        meta=np.empty((0,) * a.ndim, a.dtype),
    )


def token(a: PMArray) -> Any:
    """Return what tells the items apart from others: place and state."""
    from pmarray._views import ArrayView  # a view is an array itself

    group = a.group
    with a._reading():
        if group._locked or group.url.startswith("dram:") or isinstance(a, ArrayView):
            # What a writer is about to change has no state that could be named.
            return ("pmarray", group.url, a.name, uuid.uuid4().hex)
        saved = group._committer.saved
        return (
            "pmarray",
            group.url,
            a.name,
            group._metadata.uuid,
            saved.transaction,
            a._array.file_id,
            a.shape,
            repr(group._backend.stamp()),
        )
