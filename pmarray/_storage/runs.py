"""Which contiguous memory each contiguous piece of a chunk is read into: arithmetic."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._geometry.layout import Extent, Layout

__all__ = ["runs_of"]

AnyArray = NDArray[Any]

# A run shorter than this is cheaper to copy out of a chunk than to fetch with its own system call.
_MIN_DIRECT_READ_BYTES = 16 << 10


def runs_of(layout: Layout, extent: Extent, target: AnyArray) -> list[tuple[int, AnyArray]] | None:
    """Pair each contiguous run of an extent with the contiguous memory it goes to.

    Parameters
    ----------
    layout
        Of the array.
    extent
        What is read, of one chunk.
    target
        The items, shape as `extent.block`; nothing is written to it here.

    Returns
    -------
    list of (int, numpy.ndarray), or None
        Byte of the chunk, and memory as bytes. None where there are no runs, or only short ones.
    """
    flag: Literal["F", "C"] = "F" if layout.order == "col" else "C"
    first = extent.spans[0][0]
    if not extent.exact:
        return None
    if len(layout.shape) == 1 or layout.line_stride == layout.line_nbytes:
        if len(extent.spans) == 1 and target.flags[flag] and target.nbytes:
            return [(first, _as_bytes(target))]
        if len(extent.spans) == 1:
            return None
    slow = layout.slow_axis
    lines = extent.within[slow]
    count = target.shape[slow]
    runs = []
    for i in range(count):
        run = target[(slice(None),) * slow + (i,)]
        if not run.flags[flag] or (count > 1 and run.nbytes < _MIN_DIRECT_READ_BYTES):
            return None
        offset = first + i * lines.step * layout.line_stride
        runs.append((offset, _as_bytes(run)))
    return runs


def _as_bytes(run: AnyArray) -> AnyArray:
    # reshape in memory order is a view because the run is contiguous; ml_dtypes arrays have no
    # buffer interface of their own, bytes do.
    return run.reshape(-1, order="A").view(np.uint8)
