"""Bytes of a region whose contents nobody wants any more: they are overwritten without an image.

They are counted in whole blocks of the medium, since before-images are. A block is dead from the
commit of `forget` on, and until an item of it is written. Counted in the cache, so to speak: as the
program sees them. What the writer goes by is the metadata of the last durable commit.
"""

from __future__ import annotations

from pmarray._geometry.layout import BLOCK_BYTES, Layout
from pmarray._geometry.reach import reach_of
from pmarray._geometry.spans import SpanSet

__all__ = ["DeadBytes", "Spans"]

Axes = tuple[slice, ...]
Spans = tuple[tuple[int, int], ...]

_MOST_SPANS = 256
"""More are not kept: they are in the metadata of every commit."""


class DeadBytes:
    """The dead blocks of one region; sets are replaced, never changed.

    Parameters
    ----------
    spans
        What the metadata say.
    """

    def __init__(self, spans: Spans = ()) -> None:
        self._now = SpanSet.of(spans)
        self.at_begin = self._now
        """When the open transaction began: what it finds when it is rolled back."""

    @property
    def spans(self) -> Spans:
        """What the metadata are to say."""
        return tuple(self._now)

    def begin(self) -> None:
        """A transaction begins."""
        self.at_begin = self._now

    def roll_back(self) -> None:
        """Go back to its beginning."""
        self._now = self.at_begin

    def forget(self, layout: Layout, axes: Axes) -> None:
        """Add the whole blocks of a selection."""
        if _is_empty(axes):
            return
        reach = reach_of(layout, axes)
        if reach.run < reach.nbytes:
            return  # it lies in pieces, between which others live
        stride, used = layout.line_stride, layout.line_nbytes
        stretches = []
        for start in range(reach.start, reach.stop, reach.step):
            stop = start + reach.nbytes
            stretches.append((start, stop + (stride - used) * (stop % stride == used)))
        whole = (
            (-(-start // BLOCK_BYTES) * BLOCK_BYTES, stop // BLOCK_BYTES * BLOCK_BYTES)
            for start, stop in SpanSet.of(stretches)
        )
        self._now = _not_many(SpanSet.of([*self._now, *whole]))

    def revive(self, layout: Layout, axes: Axes) -> None:
        """Take out the blocks of a selection that is about to be written."""
        if not self._now or _is_empty(axes):
            return
        reach = reach_of(layout, axes)
        if not self._now.intersects(reach.start, reach.stop):
            return
        now = self._now.with_span(0, 0)
        if reach.stretches > _MOST_SPANS:
            now.remove(*_blocks(reach.start, reach.stop))
        else:
            for start in range(reach.start, reach.stop, reach.step):
                now.remove(*_blocks(start, start + reach.nbytes))
        self._now = _not_many(now)

    def cut(self, nbytes: int) -> None:
        """Take out what lies beyond the end of the array."""
        bounds = list(self._now)
        if bounds and bounds[-1][1] > nbytes:
            now = self._now.with_span(0, 0)
            now.remove(nbytes // BLOCK_BYTES * BLOCK_BYTES, bounds[-1][1])
            self._now = now

    def had(self, layout: Layout, axes: Axes) -> bool:
        """Whether all blocks of a selection were dead when the transaction began."""
        if not self.at_begin or _is_empty(axes):
            return False
        reach = reach_of(layout, axes)
        return all(
            self.at_begin.covers(*_blocks(start, start + reach.nbytes))
            for start in range(reach.start, reach.stop, reach.step)
        )


def _is_empty(axes: Axes) -> bool:
    return any(not len(range(one.start, one.stop, one.step)) for one in axes)


def _blocks(start: int, stop: int) -> tuple[int, int]:
    return start // BLOCK_BYTES * BLOCK_BYTES, -(-stop // BLOCK_BYTES) * BLOCK_BYTES


def _not_many(spans: SpanSet) -> SpanSet:
    """Leave out the shortest where there are too many: they cost an image again, and no more."""
    found = list(spans)
    if len(found) <= _MOST_SPANS:
        return spans
    return SpanSet.of(sorted(found, key=lambda span: span[0] - span[1])[:_MOST_SPANS])
