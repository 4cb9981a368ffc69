"""How a whole array is carried from one layout to another: pure arithmetic.

A *tile* is a box of items that is held in memory at once. In either layout it is made of *runs*,
items that lie next to each other. Where the layouts differ, long runs in one are paid for with
short ones in the other: unless a tile is of whole lines, the lengths of a run here and of a run
there multiply to no more than the items of a tile. There is no way around that without reading or
writing twice. So a tile is chosen for the fewest runs, and a tile of whole lines, which is a
single run, wins where lines are short enough.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

from pmarray._geometry.layout import BLOCK_BYTES, PAD_FROM_BYTES, Layout

__all__ = ["Box", "box_within", "boxes", "plan_tile", "runs_of"]

Box = tuple[slice, ...]
"""One slice of step 1 an axis."""

_WRITE_COST = 2
"""Of a run, counted in runs that are read: many of those are under way at once, of these one."""


def plan_tile(read: Layout, written: Layout, nbytes: int) -> tuple[int, ...]:
    """Choose the shape of the tiles in which an array goes from one layout to another.

    Parameters
    ----------
    read, written
        Of the same shape and item size.
    nbytes
        What a tile may take; one item is always allowed.

    Returns
    -------
    tuple of int
        A multiple of blocks in both layouts, where that leaves anything.

    Examples
    --------
    >>> shape = (100_000, 50_000)
    >>> read, written = Layout.plan(shape, 4, "col"), Layout.plan(shape, 4, "row")
    >>> plan_tile(read, written, 64 << 20)
    (2048, 8192)
    >>> plan_tile(read, read, 4 << 20)
    (100000, 10)
    >>> shape = (2_797_010, 600)
    >>> plan_tile(Layout.plan(shape, 4, "col"), Layout.plan(shape, 4, "row"), 64 << 20)
    (27648, 600)
    """
    shape = written.shape
    if 0 in shape:
        return shape
    items = max(1, nbytes // written.itemsize)
    most = math.prod(shape)

    def tile(run: int, other: int) -> tuple[int, ...]:
        one, two = box_within(shape, read, run), box_within(shape, written, other)
        return tuple(map(max, one, two))

    def size(run: int, other: int) -> int:
        return math.prod(tile(run, other))

    def largest(taken: Callable[[int], int]) -> int:
        runs = range(1, most + 1)
        return runs[max(0, bisect_right(runs, items, key=taken) - 1)]

    def candidates() -> Iterator[tuple[int, ...]]:
        for power in range(min(items, most).bit_length()):
            other = largest(partial(size, 1 << power))
            yield tile(largest(partial(size, other=other)), other)

    def cost(tile: tuple[int, ...]) -> float:
        return 1 / _run_length(tile, read) + _WRITE_COST / _run_length(tile, written)

    best: tuple[int, ...] = min(candidates(), key=cost)
    result = list(best)
    for axis, extent in enumerate(shape):
        step = max(_blocks(read, result, axis), _blocks(written, result, axis))
        if extent > result[axis] > step:
            result[axis] -= result[axis] % step
    return tuple(result)


def _run_length(tile: tuple[int, ...], layout: Layout) -> int:
    """How many items of a tile lie next to each other."""
    result = 1
    for axis in reversed(layout.slow_to_fast):
        result *= tile[axis]
        if tile[axis] < layout.shape[axis]:
            break
    return result


def _blocks(layout: Layout, tile: list[int], axis: int) -> int:
    """How many items along `axis` fill whole blocks, if that is where runs are cut."""
    for fast in reversed(layout.slow_to_fast):
        if fast == axis:
            return BLOCK_BYTES // math.gcd(BLOCK_BYTES, layout.strides[axis])
        if tile[fast] < layout.shape[fast]:
            break
    return 1


def box_within(shape: tuple[int, ...], layout: Layout, items: int) -> tuple[int, ...]:
    """The largest box of at most `items` items that is one run of an array of this shape.

    >>> box_within((100, 20, 5), Layout.plan((100, 20, 5), 4, "col"), 730)
    (100, 7, 1)
    """
    result = [1] * len(shape)
    for axis in reversed(layout.slow_to_fast):
        result[axis] = max(1, min(shape[axis], items))
        items //= max(1, shape[axis])
        if not items:
            break
    return tuple(result)


def boxes(shape: tuple[int, ...], box: tuple[int, ...], layout: Layout) -> Iterator[Box]:
    """Cut a shape into boxes, in the order of `layout`.

    >>> list(boxes((3, 2), (2, 2), Layout.plan((3, 2), 1, "row")))
    [(slice(0, 2, 1), slice(0, 2, 1)), (slice(2, 3, 1), slice(0, 2, 1))]
    """
    if 0 in shape:
        return
    axes = layout.slow_to_fast
    for starts in product(*(range(0, shape[axis], box[axis]) for axis in axes)):
        start = dict(zip(axes, starts, strict=True))
        yield tuple(
            slice(start[axis], min(start[axis] + box[axis], n), 1) for axis, n in enumerate(shape)
        )


def runs_of(box: Box, layout: Layout) -> Iterator[Box]:
    """Cut a box into parts that have one run in each line, or are whole lines.

    A storage reads and writes exactly such a part, and nothing between its items.

    >>> layout = Layout.plan((50_000, 4, 3), 4, "col")
    >>> len(list(runs_of((slice(0, 100, 1), slice(0, 4, 1), slice(0, 3, 1)), layout)))
    4
    >>> len(list(runs_of((slice(0, 50_000, 1), slice(0, 4, 1), slice(0, 3, 1)), layout)))
    1
    """
    slow = layout.slow_axis
    whole = True
    apart = []
    for axis in reversed(layout.slow_to_fast):
        if axis == slow:
            continue
        if not whole:
            apart.append(axis)
        elif box[axis].stop - box[axis].start < layout.shape[axis]:
            whole = False
    if not whole and layout.line_stride < PAD_FROM_BYTES:
        # A storage takes pieces that are as close together as one, with all that is between.
        apart.append(slow)
    for items in product(*(range(box[axis].start, box[axis].stop) for axis in apart)):
        part = list(box)
        for axis, i in zip(apart, items, strict=True):
            part[axis] = slice(i, i + 1, 1)
        yield tuple(part)
