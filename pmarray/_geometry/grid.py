"""Chunks that are rectangular blocks of an array: pure arithmetic, as in `layout`.

In a chunk store a chunk is an object of its own, always of the same shape, also at the edge of
the array. It lies in memory as a small array of that shape, in the order of the layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from pmarray._geometry.layout import Extent, Layout, cut

__all__ = ["ChunkGrid"]

Chunk = tuple[int, ...]


@dataclass(frozen=True)  # no slots: what is computed from the fields is kept
class ChunkGrid:
    """An array of some shape, cut into chunks.

    Parameters
    ----------
    layout
        Of the array.
    chunk_shape
        Extent of a chunk, per axis; at least 1.

    Examples
    --------
    >>> grid = ChunkGrid(Layout.plan((100, 7), 4, "col"), (60, 2))
    >>> grid.shape, grid.chunk_nbytes
    ((2, 4), 480)
    >>> [extent.chunk for extent in grid.extents((slice(50, 70, 1), slice(6, 7, 1)))]
    [(0, 3), (1, 3)]
    """

    layout: Layout
    chunk_shape: tuple[int, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The number of chunks along each axis."""
        return tuple(
            -(-n // size) for n, size in zip(self.layout.shape, self.chunk_shape, strict=True)
        )

    @cached_property
    def chunk(self) -> Layout:
        """How a chunk lies in memory."""
        layout = self.layout
        plain = Layout(self.chunk_shape, layout.itemsize, layout.order, 0)
        return Layout(self.chunk_shape, layout.itemsize, layout.order, plain.line_nbytes)

    @cached_property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk in memory."""
        return math.prod(self.chunk_shape) * self.layout.itemsize

    def number(self, chunk: Chunk) -> int:
        """The place of a chunk in the order of the layout, whatever the extent of the slow axis.

        >>> ChunkGrid(Layout.plan((100, 7), 4, "col"), (60, 2)).number((1, 3))
        7
        """
        result: int = 0
        for axis in self.layout.slow_to_fast:
            result = result * self.shape[axis] + chunk[axis]
        return result

    def meets(self, chunk: tuple[int, ...], axes: tuple[slice, ...]) -> bool:
        """Whether a chunk has items of a selection, of one ascending slice an axis, step 1."""
        return all(
            one.start < (i + 1) * size and i * size < one.stop
            for i, size, one in zip(chunk, self.chunk_shape, axes, strict=True)
        )

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk holds items of the array."""
        return all(i < n for i, n in zip(chunk, self.shape, strict=True))

    def clip(self, chunk: Chunk) -> tuple[slice, ...]:
        """The items of a chunk that are items of the array."""
        return tuple(
            slice(0, max(0, min(size, extent - i * size)), 1)
            for i, size, extent in zip(chunk, self.chunk_shape, self.layout.shape, strict=True)
        )

    def used_nbytes(self, chunk: Chunk) -> int:
        """Bytes of a chunk in memory up to its last item that is one of the array."""
        clip = self.clip(chunk)
        if any(one.stop == 0 for one in clip):
            return 0
        last = sum(
            int(one.stop - 1) * stride for one, stride in zip(clip, self.chunk.strides, strict=True)
        )
        return last + self.layout.itemsize

    def outside(self, smaller: ChunkGrid) -> Iterator[Chunk]:
        """Yield the chunks that hold items of this array, and none of a smaller one.

        >>> grid = ChunkGrid(Layout.plan((100, 7), 4, "col"), (60, 2))
        >>> list(grid.outside(ChunkGrid(Layout.plan((100, 4), 4, "col"), (60, 2))))
        [(0, 2), (1, 2), (0, 3), (1, 3)]
        """
        slow = self.layout.slow_axis
        first = smaller.shape[slow] if self._differs_in_lines_only(smaller) else 0
        ranges = [range(n) for n in self.shape]
        ranges[slow] = range(first, self.shape[slow])
        axes = self.layout.slow_to_fast
        for places in product(*(ranges[axis] for axis in axes)):
            chunk = tuple(place for _, place in sorted(zip(axes, places, strict=True)))
            if not smaller.holds(chunk):
                yield chunk

    def _differs_in_lines_only(self, other: ChunkGrid) -> bool:
        slow = self.layout.slow_axis
        return all(
            n == m
            for axis, (n, m) in enumerate(zip(self.shape, other.shape, strict=True))
            if axis != slow
        )

    def uncovered(self, larger: Layout) -> list[tuple[slice, ...]]:
        """Say where new items lie in old chunks, when the array grows to another layout.

        Old chunks may hold anything beyond the old edge; new chunks hold nothing yet. The blocks
        may overlap.

        >>> ChunkGrid(Layout.plan((5,), 8, "row"), (4,)).uncovered(Layout.plan((20,), 8, "row"))
        [(slice(5, 8, 1),)]
        """
        blocks = []
        for axis, size in enumerate(self.chunk_shape):
            old, new = self.layout.shape[axis], larger.shape[axis]
            stop = min(new, -(-old // size) * size)
            if stop > old:
                block = [slice(0, n, 1) for n in larger.shape]
                block[axis] = slice(old, stop, 1)
                blocks.append(tuple(block))
        return [block for block in blocks if all(one.stop > one.start for one in block)]

    def extents(self, selection: tuple[slice, ...]) -> Iterator[Extent]:
        """Yield where the items of `selection` lie, chunk by chunk; as `Layout.extents`.

        Here `Extent.exact` says that the spans hold no other item of the array.
        """
        parts = [self._cut(axis, one) for axis, one in enumerate(selection)]
        axes = self.layout.slow_to_fast
        places = [axes.index(axis) for axis in range(len(axes))]
        origin = (0,) * len(self.chunk_shape)
        spans: tuple[tuple[int, int], ...]
        known: dict[tuple[tuple[int, int, int], ...], tuple[tuple[tuple[int, int], ...], bool]] = {}
        """By where the items are in a chunk, where their bytes are: of most chunks it is alike."""
        for combination in product(*(parts[axis] for axis in axes)):
            by_axis = [combination[place] for place in places]
            within = tuple([part.within for part in by_axis])
            if False not in [part.is_whole for part in by_axis]:
                # What lies beyond the edge is nobody's: writing it too needs no reading first.
                spans, exact = ((0, self.chunk_nbytes),), True
            else:
                key = tuple([(one.start, one.stop, one.step) for one in within])
                if key not in known:
                    known[key] = self.chunk.spans(within, origin, self.chunk_shape)
                spans, exact = known[key]
            yield Extent(
                tuple([part.chunk for part in by_axis]),
                within,
                tuple([part.where for part in by_axis]),
                spans,
                exact,
            )

    def _cut(self, axis: int, selection: slice) -> list[_Part]:
        size, extent = self.chunk_shape[axis], self.layout.shape[axis]
        return [
            _Part(i, within, where, within == slice(0, min(size, extent - i * size), 1))
            for i, within, where in cut(selection, size)
        ]


class _Part(NamedTuple):
    """The items of a selection that are in one row of chunks along an axis."""

    chunk: int
    within: slice
    where: slice
    is_whole: bool
    """Whether that is all of it, as far as the array goes."""
