"""A `PMArray` as a `dask.array.Array`."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._extras import wanted

__all__ = ["to_dask", "token"]


def to_dask(a: StoredArray, chunks: Any) -> Any:
    """Return a `dask.array.Array`; see `PMArray.to_dask`."""
    with wanted():
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


def token(a: StoredArray) -> Any:
    """Return what tells the items apart from others: place and state.

    What has no state that could be named gets a new token each time: what is open for writing, in
    memory, a view, or in files that another handle has written to since this one opened them.
    """
    group = a._group
    with a._turn():
        a._admit()
        stamp = None if a._base is not None else a._storage.unchanged_stamp()
        state = group._catalog.state_of(a._array) if stamp is not None else None
        if state is None:
            return ("pmarray", group.url, a.name, uuid.uuid4().hex)
        return ("pmarray", group.url, a.name, a.shape, *state, stamp)
