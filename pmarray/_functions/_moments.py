"""Means and variances in one pass, with and without NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmarray._functions._axes import axes_of, finish, reduces
from pmarray._functions._registry import NO, AnyArray
from pmarray._ufuncs import make_result, part_of, reduce, walk


def moments(
    a: Any, axes: tuple[int, ...], dtype: Any, where: Any, omit: bool, mean: Any = NO
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Count, mean and sum of squared deviations along axes, merged piece by piece.

    Merged as Chan, Golub and LeVeque 1979 do: with n, m, S of either part and d = m2 - m1,
    ``m = m1 + d n2 / n`` and ``S = S1 + S2 + |d|² n1 n2 / n``. No squares are subtracted. `omit`
    leaves NaN out.
    """
    shape = a.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    wide = np.result_type(dtype, np.float32 if np.dtype(dtype).kind != "c" else np.complex64)
    real = np.empty(0, wide).real.dtype
    count = np.zeros(kept, real)
    center = make_result(kept, wide, a.layout)
    spread = make_result(kept, real, a.layout)
    center[...] = 0
    spread[...] = 0
    # The block, its deviations, their squares, and moments that may be as large as the block.
    for piece in walk(shape, 12 * max(a.itemsize, wide.itemsize), a.layout):
        block = np.asarray(a[piece]).astype(wide)
        mask = part_of(where, shape, piece)
        use = np.broadcast_to(mask, block.shape)
        if omit:
            use = use & ~np.isnan(block)
            block = np.where(use, block, 0)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        n2 = np.sum(use, axis=axes, keepdims=True, dtype=real)
        safe = np.maximum(n2, 1)
        m2 = np.add.reduce(block, axis=axes, keepdims=True, where=use) / safe
        deviation = block - m2
        squares = deviation.real**2 + deviation.imag**2 if wide.kind == "c" else deviation**2
        s2 = np.add.reduce(squares, axis=axes, keepdims=True, where=use)
        n1, m1 = count[place], center[place]
        n = n1 + n2
        share = n2 / np.maximum(n, 1)
        d = m2 - m1
        spread[place] += s2 + (d.real**2 + d.imag**2) * n1 * share
        center[place] = np.where(n1 == 0, m2, m1 + d * share)
        count[place] = n
    return count, center, spread


def mean_dtype(a: Any, dtype: Any) -> Any:
    if dtype is not None:
        return np.dtype(dtype)
    return np.dtype(float) if a.dtype.kind in "biu" else a.dtype


@reduces(np.mean)
def mean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO, *,
    where: Any = True,
) -> Any:  # fmt: skip
    where = True if where is NO else where
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    wide = np.float32 if found == np.float16 else found
    total = reduce(np.add, a, axes, dtype=wide, keepdims=True, where=where)
    count = _count(a, axes, where)
    mean = np.asarray(np.true_divide(total, count, dtype=np.result_type(wide, np.float16)))
    return finish(mean.astype(found, copy=False), axes, keepdims, out)


def _count(a: Any, axes: tuple[int, ...], where: Any) -> Any:
    if where is True:
        return np.prod([a.shape[i] for i in axes], dtype=np.intp)
    return np.sum(np.broadcast_to(where, a.shape), axis=axes, keepdims=True, dtype=np.intp)


def spread_of(
    a: Any, axis: Any, dtype: Any, out: Any, ddof: Any, keepdims: Any, where: Any,
    correction: Any, omit: bool, root: bool,
) -> Any:  # fmt: skip
    where = True if where is NO else where
    ddof = ddof if correction is NO else correction
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    count, _, squares = moments(a, axes, found, where, omit)
    freedom = count - ddof
    if omit:
        freedom = np.where(freedom > 0, freedom, np.nan)
    variance = np.true_divide(squares, np.maximum(freedom, 0))
    result = np.sqrt(variance) if root else variance
    return finish(result.astype(np.empty(0, found).real.dtype, copy=False), axes, keepdims, out)


@reduces(np.var)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(a, axis, dtype, out, ddof, keepdims, where, correction, False, False)


@reduces(np.std)
def _std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(a, axis, dtype, out, ddof, keepdims, where, correction, False, True)


@reduces(np.nanmean)
def _nanmean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO, *,
    where: Any = NO,
) -> Any:  # fmt: skip
    if a.dtype.kind not in "fc":
        return mean(a, axis, dtype, out, keepdims, where=where)
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    count, center, _ = moments(a, axes, found, True if where is NO else where, omit=True)
    center[count == 0] = np.nan
    return finish(center.astype(found, copy=False), axes, keepdims, out)


@reduces(np.nanvar)
def _nanvar(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    omit = a.dtype.kind in "fc"
    return spread_of(a, axis, dtype, out, ddof, keepdims, where, correction, omit, False)


@reduces(np.nanstd)
def _nanstd(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    omit = a.dtype.kind in "fc"
    return spread_of(a, axis, dtype, out, ddof, keepdims, where, correction, omit, True)
