"""Inference in the subspace that the trajectory spans (Izmailov et al. 2019).

The directions in which the iterates vary most are few. With V_k the first k left singular vectors
of the deviations D, each multiplied by the standard deviation of the iterates along it, weights are

    theta(z) = mean + V_k z

and what is inferred is z, k numbers: the density

    p(z) = exp(log likelihood of theta(z) / temperature) * normal(z; 0, prior_scale²)

up to a factor, is sampled by elliptical slice sampling (Murray, Adams and MacKay 2010), which has
nothing to tune. The temperature makes up for the weights that are not moved: a likelihood of
thousands of observations, of k numbers, would be far too sure of them.

The singular vectors come from the Gram matrix of the deviations, in float64: the trajectory is read
twice, and never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import pmarray
from swag._buffers import Buffers
from swag._counts import count
from swag._distribution import MEMORY_BYTES
from swag._factors import GaussianFactors, blocks, refuse_rank
from swag._forward import Forward
from swag._parameters import ParameterTable
from swag._predicting import batches_of, reduced
from swag._reductions import Activation, Average, activation_of
from swag._target import Target, refuse_no_model
from swag.batchnorm import has_running_statistics
from swag.errors import ModelError, WindowError
from swag.sampling import Gaussian, Generator, source_of

__all__ = ["Spectrum", "Subspace", "elliptical_slice", "principal", "spectrum"]

LogLikelihood = Callable[[nn.Module], Tensor | float]


@dataclass(frozen=True)
class Subspace:
    """A mean and k directions; made by `Posterior.subspace`."""

    table: ParameterTable = field(repr=False)
    """Of the parameters."""
    mean: Tensor = field(repr=False)
    """Shape (n,), host memory."""
    basis: Tensor = field(repr=False)
    """Shape (k, n), float32: orthogonal rows, as long as the iterates spread along them."""
    singular_values: Tensor = field(repr=False)
    """Standard deviations along all directions, the largest first, shape (rank,), float64."""
    _buffers: Buffers = field(repr=False)

    @property
    def k(self) -> int:
        """Directions."""
        return len(self.basis)

    @property
    def explained(self) -> float:
        """The part of the low-rank variance that lies in the subspace, 0 to 1."""
        squares = self.singular_values.square()
        return float(squares[: self.k].sum() / squares.sum())

    def weights(self, coordinates: Tensor) -> dict[str, Tensor]:
        """The weights at some points.

        Parameters
        ----------
        coordinates
            Shape (..., k).

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, shape (..., *parameter), of its dtype, in host memory.
        """
        views = self.table.by_name(self._vectors(coordinates))
        return {e.name: views[e.name].to(e.dtype) for e in self.table.entries}

    def coordinates(self, weights: Tensor) -> Tensor:
        """The points that are nearest to some weights, shape (..., n): shape (..., k)."""
        off = (weights - self.mean).float()
        return off @ self.basis.T / self.basis.square().sum(dim=1)

    def sample(
        self,
        model: nn.Module,
        log_likelihood: LogLikelihood,
        n: int,
        *,
        temperature: float = 1.0,
        prior_scale: float = 1.0,
        burn_in: int = 50,
        every: int = 1,
        generator: Generator = None,
    ) -> Tensor:
        """Draw points from the tempered posterior, by elliptical slice sampling.

        Parameters
        ----------
        model
            Has the parameters collected. Its own weights come back.
        log_likelihood
            Called with the model, weights in place, in evaluation mode and without gradients; gives
            the log of the likelihood of all training data, in nats, up to a constant.
        n
            Points to draw, one chain.
        temperature
            What the log likelihood is divided by; the number of observations over the number of
            directions is where to begin.
        prior_scale
            Standard deviation of the prior, in units of those of the iterates.
        burn_in
            Points that are thrown away first.
        every
            Keep every so many points.
        generator
            As for `Posterior.sample`.

        Returns
        -------
        torch.Tensor
            Shape (n, k), float32: what `weights` takes.

        Raises
        ------
        ModelError
            The model has other parameters, or batch normalisation that was not frozen.
        ValueError
            A number is out of its range, or the log likelihood is NaN at the mean.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 1)
        >>> posterior = swag.SWAG(model)
        >>> for _ in range(10):
        ...     _ = torch.nn.init.normal_(model.weight)
        ...     posterior.update_parameters(model)
        >>> subspace = posterior.subspace(2)
        >>> points = subspace.sample(
        ...     model, lambda model: -model(torch.ones(1, 4)).square().sum(), 5, generator=0
        ... )
        >>> subspace.weights(points)["weight"].shape
        torch.Size([5, 1, 4])
        """
        if n < 0 or burn_in < 0 or every < 1 or not temperature > 0 or not prior_scale > 0:
            raise ValueError(
                f"n={n}, burn_in={burn_in}, every={every}, temperature={temperature}, "
                f"prior_scale={prior_scale}: counts, and positive factors"
            )
        refuse_no_model(model)
        if has_running_statistics(model, self._buffers.frozen):
            raise ModelError(
                "the model has batch normalisation, whose statistics do not fit other weights: put "
                "these layers into evaluation mode before training goes on and collects, which "
                "freezes them"
            )
        target = Target(model, self.table, self._buffers, None, None)
        source = source_of(generator)

        def log_density(z: Tensor) -> float:
            target.put(self._vectors(prior_scale * z))
            return float(log_likelihood(model)) / temperature

        points = torch.empty(n, self.k, dtype=torch.float32, device="cpu")
        with target.borrowed(), torch.no_grad():
            model.eval()
            z = torch.zeros(self.k, dtype=torch.float32, device="cpu")
            height = log_density(z)
            if math.isnan(height):
                raise ValueError("the log likelihood is NaN at the mean of the weights")
            for i in range(burn_in + n * every):
                z, height = elliptical_slice(z, height, log_density, source)
                kept, left = divmod(i - burn_in + 1, every)
                if kept > 0 and not left:
                    points[kept - 1] = prior_scale * z
        return points

    def predict(
        self,
        model: nn.Module,
        inputs: Tensor | Dataset[Any] | Iterable[Any],
        coordinates: Tensor,
        *,
        activation: Activation,
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
        batch_size: int = 1000,
        memory_bytes: int = MEMORY_BYTES,
        draws_at_once: int | None = None,
    ) -> Tensor:
        """Average what the networks at some points make of each input.

        Parameters
        ----------
        model, inputs
            As for `Posterior.predict`.
        coordinates
            Of the networks, shape (networks, k): what `sample` gives.
        activation, loader, forward, batch_size, memory_bytes, draws_at_once
            As for `Posterior.predict`.

        Returns
        -------
        torch.Tensor
            Shape (n, ...) as the model's outputs, on the model's device.

        Raises
        ------
        ModelError, ValueError, TypeError
            As `Posterior.predict`; there is no point.
        """
        if coordinates.ndim != 2 or not len(coordinates):
            raise ValueError(f"points have the shape (n, k), not {tuple(coordinates.shape)}")
        target = Target(model, self.table, self._buffers, loader, forward)
        share = memory_bytes // 2
        with target.borrowed():
            return reduced(
                [(target, _Points(self, coordinates))],
                batches_of(inputs, batch_size),
                Average(len(coordinates), activation_of(activation)),
                forward,
                share,
                draws_at_once,
            )

    def _vectors(self, coordinates: Tensor) -> Tensor:
        moved = coordinates.to(torch.float32) @ self.basis
        return self.mean + moved


@dataclass(frozen=True)
class _Points:
    """Points of a subspace, as networks are made of draws."""

    subspace: Subspace
    coordinates: Tensor

    def __len__(self) -> int:
        return len(self.coordinates)

    def once(self) -> Iterator[Tensor]:
        """The weights of each, shape (n,)."""
        return map(self.subspace._vectors, self.coordinates)

    def kept(self) -> Iterable[Tensor]:
        """The same, to be gone through again: a product each time, and nothing held."""
        return self

    __iter__ = once


def elliptical_slice(
    z: Tensor, height: float, log_density: Callable[[Tensor], float], source: torch.Generator
) -> tuple[Tensor, float]:
    """One step of a chain whose stationary density is exp(log_density(z)) * normal(z; 0, 1).

    Murray, Adams and MacKay 2010, figure 2.

    Parameters
    ----------
    z
        Where the chain is, shape (k,).
    height
        `log_density` there.
    log_density
        Without the prior; minus infinity and NaN are never gone to.
    source
        Of the random numbers.

    Returns
    -------
    z, height
        Where it is then.
    """
    direction = torch.randn(z.shape, generator=source, dtype=torch.float32, device="cpu")
    u = _uniform(source)
    level = height + math.log(max(u, 1e-300))
    angle = 2 * math.pi * _uniform(source)
    low, high = angle - 2 * math.pi, angle
    while True:
        there = z * math.cos(angle) + direction * math.sin(angle)
        found = log_density(there)
        if found > level or high - low < 1e-12:
            return (there, found) if found > level else (z, height)
        low, high = (angle, high) if angle < 0 else (low, angle)
        angle = low + (high - low) * _uniform(source)


def _uniform(source: torch.Generator) -> float:
    return torch.rand((), generator=source, dtype=torch.float32, device="cpu").item()


@dataclass(frozen=True)
class Spectrum:
    """The singular values of the deviations, and where the iterates are along their directions."""

    singular_values: Tensor
    """Standard deviations, the largest first, shape (rank,), float64."""
    mixing: Tensor
    """What the deviations are multiplied by for the directions, shape (rank, rank); orthogonal."""

    @property
    def scores(self) -> Tensor:
        """Coordinates of each column along each direction, shape (columns, rank)."""
        return self.mixing.T * self.singular_values * math.sqrt(max(1, len(self.mixing) - 1))


def spectrum(gaussian: Gaussian, memory_bytes: int = MEMORY_BYTES) -> Spectrum:
    """The spectrum of a posterior's deviations, from one reading of its columns.

    Raises
    ------
    pmarray.errors.BudgetError
        It has more than 3,000 columns.
    """
    factors = GaussianFactors(gaussian, 1.0)
    r = factors.rank
    refuse_rank(r)
    gram = torch.zeros(r, r, dtype=torch.float64, device="cpu")
    for rows in factors.read(list(blocks(factors.size, r, memory_bytes)), memory_bytes):
        gram.addmm_(rows.factor, rows.factor.T)
    squares, vectors = torch.linalg.eigh(gram)
    return Spectrum(squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1).T)


def principal(gaussian: Gaussian, buffers: Buffers, k: int, memory_bytes: int) -> Subspace:
    """`Posterior.subspace` of a posterior."""
    factors = GaussianFactors(gaussian, 1.0)
    r = factors.rank
    count("k", k, 1)
    if not k < r:
        raise WindowError(
            f"the low-rank part has {r} columns, which span at most {max(0, r - 1)} directions; "
            f"k={k} were asked for"
        )
    instead = "take fewer directions: the basis has a vector of all weights for each"
    pmarray.config.check_result(4 * k * factors.size, instead)
    found = spectrum(gaussian, memory_bytes)
    _refuse_rounding(k, found.singular_values.square(), gaussian)
    # Those of F are left singular vectors times their singular values: as long as is wanted.
    basis = torch.empty(k, factors.size, dtype=torch.float32, device="cpu")
    mean = torch.empty_like(gaussian.anchor)
    for start, stop, _, f, center in factors.read(
        list(blocks(factors.size, r, memory_bytes)), memory_bytes
    ):
        basis[:, start:stop] = found.mixing[:k] @ f
        mean[start:stop] = center
    return Subspace(gaussian.table, mean, basis, found.singular_values, buffers)


def _refuse_rounding(k: int, squares: Tensor, gaussian: Gaussian) -> None:
    """Raise where some of the first k directions are rounding and no movement.

    Raises
    ------
    WindowError
        They are.
    """
    # Distances from the first iterate have the rounding of float32, in Frobenius' norm; the squares
    # of singular values come from a matrix whose largest has that of float64.
    distance = squares.sum() + torch.from_numpy(gaussian.moments.mean).double().square().sum()
    single, double = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
    rounding = single**2 * distance + len(squares) * double * squares[0]
    there = int((squares > rounding).sum())
    if k > there:
        raise WindowError(
            f"the iterates move along {there} directions, all others are rounding; k={k} were "
            "asked for"
        )
