"""Reductions that are a ufunc's, running ones, and counts."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from pmarray._config import config
from pmarray._functions._axes import axes_of, finish, into
from pmarray._functions._registry import NO, STREAMED, streams
from pmarray._ufuncs import reduce, walk


def _reduction(function: Any, ufunc: np.ufunc, dtype: Any = None) -> None:
    """Register a function of NumPy's as the reduction of a ufunc, with its own parameters."""
    signature = inspect.signature(function)

    def streamed(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        array = given.pop("a")
        chosen = {key: value for key, value in given.items() if value is not NO}
        chosen.setdefault("axis", None)
        if dtype is not None:
            chosen["dtype"] = dtype
        return reduce(ufunc, array, **chosen)

    STREAMED[function] = streamed


_reduction(np.sum, np.add)
_reduction(np.prod, np.multiply)
_reduction(np.max, np.maximum)
_reduction(np.amax, np.maximum)
_reduction(np.min, np.minimum)
_reduction(np.amin, np.minimum)
_reduction(np.any, np.logical_or, bool)
_reduction(np.all, np.logical_and, bool)


@streams(np.ptp)
def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    keepdims = bool(keepdims) and keepdims is not NO
    result = np.subtract(
        reduce(np.maximum, a, axis, keepdims=keepdims),
        reduce(np.minimum, a, axis, keepdims=keepdims),
    )
    return into(out, result)


@streams(np.cumsum)
def _cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.add, np.cumsum, a, axis, dtype, out)


@streams(np.cumprod)
def _cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.multiply, np.cumprod, a, axis, dtype, out)


def _cumulative(ufunc: np.ufunc, function: Any, a: Any, axis: Any, dtype: Any, out: Any) -> Any:
    if axis is None and a.ndim != 1:
        config.check_result(a.nbytes, "give an axis")
        return function(np.asarray(a), None, dtype, out)
    return ufunc.accumulate(a, axis=0 if axis is None else axis, dtype=dtype, out=out)


@streams(np.count_nonzero)
def _count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    axes = axes_of(a, axis)
    kept = tuple(1 if i in axes else n for i, n in enumerate(a.shape))
    total = np.zeros(kept, np.intp)
    for piece in walk(a.shape, 2 * a.itemsize, a.layout):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        total[place] += np.count_nonzero(np.asarray(a[piece]), axis=axes, keepdims=True)
    result = finish(total, axes, keepdims, None)
    return int(result) if axis is None and not keepdims else result
