"""A covariance in two factors, a diagonal and as many columns as its low-rank part has.

Every covariance here is ``C = diag(v) + F^T F`` with v of shape (n,) and F of shape (k, n), and
neither is ever held as a whole: `read` gives both, block by block of weights, from one reading of
their part of the trajectory. For a posterior (`swag.sampling`)::

    v = scale * S / n        F = sqrt(scale / (k - 1)) * deviations

Deviations are taken in float64, in coordinates in which the first column held is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
_LONG_ROWS = 1 << 16
_MANY_ITEMS = 1 << 22
"""More than so many rows, or items of a block, make nothing faster, and take fresh memory."""
_COPIES = 4
"""Arrays as large as a block of F, in float64, that are in use at a time."""


class Rows(NamedTuple):
    """What there is to know of the weights ``[start, stop)``."""

    start: int
    """The first of them."""
    stop: int
    """Where they end."""
    variance: Tensor
    """v, shape (stop - start,), float64."""
    factor: Tensor
    """F, shape (k, stop - start), float64. It may be written to, and is used again for the next."""
    center: Tensor
    """The mean of the weights, shape (stop - start,), float64."""


class Factors(Protocol):
    """What the operations on a covariance ask for."""

    @property
    def size(self) -> int:
        """Weights, n."""

    @property
    def rank(self) -> int:
        """Columns of the low-rank part, k."""

    def read(self, blocks: Sequence[tuple[int, int]], memory_bytes: int) -> Iterator[Rows]:
        """Read the factors of some blocks of weights, one after another."""


def blocks(size: int, columns: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks of weights in which so many columns of float64 are gone through.

    Examples
    --------
    >>> list(blocks(5000, 100, memory_bytes=0))[-1]
    (4096, 5000)
    """
    rows = memory_bytes // (8 * _COPIES * (columns + 1))
    rows = max(_LEAST_ROWS, min(rows, max(_LONG_ROWS, _MANY_ITEMS // (columns + 1))))
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

    def read(self, blocks: Sequence[tuple[int, int]], memory_bytes: int) -> Iterator[Rows]:
        """Read the factors of some blocks of weights, one after another."""
        gaussian, k = self.gaussian, self.rank
        columns = gaussian.columns if k else None
        pieces, moments = gaussian.read(columns, blocks, memory_bytes, 2 * _COPIES)
        longest = max((stop - start for start, stop in blocks), default=0)
        memory = torch.empty(k * longest, dtype=torch.float64, device="cpu")
        for start, stop in blocks:
            x = memory[: k * (stop - start)].view(k, -1) if k else memory.view(0, stop - start)
            for _, which, values in pieces:
                x[which] = torch.from_numpy(values)
                if which.stop == k:
                    break
            here = moments.rows(start, stop)  # when all columns have been seen
            mean = torch.from_numpy(here.mean).double()
            if k:
                self._make_deviations(x, mean, here.count)
                x *= math.sqrt(self.scale / (k - 1))
            squares = torch.from_numpy(here.sum_of_squares).double()
            variance = squares.mul_(self.scale / max(1, here.count))
            yield Rows(start, stop, variance, x, mean + gaussian.anchor[start:stop])
        gaussian.learn(moments)

    def _make_deviations(self, x: Tensor, mean: Tensor, n: int) -> None:
        """Turn columns less the anchor into deviations, `mean` being that of n columns."""
        first, k = x[0].clone(), len(x)
        x -= first
        mean = mean - first
        if self.gaussian.center == "mean":
            # That of the moments has the rounding of float32, which weights do not share that
            # follow from one another.
            x -= x.mean(dim=0) if k == n else mean
            return
        # What the iterates before those held sum to.
        total = n * mean - x.sum(dim=0) if k < n else torch.zeros_like(mean)
        share = torch.empty_like(mean)
        for i in range(k):
            total += x[i]
            x[i] -= torch.div(total, n - k + 1 + i, out=share)


@dataclass(frozen=True, slots=True)
class MeanFactors:
    """The factors of ``(C + C') / 2``, and the mean of both centres."""

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

    def read(self, blocks: Sequence[tuple[int, int]], memory_bytes: int) -> Iterator[Rows]:
        """Read the factors of some blocks of weights, one after another."""
        both = (each.read(blocks, memory_bytes // 2) for each in (self.one, self.other))
        for (start, stop, v, f, m), (_, _, w, g, c) in zip(*both, strict=True):
            yield Rows(
                start, stop, (v + w) / 2, torch.cat([f, g]).mul_(math.sqrt(0.5)), (m + c) / 2
            )


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
