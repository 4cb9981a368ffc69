"""Running mean and sum of squared deviations, one fused pass over each new column.

With x the i-th column (i from 1), m the mean and S the sum of squared deviations so far::

    d = x - m
    m' = m + d / i
    S' = S + d * (x - m')

This is Welford's recurrence. S / n equals the E[x²] - E[x]² of Maddox et al. 2019 (equation 1) in
exact arithmetic and, unlike it, never cancels to a negative variance in float32.

Every item goes through the same five roundings, whatever the block it is in: a subtraction, a
division, an addition, then subtract, multiply and add. No product is contracted with a sum and no
division replaced by a product, so the result is bitwise that of the plain NumPy or PyTorch
expressions, and of the same columns added in other blocks. That is what lets a posterior be rolled
forward from a checkpoint instead of being stored after every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from swag._trajectory import Columns, row_blocks

__all__ = ["Moments", "accumulate"]

Vector = NDArray[np.float32]

_ROLL_MEMORY_BYTES = 256 << 20


# The signature compiles it on import: training must not stop for the compiler. No on-disk cache,
# which numba refuses where neither the package nor the home directory can be written. No fastmath.
@numba.njit("void(f4[::1], f4[::1], f4[::1], f4)", nogil=True)
def _accumulate(x: Any, mean: Any, sum_of_squares: Any, count: Any) -> None:
    for j in range(x.size):
        before = x[j] - mean[j]
        moved = mean[j] + before / count
        sum_of_squares[j] = sum_of_squares[j] + before * (x[j] - moved)
        mean[j] = moved


def accumulate(x: Vector, mean: Vector, sum_of_squares: Vector, count: int) -> None:
    """Take one more column into the moments, in place; other threads run meanwhile.

    Parameters
    ----------
    x
        The new column, shape (n,), float32, contiguous.
    mean, sum_of_squares
        Moments of the ``count - 1`` columns before, shape (n,), float32, contiguous; changed.
    count
        Number of columns, the new one included; at least 1.

    Examples
    --------
    >>> mean, sum_of_squares = np.zeros(1, np.float32), np.zeros(1, np.float32)
    >>> for i, value in enumerate([1, 2, 6], 1):
    ...     accumulate(np.full(1, value, np.float32), mean, sum_of_squares, i)
    >>> mean, sum_of_squares
    (array([3.], dtype=float32), array([14.], dtype=float32))
    """
    _accumulate(x, mean, sum_of_squares, np.float32(count))


@dataclass(frozen=True, slots=True)
class Moments:
    """Running moments in anchor coordinates."""

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

    def copy(self) -> Moments:
        """The same in memory of their own."""
        return Moments(self.count, self.mean.copy(), self.sum_of_squares.copy())

    def rolled_forward(self, columns: Columns) -> Moments:
        """Take further columns in, bit for bit as they would have been one by one.

        Reads every column once, in blocks of rows; copies.
        """
        mean, squares = self.mean.copy(), self.sum_of_squares.copy()
        if len(columns):
            for start, stop in row_blocks(len(mean), len(columns), _ROLL_MEMORY_BYTES):
                for which, values in columns.pieces(start, stop, _ROLL_MEMORY_BYTES):
                    for i, column in enumerate(values, self.count + which.start + 1):
                        accumulate(column, mean[start:stop], squares[start:stop], i)
        return Moments(self.count + len(columns), mean, squares)
