"""What is found in a trajectory beside its Gaussian; a part of `swag.Posterior`."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from swag._buffers import Buffers
from swag._distribution import MEMORY_BYTES, Distribution
from swag._factors import GaussianFactors
from swag.errors import WindowError
from swag.subspace import Subspace, principal

__all__ = ["Analysis"]

_EPSILON = torch.finfo(torch.float32).eps
_MOST_WEIGHTS = 10_000
"""Of a network whose covariance is written out: 800 MB, and as much again for its root."""


class Analysis(Distribution):
    """The questions that a posterior answers about its trajectory."""

    @abstractmethod
    def _last_buffers(self) -> Buffers:
        """The model's buffers at the last iterate collected."""

    def subspace(self, k: int, *, memory_bytes: int = MEMORY_BYTES) -> Subspace:
        """The k directions in which the iterates vary most, to infer in (Izmailov et al. 2019).

        Reads the trajectory twice, in blocks.

        Parameters
        ----------
        k
            Directions; fewer than `rank`.
        memory_bytes
            For the part of the trajectory that is held at a time. Two matrices of `rank` rows and
            columns, float64, come on top, and the directions, k times the weights, float32.

        Returns
        -------
        Subspace
            Of the deviations of this posterior: ``window(center="mean")`` has the principal
            components of the iterates.

        Raises
        ------
        WindowError
            The low-rank part has no k directions, or the iterates move along fewer but for
            rounding.
        pmarray.errors.BudgetError
            It has more than 3,000 columns.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1)
        >>> posterior = swag.SWAG(model)
        >>> for x in [-1.0, 0.0, 1.0]:
        ...     _ = torch.nn.init.constant_(model.weight, 3 * x), torch.nn.init.zeros_(model.bias)
        ...     posterior.update_parameters(model)
        >>> subspace = posterior.window(center="mean").subspace(1)
        >>> subspace.weights(torch.tensor([0.0]))["weight"], abs(subspace.basis)
        (tensor([[0.]]), tensor([[3., 0.]]))
        """
        return principal(self._gaussian(), self._last_buffers(), k, memory_bytes)

    def largest_variance(self, count: int) -> dict[str, Tensor]:
        """Choose the weights that vary most: the subnetwork of Daxberger et al. 2021.

        What ``LargestVarianceSWAGSubnetMask`` of laplace-torch chooses, with no second training:
        its indices are those of the true items of the masks joined in the order of
        ``model.parameters()``.

        Parameters
        ----------
        count
            Weights to choose. Of equal variance, the first are.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, bool.

        Raises
        ------
        ValueError
            There are not so many.
        WindowError
            Nothing has been collected yet.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for x in [0.0, 1.0]:
        ...     _ = model.weight.data.copy_(torch.tensor([[x, 2 * x]]))
        ...     posterior.update_parameters(model)
        >>> posterior.largest_variance(1)
        {'weight': tensor([[False,  True]])}
        """
        variance = torch.from_numpy(self._gaussian().variance)
        if not 0 <= count <= len(variance):
            raise ValueError(f"count={count}: there are {len(variance)} weights")
        chosen = torch.zeros(len(variance), dtype=torch.bool, device="cpu")
        chosen[variance.argsort(descending=True, stable=True)[:count]] = True
        return self._table.by_name(chosen)

    def multivariate_normal(self, *, scale: float = 1.0) -> torch.distributions.MultivariateNormal:
        """The Gaussian with the whole sample covariance, for a small network.

        Not half a diagonal and half a low-rank part: every covariance of two weights is that of the
        iterates in the low-rank part, about the mean, whatever `center` is.

        Parameters
        ----------
        scale
            Factor of the covariance.

        Returns
        -------
        torch.distributions.MultivariateNormal
            Over the parameters joined in the order of ``mean()``, float64.

        Raises
        ------
        WindowError
            Its covariance would be singular: there are not more iterates than weights, or some
            weights do not vary by themselves.
        ValueError
            The network has more than 10,000 weights, or the scale is not positive.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for x, y in [(0.0, 0.0), (2.0, 1.0), (0.0, 1.0), (2.0, 0.0)]:
        ...     _ = model.weight.data.copy_(torch.tensor([[x, y]]))
        ...     posterior.update_parameters(model)
        >>> posterior.multivariate_normal().covariance_matrix.round(decimals=3)
        tensor([[1.3330, 0.0000],
                [0.0000, 0.3330]], dtype=torch.float64)
        """
        gaussian = replace(self._gaussian(), center="mean")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is a factor of the covariance and cannot be {scale} here")
        factors = GaussianFactors(gaussian, scale)
        n, k = factors.size, factors.rank
        if n > _MOST_WEIGHTS:
            raise ValueError(
                f"the covariance of {n:,} weights has {8 * n * n / 1e9:.0f} GB: covariance_of() is "
                "an operator that has it without writing it out"
            )
        if k <= n:
            raise WindowError(
                f"{k} columns are held, and a covariance of {n} weights that has an inverse needs "
                "more than that"
            )
        (rows,) = factors.read([(0, n)], 1 << 62)
        covariance = rows.factor.T @ rows.factor
        root, failed = torch.linalg.cholesky_ex(covariance)
        # What a weight varies by where those before it are known. Distances from the first iterate
        # have the rounding of float32: what n weights leave of another is no more below this.
        own = root.diagonal().square()
        distance = covariance.diagonal() + scale * (rows.center - gaussian.anchor).square()
        if failed or bool((own <= n * _EPSILON**2 * distance).any()):
            raise WindowError(
                "the covariance is singular: some weights did not vary, or follow from others"
            )
        return torch.distributions.MultivariateNormal(rows.center, scale_tril=root)
