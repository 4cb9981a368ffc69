"""Sums, products and extremes that leave NaN out."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmarray._functions._axes import axes_of, finish, reduces
from pmarray._functions._registry import NO
from pmarray._ufuncs import make_result, reduce, walk


@reduces(np.nansum)
def _nansum(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO,
    initial: Any = NO, where: Any = NO,
) -> Any:  # fmt: skip
    return _without_nan(np.add, a, axis, dtype, out, keepdims, 0)


@reduces(np.nanprod)
def _nanprod(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO,
    initial: Any = NO, where: Any = NO,
) -> Any:  # fmt: skip
    return _without_nan(np.multiply, a, axis, dtype, out, keepdims, 1)


def _without_nan(
    ufunc: np.ufunc, a: Any, axis: Any, dtype: Any, out: Any, keepdims: Any, neutral: int
) -> Any:
    axes = axes_of(a, axis)
    shape = a.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    found = ufunc.reduce(np.ones((1,) * a.ndim, a.dtype), axis=None, dtype=dtype).dtype
    total = make_result(kept, found, a.layout)
    total[...] = neutral
    for piece in walk(shape, 3 * a.itemsize, a.layout):
        block = np.asarray(a[piece])
        if a.dtype.kind in "fc":
            block = np.where(np.isnan(block), np.asarray(neutral, a.dtype), block)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        total[place] = ufunc(
            total[place], ufunc.reduce(block, axis=axes, dtype=dtype, keepdims=True)
        )
    return finish(total, axes, keepdims, out)


@reduces(np.nanmin)
def _nanmin(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = NO, initial: Any = NO,
    where: Any = NO,
) -> Any:  # fmt: skip
    return _extreme_without_nan(np.fmin, a, axis, out, keepdims, initial, where)


@reduces(np.nanmax)
def _nanmax(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = NO, initial: Any = NO,
    where: Any = NO,
) -> Any:  # fmt: skip
    return _extreme_without_nan(np.fmax, a, axis, out, keepdims, initial, where)


def _extreme_without_nan(
    ufunc: np.ufunc, a: Any, axis: Any, out: Any, keepdims: Any, initial: Any, where: Any
) -> Any:
    keepdims = keepdims is not NO and bool(keepdims)
    where = True if where is NO else where
    return reduce(ufunc, a, axis, None, out, keepdims, initial, where)
