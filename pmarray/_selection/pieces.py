"""What an advanced index selects, cut along the chunks of the array: each is visited once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._geometry.layout import Layout
from pmarray._selection.fancy import FancySelection, Points

__all__ = ["Piece", "pieces"]

AnyArray = NDArray[Any]
Positions = NDArray[np.intp]


class Piece(NamedTuple):
    """A part of a selection whose items lie close together."""

    bounds: tuple[slice, ...]
    """One slice an axis of the array: the smallest box that has all the items."""
    axes: tuple[int, ...]
    """The axes of the array in the order of the selectors; the box is transposed so first."""
    within: tuple[Any, ...]
    """Indexes the transposed box."""
    where: tuple[Any, ...]
    """Indexes the block."""
    exact: bool
    """Whether the box holds nothing but the items, each once."""
    in_place: bool
    """Whether the transposed box is, item for item, the part `where` of the block."""


class _Part(NamedTuple):
    """What one selector selects in one place."""

    bounds: tuple[slice, ...]
    within: tuple[Any, ...]
    where: Any
    exact: bool
    in_place: bool


def pieces(
    selection: FancySelection, layout: Layout, chunk_shape: tuple[int, ...], gap: int
) -> Iterator[Piece]:
    """Cut a selection along the chunks of an array, in the order of the medium.

    Parameters
    ----------
    selection
        On an array of this layout.
    layout, chunk_shape
        Of the array.
    gap
        Bytes: points in one chunk that lie farther apart are in different boxes.
    """
    selectors = selection.selectors
    if 0 in selection.block_shape:
        return
    rank = {axis: i for i, axis in enumerate(layout.slow_to_fast)}
    axes = tuple(axis for one in selectors for axis in one.axes)
    # Points on a fast axis are looked up chunk by chunk of the slower axes, so that neither is
    # a chunk visited twice nor a box larger than a chunk.
    fastest = max(
        (rank[axis] for one in selectors if isinstance(one, Points) for axis in one.axes),
        default=-1,
    )
    parts: list[list[_Part]] = []
    for one in selectors:
        if isinstance(one, Points):
            parts.append(list(_clusters(one, layout, chunk_shape, gap, rank)))
        elif rank[one.axis] < fastest:
            parts.append(list(_cells(one.items, chunk_shape[one.axis])))
        else:
            parts.append([_Part((one.items,), (slice(None),), slice(None), True, True)])
    order = sorted(range(len(selectors)), key=lambda i: min(rank[a] for a in selectors[i].axes))
    back = np.argsort(order)
    for chosen in itertools.product(*(parts[i] for i in order)):
        combination = [chosen[i] for i in back]
        by_axis = {
            axis: items
            for one, part in zip(selectors, combination, strict=True)
            for axis, items in zip(one.axes, part.bounds, strict=True)
        }
        yield Piece(
            bounds=tuple(by_axis[axis] for axis in range(len(axes))),
            axes=axes,
            within=_mesh([part.within for part in combination], combination),
            where=_mesh([(part.where,) for part in combination], combination),
            exact=all(part.exact for part in combination),
            in_place=all(part.in_place for part in combination),
        )


def _cells(items: slice, extent: int) -> Iterator[_Part]:
    """Cut an ascending slice along chunks."""
    start, done = items.start, 0
    while start < items.stop:
        stop = min(items.stop, (start // extent + 1) * extent)
        count = len(range(start, stop, items.step))
        last = start + (count - 1) * items.step
        yield _Part(
            (slice(start, last + 1, items.step),),
            (slice(None),),
            slice(done, done + count),
            True,
            True,
        )
        done += count
        start = last + items.step


def _clusters(
    points: Points,
    layout: Layout,
    chunk_shape: tuple[int, ...],
    gap: int,
    rank: dict[int, int],
) -> Iterator[_Part]:
    """Sort points by their place on the medium and cut them where a chunk ends or a gap is."""
    address = np.zeros(points.size, np.int64)
    chunk = np.zeros(points.size, np.int64)
    by_speed = sorted(zip(points.axes, points.coordinates, strict=True), key=lambda p: rank[p[0]])
    for axis, coordinates in by_speed:
        address += coordinates * layout.strides[axis]
        chunk = (
            chunk * -(-layout.shape[axis] // chunk_shape[axis]) + coordinates // chunk_shape[axis]
        )
    order = np.lexsort((address, chunk))  # stable: the last of equal points stays the last
    steps = np.diff(address[order])
    cuts = np.flatnonzero((steps > gap) | (np.diff(chunk[order]) != 0)) + 1
    starts = np.concatenate(([0], cuts))
    stops = np.concatenate((cuts, [points.size]))
    sorted_coordinates = [coordinates[order] for coordinates in points.coordinates]
    lows = [np.minimum.reduceat(c, starts).tolist() for c in sorted_coordinates]
    highs = [np.maximum.reduceat(c, starts).tolist() for c in sorted_coordinates]
    distinct = np.concatenate(([0], np.cumsum(steps == 0)))
    for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        bounds = tuple(slice(low[i], high[i] + 1, 1) for low, high in zip(lows, highs, strict=True))
        volume = math.prod(b.stop - b.start for b in bounds)
        exact = volume == stop - start and distinct[stop - 1] == distinct[start]
        where: Any = order[start:stop]
        first = int(where[0])
        consecutive = bool(np.array_equal(where, np.arange(first, first + stop - start)))
        if consecutive:
            where = slice(first, first + stop - start)
        yield _Part(
            bounds,
            tuple(c[start:stop] - b.start for c, b in zip(sorted_coordinates, bounds, strict=True)),
            where,
            exact,
            exact and consecutive and len(bounds) == 1,
        )


def _mesh(indices: list[tuple[Any, ...]], parts: list[_Part]) -> tuple[Any, ...]:
    """Combine the indices of the selectors, so that each gives one axis of the result."""
    flat = [one for group in indices for one in group]
    if sum(any(not isinstance(one, slice) for one in group) for group in indices) <= 1:
        return tuple(flat)
    result: list[Any] = []
    for i, (group, part) in enumerate(zip(indices, parts, strict=True)):
        shape = (*[1] * i, -1, *[1] * (len(indices) - i - 1))
        for one in group:
            if isinstance(one, slice):
                first = one.start or 0
                one = np.arange(first, first + _count(one, part))
            result.append(one.reshape(shape))
    return tuple(result)


def _count(one: slice, part: _Part) -> int:
    """How many items a slice of a box or of the block has; it is full, or bounded."""
    if one.stop is not None:
        return int(one.stop) - int(one.start)
    (bounds,) = part.bounds
    return len(range(bounds.start, bounds.stop, bounds.step))
