"""Items copied, joined, chosen and cut to an interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from pmarray._assignment import copy_items, overlap
from pmarray._config import config
from pmarray._functions._registry import NO, streams
from pmarray._ufuncs import is_stored, make_result, part_of, walk
from pmarray.errors import LayoutError


@streams(np.copyto)
def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    kind = src.dtype if hasattr(src, "dtype") else np.asarray(src).dtype
    if not np.can_cast(kind, dst.dtype, casting):
        raise TypeError(f"cannot cast from {kind} to {dst.dtype} according to the rule {casting!r}")
    src = src if is_stored(src) else np.asarray(src)
    while src.ndim > len(dst.shape) and src.shape[0] == 1:
        src = src.view[0] if is_stored(src) else src[0]
    if np.broadcast_shapes(src.shape, np.shape(where), dst.shape) != dst.shape:
        raise ValueError(f"could not broadcast from shape {src.shape} into shape {dst.shape}")
    where = where if where is True or is_stored(where) else np.asarray(where)
    copy_items(dst, src, casting, where)


@streams(np.concatenate)
def _concatenate(
    arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind"
) -> Any:
    if axis is None:
        raise TypeError("concatenate of a PMArray needs an axis")
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
    if any(overlap(result, x) for x in arrays) or (
        any(x is out for x in arrays) and len(arrays) > 1
    ):
        raise LayoutError("out is one of the arrays, which are still read when it is written")
    start = 0
    for x in arrays:
        for piece in walk(x.shape, 2 * x.dtype.itemsize, lead.layout):
            moved = list(piece)
            moved[along] = slice(piece[along].start + start, piece[along].stop + start)
            part = np.asarray(x[piece])
            result[tuple(moved)] = part.astype(result.dtype, casting=casting, copy=False)
        start += x.shape[along]
    return result


@streams(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if not choices:
        config.check_result(condition.nbytes, "np.where with one argument is not streamed")
        return np.where(np.asarray(condition))
    x, y = choices
    shape = np.broadcast_shapes(*(np.shape(v) for v in (condition, x, y)))
    values: list[Any] = [v if is_stored(v) else np.asarray(v) for v in (condition, x, y)]
    kind = np.result_type(*(v.dtype if hasattr(v, "dtype") else v for v in (x, y)))
    lead = next(v for v in values if is_stored(v))
    result = make_result(shape, kind, lead.layout)
    for piece in walk(shape, 3 * max(v.dtype.itemsize for v in values), lead.layout):
        result[piece] = np.where(*(part_of(v, shape, piece) for v in values))
    return result


@streams(np.clip)
def _clip(a: Any, a_min: Any = NO, a_max: Any = NO, out: Any = None, **options: Any) -> Any:
    low = options.pop("min", None if a_min is NO else a_min)
    high = options.pop("max", None if a_max is NO else a_max)
    if out is not None:
        options["out"] = out
    if low is None and high is None:
        return np.positive(a, **options)
    if low is None:
        return np.minimum(a, high, **options)
    if high is None:
        return np.maximum(a, low, **options)
    raised = np.maximum(a, low, **options)
    return np.minimum(raised if out is None else out, high, **options)
