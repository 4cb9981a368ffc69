"""A Gaussian over the weights of a network: its moments, its draws and its density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swag._parameters import ParameterTable
from swag._store import Store
from swag.covariance import Covariance
from swag.density import log_density
from swag.sampling import Gaussian, Generator, Seeds, default_scale, draw, rank

__all__ = ["MEMORY_BYTES", "Distribution", "scale_of"]

MEMORY_BYTES = 1 << 30


class Distribution(ABC):
    """What a posterior is without regard to the network that its weights are of."""

    _store: Store

    @abstractmethod
    def _gaussian(self) -> Gaussian:
        """What is drawn from, as it is now."""

    @property
    def _table(self) -> ParameterTable:
        return self._store.table

    @property
    @abstractmethod
    def n_averaged(self) -> int:
        """Iterates in the mean and the variance."""

    @property
    def rank(self) -> int:
        """Columns of the low-rank part; fewer than two make none."""
        return rank(self._gaussian())

    def mean(self) -> dict[str, Tensor]:
        """The mean of the weights, known as SWA.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, float32 (float64 where a parameter has it), in host
            memory. `install_mean` puts it into a model.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        gaussian = self._gaussian()
        return gaussian.table.by_name(gaussian.anchor + torch.from_numpy(gaussian.moments.mean))

    def variance(self) -> dict[str, Tensor]:
        """The diagonal: the mean squared deviation of each weight from its mean.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, float32, in host memory.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        gaussian = self._gaussian()
        return gaussian.table.by_name(torch.from_numpy(gaussian.variance))

    @property
    def covariance(self) -> Covariance:
        """The covariance as a linear operator, with the default `scale` of `sample`.

        It is of the iterates that are there now, and computes when it is asked: `Covariance` says
        what. ``posterior.covariance_of(scale=1.0)`` has another scale or memory.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        return self.covariance_of()

    def covariance_of(
        self, *, scale: float | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> Covariance:
        """The covariance as a linear operator.

        Parameters
        ----------
        scale
            As for `sample`, and not 0.
        memory_bytes
            For the part of the trajectory that is held at a time. A square matrix of `rank` rows,
            float64, comes on top where one is needed.

        Returns
        -------
        Covariance
            Of the iterates that are there now.

        Raises
        ------
        ValueError
            `scale` is 0 or negative.
        WindowError
            Nothing has been collected yet.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(rank=0).covariance_of(scale=4.0).diagonal()
        {'weight': tensor([[4.]], dtype=torch.float64)}
        """
        gaussian = self._gaussian()
        factor = scale_of(gaussian, scale)
        if factor == 0:
            raise ValueError("with scale=0 there is no density")
        return Covariance.of(gaussian, factor, memory_bytes)

    def sample(
        self,
        n: int = 1,
        *,
        scale: float | None = None,
        generator: Generator = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> dict[str, Tensor]:
        """Draw weights. All draws together read the trajectory once.

        Parameters
        ----------
        n
            Number of draws.
        scale
            Factor of the whole covariance; 1/2 with a low-rank part and 1 without one if None.
        generator
            Of the random numbers: a `torch.Generator`, an int that seeds one, or None for numbers
            that differ every time. The global generator is never used. The same seed gives the
            same draws, to rounding, whatever the store and the memory; n draws and then m more are
            the same as n + m.
        memory_bytes
            For the part of the trajectory that is held at a time. The draws come on top.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, shape (n, *parameter), of its dtype, in host memory; what
            `torch.func.functional_call` under `torch.vmap` takes.

        Raises
        ------
        ValueError
            `n` or `scale` is negative.
        WindowError
            Nothing has been collected yet.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 2)
        >>> posterior = swag.SWAG(model)
        >>> for _ in range(3):
        ...     _ = torch.nn.init.normal_(model.weight)
        ...     posterior.update_parameters(model)
        >>> posterior.sample(5, generator=0)["weight"].shape
        torch.Size([5, 2, 4])
        """
        if n < 0:
            raise ValueError(f"n must be zero or more, not {n}")
        gaussian = self._gaussian()
        vectors = draw(gaussian, Seeds.take(n, generator), scale_of(gaussian, scale), memory_bytes)
        views = gaussian.table.by_name(vectors)
        return {e.name: views[e.name].to(e.dtype) for e in gaussian.table.entries}

    def log_prob(
        self,
        weights: Mapping[str, Tensor],
        *,
        scale: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Tensor:
        """The log of the density at given weights.

        Reads the trajectory once; the work grows with the square of `rank`.

        Parameters
        ----------
        weights
            By parameter, shape (..., *parameter), the same leading axes for all: what `sample`
            returns, or ``dict(model.named_parameters())``. Names of other parameters are ignored.
        scale
            As for `sample`, and not 0.
        memory_bytes
            For the part of the trajectory that is held at a time. A square matrix of `rank` rows,
            float64, comes on top.

        Returns
        -------
        torch.Tensor
            Shape (...), float64, in nats.

        Raises
        ------
        ModelError
            A parameter is missing or has another shape.
        WindowError
            There is no density, since some weights did not change in the iterates averaged.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(rank=0).log_prob({"weight": torch.tensor([[2.0]])})
        tensor(-0.9189, dtype=torch.float64)
        """
        gaussian = self._gaussian()
        factor = scale_of(gaussian, scale)
        if factor == 0:
            raise ValueError("with scale=0 there is no density")
        lead, vectors = gaussian.table.join(weights)
        return log_density(gaussian, vectors, factor, memory_bytes).reshape(lead)

    def state_dict(self) -> dict[str, Any]:
        """The moments, what they are of, and where the trajectory is; never the trajectory itself.

        Returns
        -------
        dict
            `n_averaged`, `rank`, `center`, `mean` and `variance` (by parameter, as the methods of
            these names give them), `store` (its URL) and `max_rank`. `torch.save` takes it.
        """
        gaussian = self._gaussian()
        return {
            "n_averaged": gaussian.moments.count,
            "rank": rank(gaussian),
            "center": gaussian.center,
            "mean": self.mean(),
            "variance": self.variance(),
            "store": self._store.group.url,
            "max_rank": self._store.configuration.max_rank,
        }


def scale_of(gaussian: Gaussian, scale: float | None) -> float:
    """The factor of the covariance that is meant, the default one for None."""
    if scale is None:
        return default_scale(gaussian)
    if not scale >= 0:
        raise ValueError(f"scale is a factor of the covariance and cannot be {scale}")
    return scale
