"""The density of diagonal plus low rank, by way of its covariance (`swag.covariance`)."""

from __future__ import annotations

import math

from torch import Tensor

from swag._factors import Rows
from swag.covariance import Covariance
from swag.sampling import Gaussian

__all__ = ["log_density"]


def log_density(gaussian: Gaussian, weights: Tensor, scale: float, memory_bytes: int) -> Tensor:
    """Log of the density at some points, in nats; the trajectory is read once.

    Parameters
    ----------
    gaussian
        Of the weights.
    weights
        Points, shape (points, n), float64.
    scale
        Factor of the covariance, positive.
    memory_bytes
        For the block of the trajectory that is held at a time. The k by k matrix comes on top.

    Returns
    -------
    torch.Tensor
        Shape (points,), float64.

    Raises
    ------
    WindowError
        Some weights never changed: there is no density.
    pmarray.errors.BudgetError
        The rank is above 3,000.
    """
    covariance = Covariance.of(gaussian, scale, memory_bytes)

    def off(rows: Rows) -> Tensor:
        return weights[:, rows.start : rows.stop] - rows.center

    squares = covariance.mahalanobis(off, len(weights))
    # A difference of two infinite sums, where a weight is infinite, or so large that its square is.
    squares.masked_fill_(squares.isnan() & ~weights.isnan().any(dim=1), math.inf)
    return -0.5 * (squares + covariance.logdet() + len(gaussian.anchor) * math.log(2 * math.pi))
