"""A trajectory of millions of weights as a few numbers an iterate.

A projection is the product of 4,096 adjacent weights, at a place that a seed decides, with as many
normal numbers. Adjacent, so that a column on a disk is read in 64 runs of 16 KiB, a hundredth of a
column of millions. The same places and numbers always, so that those of two iterates compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swag._trajectory import Columns, from_anchor

__all__ = ["COUNT", "Path", "Projections"]

COUNT = 64
"""Projections of an iterate."""
WEIGHTS = 4096
"""Weights of a projection; all, where there are fewer."""

_SEED = 1_913_075_476
_MEMORY_BYTES = 64 << 20
_AT_ONCE = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Path:
    """Where some iterates are."""

    projections: Floats
    """Shape (iterates, 64)."""
    squared_distance: Floats
    """From the first of them, shape (iterates,): of the weights projected, scaled to all."""


@dataclass(frozen=True)
class Projections:
    """Which weights are projected, and on what.

    Examples
    --------
    >>> projections = Projections(10_000)
    >>> projections.starts.shape, projections.directions.shape
    ((64,), (64, 4096))
    """

    n: int
    """Weights of the network."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First weight of each projection, shape (64,)."""
        places = np.random.default_rng(_SEED).random(COUNT)
        return np.asarray(places * (self.n - self.length + 1), np.int64)

    @cached_property
    def _first_weights(self) -> list[int]:
        """The same as Python's numbers, by which a slice is made in a third of the time."""
        return [int(start) for start in self.starts]

    @cached_property
    def directions(self) -> NDArray[np.float32]:
        """What the weights are multiplied by, shape (64, length), float32."""
        rng = np.random.default_rng(_SEED + 1)
        return rng.standard_normal((COUNT, self.length), np.float32)

    @property
    def length(self) -> int:
        """Weights of a projection."""
        return min(WEIGHTS, self.n)

    def of(self, iterates: NDArray[np.floating]) -> Path:
        """Project iterates in memory, shape (iterates, n)."""
        off = iterates - iterates[0]
        projections = np.empty((len(off), COUNT))
        squares = np.zeros(len(off))
        for i, start in enumerate(self.starts):
            self._project(i, off[:, start : start + self.length], projections, squares)
        return Path(projections, squares * self._share)

    def of_one(self, weights: NDArray[np.generic], anchor: NDArray[np.generic]) -> Path:
        """Project one iterate in memory, shape (n,), as the trajectory has it, less the anchor.

        Bit for bit as `along`, and in a third of the time: a step of training waits for it.
        """
        off = np.empty((COUNT, self.length), np.float32)
        for start, row in zip(self._first_weights, off, strict=True):
            here = slice(start, start + self.length)
            from_anchor(weights[here], anchor[here], row)
        projections = np.einsum("ij,ij->i", off, self.directions)
        # One after another, as `along` has them.
        squares = np.array([sum(np.einsum("ij,ij->i", off, off).tolist())])
        return Path(projections[None].astype(np.float64), squares * self._share)

    def along(self, columns: Columns, *, from_first: bool = True) -> Path:
        """Project iterates that are stored; a tenth of columns of a million is read, and less.

        Less the first of them, or less the anchor.
        """
        projections = np.empty((len(columns), COUNT))
        squares = np.zeros(len(columns))
        places = [(int(start), int(start) + self.length) for start in self.starts]
        first: list[NDArray[np.float32] | float] = [
            columns.first(*place) if from_first else 0.0 for place in places
        ]
        # A few columns at a time: what has to be decoded as a whole is decoded once.
        at_once = max(_AT_ONCE, _MEMORY_BYTES // (4 * self.n))
        for low in range(0, len(columns), at_once):
            some = replace(columns, iterates=columns.iterates[low : low + at_once])
            for i, place in enumerate(places):
                for which, values in some.pieces(*place, _MEMORY_BYTES):
                    here = slice(low + which.start, low + which.stop)
                    self._project(i, values - first[i], projections[here], squares[here])
        return Path(projections, squares * self._share)

    def _project(
        self, i: int, off: NDArray[np.floating], projections: Floats, squares: Floats
    ) -> None:
        """Take in one stripe of some iterates, less that of the first."""
        projections[:, i] = np.einsum("ij,j->i", off, self.directions[i])
        squares += np.einsum("ij,ij->i", off, off)

    @property
    def _share(self) -> float:
        """What the squares of the weights projected are multiplied by."""
        return self.n / (COUNT * self.length)
