"""How far two posteriors of one network are apart, in closed form and out of core.

With p = N(m, C) and q = N(m', C'), both diagonal plus low rank, over n weights

    KL(p || q)        = (tr(C'^-1 C) + (m' - m)^T C'^-1 (m' - m) - n + log det C' - log det C) / 2
    Jeffreys(p, q)    = KL(p || q) + KL(q || p)
    Bhattacharyya(p, q) = (m' - m)^T B^-1 (m' - m) / 8
                          + (log det B - (log det C + log det C') / 2) / 2,   B = (C + C') / 2

(Kullback 1959; Pardo 2006, section 1.3). Nothing of n by n is formed: with C = diag(v) + F^T F and
M' = I + F' diag(v')^-1 F'^T = L' L'^T, the trace is

    sum of v / v' + |F diag(v')^-1/2|^2
    - tr(M'^-1 F' diag(v / v'^2) F'^T) - |L'^-1 F' diag(v')^-1 F^T|^2

in Frobenius' norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swag._distribution import MEMORY_BYTES, Distribution, scale_of
from swag._factors import GaussianFactors, MeanFactors, Rows, blocks, refuse_rank, refuse_still
from swag.covariance import Covariance
from swag.errors import ModelError

__all__ = ["bhattacharyya_distance", "jeffreys_divergence", "kl_divergence"]


def kl_divergence(
    p: Distribution,
    q: Distribution,
    *,
    scale: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> float:
    """The Kullback-Leibler divergence of q from p, ``E_p[log p - log q]``, in nats.

    Each trajectory is read twice at most; the work grows with n times the square of the ranks.

    Parameters
    ----------
    p, q
        Posteriors of the same parameters.
    scale
        Factor of both covariances; for each its default one if None (`Posterior.sample`).
    memory_bytes
        For the blocks of the trajectories that are held at a time. Matrices of the ranks come on
        top.

    Returns
    -------
    float
        Zero or more.

    Raises
    ------
    TypeError
        One is no posterior, such as a mixture of some.
    ModelError
        They are of different parameters.
    WindowError
        Some weights did not change in the iterates of one of them.
    pmarray.errors.BudgetError
        A rank is above 3,000.

    Examples
    --------
    >>> import torch, swag
    >>> from swag.divergences import kl_divergence
    >>> model = torch.nn.Linear(3, 1)
    >>> posterior = swag.SWAG(model)
    >>> for _ in range(20):
    ...     for weights in model.parameters():
    ...         _ = torch.nn.init.normal_(weights)
    ...     posterior.update_parameters(model)
    >>> early, late = posterior.window(rank=5), posterior.window(start=10)
    >>> kl_divergence(early, late) > kl_divergence(late, late)
    True
    """
    one, other = _factors(p, q, scale)
    table = one.gaussian.table
    mine, theirs = (Covariance(table, factors, memory_bytes) for factors in (one, other))
    trace_and_distance = _relative(one, other, memory_bytes)
    found = 0.5 * (trace_and_distance - table.size + theirs.logdet() - mine.logdet())
    return _not_negative(found)


def jeffreys_divergence(
    p: Distribution,
    q: Distribution,
    *,
    scale: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> float:
    """Jeffreys' divergence, ``KL(p || q) + KL(q || p)``, in nats: symmetric.

    The sum of both, not their mean. Parameters and errors are those of `kl_divergence`.

    Examples
    --------
    >>> import torch, swag
    >>> from swag.divergences import jeffreys_divergence
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> posterior = swag.SWAG(model)
    >>> for weight in [1.0, 3.0, 2.0, 4.0]:
    ...     _ = torch.nn.init.constant_(model.weight, weight)
    ...     posterior.update_parameters(model)
    >>> posterior = posterior.window(rank=0)  # N(2.5, 1.25)
    >>> later = posterior.window(start=2, rank=0)  # N(3, 1)
    >>> round(jeffreys_divergence(posterior, later), 6)
    0.25
    """
    one, other = _factors(p, q, scale)
    there = _relative(one, other, memory_bytes)
    back = _relative(other, one, memory_bytes)
    return _not_negative(0.5 * (there + back) - one.size)  # the determinants cancel


def bhattacharyya_distance(
    p: Distribution,
    q: Distribution,
    *,
    scale: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> float:
    """Bhattacharyya's distance, ``-log of the integral of sqrt(p q)``: symmetric.

    It is finite where one of them is far narrower than the other, and Hellinger's distance is
    ``sqrt(1 - exp(-d))`` of it. Parameters and errors are those of `kl_divergence`, but that the
    ranks may be 3,000 together.
    """
    one, other = _factors(p, q, scale)
    table = one.gaussian.table
    mine, theirs, middle = (
        Covariance(table, factors, memory_bytes)
        for factors in (one, other, MeanFactors(one, other))
    )

    def apart(rows: Rows) -> Tensor:
        place = rows.start, rows.stop
        return (other.gaussian.center_of(*place) - one.gaussian.center_of(*place))[None]

    distance = float(middle.mahalanobis(apart, 1))
    return _not_negative(
        distance / 8 + (middle.logdet() - (mine.logdet() + theirs.logdet()) / 2) / 2
    )


def _not_negative(found: float) -> float:
    """What rounding has made of a number that is zero or more; NaN stays."""
    return 0.0 if found < 0 else found


def _relative(one: GaussianFactors, other: GaussianFactors, memory_bytes: int) -> float:
    """``tr(C'^-1 C) + (m' - m)^T C'^-1 (m' - m)``, one reading of each."""
    k = other.rank
    refuse_rank(k)
    inner = torch.eye(k, dtype=torch.float64, device="cpu")
    spread = torch.zeros(k, k, dtype=torch.float64, device="cpu")
    across = torch.zeros(k, one.rank + 1, dtype=torch.float64, device="cpu")
    total, still = 0.0, 0
    places = list(blocks(one.size, k + one.rank + 1, memory_bytes))
    both = (each.read(places, memory_bytes // 2) for each in (one, other))
    for (_, _, v, f, m), (_, _, w, g, c) in zip(*both, strict=True):
        still += int(((v == 0) | (w == 0)).sum())
        columns = torch.cat([f, (c - m)[None]])
        total += float((v / w).sum() + (columns.square() / w).sum())
        weighted = g / w
        inner.addmm_(weighted, g.T)
        spread.addmm_(weighted * v, weighted.T)
        across.addmm_(weighted, columns.T)
    refuse_still(still, one.size)
    if k:
        root = torch.linalg.cholesky(inner)
        total -= float(torch.cholesky_solve(spread, root).trace())
        total -= float(torch.linalg.solve_triangular(root, across, upper=False).square().sum())
    return total


def _factors(
    p: Distribution, q: Distribution, scale: float | None
) -> tuple[GaussianFactors, GaussianFactors]:
    """Those of two posteriors of the same parameters, in the same order."""
    for each in (p, q):
        if not isinstance(each, Distribution):
            raise TypeError(
                f"this is of two posteriors, and one is {type(each).__name__}: give swag.SWAG, or "
                "what swag.load or window returns; a mixture has no closed form"
            )
    one, other = (
        GaussianFactors(gaussian, scale_of(gaussian, scale))
        for gaussian in (p._gaussian(), q._gaussian())
    )
    if scale == 0:
        raise ValueError("with scale=0 there is no density")
    mine, theirs = (
        {(e.name, e.shape, e.start) for e in factors.gaussian.table.entries}
        for factors in (one, other)
    )
    if mine != theirs:
        apart = sorted({name for name, *_ in mine ^ theirs})
        raise ModelError(
            f"the posteriors are of different parameters, or in another order: {', '.join(apart)}"
        )
    return one, other
