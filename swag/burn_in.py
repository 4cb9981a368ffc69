"""Where the burn-in of a trajectory ends, found in the trajectory itself.

Of the iterates, 64 seeded projections are looked at (`swag._projections`). With p(t) those of
iterate t, and mean and variance those of the second half, the *energy*

    E(t) = |p(t) - mean|² / variance

averages to 1 once the iterates are distributed as they will be: the burn-in ends at the first
iterate around which it is within 10 % of that, or within what it fluctuates by anyhow. Whether the
iterates from there on have settled is then asked of tests that look at them in other ways
(`swag.convergence`); if one of them denies it, so does the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swag._iterates import Iterates
from swag._projections import Path, Projections
from swag._statistics import Recorded
from swag.convergence import distance_slope, effective_sample_size, geweke, split_r_hat
from swag.errors import WindowError
from swag.gradients import Gradients, discrepancy
from swag.sampling import Center

__all__ = ["BurnIn", "Check", "suggest"]

Floats = NDArray[np.float64]

P = TypeVar("P")
"""A posterior of some of the iterates."""

FEWEST = 80
"""Iterates that are needed to say anything."""

_TOLERANCE = 0.1
"""Of the energy, about 1."""
_FLUCTUATION = 1.64
"""Standard errors that it may be off by all the same: one end in twenty is."""
_GEWEKE_FIRST = 0.2
"""Of the iterates left: a tenth, as is usual, would be eight only from 160 on."""

_FEWEST_EFFECTIVE = 10.0
_LARGEST_R_HAT = 1.1
_LARGEST_Z_SQUARE = 4.0
_STEEPEST = 0.6
_LARGEST_Z = 3.0
_EITHER_WAY = f"at most {_LARGEST_Z:g} either way"


@dataclass(frozen=True, slots=True)
class Check:
    """One test of the iterates after the boundary."""

    name: str
    """What was tested."""
    value: float
    """What it gave; NaN where it could not be done."""
    wanted: str
    """What it had to be."""
    holds: bool | None
    """Whether it was; None where the test was left out, or could not be done."""
    note: str = ""
    """Why."""


@dataclass(frozen=True)
class BurnIn(Generic[P]):
    """Where a trajectory has settled, and what says so; made by `Posterior.suggest_burn_in`."""

    start: int | None
    """First iterate to use, from 0; None where the iterates have not settled."""
    iterates: range
    """Those that were looked at: all that the store holds."""
    checks: tuple[Check, ...]
    """Tests of the iterates from `start` on, or from the latest boundary that was looked at."""
    projections: Floats = field(repr=False)
    """Shape (iterates, 64); of each, its distance from that of the first."""
    squared_distance: Floats = field(repr=False)
    """From the first, shape (iterates,); estimated from 262,144 weights of larger models."""
    energy: Floats = field(repr=False)
    """E of the module, averaged about each iterate of the first half; 1 where it has settled."""
    _window: Callable[..., P] = field(repr=False)

    def window(self, every: int = 1, rank: int | None = None, center: Center = "running") -> P:
        """The posterior from `start` on; see `Posterior.window`.

        Raises
        ------
        WindowError
            The iterates have not settled; the message says which check failed.
        """
        if self.start is None:
            raise WindowError(
                f"the iterates have not settled ({self.why}): train on, or choose a window yourself"
            )
        return self._window(self.start, every, rank, center)

    @property
    def why(self) -> str:
        """What speaks against it, in words; empty where nothing does."""
        failed = [c for c in self.checks if c.holds is False]
        return "; ".join(f"{c.name} is {c.value:.3g}, not {c.wanted}" for c in failed)


def suggest(
    store: Iterates,
    collected: int,
    window: Callable[..., P],
    loss: ArrayLike | None = None,
    gradients: Gradients | None = None,
) -> BurnIn[P]:
    """`Posterior.suggest_burn_in` of a posterior of so many iterates, with its method `window`."""
    held = range(collected - store.kept(collected), collected)
    if len(held) < FEWEST:
        raise WindowError(
            f"{len(held)} iterates are held: whether they have settled cannot be told from fewer "
            f"than {FEWEST}"
        )
    columns = store.columns(held)
    recorded = None if store.statistics is None else store.statistics.of(held)
    columns.check()  # that what was recorded is of these iterates
    if recorded is None:
        path = Projections(store.table.size).along(columns)
    else:
        path = _path(store, held, recorded)
        loss = recorded.loss if loss is None else loss
    given = None if gradients is None else gradients.values
    terms = recorded.terms if given is None and recorded is not None else given
    return judge(path, held, window, loss, terms)


def _path(store: Iterates, held: range, recorded: Recorded) -> Path:
    """Where the iterates are, from the trajectory as far as it was not recorded."""
    projections, known = Projections(store.table.size), recorded.projected
    # What is recorded is from the first iterate of all, which a ring holds no more.
    if held.start or not known.any():
        return projections.along(store.columns(held))
    path = recorded.path
    bounds = np.flatnonzero(np.diff(known, prepend=True, append=True))
    for start, stop in bounds.reshape(-1, 2).tolist():
        missing = projections.along(store.columns(held[start:stop]), from_first=False)
        path.projections[start:stop] = missing.projections
        path.squared_distance[start:stop] = missing.squared_distance
    return path


def judge(
    path: Path,
    held: range,
    window: Callable[..., P],
    loss: ArrayLike | None = None,
    gradients: ArrayLike | None = None,
) -> BurnIn[P]:
    """The same of iterates that are projected already."""
    n = len(held)
    losses = None if loss is None else _of_each(loss, (n,), "loss")
    terms = None if gradients is None else _of_each(gradients, (n, 4), "gradients")
    boundary, energy = _boundary(path.projections)
    checks = (
        *_checks(path, boundary, energy),
        *_checks_of_loss(None if losses is None else losses[boundary:]),
        *_checks_of_gradients(None if terms is None else terms[boundary:]),
    )
    settled = all(check.holds is not False for check in checks)
    return BurnIn(
        start=held[boundary] if settled else None,
        iterates=held,
        checks=checks,
        projections=path.projections,
        squared_distance=path.squared_distance,
        energy=energy,
        _window=window,
    )


def _boundary(projections: Floats) -> tuple[int, Floats]:
    """The first iterate, by its place, at which the energy has settled, and the energy.

    The middle one, which is the last that may be, where it has not.
    """
    half = len(projections) // 2
    later = projections[half:]
    level = later.var(axis=0).sum()
    if not level > 0:
        return half, np.full(half + 1, np.nan)
    energy = np.square(projections - later.mean(axis=0)).sum(axis=1) / level
    # Averaged over two fifths of the time so far, which is what a boundary may be off by.
    places = np.arange(half + 1)
    low = np.floor(0.8 * places).astype(np.int64)
    high = np.minimum(len(energy), np.ceil(1.2 * places).astype(np.int64) + 8)
    sums = np.concatenate([[0], energy.cumsum()])
    averaged = (sums[high] - sums[low]) / (high - low)
    independent = (high - low) * effective_sample_size(energy[half:]) / len(later)
    error = energy[half:].std() / np.sqrt(np.maximum(1, independent))
    settled = np.abs(averaged - 1) <= np.maximum(_TOLERANCE, _FLUCTUATION * error)
    return (int(settled.argmax()) if settled.any() else half), averaged


def _checks(path: Path, boundary: int, energy: Floats) -> Iterator[Check]:
    rest = path.projections[boundary:]
    level = float(energy[boundary])
    at_the_end = boundary == len(energy) - 1
    yield Check("energy at the boundary", level, "settled before the middle", not at_the_end)
    yield _at_least(
        "effective sample size", _median(effective_sample_size(rest)), _FEWEST_EFFECTIVE
    )
    yield _at_most("split R-hat", _root_mean_square(split_r_hat(rest)), _LARGEST_R_HAT)
    z = geweke(rest, first=_GEWEKE_FIRST)
    yield _at_most("square of Geweke's z", _root_mean_square(z) ** 2, _LARGEST_Z_SQUARE)
    slope = distance_slope(path.squared_distance)
    yield _at_most("slope of the distance", slope, _STEEPEST)


def _checks_of_loss(loss: Floats | None) -> Iterator[Check]:
    name = "Geweke's z of the loss"
    if loss is None:
        yield _left_out(name, "no loss was given or recorded")
    else:
        yield _either_way(name, geweke(loss, first=_GEWEKE_FIRST), "the loss does not change")


def _checks_of_gradients(terms: Floats | None) -> Iterator[Check]:
    for i, name in enumerate(("Yaida's relation", "SASA+")):
        if terms is None:
            yield _left_out(name, "no gradients were given or recorded")
        else:
            z = discrepancy(terms[:, 2 * i], terms[:, 2 * i + 1])
            yield _either_way(name, z, "the difference of its two sides does not change")


def _of_each(given: ArrayLike, shape: tuple[int, ...], name: str) -> Floats:
    values = np.asarray(given, np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(
            f"{name} of shape {values.shape}, and {shape[0]} iterates are held; give finite "
            f"numbers of shape {shape}, in their order"
        )
    return values


def _at_most(name: str, value: float, bound: float) -> Check:
    return Check(name, value, f"at most {bound:g}", bool(value <= bound))


def _at_least(name: str, value: float, bound: float) -> Check:
    return Check(name, value, f"at least {bound:g}", bool(value >= bound))


def _either_way(name: str, z: float, where_nan: str) -> Check:
    """A test of what may be constant: there is nothing to compare then."""
    if math.isnan(z):
        return _left_out(name, where_nan)
    return Check(name, abs(z), _EITHER_WAY, bool(abs(z) <= _LARGEST_Z))


def _left_out(name: str, why: str) -> Check:
    return Check(name, math.nan, _EITHER_WAY, None, why)


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _root_mean_square(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else math.nan
