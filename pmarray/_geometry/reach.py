"""How far the items of a selection lie apart in a file: pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from pmarray._geometry.layout import Layout

__all__ = ["Axes", "Reach", "meeting", "reach_of"]

Axes = tuple[slice, ...]


class Reach(NamedTuple):
    """Stretches of equal length and distance, which hold all items of a selection."""

    start: int
    """The first byte of the first stretch."""
    nbytes: int
    """Bytes of one stretch."""
    step: int
    """Bytes from the start of one stretch to that of the next."""
    stretches: int
    """How many there are."""
    run: int
    """Bytes of the longest piece that holds items of the selection and nothing else."""

    @property
    def stop(self) -> int:
        """The end of the last stretch."""
        return self.start + (self.stretches - 1) * self.step + self.nbytes


def reach_of(layout: Layout, axes: Axes) -> Reach:
    """Say where the items of a selection lie that selects something, line by line.

    Examples
    --------
    >>> layout = Layout.plan((262_144, 256), 4, "col")
    >>> reach_of(layout, (slice(5, 6, 1), slice(0, 256, 1)))
    Reach(start=20, nbytes=4, step=1048576, stretches=256, run=4)
    >>> reach_of(layout, (slice(0, 262_144, 1), slice(7, 9, 1)))
    Reach(start=7340032, nbytes=1048576, step=1048576, stretches=2, run=2097152)
    """
    strides, slow = layout.strides, layout.slow_axis
    run = layout.itemsize
    unbroken = True
    start = 0
    last = layout.itemsize
    step = layout.line_stride
    count = 1
    for axis in reversed(layout.slow_to_fast):
        one, stride = axes[axis], strides[axis]
        number = len(range(one.start, one.stop, one.step))
        if axis == slow:
            start += one.start * stride
            step, count = one.step * stride, number
            if unbroken and one.step == 1 and (run == stride or number == 1):
                run *= number
        else:
            start += one.start * stride
            last += (number - 1) * one.step * stride
            if unbroken and (one.step == 1 or number == 1) and run == stride:
                run *= number
            elif number > 1:
                unbroken = False
            unbroken = unbroken and number == layout.shape[axis]
    return Reach(start, last, step, count, run)


def meeting(axes: Axes, box: Axes) -> tuple[Axes, Axes] | None:
    """Return the part of a selection in a box: its items, and where they are in the selection.

    Parameters
    ----------
    axes
        One ascending slice an axis.
    box
        One slice of step 1 an axis.

    Returns
    -------
    tuple, or None where they do not meet

    Examples
    --------
    >>> meeting((slice(1, 20, 3), slice(0, 4, 1)), (slice(8, 16), slice(2, 9)))
    ((slice(10, 14, 3), slice(2, 4, 1)), (slice(3, 5, None), slice(2, 4, None)))
    """
    items: list[slice] = []
    where: list[slice] = []
    for one, of_box in zip(axes, box, strict=True):
        indices = range(one.start, one.stop, one.step)
        first = max(0, -(-(of_box.start - one.start) // one.step))
        after = min(len(indices), -(-(of_box.stop - one.start) // one.step))
        if first >= after:
            return None
        items.append(slice(indices[first], indices[after - 1] + 1, one.step))
        where.append(slice(first, after))
    return tuple(items), tuple(where)
