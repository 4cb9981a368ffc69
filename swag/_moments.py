"""Running mean and sum of squared deviations of columns, as they come.

With x the i-th column less the anchor (i from 1), m the mean and S the sum of squared deviations so
far::

    d = x - m
    m' = m + d * r             r = 1 / i, computed in float64 and rounded to float32 once
    S' = S + d * (x - m')

This is Welford's recurrence. S / n equals the E[x²] - E[x]² of Maddox et al. 2019 (equation 1) in
exact arithmetic and, unlike it, never cancels to a negative variance in float32.

Every item goes through the same roundings, whatever the block it is in: three subtractions (x is
one itself), two products, two sums. Each is an operation of its own, so that no product is
contracted with a sum, and the result is bitwise that of the plain NumPy or PyTorch expressions, and
of the same columns added in other blocks. That is what lets a posterior be rolled forward from a
checkpoint instead of being stored after every step.

NumPy does them, faster than PyTorch does the same loops, and on threads that wait for one another
only at the end of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from swag._copying import SHARED_ITEMS
from swag._crew import Crew
from swag._trajectory import Columns, Pieces, from_anchor, row_blocks

__all__ = ["InPassing", "Moments", "OnDemand", "accumulate"]

Vector = NDArray[np.float32]

_ROLL_MEMORY_BYTES = 256 << 20
_BLOCK_ITEMS = 3 << 17
"""What is done to one block at a time, over all columns, stays in the processor's last cache. Of
shorter ones it would stay in a nearer cache, but two threads that call NumPy for 15 us each are no
faster than one: they wait for one another between the calls."""
_ITEMSIZE = 4
_PART_ITEMS = 4 * _BLOCK_ITEMS
_LEAST_ITEMS = 1 << 14
"""What one of several threads takes at a time: neither so much that the others wait for it, nor so
little that it does nothing but begin."""


def accumulate(
    columns: Sequence[NDArray[np.generic]],
    anchor: NDArray[np.generic],
    mean: Vector,
    sum_of_squares: Vector,
    count: int,
    distances: Sequence[Vector] | None = None,
    crew: Crew | None = None,
) -> None:
    """Take further columns into the moments, in place; other threads run meanwhile.

    Parameters
    ----------
    columns
        Weights, each of shape (n,), of any dtype that a trajectory has, contiguous.
    anchor
        What is taken off each, shape (n,), float32, or float64 where the columns are.
    mean, sum_of_squares
        Moments of the columns before, shape (n,), float32, contiguous; changed.
    count
        Number of columns before.
    distances
        Where the columns less the anchor go, shape (n,) each; may be the columns. None: nowhere.
    crew
        Threads that help; None leaves the other cores to who else computes.

    Examples
    --------
    >>> mean, sum_of_squares = np.zeros(1, np.float32), np.zeros(1, np.float32)
    >>> columns = [np.full(1, value, np.float32) for value in (11, 12, 16)]
    >>> accumulate(columns, np.full(1, 10, np.float32), mean, sum_of_squares, 0)
    >>> mean, sum_of_squares
    (array([3.], dtype=float32), array([14.], dtype=float32))
    """
    reciprocals = [np.float32(1 / i) for i in range(count + 1, count + len(columns) + 1)]
    take_in = partial(
        _accumulate, columns, anchor, mean, sum_of_squares, reciprocals, distances or None
    )
    n = len(mean)
    if crew is None or not crew.count:
        take_in(0, n)
        return
    each = min(_PART_ITEMS, max(_LEAST_ITEMS, -(-n // (crew.count + 1))))
    crew.begin(
        partial(take_in, start, min(start + each, n)) for start in range(0, n, each)
    ).finish()


def _accumulate(
    columns: Sequence[NDArray[np.generic]],
    anchor: NDArray[np.generic],
    mean: Vector,
    sum_of_squares: Vector,
    reciprocals: Sequence[np.float32],
    distances: Sequence[Vector] | None,
    first: int,
    last: int,
) -> None:
    """Do it for the weights ``[first, last)``."""
    # PyTorch converts what NumPy has no dtype for, and is to take no other core for it.
    most = _BLOCK_ITEMS if all(x.itemsize >= _ITEMSIZE for x in columns) else SHARED_ITEMS
    rows = min(most, max(1, last - first))
    distance, deviation, change = np.empty((3, rows), np.float32)
    with np.errstate(all="ignore"):  # a program may have asked NumPy to raise what is small
        for start in range(first, last, rows):
            here = slice(start, min(start + rows, last))
            a, m, s = anchor[here], mean[here], sum_of_squares[here]
            x, d, t = distance[: len(m)], deviation[: len(m)], change[: len(m)]
            for i, reciprocal in enumerate(reciprocals):
                if distances is not None:
                    x = distances[i][here]
                from_anchor(columns[i][here], a, x)
                np.subtract(x, m, out=d)
                np.multiply(d, reciprocal, out=t)
                np.add(m, t, out=m)
                np.subtract(x, m, out=t)
                np.multiply(d, t, out=t)
                np.add(s, t, out=s)


@dataclass(frozen=True, slots=True)
class Moments:
    """Running moments of columns less the anchor."""

    count: int
    """Columns in them."""
    mean: Vector
    """Shape (n,)."""
    sum_of_squares: Vector
    """Shape (n,)."""

    @classmethod
    def none(cls, n: int) -> Self:
        """Moments of no columns."""
        return cls(0, np.zeros(n, np.float32), np.zeros(n, np.float32))

    @property
    def variance(self) -> Vector:
        """S / n, shape (n,)."""
        return self.variance_into(np.empty_like(self.sum_of_squares))

    def variance_into(self, out: Vector) -> Vector:
        """The same, in memory of the caller's."""
        with np.errstate(all="ignore"):  # a program may have asked NumPy to raise what is small
            return np.divide(self.sum_of_squares, np.float32(max(1, self.count)), out=out)

    def rows(self, start: int, stop: int) -> Moments:
        """The same of the weights ``[start, stop)``."""
        return Moments(self.count, self.mean[start:stop], self.sum_of_squares[start:stop])

    def copy(self) -> Moments:
        """The same in memory of their own."""
        if not self.count:
            return Moments.none(len(self.mean))  # which takes no memory before it is written to
        return Moments(self.count, self.mean.copy(), self.sum_of_squares.copy())

    def with_columns(
        self,
        columns: Sequence[NDArray[np.generic]],
        anchor: NDArray[np.generic],
        crew: Crew | None = None,
    ) -> Moments:
        """Take further columns in, in place; as `accumulate`."""
        accumulate(columns, anchor, self.mean, self.sum_of_squares, self.count, crew=crew)
        return Moments(self.count + len(columns), self.mean, self.sum_of_squares)

    def rolled_forward(self, columns: Columns) -> Moments:
        """Take further columns in, bit for bit as they would have been one by one.

        Reads every column once, in blocks of rows; copies.
        """
        result = self.copy()
        blocks = row_blocks(len(self.mean), len(columns), _ROLL_MEMORY_BYTES)
        with Crew(len(self.mean)) as crew:
            for block, which, weights in columns.weights_of(blocks, _ROLL_MEMORY_BYTES):
                here, anchor = result.rows(*block), columns.anchor[slice(*block)]
                count = self.count + which.start
                accumulate(list(weights), anchor, here.mean, here.sum_of_squares, count, crew=crew)
        return Moments(self.count + len(columns), result.mean, result.sum_of_squares)


class OnDemand:
    """Moments of columns that have not all been read.

    They are taken when they are asked for, in a pass over the columns; or on the way, where
    somebody reads all columns anyway.

    Parameters
    ----------
    begun
        Moments of the first ones.
    since
        The ones that follow; None if there are none.
    learned
        Is told of the moments when all are taken.
    """

    def __init__(
        self,
        begun: Moments,
        since: Columns | None = None,
        learned: Callable[[Moments], None] | None = None,
    ) -> None:
        self._taken = begun, since
        self._learned = learned
        self.count = begun.count + (0 if since is None else len(since))
        """Columns in them."""

    def moments(self) -> Moments:
        """Take what is missing, and return them."""
        begun, since = self._taken
        if since is not None:
            begun = begun.rolled_forward(since)
            self.learn(begun)
        return begun

    def learn(self, moments: Moments) -> None:
        """Note what somebody has found them to be."""
        _, missing = self._taken
        self._taken = moments, None
        if missing is not None and self._learned is not None:
            self._learned(moments)

    def come_by(self, columns: Columns) -> bool:
        """Whether some are missing, and can be had where `columns` are read."""
        begun, since = self._taken
        return since is not None and (
            len(columns) == self.count and columns.iterates[begun.count :] == since.iterates
        )

    def along(
        self,
        columns: Columns,
        blocks: Sequence[tuple[int, int]],
        memory_bytes: int,
        share: int = 1,
    ) -> tuple[Pieces, Moments | InPassing]:
        """Take them on the way, where somebody reads all columns (`come_by`).

        They are kept where the blocks are of all rows, and they find room in half of
        `memory_bytes`.

        Parameters
        ----------
        columns, blocks, memory_bytes
            What is read; see `Columns.pieces_of`.
        share
            What is read has one of so many parts of the memory.

        Returns
        -------
        pieces : iterator
            What `Columns.pieces_of` yields.
        moments : Moments or InPassing
            Those of all, in the block whose last piece has come by; bit for bit as `moments` has
            them.
        """
        begun, _ = self._taken
        of_all = sum(stop - start for start, stop in blocks) == len(begun.mean)
        kept = of_all and begun.mean.nbytes + begun.sum_of_squares.nbytes <= memory_bytes // 2
        passing = None if kept else InPassing(begun, self.count, blocks)
        taken = begun.copy() if passing is None else passing

        def come_by() -> Pieces:
            with Crew(len(begun.mean)) as crew:
                for block, which, weights in columns.weights_of(blocks, memory_bytes // share):
                    if passing is not None and which.start == 0:
                        passing.begin(*block)
                    here, anchor = taken.rows(*block), columns.anchor[slice(*block)]
                    values = columns.memory_for(weights)
                    count = max(begun.count, which.start)
                    known = count - which.start
                    from_anchor(weights[:known], anchor, values[:known])
                    # The rest in the same pass: a piece is larger than the processor's cache.
                    fresh, room = list(weights[known:]), list(values[known:])
                    accumulate(fresh, anchor, here.mean, here.sum_of_squares, count, room, crew)
                    yield block, which, values

        if isinstance(taken, Moments):
            taken = replace(taken, count=self.count)
        return come_by(), taken


class InPassing:
    """Moments of one block of rows at a time, in memory that is used again for the next.

    Those of all rows may be more than there is memory for.

    Parameters
    ----------
    begun
        Moments of the first columns.
    count
        How many columns there will be in them.
    blocks
        Of rows, one after another.
    """

    def __init__(self, begun: Moments, count: int, blocks: Iterable[tuple[int, int]]) -> None:
        self._begun = begun
        self._count = count
        self._memory = np.empty((2, max((b - a for a, b in blocks), default=0)), np.float32)

    def begin(self, start: int, stop: int) -> None:
        """Go on to the weights ``[start, stop)``, of which the first columns are in already."""
        begun, here = self._begun.rows(start, stop), self.rows(start, stop)
        here.mean[:], here.sum_of_squares[:] = begun.mean, begun.sum_of_squares

    def rows(self, start: int, stop: int) -> Moments:
        """The same of the weights ``[start, stop)``, the block that was begun last or comes next.

        They become what they are while the block is read.
        """
        return Moments(self._count, *self._memory[:, : stop - start])
