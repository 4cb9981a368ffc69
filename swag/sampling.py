"""Draws from diagonal plus low rank, the low-rank part read from the trajectory in blocks.

With n iterates averaged, the last k of them held as columns x of the trajectory, m the mean, S the
sum of squared deviations and D the matrix of deviations, a draw is (Maddox et al. 2019, equation 1)

    theta = anchor + m + sqrt(scale) * (sqrt(S / n) * z1 + D z2 / sqrt(k - 1))

D is never formed. A deviation is a column less a mean of columns, so D z2 is the columns times
other coefficients, and centring costs k numbers instead of n k:

    running mean, k = n    X (z - w)                      w_j = sum over i >= j of z_i / i
    running mean, k < n    X (z - w + c) - c n m          c = sum of z_i / i
    final mean             X z - (sum of z) m

where i counts iterates, j runs over those held, and m is the mean of all n. Each line keeps its
value when one vector is taken from every x and from m; the first column held is, so that a window
far from the anchor does not cancel in float32.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pmarray
from swag._crew import Crew
from swag._moments import InPassing, Moments, OnDemand
from swag._parameters import ParameterTable
from swag._trajectory import BLOCK_ROWS, Columns, Pieces, row_blocks
from swag.errors import WindowError

__all__ = [
    "Center",
    "Gaussian",
    "Part",
    "Plan",
    "Seeds",
    "default_scale",
    "draw",
    "drawn",
    "rank",
    "refuse_draws",
    "source_of",
]

Center = Literal["running", "mean"]
"""What a deviation is taken from: the mean of the iterates so far, or of all."""

Part = Literal["both", "diagonal", "low-rank"]
"""What of the covariance is drawn from; the parts add up."""

Generator = torch.Generator | int | None

DEFAULT_MEMORY_BYTES = 256 << 20

_quiet = partial(np.errstate, all="ignore")
"""Neither warns nor raises where a number is too large or too small, as PyTorch does not."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Everything a draw depends on, but for the random numbers."""

    table: ParameterTable
    """Of the parameters."""
    anchor: Tensor
    """Shape (n,)."""
    on_demand: OnDemand
    """The moments of the iterates averaged."""
    columns: Columns | None
    """The last of them, k columns; None without a low-rank part."""
    center: Center
    """What deviations are taken from."""

    @property
    def moments(self) -> Moments:
        """Those of the iterates averaged."""
        return self.on_demand.moments()

    @property
    def variance(self) -> NDArray[np.float32]:
        """The diagonal, S / n, shape (n,)."""
        return self.moments.variance

    def center_of(self, start: int, stop: int) -> Tensor:
        """The mean of the weights ``[start, stop)``, float64."""
        mean = torch.from_numpy(self.moments.mean[start:stop])
        return self.anchor[start:stop].double() + mean.double()

    def read(
        self,
        columns: Columns | None,
        blocks: Sequence[tuple[int, int]],
        memory_bytes: int,
        share: int = 1,
    ) -> tuple[Pieces, Moments | InPassing]:
        """Read some columns, and have the moments of the rows; on the way, where that is possible.

        Parameters
        ----------
        columns
            Which; None for none.
        blocks
            Of rows, one after another.
        memory_bytes
            For what is read, and half as much for moments that are kept.
        share
            What is read has one of so many parts of it.

        Returns
        -------
        pieces : iterator
            What `Columns.pieces_of` yields.
        moments : Moments or InPassing
            Of a block of rows when its last piece has been yielded. Whoever has seen all of them
            calls `learn`.
        """
        if columns is None:
            return iter(()), self.moments
        if self.on_demand.come_by(columns):
            return self.on_demand.along(columns, blocks, memory_bytes, share)
        return columns.pieces_of(blocks, memory_bytes // share), self.moments

    def learn(self, moments: Moments | InPassing) -> None:
        """Note the moments of all weights, if that is what they are."""
        if isinstance(moments, Moments):
            self.on_demand.learn(moments)

    def coefficients(self, z: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Turn the coefficients of deviations into those of columns and of the mean.

        Parameters
        ----------
        z
            Coefficients of the deviations, shape (k,).

        Returns
        -------
        columns : numpy.ndarray
            Coefficients of the columns, shape (k,).
        mean : float
            Coefficient of the mean.
        """
        n, k = self.on_demand.count, len(z)
        if self.center == "mean":
            return z, -float(z.sum())
        divided = z / np.arange(n - k + 1, n + 1)
        later = np.cumsum(divided[::-1])[::-1]
        if k == n:
            return z - later, 0.0
        every = float(later[0])
        return z - later + every, -every * n


@dataclass(frozen=True, slots=True)
class Seeds:
    """What the normal numbers of some draws are made from: two streams for each draw.

    One stream gives the numbers of the diagonal, in fixed blocks of parameters, the other those of
    the columns. So the diagonal's are the same at any rank, and neither depends on how the work is
    cut up or how many draws are made at a time.
    """

    diagonal: tuple[int, ...]
    """Seeds of the first stream, one for each draw."""
    low_rank: tuple[int, ...]
    """Seeds of the second."""
    signs: tuple[float, ...]
    """1 or -1, a factor of all numbers of a draw."""

    @classmethod
    def take(cls, count: int, generator: Generator, *, antithetic: bool = False) -> Seeds:
        """Take the seeds of some draws from a generator.

        Antithetic draws come in pairs: the second has the numbers of the first, negated.

        Raises
        ------
        ValueError
            An odd number of them is asked for.
        """
        if antithetic and count % 2:
            raise ValueError(f"antithetic draws come in pairs: {count} is odd")
        source = source_of(generator)
        # One call for each draw, so that two draws and then three are the same as five.
        pairs = [
            torch.randint(2**62, (2,), generator=source, device=source.device).tolist()
            for _ in range(count // 2 if antithetic else count)
        ]
        signs = (1.0, -1.0) if antithetic else (1.0,)
        diagonal, low_rank = (tuple(pair[i] for pair in pairs for _ in signs) for i in range(2))
        return cls(diagonal, low_rank, signs * len(pairs))

    def __len__(self) -> int:
        return len(self.diagonal)

    def part(self, start: int, stop: int) -> Seeds:
        """Those of the draws ``[start, stop)``."""
        here = slice(start, stop)
        return Seeds(self.diagonal[here], self.low_rank[here], self.signs[here])


@dataclass(frozen=True, slots=True)
class Plan:
    """Draws that are to be made."""

    gaussian: Gaussian
    """From what."""
    seeds: Seeds
    """Of the draws."""
    scale: float
    """Factor of the whole covariance."""
    part: Part = "both"
    """What of the covariance is drawn from."""

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            known = ", ".join(map(repr, get_args(Part)))
            raise ValueError(f"part={self.part!r}: use one of {known}")
        if self.part == "low-rank" and rank(self.gaussian) < 2:
            raise WindowError("there is no low-rank part: it takes two iterates that are held")

    def __len__(self) -> int:
        return len(self.seeds)

    def some(self, start: int, stop: int) -> Plan:
        """The draws ``[start, stop)``."""
        return Plan(self.gaussian, self.seeds.part(start, stop), self.scale, self.part)


def source_of(generator: Generator) -> torch.Generator:
    """A generator as it is, or one that is seeded by an int, or by the system for None."""
    if isinstance(generator, torch.Generator):
        return generator
    source = torch.Generator()
    if generator is None:
        source.seed()
        return source
    try:
        return source.manual_seed(operator.index(generator))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"generator={generator!r}: give a torch.Generator, None, or a whole number of at most "
            "64 bits to seed one"
        ) from None


def default_scale(gaussian: Gaussian) -> float:
    """The factor of the covariance: 1/2 with a low-rank part, as in the paper, 1 without one."""
    return 1.0 if rank(gaussian) < 2 else 0.5


def refuse_draws(n: int, table: ParameterTable) -> None:
    """Raise `pmarray.errors.BudgetError` unless so many draws fit into memory."""
    pmarray.config.check_result(
        n * table.size * table.dtype.itemsize,
        "iter_samples draws them one after another, sample_into into an array on a disk, "
        "save_samples into files",
    )


def draw(plan: Plan, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> Tensor:
    """Draw weights; the trajectory is read once for all draws.

    Parameters
    ----------
    plan
        The draws.
    memory_bytes
        For the block of the trajectory that is held at a time, beside the result.

    Returns
    -------
    torch.Tensor
        Shape (draws, n), of the table's dtype, in host memory.
    """
    table = plan.gaussian.table
    result = torch.empty(len(plan), table.size, dtype=table.dtype, device="cpu")
    for _ in drawn(plan, memory_bytes, result):
        pass
    return result


def drawn(
    plan: Plan, memory_bytes: int, result: Tensor | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Draw weights, block by block; the trajectory is read once for all draws.

    Moments that are still to be taken are taken in the same pass, where it reads what they are of.

    Parameters
    ----------
    plan
        The draws.
    memory_bytes
        For a block of the trajectory and of the draws.
    result
        Where all of them go, shape (draws, n), of the table's dtype.

    Yields
    ------
    start, stop : int
        The weights of the block.
    block : torch.Tensor
        Shape (draws, stop - start), of the table's dtype, in host memory: a part of `result`, or
        what is used again for the next.
    """
    gaussian, seeds, scale = plan.gaussian, plan.seeds, plan.scale
    if not len(seeds):
        return
    has_diagonal = scale > 0 and plan.part != "low-rank"
    has_low_rank = scale > 0 and plan.part != "diagonal" and rank(gaussian) > 1
    low_rank = _LowRank(gaussian, seeds, scale) if has_low_rank else None
    columns = gaussian.columns if has_low_rank else None
    k = 0 if columns is None else len(columns)
    blocks = list(row_blocks(gaussian.table.size, k, memory_bytes, held=len(seeds)))
    pieces, moments = gaussian.read(columns, blocks, memory_bytes)
    in_place = result is not None and result.dtype == torch.float32
    with Crew(len(seeds) * gaussian.table.size) as crew:
        rest = _Rest(seeds, scale if has_diagonal else None, crew)
        # Fresh memory would cost more than what is computed in it.
        rows = 0 if in_place else max((b - a for a, b in blocks), default=0)
        memory = torch.empty(len(seeds) * rows, dtype=torch.float32, device="cpu")
        for start, stop in blocks:
            here = moments.rows(start, stop)
            if result is not None and in_place:
                block = result[:, start:stop]
            else:
                block = memory[: len(seeds) * (stop - start)].view(len(seeds), -1)
            if low_rank is not None:
                low_rank.fill(block, here.mean, pieces)
            else:
                block.zero_()
            anchor = gaussian.anchor[start:stop]
            alike = anchor.dtype == block.dtype
            rest.add_to(block, here, anchor.numpy() if alike else None)
            if not alike:
                block = anchor + block
            if result is not None and not in_place:
                result[:, start:stop] = block
            yield start, stop, block
    gaussian.learn(moments)


def rank(gaussian: Gaussian) -> int:
    """Columns of the low-rank part; fewer than two make none."""
    return 0 if gaussian.columns is None else len(gaussian.columns)


class _Rest:
    """What is added to the low-rank part of some draws, block by block: diagonal part, and mean.

    Parameters
    ----------
    seeds
        Of the draws.
    scale
        Factor of the covariance; None without a diagonal part.
    crew
        Threads that help.
    """

    def __init__(self, seeds: Seeds, scale: float | None, crew: Crew) -> None:
        self._scale = None if scale is None else np.float32(math.sqrt(scale))
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds.diagonal]
        self._signs = seeds.signs
        self._crew = crew
        self._deviation = np.empty(0, np.float32)

    def add_to(self, block: Tensor, moments: Moments, anchor: NDArray[np.float32] | None) -> None:
        """Add it to the next block, whose weights the moments are of; and `anchor`, if given."""
        deviation = None
        if self._scale is not None:
            if len(self._deviation) < block.shape[1]:  # the last block may be smaller
                self._deviation = np.empty(block.shape[1], np.float32)
            deviation = self._deviation[: block.shape[1]]
            with _quiet():
                moments.variance_into(deviation)
                np.sqrt(deviation, out=deviation)
                deviation *= self._scale
        what = (deviation, moments.mean, anchor)
        # Not beside the products: threads that share an operation wait for the last of them.
        self._crew.begin(
            [partial(self._add_to_one, i, row.numpy(), *what) for i, row in enumerate(block)]
        ).finish()

    def _add_to_one(
        self,
        draw: int,
        row: NDArray[np.float32],
        deviation: NDArray[np.float32] | None,
        mean: NDArray[np.float32],
        anchor: NDArray[np.float32] | None,
    ) -> None:
        """The same for one draw, in pieces that stay in the processor's cache.

        Of fixed length: how many normal numbers are drawn at a time decides which they are.
        """
        numbers = torch.empty(min(len(row), BLOCK_ROWS), dtype=torch.float32, device="cpu")
        add = np.add if self._signs[draw] > 0 else np.subtract
        for start in range(0, len(row), BLOCK_ROWS):
            here = slice(start, start + BLOCK_ROWS)
            piece = row[here]
            with _quiet():
                if deviation is not None:
                    numbers[: len(piece)].normal_(generator=self._streams[draw])
                    drawn = numbers[: len(piece)].numpy()
                    drawn *= deviation[here]
                    add(piece, drawn, out=piece)
                piece += mean[here]
                if anchor is not None:
                    piece += anchor[here]


class _LowRank:
    """The low-rank part of some draws, block by block."""

    def __init__(self, gaussian: Gaussian, seeds: Seeds, scale: float) -> None:
        assert gaussian.columns is not None
        self._columns = gaussian.columns
        k = len(self._columns)
        of_columns, of_mean = [], []
        for seed, sign in zip(seeds.low_rank, seeds.signs, strict=True):
            stream = torch.Generator().manual_seed(seed)
            # One vector for all parameters of the draw: it is what correlates the layers.
            z = torch.randn(k, generator=stream, dtype=torch.float64, device="cpu")
            columns, mean = gaussian.coefficients(z.numpy() * (sign * math.sqrt(scale / (k - 1))))
            of_columns.append(columns)
            of_mean.append(mean)
        self._of_columns = torch.from_numpy(np.array(of_columns, np.float32))
        self._of_mean = torch.tensor(of_mean, dtype=torch.float32, device="cpu")

    def fill(self, block: Tensor, mean: NDArray[np.float32], pieces: Pieces) -> None:
        """Fill a block of shape (draws, weights) with it, `mean` being that of these weights.

        The mean may become what it is while the pieces are read.
        """
        origin = None
        for _, which, values in pieces:
            piece = torch.from_numpy(values)
            # The first iterate is the anchor: nothing to take off.
            if which.start == 0 and self._columns.iterates[0] != 0:
                origin = piece[0].clone()
            if origin is not None:
                piece -= origin
            block.addmm_(self._of_columns[:, which], piece, beta=min(which.start, 1))
            if which.stop == len(self._columns):
                break
        if self._of_mean.any():
            of_all = torch.from_numpy(mean)
            block.addr_(self._of_mean, of_all if origin is None else of_all - origin)
