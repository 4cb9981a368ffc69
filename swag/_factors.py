"""A covariance in two factors, a diagonal and as many columns as its low-rank part has.

Every covariance here is ``C = diag(v) + F^T F`` with v of shape (n,) and F of shape (k, n), and
neither is ever held as a whole: `rows` gives both for some of the weights, from one reading of
their part of the trajectory. For a posterior (`swag.sampling`)::

    v = scale * S / n        F = sqrt(scale / (k - 1)) * deviations

Deviations are taken in float64, in coordinates in which the first column held is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pmarray.errors import BudgetError
from swag.errors import WindowError
from swag.sampling import Gaussian, rank

__all__ = [
    "MAX_RANK",
    "Factors",
    "GaussianFactors",
    "MeanFactors",
    "blocks",
    "refuse_rank",
    "refuse_still",
]

MAX_RANK = 3000
"""Columns up to which a covariance is factored."""

_LEAST_ROWS = 1 << 10
"""Fewer would make a run on a disk too short, and a product too thin."""
_COPIES = 4
"""Arrays as large as a block of F, in float64, that are in use at a time."""


class Factors(Protocol):
    """What the operations on a covariance ask for."""

    @property
    def size(self) -> int:
        """Weights, n."""

    @property
    def rank(self) -> int:
        """Columns of the low-rank part, k."""

    def rows(self, start: int, stop: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
        """The factors of the weights ``[start, stop)``.

        Returns
        -------
        v : torch.Tensor
            Shape (stop - start,), float64.
        f : torch.Tensor
            Shape (k, stop - start), float64.
        """


def blocks(size: int, columns: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks of weights in which so many columns of float64 are gone through.

    Examples
    --------
    >>> list(blocks(5000, 100, memory_bytes=0))[-1]
    (4096, 5000)
    """
    rows = max(_LEAST_ROWS, memory_bytes // (8 * _COPIES * (columns + 1)))
    for start in range(0, size, rows):
        yield start, min(start + rows, size)


@dataclass(frozen=True, slots=True)
class GaussianFactors:
    """The factors of a posterior's covariance."""

    gaussian: Gaussian
    """What it is of."""
    scale: float
    """Factor of the whole covariance."""

    @property
    def size(self) -> int:
        """Weights, n."""
        return self.gaussian.table.size

    @property
    def rank(self) -> int:
        """Columns of the low-rank part; 0 where there are fewer than two."""
        k = rank(self.gaussian)
        return k if k > 1 else 0

    def rows(self, start: int, stop: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
        """The factors of the weights ``[start, stop)``."""
        moments = self.gaussian.moments
        squares = torch.from_numpy(moments.sum_of_squares[start:stop]).double()
        variance = squares * (self.scale / max(1, moments.count))
        if not self.rank:
            return variance, torch.empty(0, stop - start, dtype=torch.float64, device="cpu")
        factor = self._deviations(start, stop, memory_bytes)
        return variance, factor.mul_(math.sqrt(self.scale / (self.rank - 1)))

    def _deviations(self, start: int, stop: int, memory_bytes: int) -> Tensor:
        columns, moments = self.gaussian.columns, self.gaussian.moments
        assert columns is not None
        n, k = moments.count, len(columns)
        first = torch.from_numpy(columns.first(start, stop)).double()
        mean = torch.from_numpy(moments.mean[start:stop]).double() - first
        x = torch.empty(k, stop - start, dtype=torch.float64, device="cpu")
        for which, values in columns.pieces(start, stop, memory_bytes // (2 * _COPIES)):
            x[which] = torch.from_numpy(values)
        x -= first
        if self.gaussian.center == "mean":
            return x.sub_(mean)
        running = x.cumsum(dim=0)
        if k < n:
            running += n * mean - running[-1]  # what the iterates before those held sum to
        counts = torch.from_numpy(np.arange(n - k + 1, n + 1, dtype=np.float64))
        return x.sub_(running.div_(counts[:, None]))


@dataclass(frozen=True, slots=True)
class MeanFactors:
    """The factors of ``(C + C') / 2``."""

    one: Factors
    """Of C."""
    other: Factors
    """Of C'."""

    @property
    def size(self) -> int:
        """Weights, n."""
        return self.one.size

    @property
    def rank(self) -> int:
        """Columns of both."""
        return self.one.rank + self.other.rank

    def rows(self, start: int, stop: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
        """The factors of the weights ``[start, stop)``."""
        v, f = self.one.rows(start, stop, memory_bytes // 2)
        w, g = self.other.rows(start, stop, memory_bytes // 2)
        return (v + w) / 2, torch.cat([f, g]).mul_(math.sqrt(0.5))


def refuse_rank(k: int) -> None:
    """Raise if a covariance has too many columns to be factored.

    Raises
    ------
    pmarray.errors.BudgetError
        It has; the message says what it would take.
    """
    if k > MAX_RANK:
        raise BudgetError(
            f"at rank {k:,} this takes two matrices of {k:,} by {k:,}, {16 * k * k:,} bytes, and "
            f"time with the square of it; up to {MAX_RANK:,} it is done: use "
            f"window(rank={MAX_RANK})"
        )


def refuse_still(still: int, size: int) -> None:
    """Raise if some weights have no variance.

    Raises
    ------
    WindowError
        So many have none.
    """
    if still:
        raise WindowError(
            f"{still} of {size} weights did not change in the iterates averaged: "
            "a Gaussian without width there has no density"
        )
