"""A `PMArray` in a pickle is its URL."""

from __future__ import annotations

import copyreg
import pickle
from typing import Any

from pmarray._array.views import ViewItems
from pmarray._opening import _open_group
from pmarray._url import URL
from pmarray.array import PMArray

__all__ = ["reduce", "reopen", "view_again"]


def reduce(a: PMArray) -> tuple[Any, ...]:
    """Say how to open `a` again, and flush so that there is something to open."""
    if a._base is not None:
        return view_again, (a._base, a._storage, a.shape)
    group = a.group
    with a._turn():
        a._admit()
        url = URL.parse(group.url)
        if url.scheme == "dram" or url.path.startswith("memory://"):
            raise pickle.PicklingError(
                f"{group.url}#{a.name} lies in the memory of this process, where no other can open "
                "it: pickle a[...], or pmarray.copy it to files, and open those"
            )
        if group._session.transaction is not None:
            raise pickle.PicklingError(
                f"a transaction of {group.url} is open, and other processes see the state before "
                "it: pickle the array after it"
            )
        group.flush()
    return reopen, (url, a.name, a._chunks)


def view_again(base: PMArray, items: ViewItems, shape: tuple[int, ...]) -> PMArray:
    """Look at an array as a view that was pickled did."""
    return base._viewed(items, shape)


def reopen(url: URL, name: str, chunks: str | int | tuple[int, ...]) -> PMArray:
    """Open what `reduce` described, for reading."""
    group = _open_group(url, "r", "auto")
    group._warns_unclosed = False  # who unpickles an array has opened nothing
    try:
        return group._catalog.get(name, chunks)
    except BaseException:
        group.close()
        raise


# Here, and not in a method: who opens arrays stands above them.
copyreg.pickle(PMArray, reduce)
