"""Sums of many floating-point numbers, whose rounding does not grow with their number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_up"]

_STRETCH = 32
"""What is added one after another; about as many as in the pairwise sums of NumPy."""


def add_up(
    items: NDArray[Any],
    axes: tuple[int, ...],
    dtype: Any = None,
    where: Any = True,
    **initial: Any,
) -> NDArray[Any]:
    """``np.add.reduce`` with all axes kept, pairwise along whichever axes.

    NumPy sums in pairs along the axis that is contiguous in memory, and one line after another
    along all others: of five million rows of float32, a mean is off by a thousandth. So an axis is
    cut into stretches, whose sums are added up in the same way.

    Parameters
    ----------
    items
        In memory, of any dtype.
    axes
        Which are summed; at least one.
    dtype, where, **initial
        As for ``np.add.reduce``.

    Examples
    --------
    >>> rows = np.full((2_000_000, 2), 0.1, "f4")
    >>> [round(float(found.flat[0]) / 200_000, 5) for found in (add_up(rows, (0,)), rows.sum(0))]
    [1.0, 0.98512]
    """
    kind = np.dtype(dtype or items.dtype).kind
    if kind in "fc" and items.dtype.kind in "biufc":
        mask = where if where is True else np.broadcast_to(where, items.shape)
        while (axis := _sequential(items, axes)) is not None:
            items = _by_stretches(items, axis, dtype, mask)
            mask = True
        where = mask
    options: dict[str, Any] = {"dtype": dtype, "keepdims": True, "where": where, **initial}
    total: NDArray[Any] = np.add.reduce(items, axis=axes, **options)
    return total


def _sequential(items: NDArray[Any], axes: tuple[int, ...]) -> int | None:
    """A long axis along which NumPy would add one line after another."""
    if not items.size or (len(axes) == items.ndim and items.flags.forc):
        return None  # one long series
    fastest = min(range(items.ndim), key=lambda i: (items.shape[i] == 1, abs(items.strides[i])))
    long = [i for i in axes if i != fastest and items.shape[i] > _STRETCH]
    return max(long, key=lambda i: items.shape[i], default=None)


def _by_stretches(items: NDArray[Any], axis: int, dtype: Any, mask: Any) -> NDArray[Any]:
    """Sums of stretches of an axis, in their order along it."""
    n = items.shape[axis]
    count, rest = divmod(n, _STRETCH)
    kind = np.dtype(dtype or items.dtype)
    shape = list(items.shape)
    shape[axis] = count + bool(rest)
    sums = np.empty_like(items, kind, shape=shape)
    whole = (*[slice(None)] * axis, slice(0, n - rest))
    # What changes no sum, not even of -0.0.
    zero = kind.type(-0.0 if kind.kind == "f" else complex(-0.0, -0.0))

    def put(where: slice, part: NDArray[Any], use: Any, along: int) -> None:
        found = np.add.reduce(part, axis=along, dtype=dtype, where=use, initial=zero)
        before: tuple[Any, ...] = (slice(None),) * axis
        sums[(*before, where)] = found if along != axis else np.expand_dims(found, axis)

    def cut(array: Any) -> Any:
        if array is True:
            return True
        there = array[whole]  # an axis can be cut without a copy
        return there.reshape(*there.shape[:axis], count, _STRETCH, *there.shape[axis + 1 :])

    put(slice(0, count), cut(items), cut(mask), axis + 1)
    if rest:
        end = (*[slice(None)] * axis, slice(n - rest, n))
        put(slice(count, None), items[end], mask if mask is True else mask[end], axis)
    return sums
