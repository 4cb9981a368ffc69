"""Which arrays hold the same items, so that writing one changes the other.

What is computed piece by piece reads an operand after parts of the result were written. Where an
operand has items that the result overwrites, at other places, it is copied first, as NumPy copies
it. Two arrays of the same items in the same order need no copy: each piece is read before it is
written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pmarray._array.stored import StoredArray
from pmarray._array.views import ViewItems
from pmarray._config import config
from pmarray._storage.items import Axes

__all__ = ["apart_from", "apart_from_all_of", "is_stored", "overlap", "root", "share"]


def is_stored(value: Any) -> bool:
    """Whether it is a `PMArray`."""
    return isinstance(value, StoredArray)


def root(array: StoredArray) -> StoredArray:
    """The array that a view is of."""
    return array._root


def apart_from(value: Any, targets: Iterable[Any], what: str = "the operand") -> Any:
    """Return `value`, or a copy of it in memory if writing one of `targets` could change it.

    Raises
    ------
    BudgetError
        The copy would not fit into memory.
    """
    if not any(overlap(target, value) for target in targets):
        return value
    config.check_result(value.nbytes, f"{what} overlaps what is written: write to another array")
    return value[...] if is_stored(value) else value.copy()


def apart_from_all_of(target: Any, value: Any) -> Any:
    """Return `value`, or a copy in memory if it has any item of `target`, at the same place or not.

    For what is read again after parts of the result were written, as by a product.

    Raises
    ------
    BudgetError
        The copy would not fit into memory.
    """
    if not share(target, value):
        return value
    config.check_result(value.nbytes, "an operand is out= as well: write to another array")
    return value[...] if is_stored(value) else value.copy()


def overlap(target: Any, value: Any) -> bool:
    """Whether writing items of `target` may change items of `value` that are read later.

    Either may be anything; only a `PMArray` and a `numpy.ndarray` share anything.
    """
    if target is value:
        return False
    if not (_is_array(target) and _is_array(value)) or not (target.size and value.size):
        return False
    if is_stored(target) and is_stored(value):
        return _views_overlap(target, value)
    if is_stored(target):
        return root(target)._storage.shows(value)
    if is_stored(value):
        return root(value)._storage.shows(target)
    return bool(np.may_share_memory(target, value))


def share(one: Any, other: Any) -> bool:
    """Whether they have items in common, also where both are the same items in the same order."""
    if not (_is_array(one) and _is_array(other)):
        return False
    if one is other or overlap(one, other):
        return True
    return is_stored(one) and is_stored(other) and _same_items(one, other)


def _is_array(value: Any) -> bool:
    return is_stored(value) or isinstance(value, np.ndarray)


def _views_overlap(target: StoredArray, value: StoredArray) -> bool:
    if root(target) is not root(value):
        # Two handles on one place in memory; of files, each sees what the other has flushed.
        items = root(value)._storage.memory
        return items is not None and root(target)._storage.shows(items)
    if _same_items(target, value):
        return False
    return not any(
        _disjoint(one, other) for one, other in zip(_in_root(target), _in_root(value), strict=True)
    )


def _same_items(one: StoredArray, other: StoredArray) -> bool:
    """Whether they are views that were made alike."""
    while one is not other:
        items, others = one._storage, other._storage
        if not (isinstance(items, ViewItems) and isinstance(others, ViewItems)):
            return False
        if items.look != others.look:
            return False
        one, other = items.base, others.base
    return True


def _in_root(array: StoredArray) -> Axes:
    """The items of a view as slices of the array behind all views."""
    axes: Axes = tuple(slice(0, n, 1) for n in array.shape)
    items: Any = array._storage
    while isinstance(items, ViewItems):
        axes = items.to_base(axes)
        items = items.base._storage
    return axes


def _disjoint(one: slice, other: slice) -> bool:
    if one.start >= other.stop or other.start >= one.stop:
        return True
    return bool(one.step == other.step and (one.start - other.start) % one.step)
