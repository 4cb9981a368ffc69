"""Reductions that are a ufunc's, running ones, and counts."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import numpy as np

from pmarray._array.overlap import apart_from
from pmarray._numpy.functions.axes import axes_of, finish, reduces
from pmarray._numpy.functions.registry import NO, STREAMED
from pmarray._numpy.ufuncs import (
    accumulated_dtype,
    look_through,
    loop_of,
    make_result,
    reduce,
    walk,
)


def _reduction(function: Any, ufunc: np.ufunc, dtype: Any = None) -> None:
    """Register a function of NumPy's as the reduction of a ufunc, with its own parameters."""
    signature = inspect.signature(function)

    @reduces(function)
    def streamed(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        array = given.pop("a")
        chosen = {key: value for key, value in given.items() if value is not NO}
        chosen.setdefault("axis", None)
        if dtype is not None:
            chosen["dtype"] = dtype
        return reduce(ufunc, array, **chosen)

    STREAMED[function].__signature__ = signature  # type: ignore[attr-defined]


_reduction(np.sum, np.add)
_reduction(np.prod, np.multiply)
_reduction(np.max, np.maximum)
_reduction(np.amax, np.maximum)
_reduction(np.min, np.minimum)
_reduction(np.amin, np.minimum)
_reduction(np.any, np.logical_or, bool)
_reduction(np.all, np.logical_and, bool)


@reduces(np.ptp)
def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = NO) -> Any:
    keepdims = bool(keepdims) and keepdims is not NO
    # As NumPy does it: the largest are in `out`, in its dtype, before the smallest are taken off.
    largest = reduce(np.maximum, a, axis, out=out, keepdims=keepdims)
    return np.subtract(largest, reduce(np.minimum, a, axis, keepdims=keepdims), out=out)


@reduces(np.cumsum)
def _cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.add, a, axis, dtype, out)


@reduces(np.cumprod)
def _cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.multiply, a, axis, dtype, out)


def _cumulative(ufunc: np.ufunc, a: Any, axis: Any, dtype: Any, out: Any) -> Any:
    if axis is not None or a.ndim == 1:
        along = 0 if axis is None else operator.index(axis)
        return ufunc.accumulate(a, axis=along, dtype=dtype, out=out)
    found = accumulated_dtype(ufunc, a, dtype, out)
    result = make_result((a.size,), found, "row") if out is None else out
    if result.shape != (a.size,):
        raise ValueError(f"out has shape {result.shape}, the result {(a.size,)}")
    a = apart_from(a, [result], "the array")
    done = 0
    last: Any = None
    # In C order whatever the layout: pieces follow one another in the flattened array.
    for piece in walk(a.shape, 2 * (a.dtype.itemsize + found.itemsize), "row"):
        items = np.asarray(a[piece]).reshape(-1).astype(found, copy=False)
        if last is not None:
            items[:1] = ufunc(last, items[:1])
        part = ufunc.accumulate(items, dtype=loop_of(found))
        last = part[-1:].copy()
        result[done : done + part.size] = part
        done += part.size
    return result


@reduces(np.count_nonzero)
def _count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    axes = axes_of(a, axis)
    kept = tuple(1 if i in axes else n for i, n in enumerate(a.shape))
    total = np.zeros(kept, np.intp)
    for piece, sight in look_through(a, 2 * a.itemsize):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        for block in sight.looks():
            count = np.count_nonzero(block, axis=axes, keepdims=True)
        total[place] += count
    return finish(total, axes, keepdims, None)
