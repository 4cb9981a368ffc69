"""Taking what an advanced index selects out of an array in memory, and where that lies in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._config import config
from pmarray._geometry.layout import Layout
from pmarray._selection.fancy import FancySelection, Points, Range

__all__ = ["Stretches", "stretches_of", "take"]

AnyArray = NDArray[Any]

_STRETCH_BYTES = 64
"""What one stretch takes: its offset, and what is computed of it before it is read."""


class Stretches(NamedTuple):
    """Stretches of equal length that hold all items of a selection; they may overlap."""

    offsets: NDArray[np.int64]
    """Where they begin."""
    nbytes: int
    """Bytes of each."""


def stretches_of(selection: FancySelection, layout: Layout) -> Stretches | None:
    """Say where the items of a selection lie that selects something; None if in too many places.

    What is computed of them has to have room in `config.work_memory`.

    >>> from pmarray._selection.fancy import fancy
    >>> layout = Layout.plan((10, 4), 8, "row")
    >>> stretches = stretches_of(fancy(([5, 2], slice(1, 3)), (10, 4)), layout)
    >>> stretches.offsets.tolist(), stretches.nbytes
    ([168, 72], 16)
    """
    strides, fastest = layout.strides, layout.slow_to_fast[-1]
    most = config.work_memory // _STRETCH_BYTES
    nbytes = layout.itemsize
    offsets = np.zeros(1, np.int64)
    for one in selection.selectors:
        if isinstance(one, Points):
            added = np.zeros(one.size, np.int64)
            for axis, coordinates in zip(one.axes, one.coordinates, strict=True):
                added += coordinates * strides[axis]
        elif one.axis == fastest:
            added = np.array([one.items.start * strides[fastest]])
            nbytes += (one.size - 1) * one.items.step * strides[fastest]
        else:
            added = np.arange(one.items.start, one.items.stop, one.items.step) * strides[one.axis]
        if offsets.size * added.size > most:
            return None
        offsets = np.add.outer(offsets, added).ravel()
    return Stretches(offsets, nbytes)


def take(items: AnyArray, selection: FancySelection, out: AnyArray) -> None:
    """Copy the selected items of `items`, which has the array's shape, into a block.

    Examples
    --------
    >>> from pmarray._selection.fancy import fancy
    >>> selection = fancy(([2, 0], slice(1, 3)), (3, 4))
    >>> out = np.empty(selection.block_shape, int)
    >>> take(np.arange(12).reshape(3, 4), selection, out)
    >>> out.tolist()
    [[9, 10], [1, 2]]
    """
    points = [i for i, one in enumerate(selection.selectors) if isinstance(one, Points)]
    if len(points) == 1:
        # Jointly selected axes first, as NumPy puts them where they are not neighbours.
        at = points[0]
        ranges = [one for one in selection.selectors if isinstance(one, Range)]
        joint = selection.selectors[at]
        assert isinstance(joint, Points)
        turned = items.transpose((*joint.axes, *(one.axis for one in ranges)))
        index: list[Any] = [*joint.coordinates, *(one.items for one in ranges)]
        found = turned[tuple(index)]
        out[...] = np.moveaxis(found, 0, at)
        return
    index = [None] * items.ndim
    count = len(selection.selectors)
    for i, one in enumerate(selection.selectors):
        shape = (*[1] * i, -1, *[1] * (count - i - 1))
        if isinstance(one, Range):
            positions = np.arange(one.items.start, one.items.stop, one.items.step)
            index[one.axis] = positions.reshape(shape)
        else:
            for axis, coordinates in zip(one.axes, one.coordinates, strict=True):
                index[axis] = coordinates.reshape(shape)
    out[...] = items[tuple(index)]
