"""Columns of the stored trajectory, read in blocks that fit a budget.

A column holds the weights themselves. What is computed from several is computed from how far each
is from the first, the anchor: those are small numbers, and their sums do not cancel in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BLOCK_ROWS",
    "Columns",
    "Pieces",
    "Trajectory",
    "as_tensor",
    "from_anchor",
    "row_blocks",
]

Pieces = Iterator[tuple[tuple[int, int], slice, NDArray[np.float32]]]
"""What `Columns.pieces_of` yields."""

BLOCK_ROWS = 1 << 16
"""Blocks of rows begin at multiples of this: 256 KiB of a float32 column, a long run on a disk."""
_LONG_ROWS = 1 << 18
"""A megabyte of a float32 column: a run as long as a device wants."""
_FEW_COLUMNS = 16
"""In so many at a time, columns are read while others are worked on."""
_MANY_BYTES = 64 << 20
"""A block is no larger for the sake of longer runs: fresh memory takes its time to be cleared."""
_PIECE_BYTES = 32 << 20
"""Columns that are worked on together: more would have left the processor's cache meanwhile."""
_ITEMSIZE = 4
_PIECES = 4
"""Of the memory: for what is worked on, for what comes next, and for what is read meanwhile."""


class Trajectory(Protocol):
    """Columns of weights that can be read by slices, as a column-major array is."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the weights."""

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[np.generic]:
        """Rows of some columns, in memory of the caller's own."""

    def read_each(
        self, indices: Iterable[tuple[slice, slice]], /, *, memory: int
    ) -> Iterator[NDArray[np.generic]]:
        """The same for one index after another, in memory that is used again for the next."""


def row_blocks(n: int, k: int, memory_bytes: int, held: int = 0) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks in which n rows of k columns are read.

    All columns of a block find room, where that leaves runs as long as a device wants; where it
    would not, such as are in several pieces (`Columns.weights_of`).

    Parameters
    ----------
    n, k
        Shape of what is read.
    memory_bytes
        Size of a block, at most: one that has `_LONG_ROWS` rows and `_MANY_BYTES` is large enough.
        One has at least `BLOCK_ROWS` rows all the same.
    held
        Further columns, which are in memory for as long as a block is worked on.

    Examples
    --------
    >>> list(row_blocks(150_000, 100, memory_bytes=64 << 20))
    [(0, 150000)]
    >>> list(row_blocks(150_000, 10, memory_bytes=4 << 20))
    [(0, 65536), (65536, 131072), (131072, 150000)]
    """
    row_bytes = _ITEMSIZE * max(1, k + held)
    rows = min(memory_bytes, max(_MANY_BYTES, _LONG_ROWS * row_bytes)) // row_bytes
    if rows < _LONG_ROWS:
        rows = min(
            _LONG_ROWS, memory_bytes // (_ITEMSIZE * max(1, 2 * held + min(k, _FEW_COLUMNS)))
        )
    rows = BLOCK_ROWS * max(1, rows // BLOCK_ROWS)
    for start in range(0, n, rows):
        yield start, min(start + rows, n)


class _LentForReading:
    """Memory that must not be written to, as what can be: a tensor knows no such difference."""

    def __init__(self, memory: NDArray[np.generic]) -> None:
        self._memory = memory  # kept for as long as what is made of this
        interface = memory.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_tensor(stored: NDArray[np.generic]) -> Tensor:
    """Share the memory of stored weights with a tensor; of bfloat16, too, which NumPy lacks.

    Where the memory is read-only the tensor must not be written to, and PyTorch cannot see to it.
    """
    is_bfloat16 = stored.dtype.name == "bfloat16"
    memory = stored.view(np.int16) if is_bfloat16 else stored
    if not memory.flags.writeable:
        memory = np.asarray(_LentForReading(memory))
    tensor = torch.from_numpy(memory)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def from_anchor(
    weights: NDArray[np.generic], anchor: NDArray[np.generic], out: NDArray[np.float32]
) -> None:
    """Write ``weights - anchor``, rounded once to float32.

    Parameters
    ----------
    weights
        Shape (..., n), of any dtype that a trajectory has.
    anchor
        Shape (n,), float32, or float64 where `weights` is.
    out
        Shape of `weights`; may be `weights`.
    """
    if weights.dtype.name in ("float16", "bfloat16"):
        torch.sub(as_tensor(weights), as_tensor(anchor), out=torch.from_numpy(out))
    else:
        with np.errstate(all="ignore"):  # a program may have asked NumPy to raise what is small
            np.subtract(weights, anchor, out=out, casting="same_kind")


@dataclass(frozen=True)
class Columns:
    """Some columns of the trajectory, in the order of their collection.

    Blocks of rows are the outer loop, so that what is computed from all columns of a row is done
    with the row, and every byte is read once.
    """

    array: Trajectory
    """Shape (parameters, columns)."""
    anchor: NDArray[np.generic]
    """The first iterate, shape (parameters,), float32 or float64."""
    iterates: range
    """Numbers of the iterates, from 0; a step of 2 takes every second."""
    ring: int | None
    """Columns that are used in turn; None where iterate t is column t."""
    check: Callable[[], None]
    """Called after each reading; raises if the columns hold something else by then."""

    @cached_property
    def slots(self) -> NDArray[np.int64]:
        """Index of each column in the array, shape (k,)."""
        held = np.arange(self.iterates.start, self.iterates.stop, self.iterates.step)
        return held if self.ring is None else held % self.ring

    def __len__(self) -> int:
        return len(self.iterates)

    def pieces(
        self, start: int, stop: int, memory_bytes: int
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Read rows ``[start, stop)`` of the columns, less the anchor.

        See `weights_of`.

        Yields
        ------
        which : slice
            Of the columns, by their order of collection.
        values : numpy.ndarray
            Shape (which, stop - start), float32: a column of the trajectory is a contiguous row
            here. It may be written to, and is used again for the next.
        """
        for _, which, values in self.pieces_of([(start, stop)], memory_bytes):
            yield which, values

    def pieces_of(self, blocks: Iterable[tuple[int, int]], memory_bytes: int) -> Pieces:
        """The same for several blocks of rows; each begins with the first column, 0.

        Yields
        ------
        block : tuple of int
            The rows ``[start, stop)``.
        which, values
            As `pieces` has them.
        """
        for block, which, weights in self.weights_of(blocks, memory_bytes):
            yield block, which, self._from_anchor(weights, *block)

    def weights_of(
        self, blocks: Iterable[tuple[int, int]], memory_bytes: int
    ) -> Iterator[tuple[tuple[int, int], slice, NDArray[np.generic]]]:
        """Read blocks of rows of the columns, a budget's worth of columns at a time.

        What follows is read while one piece is worked on.

        Yields
        ------
        block : tuple of int
            The rows ``[start, stop)``.
        which : slice
            Of the columns, by their order of collection.
        values : numpy.ndarray
            Shape (which, stop - start), of the trajectory's dtype: a column of the trajectory is
            a contiguous row here. It may be written to, and is used again for the next.
        """
        itemsize = self.array.dtype.itemsize
        held = _ITEMSIZE if itemsize == _ITEMSIZE else _ITEMSIZE + itemsize
        nbytes = min(memory_bytes // _PIECES, _PIECE_BYTES)
        pieces = [
            (block, which)
            for block in blocks
            for which in self._cut(nbytes // max(1, (block[1] - block[0]) * held))
        ]
        indices = [self._index(block, which) for block, which in pieces]
        # A part is for what is converted.
        read = self.array.read_each(indices, memory=memory_bytes - memory_bytes // _PIECES)
        for (block, which), values in zip(pieces, read, strict=True):
            self.check()
            # Column-major, so that the lines of its transpose are contiguous.
            yield block, which, values.T

    def first(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``[start, stop)`` of the first column, less the anchor."""
        values: NDArray[np.float32]
        first = self.array[self._index((start, stop), slice(0, 1))]
        self.check()
        values = self._from_anchor(first.T, start, stop)[0]
        return values

    def _from_anchor(
        self, weights: NDArray[np.generic], start: int, stop: int
    ) -> NDArray[np.float32]:
        anchor, out = self.anchor[start:stop], self.memory_for(weights)
        if out is weights:
            there = torch.from_numpy(weights)
            there -= torch.from_numpy(anchor)  # on several threads
        else:
            from_anchor(weights, anchor, out)
        return out

    def memory_for(self, weights: NDArray[np.generic]) -> NDArray[np.float32]:
        """Where weights less the anchor may go: in place, where that is possible."""
        if weights.dtype == self.anchor.dtype == np.float32:
            return cast(NDArray[np.float32], weights)  # read into memory of their own
        return np.empty(weights.shape, np.float32)

    def _index(self, block: tuple[int, int], which: slice) -> tuple[slice, slice]:
        slots = self.slots[which]
        step = int(slots[1] - slots[0]) if len(slots) > 1 else 1
        return slice(*block), slice(int(slots[0]), int(slots[-1]) + 1, step)

    def _cut(self, most: int) -> Iterator[slice]:
        """Cut the columns into such as one slice can name, so many at most, or one."""
        for first, last in self._runs():
            for low in range(first, last, max(1, most)):
                yield slice(low, min(low + max(1, most), last))

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Stretches of columns that one slice with a positive step can name."""
        first = 0
        while first < len(self):
            last = first + 1
            if last < len(self) and self.slots[last] > self.slots[first]:
                step = self.slots[last] - self.slots[first]
                last += 1
                while last < len(self) and self.slots[last] - self.slots[last - 1] == step:
                    last += 1
            yield first, last
            first = last
