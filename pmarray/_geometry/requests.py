"""Which requests fetch the items of a selection, and where they put them: pure arithmetic.

A request is of whole blocks of the file, and goes to memory that is aligned likewise, so that it
can be direct. What lies before and after the items in their first and last block comes along: the
buffer has room for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pmarray._geometry.layout import BLOCK_BYTES, Layout
from pmarray._geometry.reach import Axes, reach_of

__all__ = ["Request", "Requests", "plan_requests"]

_LONG_BYTES = 32 << 10
"""Stretches that are shorter take longer by requests of their own than through a mapping."""


class Request(NamedTuple):
    """Bytes of a file, and where they go."""

    start: int
    """In the file, a multiple of blocks."""
    stop: int
    """A multiple of blocks; the file may end before."""
    least: int
    """Where the items end, which the file has to reach."""
    place: int
    """In the buffer, a multiple of blocks."""


class Requests(NamedTuple):
    """What fetches a selection into a buffer."""

    nbytes: int
    """Of the buffer, which begins on a block."""
    offset: int
    """Of the first item in the buffer."""
    strides: tuple[int, ...]
    """Of the items in the buffer, by axis."""
    stretches: tuple[int, int, int, int]
    """Where the first one lies in the file, its length, the distance to the next, their number."""
    places: int
    """The distance from one to the next in the buffer."""

    def cut(self, nbytes: int) -> Iterator[Request]:
        """Yield requests of so many bytes at most, a multiple of blocks."""
        start, length, step, count = self.stretches
        for i in range(count):
            begin, end = start + i * step, start + i * step + length
            first, place = begin // BLOCK_BYTES * BLOCK_BYTES, i * self.places
            stop = -(-end // BLOCK_BYTES) * BLOCK_BYTES
            for at in range(first, stop, nbytes):
                upto = min(at + nbytes, stop)
                yield Request(at, upto, min(upto, end), place + at - first)


def plan_requests(layout: Layout, axes: Axes, offset: int) -> Requests | None:
    """Plan requests for a selection, at least one item, where it is made of long stretches.

    Parameters
    ----------
    layout
        Of the array.
    axes
        One ascending slice an axis.
    offset
        Of the array in the file.

    Examples
    --------
    >>> layout = Layout.plan((262_144, 256), 4, "col")
    >>> plan = plan_requests(layout, (slice(0, 65_536, 1), slice(4, 6, 1)), 4096)
    >>> plan.strides, plan.nbytes
    ((4, 262144), 524288)
    >>> [(one.start, one.stop) for one in plan.cut(1 << 20)]
    [(4198400, 4460544), (5246976, 5509120)]
    """
    reach = reach_of(layout, axes)
    if reach.run < reach.nbytes:
        return None  # there are gaps within a line
    start = offset + reach.start
    lead = start % BLOCK_BYTES
    strides = list(layout.strides)
    if reach.stretches == 1 or reach.step - reach.nbytes <= BLOCK_BYTES:
        length = reach.stop - reach.start
        strides[layout.slow_axis] = reach.step
        room = -(-(lead + length) // BLOCK_BYTES) * BLOCK_BYTES
        return Requests(room, lead, tuple(strides), (start, length, 0, 1), 0)
    if reach.step % BLOCK_BYTES or reach.nbytes < _LONG_BYTES:
        return None
    room = -(-(lead + reach.nbytes) // BLOCK_BYTES) * BLOCK_BYTES
    strides[layout.slow_axis] = room
    stretches = (start, reach.nbytes, reach.step, reach.stretches)
    return Requests(reach.stretches * room, lead, tuple(strides), stretches, room)
