"""A `PMArray` in a pickle is its URL, and so is a group.

Beside it stands what tells its items from others, for those who compare pickles (joblib's caches).
"""

from __future__ import annotations

import copyreg
import pickle
from typing import Any

from pmarray._array.views import ViewItems
from pmarray._group.contents import Subgroup
from pmarray._opening import _open_group
from pmarray._url import URL
from pmarray.array import PMArray
from pmarray.group import Group

__all__ = ["reduce", "reduce_group", "reduce_subgroup", "reopen", "reopen_group", "view_again"]


def reduce(a: PMArray) -> tuple[Any, ...]:
    """Say how to open `a` again, and flush so that there is something to open."""
    if a._base is not None:
        return view_again, (a._base, a._storage, a.shape)
    url = _flushed(a.group, f"#{a.name}")
    return reopen, (url, a.name, a._chunks, a.__dask_tokenize__())


def reduce_group(group: Group) -> tuple[Any, ...]:
    """The same of all arrays."""
    url = _flushed(group, "")
    return reopen_group, (url, [array.__dask_tokenize__() for array in group.values()])


def reduce_subgroup(group: Subgroup) -> tuple[Any, ...]:
    """The group that it is a part of, and its name in that."""
    return Subgroup, (group.group, group.name)


def _flushed(group: Group, name: str) -> URL:
    """Where another process can open a group, as it is now."""
    with group._session.turn():
        group._session.admit()
        url = URL.parse(group.url)
        if url.scheme == "dram" or url.path.startswith("memory://"):
            raise pickle.PicklingError(
                f"{group.url}{name} lies in the memory of this process, where no other can open "
                "it: pickle a[...], or pmarray.copy it to files, and open those"
            )
        if url.path.endswith(".zip") and group._session.is_writer:
            raise pickle.PicklingError(
                f"{group.url} gets its name when its group is closed: pickle it after that, opened "
                "to read"
            )
        if group._session.transaction is not None:
            raise pickle.PicklingError(
                f"a transaction of {group.url} is open, and other processes see the state before "
                "it: pickle the array after it"
            )
        group.flush()
    return url


def view_again(base: PMArray, items: ViewItems, shape: tuple[int, ...]) -> PMArray:
    """Look at an array as a view that was pickled did."""
    return base._viewed(items, shape)


def reopen_group(url: URL, state: Any) -> Group:
    """Open what `reduce_group` described, for reading."""
    group = _open_group(url, "r", "auto")
    group._warns_unclosed = False  # who unpickles it has opened nothing
    return group


def reopen(url: URL, name: str, chunks: str | int | tuple[int, ...], state: Any) -> PMArray:
    """Open what `reduce` described, for reading."""
    group = reopen_group(url, state)
    try:
        return group._catalog.get(name, chunks)
    except BaseException:
        group.close()
        raise


# Here, and not in a method: who opens arrays stands above them.
copyreg.pickle(PMArray, reduce)
copyreg.pickle(Group, reduce_group)
copyreg.pickle(Subgroup, reduce_subgroup)
