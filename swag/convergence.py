"""Whether a series has settled: what the simulation literature computes from one chain.

Every function takes a series of shape (draws,), or several of shape (draws, series), and gives a
float64 number, or one for each series. A series that does not vary has NaN where there is nothing
to compare, and so has one with a value that is not finite. Their unit makes no difference.

Sources: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021 for split R-hat and the effective
sample size; Geweke 1992; Pesme, Dieuleveut and Flammarion 2020 for the slope of the distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["distance_slope", "effective_sample_size", "geweke", "split_r_hat"]

Floats = NDArray[np.float64]

_FEWEST = 4
"""Draws of a half, below which a variance says nothing."""


def split_r_hat(series: ArrayLike) -> Any:
    """How much the two halves of a series disagree, against the spread within them.

    The potential scale reduction of Gelman and Rubin with the halves as its two chains: 1 where
    they agree, more where the series drifts.

    Parameters
    ----------
    series
        Shape (draws,) or (draws, series). Of an odd number of draws the middle one is left out.

    Returns
    -------
    float or numpy.ndarray
        One for each series, shape (series,); NaN where both halves are constant.

    Raises
    ------
    ValueError
        There are fewer than eight draws.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).standard_normal(1000)
    >>> round(split_r_hat(noise), 2), round(split_r_hat(noise + np.linspace(0, 10, 1000)), 1)
    (1.0, 2.3)
    """
    x, single = _as_columns(series)
    half = len(x) // 2
    halves = np.stack([x[:half], x[-half:]])
    within = _variance(halves, axis=1).mean(axis=0)
    between = half * _variance(halves.mean(axis=1), axis=0)
    pooled = (half - 1) / half * within + between / half
    return _given(np.sqrt(_ratio(pooled, within)), single)


def effective_sample_size(series: ArrayLike) -> Any:
    """How many independent draws tell as much about the mean.

    From the autocorrelation of the two halves, summed as long as the sums of adjacent pairs are
    positive and made monotone (Geyer 1992).

    Parameters
    ----------
    series
        Shape (draws,) or (draws, series).

    Returns
    -------
    float or numpy.ndarray
        One for each series, shape (series,); NaN where it is constant.

    Raises
    ------
    ValueError
        There are fewer than eight draws.

    Examples
    --------
    >>> import numpy as np
    >>> walk = np.random.default_rng(0).standard_normal(1000).cumsum()
    >>> effective_sample_size(walk) < 10
    True
    """
    x, single = _as_columns(series)
    half = len(x) // 2
    halves = np.stack([x[:half], x[-half:]])
    covariance = np.mean([_autocovariance(part) for part in halves], axis=0) * half / (half - 1)
    within = covariance[0]
    between = _variance(halves.mean(axis=1), axis=0)
    pooled = (half - 1) / half * within + between
    correlation = 1 - _ratio(within - covariance, pooled)
    correlation[0] = 1
    pairs = correlation[: 2 * (half // 2)].reshape(half // 2, 2, -1).sum(axis=1)
    pairs = np.minimum.accumulate(pairs, axis=0)
    pairs[np.maximum.accumulate(~(pairs > 0), axis=0)] = 0  # all after the first that is not
    time = np.maximum(2 * pairs.sum(axis=0) - 1, 1 / np.log10(2 * half))
    size = np.where(pooled > 0, 2 * half / time, np.nan)
    return _given(size, single)


def geweke(series: ArrayLike, *, first: float = 0.1, last: float = 0.5) -> Any:
    """By how many standard errors the means of the beginning and of the end differ.

    Normal with variance 1 where the series is stationary, if the two parts are long against its
    correlation time.

    Parameters
    ----------
    series
        Shape (draws,) or (draws, series).
    first, last
        Fractions of the draws to compare; together at most 1.

    Returns
    -------
    float or numpy.ndarray
        One for each series, shape (series,); NaN where a part is constant.

    Raises
    ------
    ValueError
        A part has fewer than eight draws, or they overlap.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(1).standard_normal(1000)
    >>> abs(geweke(noise)) < 3, geweke(noise - np.linspace(0, 3, 1000)) > 3
    (True, True)
    """
    if min(first, last) <= 0 or first + last > 1:
        raise ValueError(f"first={first} and last={last} are fractions of at most 1 together")
    x, single = _as_columns(series)
    parts = x[: round(first * len(x))], x[len(x) - round(last * len(x)) :]
    squares = [_variance(part, axis=0) / effective_sample_size(part) for part in parts]
    z = _ratio(parts[0].mean(axis=0) - parts[1].mean(axis=0), np.sqrt(squares[0] + squares[1]))
    return _given(z, single)


def distance_slope(squared_distance: ArrayLike, *, first: float = 0.5) -> float:
    """The power of time with which the squared distance from the start still grows.

    Pesme et al. 2020 (section 4): 2 while the iterates travel, 1 while they diffuse, and 0 once
    they move about a point. They take one difference of logarithms, between the ends; a line
    fitted to all between them estimates the same and is less noisy.

    Parameters
    ----------
    squared_distance
        Of each iterate from the first, shape (iterates,), the first being 0.
    first
        Where the fit begins, as a fraction of the iterates.

    Returns
    -------
    float
        The slope of its logarithm against that of the number of the iterate; NaN where fewer than
        eight iterates have moved, or a distance is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> steps = np.arange(1000)
    >>> round(distance_slope(steps**2.0), 3), round(distance_slope(1 - 0.5**steps), 3)
    (2.0, 0.0)
    """
    squares = np.asarray(squared_distance, np.float64)
    if not np.isfinite(squares).all():
        return float("nan")
    steps = np.arange(max(1, int(first * len(squares))), len(squares))
    steps = steps[squares[steps] > 0]
    if len(steps) < 2 * _FEWEST:
        return float("nan")
    # Evenly in log time, as the line is meant: late iterates stand close together there.
    weights = 1 / steps
    logs = np.log(steps) - np.average(np.log(steps), weights=weights)
    return float((weights * logs * np.log(squares[steps])).sum() / (weights * logs**2).sum())


def _as_columns(series: ArrayLike) -> tuple[Floats, bool]:
    """The series as columns, and whether there was one without an axis of its own."""
    x = np.asarray(series, np.float64)
    if x.ndim not in (1, 2):
        raise ValueError(f"a series has the shape (draws,) or (draws, series), not {x.shape}")
    if len(x) < 2 * _FEWEST:
        raise ValueError(f"a series of {len(x)} draws says nothing: {2 * _FEWEST} are the fewest")
    return (_moved(x[:, None]), True) if x.ndim == 1 else (_moved(x), False)


def _moved(x: Floats) -> Floats:
    """Columns less their first draws, in units in which squares neither overflow nor vanish.

    Exactly 0 where all draws are the same, and NaN where one is not finite.
    """
    finite = np.isfinite(x).all(axis=0)
    moved = _rescaled(np.where(finite, x, 0))  # a difference may overflow, too
    return np.where(finite, _rescaled(moved - moved[0]), np.nan)


def _rescaled(x: Floats) -> Floats:
    """Each column with the largest value between 1/2 and 1; by a power of two, which is exact."""
    _, exponents = np.frexp(np.abs(x).max(axis=0))
    found: Floats = np.ldexp(x, -exponents)
    return found


def _given(values: Floats, single: bool) -> Any:
    return float(values[0]) if single else values


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _variance(x: Floats, axis: int) -> Floats:
    """With one degree of freedom taken; exactly 0 where all are the same, which rounding hides."""
    found: Floats = np.var(x - x.take([0], axis), axis=axis, ddof=1)
    return found


def _autocovariance(x: Floats) -> Floats:
    """At every lag, divided by the number of draws, shape as `x`."""
    n = len(x)
    size = 1 << (2 * n - 1).bit_length()
    moved = x - x[0]  # exactly 0 where all are the same
    spectrum = np.fft.rfft(moved - moved.mean(axis=0), size, axis=0)
    return np.fft.irfft(spectrum * spectrum.conj(), size, axis=0)[:n].real / n
