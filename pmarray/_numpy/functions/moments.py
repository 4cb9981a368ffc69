"""Means and variances in one pass, with and without NaN."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._numpy.functions.axes import axes_of, finish, reduces
from pmarray._numpy.functions.registry import NO, AnyArray
from pmarray._numpy.summing import add_up
from pmarray._numpy.ufuncs import look_through, make_result, part_of, reduce, same_shape

_CALLER = 5
"""Frames from here to the call of NumPy's function: a warning points there."""


def moments(
    a: Any, axes: tuple[int, ...], dtype: Any, where: Any, omit: bool, mean: Any = NO
) -> tuple[AnyArray, AnyArray]:
    """Count, and sum of squared deviations along axes, merged piece by piece.

    Merged as Chan, Golub and LeVeque 1979 do: with n, m, S of either part and d = m2 - m1,
    ``m = m1 + d n2 / n`` and ``S = S1 + S2 + |d|² n1 n2 / n``. No squares are subtracted. `omit`
    leaves NaN out; around a given `mean`, sums are added as they are.
    """
    shape = a.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    # In a real dtype, NumPy forgets the imaginary part of the mean of complex items.
    is_complex = "c" in (np.dtype(dtype).kind, a.dtype.kind)
    wide = np.result_type(dtype, np.complex64 if is_complex else np.float32)
    # There may be many pieces, and more items than float32 can count.
    exact = np.result_type(wide, np.float64)
    real = np.empty(0, exact).real.dtype
    count = np.zeros(kept, real)
    center = make_result(kept, exact, a.layout)
    spread = make_result(kept, real, a.layout)
    center[...] = 0
    spread[...] = 0
    # The block, its deviations, their squares, and moments that may be as large as the block.
    for piece, sight in look_through(a, 12 * max(a.itemsize, wide.itemsize)):
        given = part_of(where, shape, piece)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        for items in sight.looks():
            block, mask = items.astype(wide, copy=False), given
            if omit:
                mask = mask & ~np.isnan(block)
                block = np.where(mask, block, 0)
            # Without a mask NumPy sums faster, and in pairs.
            use = mask if mask is True else np.broadcast_to(mask, block.shape)
            ones = np.broadcast_to(np.True_, block.shape) if use is True else use
            n2 = np.sum(ones, axis=axes, keepdims=True, dtype=np.intp)
            if mean is NO:
                m2 = (add_up(block, axes, where=use) / np.maximum(n2, 1)).astype(wide, copy=False)
            else:
                m2 = part_of(mean, shape, piece)
            s2 = add_up(_squares(block - m2), axes, where=use)
        n1 = count[place]
        n = n1 + n2
        if mean is NO:
            # Before the first items there is no mean to be far from.
            later = n1 > 0
            d = np.where(later, m2 - center[place], 0)
            share = n2 / np.maximum(n, 1)
            scaled = np.sqrt(n1 * share) * d
            s2 = s2 + _squares(scaled)
            center[place] = np.where(later, center[place] + d * share, m2)
        spread[place] += s2
        count[place] = n
    return count, spread


def _squares(values: AnyArray) -> AnyArray:
    if values.dtype.kind == "c":
        return np.asarray(values.real**2 + values.imag**2)
    return np.asarray(values**2)


def mean_dtype(a: Any, dtype: Any) -> Any:
    if dtype is not None and a.dtype.kind != "m":  # NumPy leaves spans of time what they are
        return np.dtype(dtype)
    return np.dtype(float) if a.dtype.kind in "biu" else a.dtype.newbyteorder("=")


@reduces(np.mean)
def mean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO, *,
    where: Any = NO,
) -> Any:  # fmt: skip
    where = as_mask(where)
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    wide = np.float32 if found == np.float16 else found
    if found.kind == "m":
        wide = None  # a unit cannot be asked for
    total = reduce(np.add, a, axes, dtype=wide, keepdims=True, where=where)
    count = _count(a, axes, where)
    if not np.all(count):
        warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=_CALLER)
    mean = np.asarray(np.true_divide(_held_by(out, total), count))
    return finish(mean if out is not None else mean.astype(found), axes, keepdims, out)


def _held_by(out: Any, total: AnyArray) -> AnyArray:
    """What NumPy divides, which holds the sum in ``out=`` first."""
    return total if out is None else total.astype(out.dtype)


def as_mask(where: Any) -> Any:
    """What a parameter `where` selects: True, or an array."""
    if where is NO or where is True:
        return True
    return where if is_stored(where) else np.asarray(where)


def _count(a: Any, axes: tuple[int, ...], where: Any) -> Any:
    """Items that `where` leaves along axes; one pass over `where`."""
    if where is True:
        return np.prod([a.shape[i] for i in axes], dtype=np.intp)
    lead = a.ndim - where.ndim
    along = tuple(i - lead for i in axes if i >= lead)
    found = np.asarray(np.count_nonzero(where, axis=along, keepdims=True))
    # Along the axes on which it is broadcast, each of its items stands for several.
    own = (*[1] * lead, *where.shape)
    again = [n for i, n in enumerate(a.shape) if i in axes and own[i] == 1]
    return found * np.prod(again, dtype=np.intp)


def spread_of(
    a: Any, axis: Any, dtype: Any, out: Any, ddof: Any, keepdims: Any, where: Any,
    mean: Any, correction: Any, *, omit: bool, root: bool,
) -> Any:  # fmt: skip
    omit = omit and a.dtype.kind in "fc"
    where = as_mask(where)
    if correction is not NO:
        if ddof != 0:
            raise ValueError("ddof and correction can't be provided simultaneously.")
        ddof = correction
    mean = mean if mean is NO or is_stored(mean) else np.asarray(mean)
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    if omit:
        _refuse_exact(dtype, out)
    count, squares = moments(a, axes, found, where, omit, mean)
    freedom = count - ddof
    if (freedom <= 0).any():
        warnings.warn("Degrees of freedom <= 0 for slice.", RuntimeWarning, stacklevel=_CALLER + 1)
    if omit:
        freedom = np.where(freedom > 0, freedom, np.nan)
    if out is not None:
        same_shape(out, finish(squares, axes, keepdims, None).shape)
        if root and not np.can_cast(np.float16, out.dtype, "same_kind"):
            raise TypeError(f"cannot cast the square root to {out.dtype}")
    variance = np.true_divide(_held_by(out, squares), np.maximum(freedom, 0))
    result = np.sqrt(variance) if root else variance
    if out is None:
        is_real = a.dtype.kind == "c" or found.kind != "c"
        result = result.astype(np.empty(0, found).real.dtype if is_real else found)
    return finish(result, axes, keepdims, out)


def _refuse_exact(dtype: Any, out: Any) -> None:
    """Refuse dtypes that hold no NaN, as NumPy does, for items that may be NaN."""
    if dtype is not None and not np.issubdtype(dtype, np.inexact):
        raise TypeError("If a is inexact, then dtype must be inexact")
    if out is not None and not np.issubdtype(out.dtype, np.inexact):
        raise TypeError("If a is inexact, then out must be inexact")


@reduces(np.var)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(
        a, axis, dtype, out, ddof, keepdims, where, mean, correction, omit=False, root=False
    )


@reduces(np.std)
def _std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(
        a, axis, dtype, out, ddof, keepdims, where, mean, correction, omit=False, root=True
    )


@reduces(np.nanmean)
def _nanmean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO, *,
    where: Any = NO,
) -> Any:  # fmt: skip
    if a.dtype.kind not in "fc":
        return mean(a, axis, dtype, out, keepdims, where=where)
    _refuse_exact(dtype, out)
    where = as_mask(where)
    found = mean_dtype(a, dtype)
    axes = axes_of(a, axis)
    wide = np.float32 if found == np.float16 else found
    total, count = sum_without_nan(a, axes, wide, where)
    if not count.all():
        warnings.warn("Mean of empty slice", RuntimeWarning, stacklevel=_CALLER)
    with np.errstate(invalid="ignore", divide="ignore"):
        center = np.asarray(np.true_divide(_held_by(out, total), count))
    return finish(center if out is not None else center.astype(found), axes, keepdims, out)


def sum_without_nan(
    a: Any, axes: tuple[int, ...], dtype: Any, where: Any
) -> tuple[AnyArray, AnyArray]:
    """Sum and count of the items along axes that are not NaN, in one pass."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(a.shape))
    total = make_result(kept, dtype, a.layout)
    count = make_result(kept, np.intp, a.layout)
    total[...] = 0
    count[...] = 0
    for piece, sight in look_through(a, 3 * a.itemsize):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        mask = part_of(where, a.shape, piece)
        for block in sight.looks():
            use = ~np.isnan(block) & mask
            n = np.add.reduce(use, axis=axes, dtype=np.intp, keepdims=True)
            part = add_up(block, axes, dtype=dtype, where=use)
        count[place] += n
        total[place] += part
    return total, count


@reduces(np.nanvar)
def _nanvar(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(
        a, axis, dtype, out, ddof, keepdims, where, mean, correction, omit=True, root=False
    )


@reduces(np.nanstd)
def _nanstd(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = NO, *, where: Any = NO, mean: Any = NO, correction: Any = NO,
) -> Any:  # fmt: skip
    return spread_of(
        a, axis, dtype, out, ddof, keepdims, where, mean, correction, omit=True, root=True
    )
