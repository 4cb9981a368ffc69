"""The covariance of a posterior as a linear operator, never formed.

With ``C = diag(v) + F^T F`` (`swag._factors`), F of shape (k, n), what is asked of C takes one or
two readings of the trajectory and a matrix of k rows: the matrix determinant lemma and the Woodbury
identity, by way of

    M      = I + F diag(v)^-1 F^T  =  L L^T
    det C  = det M * product of v
    C^-1 b = (b - F^T M^-1 F (b / v)) / v

M is summed over blocks of weights in float64: its eigenvalues sum to about the number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor

from pmarray.errors import BudgetError
from swag._factors import Factors, GaussianFactors, Rows, blocks, refuse_rank, refuse_still
from swag._parameters import ParameterTable
from swag.errors import ModelError
from swag.sampling import Gaussian

__all__ = ["Covariance", "Weights"]

Weights = str | Sequence[str] | Mapping[str, Tensor | Sequence[int]]
"""Some weights: a parameter, several, or, by parameter, a mask of its shape or flat indices."""

Block = Callable[[Rows], Tensor]
"""Gives these weights of some vectors, shape (vectors, stop - start), float64."""


class Covariance:
    """The covariance of the weights, ``scale * (diag(variance) + D D^T / (k - 1))``.

    `Posterior.covariance` makes it. It is of the iterates that were there then. What it computes is
    float64, in host memory; each call reads the trajectory anew, in blocks, once or twice. The
    factorisation that `logdet`, `solve` and `entropy` need is kept for the next call; it takes
    ``n k^2`` operations for n weights and k columns.

    Parameters
    ----------
    table
        Of the parameters.
    factors
        Of the covariance.
    memory_bytes
        For the block of the trajectory that is held at a time; at least 1,024 weights of all
        columns are. The k by k matrix comes on top.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> posterior = swag.SWAG(model)
    >>> for weights in [[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]:
    ...     _ = model.weight.data.copy_(torch.tensor([weights]))
    ...     posterior.update_parameters(model)
    >>> covariance = posterior.window(center="mean").covariance
    >>> covariance.shape
    (2, 2)
    >>> covariance @ torch.tensor([1.0, 0.0])
    tensor([0.8333, 0.2500], dtype=torch.float64)
    >>> covariance.cov("weight", "weight")
    tensor([[0.8333, 0.2500],
            [0.2500, 0.8333]], dtype=torch.float64)
    >>> round(covariance.entropy(), 4)
    2.6084
    """

    def __init__(self, table: ParameterTable, factors: Factors, memory_bytes: int) -> None:
        self._table = table
        self._factors = factors
        self._memory_bytes = memory_bytes
        self._root: Tensor | None = None
        self._log_variances = 0.0

    @classmethod
    def of(cls, gaussian: Gaussian, scale: float, memory_bytes: int) -> Covariance:
        """That of a Gaussian."""
        return cls(gaussian.table, GaussianFactors(gaussian, scale), memory_bytes)

    def __repr__(self) -> str:
        return f"Covariance(shape={self.shape}, rank={self.rank})"

    @property
    def shape(self) -> tuple[int, int]:
        """As that of a matrix: the number of weights, twice."""
        return self._factors.size, self._factors.size

    @property
    def dtype(self) -> torch.dtype:
        """float64, of what it computes."""
        return torch.float64

    @property
    def rank(self) -> int:
        """Columns of the low-rank part, k."""
        return self._factors.rank

    def diagonal(self) -> dict[str, Tensor]:
        """The variances of the weights, low-rank part included; one reading.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, float64.
        """
        result = torch.empty(self._factors.size, dtype=torch.float64, device="cpu")
        for start, stop, v, f, _ in self._read(0):
            result[start:stop] = v + f.square_().sum(dim=0)
        return self._table.by_name(result)

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The product with vectors; two readings.

        Parameters
        ----------
        other
            Shape (n,) or (n, vectors), the weights in the order of the store; or by parameter,
            shape (..., *parameter), as `Posterior.sample` returns.

        Returns
        -------
        torch.Tensor or dict of str to torch.Tensor
            As `other`, float64.

        Raises
        ------
        ValueError
            A tensor has another shape, or is complex.
        ModelError
            A parameter is missing, has another shape, or is complex.
        """
        return self._apply(other, self._times)

    @overload
    def solve(self, other: Tensor) -> Tensor: ...
    @overload
    def solve(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def solve(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The product of the inverse with vectors; two readings.

        Parameters
        ----------
        other
            As for ``@``.

        Returns
        -------
        torch.Tensor or dict of str to torch.Tensor
            As `other`, float64.

        Raises
        ------
        WindowError
            There is no inverse, since some weights did not change in the iterates averaged.
        pmarray.errors.BudgetError
            The rank is above 3,000; the message says what it would take.
        """
        return self._apply(other, self._divided)

    def logdet(self) -> float:
        """The logarithm of the determinant; one reading, none after `solve`.

        Raises
        ------
        WindowError, pmarray.errors.BudgetError
            As `solve`.
        """
        root = self._factored(_none, 0)[0]
        return self._log_variances + 2 * float(root.diagonal().log().sum())

    def entropy(self) -> float:
        """The differential entropy of the Gaussian, in nats; readings and errors as `logdet`."""
        return 0.5 * (self._factors.size * (1 + math.log(2 * math.pi)) + self.logdet())

    def mahalanobis(self, points: Block, count: int) -> Tensor:
        """``b^T C^-1 b`` of some vectors b, shape (count,), float64; one reading."""
        root, along, squares = self._factored(points, count)
        if not self.rank:
            return squares
        inside: Tensor = torch.linalg.solve_triangular(root, along, upper=False)
        return squares - inside.square().sum(dim=0)

    def cov(self, one: Weights, other: Weights) -> Tensor:
        """The covariances of some weights with some others, written out.

        Only the blocks that hold them are read.

        Parameters
        ----------
        one, other
            The name of a parameter; several names; or a mapping of names to masks of the
            parameter's shape or to indices into it as it lies flat.

        Returns
        -------
        torch.Tensor
            Shape (weights in one, weights in other), float64, in the order given.

        Raises
        ------
        ModelError
            There is no such parameter.
        ValueError
            A mask has another shape than its parameter.
        IndexError
            It has no such index.
        pmarray.errors.BudgetError
            The result would not fit into ``memory_bytes``.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(3, 2)
        >>> posterior = swag.SWAG(model)
        >>> for _ in range(4):
        ...     _ = torch.nn.init.normal_(model.weight)
        ...     posterior.update_parameters(model)
        >>> posterior.covariance.cov("bias", {"weight": torch.tensor([0, 5])}).shape
        torch.Size([2, 2])
        """
        rows, columns = self._selected(one), self._selected(other)
        k = self.rank
        needed = 8 * (len(rows) * len(columns) + k * (len(rows) + len(columns)))
        if needed > self._memory_bytes:
            raise BudgetError(
                f"the covariances of {len(rows):,} weights with {len(columns):,} at rank {k:,} "
                f"take {needed:,} bytes, and {self._memory_bytes:,} are allowed: ask for fewer"
            )
        variances, left = self._picked(rows)
        result = left.T @ self._picked(columns)[1]
        same = rows[:, None] == columns
        return result + torch.where(
            same, variances[:, None], torch.zeros((), dtype=torch.float64, device="cpu")
        )

    # -- blocks -----------------------------------------------------------------------------------

    def _blocks(self, vectors: int) -> list[tuple[int, int]]:
        return list(blocks(self._factors.size, self.rank + vectors, self._memory_bytes))

    def _read(self, vectors: int) -> Iterator[Rows]:
        """One reading of all blocks, beside so many vectors."""
        return self._factors.read(self._blocks(vectors), self._memory_bytes)

    def _factored(self, points: Block, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """L, ``F (b / v)`` of shape (k, count), and ``b^T (b / v)`` of some vectors b.

        One reading gives all three. L is computed once.
        """
        k = self.rank
        refuse_rank(k)
        gram = None if self._root is not None else torch.eye(k, dtype=torch.float64, device="cpu")
        along = torch.zeros(k, count, dtype=torch.float64, device="cpu")
        squares = torch.zeros(count, dtype=torch.float64, device="cpu")
        logarithms, still = 0.0, 0
        if gram is not None or count:
            for rows in self._read(count):
                v, f = rows.variance, rows.factor
                still += int((v == 0).sum())
                if still:
                    continue
                b = points(rows)
                squares += (b.square() / v).sum(dim=1)
                along.addmm_(f, (b / v).T)
                if gram is not None:
                    logarithms += float(v.log().sum())
                    f /= v.sqrt_()
                    gram.addmm_(f, f.T)
        refuse_still(still, self._factors.size)
        if gram is not None:
            # The logarithms first: who finds the root finds them.
            self._log_variances = logarithms
            self._root = torch.linalg.cholesky(gram)
        assert self._root is not None
        return self._root, along, squares

    def _times(self, vectors: Tensor) -> Tensor:
        along = torch.zeros(self.rank, len(vectors), dtype=torch.float64, device="cpu")
        result = torch.empty_like(vectors)
        for start, stop, v, f, _ in self._read(len(vectors)):
            along.addmm_(f, vectors[:, start:stop].T)
            result[:, start:stop] = vectors[:, start:stop] * v
        if self.rank:
            for start, stop, _, f, _ in self._read(len(vectors)):
                result[:, start:stop].addmm_(along.T, f)
        return result

    def _divided(self, vectors: Tensor) -> Tensor:
        root, along, _ = self._factored(
            lambda rows: vectors[:, rows.start : rows.stop], len(vectors)
        )
        result = vectors.clone()
        if not self.rank:
            for start, stop, v, _, _ in self._read(len(vectors)):
                result[:, start:stop] /= v
            return result
        inside = torch.cholesky_solve(along, root)
        for start, stop, v, f, _ in self._read(len(vectors)):
            result[:, start:stop] -= inside.T @ f
            result[:, start:stop] /= v
        return result

    def _apply(
        self, other: Tensor | Mapping[str, Tensor], function: Callable[[Tensor], Tensor]
    ) -> Tensor | dict[str, Tensor]:
        """A function of vectors, shape (vectors, n), for each of the forms they come in."""
        if isinstance(other, Tensor):
            n = self._factors.size
            if other.shape[:1] != (n,) or other.ndim > 2:
                raise ValueError(f"the operand has shape {tuple(other.shape)}, not ({n:,},) or two")
            if other.is_complex():
                raise ValueError(
                    f"the operand is {other.dtype}, and weights are real: give both parts, one "
                    "after the other"
                )
            columns = other.detach().cpu().double().reshape(n, -1)
            return function(columns.T.contiguous()).T.reshape(other.shape)
        if not isinstance(other, Mapping):
            raise TypeError(
                "vectors are a torch.Tensor, or tensors by parameter, and this is a "
                f"{type(other).__name__}: torch.as_tensor makes one of it"
            )
        lead, vectors = self._table.join(other, torch.float64)
        return self._table.by_name(function(vectors).reshape(*lead, -1))

    # -- some of the weights ----------------------------------------------------------------------

    def _selected(self, weights: Weights) -> Tensor:
        """Their places in the vector, shape (weights,)."""
        if isinstance(weights, str):
            weights = [weights]
        entries = {entry.name: entry for entry in self._table.entries}
        places = []
        for name in weights:
            if name not in entries:
                raise ModelError(f"there is no parameter {name}; there are {', '.join(entries)}")
            entry = entries[name]
            inside = torch.arange(entry.start, entry.stop, device="cpu")
            if isinstance(weights, Mapping):
                inside = inside[_index(weights[name], entry.shape, name)]
            places.append(inside.flatten())
        return torch.cat(places) if places else torch.empty(0, dtype=torch.int64, device="cpu")

    def _picked(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors at some places of the vector, shape (places,) and (k, places)."""
        variances = torch.empty(len(places), dtype=torch.float64, device="cpu")
        factor = torch.empty(self.rank, len(places), dtype=torch.float64, device="cpu")
        wanted = []
        for start, stop in self._blocks(0):
            here = places[(places >= start) & (places < stop)]
            if len(here):
                wanted.append((int(here.min()), int(here.max()) + 1))
        for first, last, v, f, _ in self._factors.read(wanted, self._memory_bytes):
            here = torch.nonzero((places >= first) & (places < last)).flatten()
            variances[here] = v[places[here] - first]
            factor[:, here] = f[:, places[here] - first]
        return variances, factor


def _index(given: Tensor | Sequence[int], shape: tuple[int, ...], name: str) -> Tensor:
    """What a parameter that lies flat is indexed with."""
    index = torch.as_tensor(given, device="cpu")
    if index.dtype == torch.bool:
        if index.shape != shape:
            raise ValueError(
                f"the mask of {name} has shape {tuple(index.shape)}, and the parameter "
                f"{tuple(shape)}"
            )
        return index.flatten()
    # PyTorch takes bytes for a mask, and makes floats of an empty list.
    return index if index.is_floating_point() and index.numel() else index.long()


def _none(rows: Rows) -> Tensor:
    return torch.empty(0, rows.stop - rows.start, dtype=torch.float64, device="cpu")
