"""Columns of the stored trajectory, read in blocks that fit a budget.

A column holds the weights themselves. What is computed from several is computed from how far each
is from the first, the anchor: those are small numbers, and their sums do not cancel in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BLOCK_ROWS", "Columns", "Trajectory", "as_tensor", "from_anchor", "row_blocks"]

BLOCK_ROWS = 1 << 16
"""Blocks of rows begin at multiples of this: 256 KiB of a float32 column, a long run on a disk."""
_ITEMSIZE = 4


class Trajectory(Protocol):
    """Columns of weights that can be read by slices, as a column-major array is."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the weights."""

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[np.generic]:
        """Rows of some columns, in memory of the caller's own."""


def row_blocks(n: int, k: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks in which n rows of k columns are read.

    Parameters
    ----------
    n, k
        Shape of what is read.
    memory_bytes
        Size of a block. One has at least `BLOCK_ROWS` rows all the same; columns that find no room
        then are read in several pieces.

    Examples
    --------
    >>> list(row_blocks(150_000, 100, memory_bytes=64 << 20))
    [(0, 131072), (131072, 150000)]
    """
    rows = BLOCK_ROWS * max(1, memory_bytes // (BLOCK_ROWS * _ITEMSIZE * max(1, k)))
    for start in range(0, n, rows):
        yield start, min(start + rows, n)


def as_tensor(stored: NDArray[np.generic]) -> Tensor:
    """Share the memory of stored weights with a tensor; of bfloat16, too, which NumPy lacks."""
    if stored.dtype.name == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)


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
        torch.sub(as_tensor(weights), torch.from_numpy(anchor), out=torch.from_numpy(out))
    else:
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

        See `weights`.

        Yields
        ------
        which : slice
            Of the columns, by their order of collection.
        values : numpy.ndarray
            Shape (which, stop - start), float32, C order: a column of the trajectory is a row here.
            It is the caller's own.
        """
        for which, weights in self.weights(start, stop, memory_bytes):
            yield which, self._from_anchor(weights, start, stop)

    def weights(
        self, start: int, stop: int, memory_bytes: int
    ) -> Iterator[tuple[slice, NDArray[np.generic]]]:
        """Read rows ``[start, stop)`` of the columns, a budget's worth of columns at a time.

        Yields
        ------
        which : slice
            Of the columns, by their order of collection.
        values : numpy.ndarray
            Shape (which, stop - start), of the trajectory's dtype, C order.
        """
        itemsize = self.array.dtype.itemsize
        held = _ITEMSIZE if itemsize == _ITEMSIZE else _ITEMSIZE + itemsize
        most = max(1, memory_bytes // max(1, (stop - start) * held))
        for first, last in self._runs():
            for low in range(first, last, most):
                high = min(low + most, last)
                yield slice(low, high), self._read(start, stop, low, high)

    def first(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``[start, stop)`` of the first column, less the anchor."""
        values: NDArray[np.float32]
        values = self._from_anchor(self._read(start, stop, 0, 1), start, stop)[0]
        return values

    def _from_anchor(
        self, weights: NDArray[np.generic], start: int, stop: int
    ) -> NDArray[np.float32]:
        # In place where that is possible: they were read into memory of their own.
        same = weights.dtype == np.float32
        out = cast(NDArray[np.float32], weights) if same else np.empty(weights.shape, np.float32)
        from_anchor(weights, self.anchor[start:stop], out)
        return out

    def _read(self, start: int, stop: int, low: int, high: int) -> NDArray[np.generic]:
        slots = self.slots[low:high]
        step = int(slots[1] - slots[0]) if len(slots) > 1 else 1
        index = (slice(start, stop), slice(int(slots[0]), int(slots[-1]) + 1, step))
        block: NDArray[np.generic] = self.array[index]
        self.check()
        # Column-major, so that its transpose is contiguous as it is.
        return np.ascontiguousarray(block.T)

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
