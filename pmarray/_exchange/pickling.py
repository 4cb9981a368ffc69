"""A `PMArray` in a pickle is its URL."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from pmarray._url import URL

if TYPE_CHECKING:
    from pmarray.array import PMArray

__all__ = ["reduce", "reopen"]


def reduce(a: PMArray) -> tuple[Any, ...]:
    """Say how to open `a` again, and flush so that there is something to open."""
    from pmarray._storage.views import ArrayView  # a view is an array itself

    if isinstance(a, ArrayView):
        return ArrayView, (a._base, a._storage)
    group = a.group
    with a._turn():
        a._admit()
        url = URL.parse(group.url)
        if url.scheme == "dram" or url.path.startswith("memory://"):
            raise pickle.PicklingError(
                f"{group.url}#{a.name} lies in the memory of this process, where no other can open "
                "it: pickle a[...], or pmarray.copy it to files, and open those"
            )
        if group._transaction is not None:
            raise pickle.PicklingError(
                f"a transaction of {group.url} is open, and other processes see the state before "
                "it: pickle the array after it"
            )
        group.flush()
    return reopen, (url, a.name, a._chunks)


def reopen(url: URL, name: str, chunks: str | int | tuple[int, ...]) -> PMArray:
    """Open what `reduce` described, for reading."""
    from pmarray._opening import _open_group  # opening needs arrays

    group = _open_group(url, "r", "auto")
    group._warns_unclosed = False  # who unpickles an array has opened nothing
    try:
        return group._get(name, chunks)
    except BaseException:
        group.close()
        raise
