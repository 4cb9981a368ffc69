"""Histograms and weighted averages."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._geometry.layout import Order
from pmarray._numpy.functions.axes import axes_of, finish
from pmarray._numpy.functions.moments import mean
from pmarray._numpy.functions.registry import NO, AnyArray, streams, unstreamed
from pmarray._numpy.summing import add_up
from pmarray._numpy.ufuncs import make_result, part_of, reduce, walk

# -- histograms ---------------------------------------------------------------------------------


@streams(np.histogram)
def _histogram(
    a: Any, bins: Any = 10, range: Any = None, density: Any = None, weights: Any = None
) -> tuple[AnyArray, AnyArray]:
    if isinstance(bins, str):
        options = {"range": range, "density": density, "weights": weights}
        return tuple(unstreamed(np.histogram, (a, bins), options))
    a = a if is_stored(a) else np.asarray(a)
    bins, range = _read_bins(bins), _bounds(a, bins, range)
    if weights is not None:
        weights = weights if is_stored(weights) else np.asarray(weights)
        if weights.shape != a.shape:
            raise ValueError("weights should have the same shape as a.")
    lead = a if is_stored(a) else weights
    kind = np.dtype(np.intp) if weights is None else weights.dtype
    nothing = None if weights is None else np.empty(0, kind)
    counts, edges = np.histogram(_numbers(np.empty(0, a.dtype)), bins, range, weights=nothing)
    # NumPy flattens, sorts and adds up a piece.
    held = 3 * a.dtype.itemsize + 2 * (0 if weights is None else kind.itemsize)
    for piece in walk(a.shape, held, lead.layout):
        block = _numbers(np.asarray(part_of(a, a.shape, piece)))
        part = None if weights is None else np.asarray(part_of(weights, a.shape, piece))
        counts += np.histogram(block, bins, range, weights=part)[0]
    if density:
        return counts / np.diff(edges).astype(float) / counts.sum(), edges
    return counts, edges


@streams(np.histogram_bin_edges)
def _histogram_bin_edges(a: Any, bins: Any = 10, range: Any = None, weights: Any = None) -> Any:
    if isinstance(bins, str):
        options = {"range": range, "weights": weights}
        return unstreamed(np.histogram_bin_edges, (a, bins), options)
    a = a if is_stored(a) else np.asarray(a)
    bins, range = _read_bins(bins), _bounds(a, bins, range)
    return np.histogram_bin_edges(_numbers(np.empty(0, a.dtype)), bins, range)


def _read_bins(bins: Any) -> Any:
    return bins[...] if is_stored(bins) else bins


def _bounds(a: Any, bins: Any, range: Any) -> Any:
    """The least and the greatest item, which takes a pass, where bins are counted and not given."""
    if range is not None or np.ndim(bins) or not a.size:
        return range
    return tuple(_numbers(np.asarray(reduce(u, a, None))) for u in (np.minimum, np.maximum))


def _numbers(block: AnyArray) -> AnyArray:
    """Truth values have no differences, and `numpy.histogram` warns when it counts them so."""
    return block.astype(np.uint8) if block.dtype == bool else block


# -- averages -----------------------------------------------------------------------------------


@streams(np.average)
def _average(
    a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = NO
) -> Any:
    a = a if is_stored(a) else np.asarray(a)
    axes = axes_of(a, axis)
    if weights is None:
        found = np.asarray(mean(a, axis, keepdims=keepdims))
        total: Any = np.asarray(a.size / found.size, found.dtype)
    else:
        found, total = _weighted(a, axis, axes, weights)
        if (total == 0).any():
            raise ZeroDivisionError("Weights sum to zero, can't be normalized")
        found = finish(found / total, axes, keepdims, None)
        total = finish(total, axes, keepdims, None)
    found = found if np.ndim(found) else np.asarray(found)[()]
    if not returned:
        return found
    scale = np.broadcast_to(total, np.shape(found)).copy()
    return found, scale if scale.ndim else scale[()]


def _weighted(a: Any, axis: Any, axes: tuple[int, ...], weights: Any) -> tuple[AnyArray, AnyArray]:
    """Sum the weighted items, and the weights."""
    weights = weights if is_stored(weights) else np.asarray(weights)
    kind = np.result_type(a.dtype, weights.dtype, *(["f8"] if a.dtype.kind in "biu" else []))
    if weights.shape != a.shape:
        if axis is None:
            raise TypeError("Axis must be specified when shapes of a and weights differ.")
        if weights.shape != tuple(a.shape[i] for i in axes):
            raise ValueError(
                "Shape of weights must be consistent with shape of a along specified axis."
            )
        weights = weights[...] if is_stored(weights) else weights
        weights = weights.transpose(np.argsort(axes)).reshape(
            [n if i in axes else 1 for i, n in enumerate(a.shape)]
        )
    total = np.asarray(reduce(np.add, weights, axes, kind, keepdims=True))
    lead = next((x for x in (a, weights) if is_stored(x)), None)
    order: Order = "row" if lead is None else lead.layout
    sums = make_result(tuple(1 if i in axes else n for i, n in enumerate(a.shape)), kind, order)
    sums[...] = 0
    item_nbytes = 2 * (a.dtype.itemsize + weights.dtype.itemsize + kind.itemsize)
    for piece in walk(a.shape, item_nbytes, order):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        parts = (part_of(x, a.shape, piece) for x in (a, weights))
        sums[place] += add_up(np.multiply(*parts, dtype=kind), axes)
    return sums, total
