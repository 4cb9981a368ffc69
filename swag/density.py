"""The density of diagonal plus low rank, without forming a matrix as large as the weights.

With V = diag(S / n), D the deviations (`swag.sampling`), r = theta - mean and p parameters, the
covariance is ``scale * (V + D D^T / (k - 1))``. By the Woodbury identity and the matrix determinant
lemma only a k by k matrix is inverted::

    M       = I + D^T V^-1 D / (k - 1)
    u       = D^T V^-1 r
    r^T C r = (r^T V^-1 r - u^T M^-1 u / (k - 1)) / scale
    log det = p log(scale) + sum of log V + log det M

D = Y E, the columns Y being those of the trajectory and the mean, less the first of them, and E the
coefficients of `Gaussian.coefficients`. So one reading of the trajectory gives Y^T V^-1 Y and
Y^T V^-1 r, in float64: the eigenvalues of M sum to about the number of parameters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from swag.errors import WindowError
from swag.sampling import Gaussian, rank

__all__ = ["log_density"]


def log_density(gaussian: Gaussian, weights: Tensor, scale: float, memory_bytes: int) -> Tensor:
    """Log of the density at some points, in nats.

    Parameters
    ----------
    gaussian
        Of the weights.
    weights
        Points, shape (points, n).
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
    """
    variance = torch.from_numpy(gaussian.variance).double()
    still = int((variance == 0).sum())
    if still:
        raise WindowError(
            f"{still} of {len(variance)} weights did not change in the iterates averaged: "
            "a Gaussian without width there has no density"
        )
    k = rank(gaussian) if rank(gaussian) > 1 else 0
    gram = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    against = torch.zeros(k + 1, len(weights), dtype=torch.float64)
    squares = torch.zeros(len(weights), dtype=torch.float64)
    mean = torch.from_numpy(gaussian.moments.mean)
    # A float64 row of every column and point, and as much again for what is divided by V.
    rows = max(1, memory_bytes // (16 * (k + 1 + len(weights))))
    for start in range(0, len(variance), rows):
        stop = min(start + rows, len(variance))
        weight = 1 / variance[start:stop]
        here = mean[start:stop].double()
        off = weights[:, start:stop].double() - (gaussian.anchor[start:stop].double() + here)
        squares += (off.square() * weight).sum(dim=1)
        if k:
            columns = _columns(gaussian, start, stop)
            weighted = columns * weight
            gram.addmm_(weighted, columns.T)
            against.addmm_(weighted, off.T)
    log_determinant = len(variance) * math.log(scale) + variance.log().sum()
    if k:
        coefficients = _coefficients(gaussian, k)
        inner = coefficients.T @ gram @ coefficients / (k - 1)
        root = torch.linalg.cholesky(inner + torch.eye(k, dtype=torch.float64))
        along = torch.linalg.solve_triangular(root, coefficients.T @ against, upper=False)
        squares -= along.square().sum(dim=0) / (k - 1)
        log_determinant += 2 * root.diagonal().log().sum()
    return -0.5 * (squares / scale + log_determinant + len(variance) * math.log(2 * math.pi))


def _columns(gaussian: Gaussian, start: int, stop: int) -> Tensor:
    """Y transposed: columns and mean less the first column, shape (k + 1, stop - start)."""
    assert gaussian.columns is not None
    result = torch.empty(len(gaussian.columns) + 1, stop - start, dtype=torch.float64)
    for which, values in gaussian.columns.pieces(start, stop, 8 << 20):
        result[which] = torch.from_numpy(values)
    result[-1] = torch.from_numpy(gaussian.moments.mean[start:stop])
    result -= result[0].clone()
    return result


def _coefficients(gaussian: Gaussian, k: int) -> Tensor:
    """E: each deviation in terms of the columns and the mean, shape (k + 1, k)."""
    result = np.empty((k + 1, k))
    for j, unit in enumerate(np.eye(k)):
        result[:-1, j], result[-1, j] = gaussian.coefficients(unit)
    return torch.from_numpy(result)
