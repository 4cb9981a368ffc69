"""Places of extremes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from pmarray._numpy.functions.axes import axes_of, finish, reduces
from pmarray._numpy.functions.registry import NO
from pmarray._numpy.ufuncs import into, look_through, make_result, same_shape


def _arg(a: Any, axis: Any, out: Any, keepdims: Any, low: bool) -> Any:
    shape = a.shape
    axes = axes_of(a, axis if axis is None else operator.index(axis))
    if any(shape[i] == 0 for i in axes):
        raise ValueError(f"attempt to get arg{'min' if low else 'max'} of an empty sequence")
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    best = make_result(kept, a.dtype, a.layout)
    place_of = make_result(kept, np.intp, a.layout)
    search = np.argmin if low else np.argmax
    # Where an axis of 1 is searched, all that is compared is as large as the block.
    for piece, sight in look_through(a, 5 * a.itemsize + 48):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        for block in sight.looks():
            if axis is None:
                flat = int(search(block))
                local = np.unravel_index(flat, block.shape)
                values = block[local].reshape((1,) * block.ndim)
                found = [one.start + i for one, i in zip(piece, local, strict=True)]
                index = np.ravel_multi_index(found, shape) if shape else 0
                indices = np.full(values.shape, index, np.intp)
            else:
                (along,) = axes
                local_index = search(block, axis=along, keepdims=True)
                values = np.take_along_axis(block, local_index, along)
                indices = local_index + piece[along].start
        if all(piece[i].start == 0 for i in axes):
            best[place], place_of[place] = values, indices
            continue
        before, where_before = best[place], place_of[place]
        nan, had_nan = values != values, before != before
        with np.errstate(invalid="ignore"):  # some processors' comparisons of NaN raise the flag
            ahead = np.less(values, before) if low else np.greater(values, before)
        tie = (values == before) | (nan & had_nan)
        better = ((ahead | (nan & ~had_nan)) & ~(had_nan & ~nan)) | (tie & (indices < where_before))
        best[place] = np.where(better, values, before)
        place_of[place] = np.where(better, indices, where_before)
    places: Any = np.asarray(finish(place_of, axes, keepdims, None))
    if out is None:
        return places[()]
    same_shape(out, places.shape)
    if not np.can_cast(out.dtype, np.intp, "safe"):
        raise TypeError(f"cannot give places to out= of {out.dtype}: use an integer dtype")
    return into(out, places, casting="unsafe")


@reduces(np.argmin)
def _argmin(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = NO) -> Any:
    return _arg(a, axis, out, keepdims, low=True)


@reduces(np.argmax)
def _argmax(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = NO) -> Any:
    return _arg(a, axis, out, keepdims, low=False)
