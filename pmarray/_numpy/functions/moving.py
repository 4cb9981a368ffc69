"""Items copied, joined, chosen and cut to an interval."""

from __future__ import annotations

from numbers import Number
from typing import Any, cast

import numpy as np
from numpy._core import umath
from numpy.lib.array_utils import normalize_axis_tuple

from pmarray._array.overlap import apart_from, is_stored
from pmarray._config import config
from pmarray._numpy.assignment import copy_items
from pmarray._numpy.functions.registry import NO, streams
from pmarray._numpy.ufuncs import make_result, part_of, walk


@streams(np.copyto)
def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    where = where if where is True or is_stored(where) else np.asarray(where)
    if isinstance(dst, np.ndarray) and not dst.flags.writeable:
        raise ValueError("assignment destination is read-only")
    # NumPy refuses, and casts a Python number to the dtype of `dst`, also of very few items.
    weak = isinstance(src, int | float | complex) and not isinstance(src, np.generic)
    src = src if weak or is_stored(src) else np.asarray(src)
    few = np.empty(1 if weak else 0, dst.dtype)
    mask = True if where is True else np.ones(few.shape, where.dtype)
    np.copyto(few, src if weak else np.empty(0, src.dtype), casting, mask)
    src = few[0, ...] if weak else src
    while src.ndim > len(dst.shape) and src.shape[0] == 1:
        src = src.view[0] if is_stored(src) else src[0]
    if np.broadcast_shapes(src.shape, np.shape(where), dst.shape) != dst.shape:
        raise ValueError(f"could not broadcast from shape {src.shape} into shape {dst.shape}")
    copy_items(dst, src, casting, where)


@streams(np.concatenate)
def _concatenate(
    arrays: Any, /, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind"
) -> Any:
    if axis is None:
        return _end_to_end(arrays, out, dtype, casting)
    arrays = [x if is_stored(x) else np.asarray(x) for x in arrays]
    first = arrays[0]
    (along,) = normalize_axis_tuple(axis, first.ndim)
    for x in arrays:
        if x.ndim != first.ndim or any(
            n != m for i, (n, m) in enumerate(zip(x.shape, first.shape, strict=True)) if i != along
        ):
            raise ValueError(
                f"cannot concatenate shapes {first.shape} and {x.shape} on axis {along}"
            )
    shape = list(first.shape)
    shape[along] = sum(x.shape[along] for x in arrays)
    kind = np.result_type(*(x.dtype for x in arrays)) if dtype is None else np.dtype(dtype)
    lead = next(x for x in [out, *arrays] if is_stored(x))
    result = make_result(tuple(shape), kind, lead.layout) if out is None else out
    if result.shape != tuple(shape):
        raise ValueError(f"out has shape {result.shape}, the result {tuple(shape)}")
    if len(arrays) > 1:
        arrays = [apart_from(x, [result], "an array") for x in arrays]
    for x in arrays:
        if not np.can_cast(x.dtype, result.dtype, casting):
            raise TypeError(f"cannot cast from {x.dtype} to {result.dtype} by the rule {casting!r}")
    start = 0
    for x in arrays:
        for piece in walk(x.shape, 2 * x.dtype.itemsize, lead.layout):
            moved = list(piece)
            moved[along] = slice(piece[along].start + start, piece[along].stop + start)
            part = np.asarray(x[piece])
            result[tuple(moved)] = part.astype(result.dtype, casting=casting, copy=False)
        start += x.shape[along]
    return result


def _end_to_end(arrays: Any, out: Any, dtype: Any, casting: Any) -> Any:
    """Join the items of all arrays, each in C order, along one axis."""
    arrays = [x if is_stored(x) else np.asarray(x) for x in arrays]
    kind = np.result_type(*(x.dtype for x in arrays)) if dtype is None else np.dtype(dtype)
    size = sum(x.size for x in arrays)
    result = make_result((size,), kind, "row") if out is None else out
    if result.shape != (size,):
        raise ValueError(f"out has shape {result.shape}, the result {(size,)}")
    for x in arrays:
        if not np.can_cast(x.dtype, result.dtype, casting):
            raise TypeError(f"cannot cast from {x.dtype} to {result.dtype} by the rule {casting!r}")
    arrays = [apart_from(x, [result], "an array") for x in arrays]
    start = 0
    for x in arrays:
        # Pieces in C order follow one another, whatever the layout.
        for piece in walk(x.shape, 3 * x.dtype.itemsize, "row"):
            part = np.asarray(x[piece]).reshape(-1)
            result[start : start + part.size] = part.astype(result.dtype, casting=casting)
            start += part.size
    return result


@streams(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if not choices:
        config.check_result(condition.nbytes, "np.where with one argument is not streamed")
        return np.where(np.asarray(condition))
    x, y = choices
    shape = np.broadcast_shapes(*(np.shape(v) for v in (condition, x, y)))
    values: list[Any] = [v if is_stored(v) else np.asarray(v) for v in (condition, x, y)]
    # Numbers have a say in dtypes, but not text, which would be taken for the name of one.
    kinds: list[Any] = [
        v if isinstance(v, Number) else w.dtype for v, w in zip(choices, values[1:], strict=True)
    ]
    kind = np.result_type(*kinds)
    lead = next(v for v in values if is_stored(v))
    result = make_result(shape, kind, lead.layout)
    for piece in walk(shape, 3 * max(v.dtype.itemsize for v in values), lead.layout):
        result[piece] = np.where(*(part_of(v, shape, piece) for v in values))
    return result


@streams(np.clip)
def _clip(
    a: Any, a_min: Any = NO, a_max: Any = NO, out: Any = None, *, min: Any = NO, max: Any = NO,
    **kwargs: Any,
) -> Any:  # fmt: skip
    if (a_min is not NO or a_max is not NO) and (min is not NO or max is not NO):
        raise ValueError(
            "Passing `min` or `max` keyword argument when `a_min` and `a_max` are provided is "
            "forbidden."
        )
    if (a_min is NO) != (a_max is NO):
        missing = "a_min" if a_min is NO else "a_max"
        raise TypeError(f"clip() missing 1 required positional argument: {missing!r}")
    bounds = (min, max) if a_min is NO else (a_min, a_max)
    low, high = cast(Any, tuple(None if one is NO else one for one in bounds))
    a = a if is_stored(a) else np.asarray(a)
    if a.dtype.kind in "iu":
        # A bound that the dtype cannot hold cuts nothing.
        limits = np.iinfo(a.dtype)
        low = None if type(low) is int and low <= limits.min else low
        high = None if type(high) is int and high >= limits.max else high
    if low is None and high is None:
        return np.positive(a, out=out, **kwargs)
    if low is None:
        return np.minimum(a, high, out=out, **kwargs)
    if high is None:
        return np.maximum(a, low, out=out, **kwargs)
    clip: Any = umath.clip  # type: ignore[attr-defined]  # the ufunc, which has no public name
    return clip(a, low, high, out=out, **kwargs)
