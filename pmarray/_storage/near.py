"""What is at hand as long as nothing happens: read without a turn, a look or a lock.

An array that was read once in a lull (`_cache.lull`) knows that its group is open, that it is there
itself, and of which shape. What then remains of reading an item is where it lies, whether it can
be loaded, and the load. A storage makes a `Near` for that, which is called with an index and
returns what NumPy would; or None, where the long way has to be gone: the lull is over, the index is
not of integers and ascending slices alone, or out of bounds, the result is large or not at hand.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.lull import Lull
from pmarray._config import config
from pmarray._geometry.layout import Layout
from pmarray.backends._protocols import Mapped

__all__ = ["Near", "near_file"]

AnyArray = NDArray[Any]
Near = Callable[[Any], Any]

_PAGE = mmap.PAGESIZE
_TRUST_S = 0.004
"""How long the file counts as whole after a look, before an item is read: a look takes longer than
all the rest."""
_LARGE_BYTES = 16 << 20
"""What takes more is asked about (`config.check_result`), and read while more is fetched."""


def near_file(
    items: AnyArray,
    layout: Layout,
    mapped: Mapped,
    lull: Lull,
    is_right: Callable[[], bool] | None,
) -> Near | None:
    """Read items through the mapping of their file, where their pages were asked for before.

    Parameters
    ----------
    items
        The whole array in the mapping.
    layout
        Where they lie in it.
    mapped
        The mapping.
    lull
        In which the file has all that was written.
    is_right
        Tells, after a read, whether what was read is what should be seen.

    Returns
    -------
    callable, or None
        None where an item may be on two pages, or is no scalar.
    """
    itemsize, base, known = layout.itemsize, mapped.offset, mapped.known
    if items.dtype.kind == "V" or _PAGE % itemsize or base % itemsize:
        return None
    end = base + layout.nbytes
    shape, strides, ndim = layout.shape, layout.strides, len(layout.shape)
    is_matrix = ndim == 2
    m, n, down, across = (*shape, *strides) if is_matrix else (0, 0, 0, 0)
    flag: Literal["F", "C"] = "F" if layout.order == "col" else "C"
    slowest = -1 if layout.order == "col" else 0
    seen = -_TRUST_S

    def read(index: Any) -> Any:
        if not lull.lasts or (monotonic() - seen > _TRUST_S and not is_there()):
            return None
        if is_matrix and type(index) is tuple and len(index) == 2:
            i, j = index
            if type(i) is not int and isinstance(i, np.integer):
                i = int(i)
            if type(j) is not int and isinstance(j, np.integer):
                j = int(j)
            if type(i) is int and type(j) is int:  # a loop over the axes takes half as long again
                place = base + (i if i >= 0 else i + m) * down + (j if j >= 0 else j + n) * across
                try:
                    item = items[i, j] if known[place // _PAGE] else None
                except IndexError:
                    return None  # the long way says what is out of bounds
                return item if is_right is None or is_right() else None
        return read_block(index if type(index) is tuple else (index,))

    def is_there() -> bool:
        nonlocal seen
        now = monotonic()
        if not mapped.reaches(end):
            return False
        seen = now
        return True

    def read_block(parts: tuple[Any, ...]) -> Any:
        place = base
        if len(parts) > ndim:
            return None
        try:
            for one, extent, stride in zip(parts, shape, strides):  # noqa: B905  # may be fewer
                if type(one) is slice:
                    start, _, step = one.indices(extent)
                    if step < 0:
                        return None
                elif type(one) is int or isinstance(one, np.integer):
                    start = int(one)
                    start = start if start >= 0 else start + extent
                else:
                    return None
                place += start * stride
            block = items[parts]
            if type(block) is not np.ndarray:
                item = block if known[place // _PAGE] else None
                return item if is_right is None or is_right() else None
        except (IndexError, TypeError, ValueError):
            return None
        if not 0 < block.nbytes <= _LARGE_BYTES or config.max_result is not None:
            return None
        if not is_known(place, block.shape, block.strides) or not mapped.reaches(end):
            return None
        found = block.copy(flag)
        return found if is_right is None or is_right() else None

    def is_known(place: int, counts: tuple[int, ...], steps: tuple[int, ...]) -> bool:
        nbytes = itemsize
        for count, step in zip(counts, steps):  # noqa: B905
            nbytes += (count - 1) * step
        first, step = place // _PAGE, steps[slowest]
        if step % _PAGE or not step:
            return known.find(0, first, (place + nbytes - 1) // _PAGE + 1) < 0
        reach, every = (counts[slowest] - 1) * step, step // _PAGE
        last = (place + nbytes - reach - 1) // _PAGE
        for page in range(first, last + 1):
            if 0 in known[page : page + reach // _PAGE + 1 : every]:
                return False
        return True

    return read
