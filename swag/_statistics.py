"""What is kept beside each iterate: a few numbers that are known when it is collected.

Column t of the array ``trajectory.statistics``, float64, is of iterate t, also where only the last
iterates are kept. It is written in the transaction of the iterate, and is not there, or zero, where
nothing was known:

========= ===================================================================================
row       contents
========= ===================================================================================
0         which of the others are known: the sum of 1 (projections), 2 (loss), 4 (gradients)
1 to 64   projections of the weights less those of the first iterate (`swag._projections`)
65        squared distance from the first iterate, of the weights projected, scaled to all
66        loss
67 to 70  both sides of Yaida's relation, then of SASA+ (`swag.gradients`)
========= ===================================================================================

Projections are taken where a thread copies the iterate beside training, of networks that have more
weights than are projected. All others can be taken from the trajectory at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import pmarray
from swag._following import Following
from swag._projections import COUNT, Path

__all__ = ["NAME", "Observed", "Recorded", "Statistics"]

NAME = "trajectory.statistics"

_PROJECTED, _LOSS, _GRADIENTS = 1, 2, 4
_DISTANCE = 1 + COUNT
_LOSS_ROW = _DISTANCE + 1
_TERMS = slice(_LOSS_ROW + 1, _LOSS_ROW + 5)
_ROWS = _TERMS.stop

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observed:
    """What training says of an iterate."""

    loss: float | None = None
    """Of the minibatch before it."""
    terms: tuple[float, ...] | None = None
    """A row of `swag.gradients.Gradients`, of the step to it."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of some iterates."""

    path: Path
    """Where they are, from the first iterate of all."""
    projected: NDArray[np.bool_]
    """Of which of them, shape (iterates,); the others are zero there."""
    loss: Floats | None
    """Shape (iterates,); None unless of each a finite one is known."""
    terms: Floats | None
    """Shape (iterates, 4); likewise."""


class Statistics:
    """The statistics in a group."""

    def __init__(self, group: pmarray.Group, following: Following) -> None:
        self._group = group
        self._following = following

    def record(self, iterate: int, observed: Observed, path: Path | None) -> None:
        """Write down what is known of an iterate, `path` being of it alone; in a transaction."""
        column = np.zeros(_ROWS)
        if path is not None:
            column[0] += _PROJECTED
            column[1:_DISTANCE] = path.projections[0]
            column[_DISTANCE] = path.squared_distance[0]
        if observed.loss is not None:
            column[0] += _LOSS
            column[_LOSS_ROW] = observed.loss
        if observed.terms is not None:
            column[0] += _GRADIENTS
            column[_TERMS] = observed.terms
        if not column[0]:
            return
        if NAME not in self._group:
            self._group.create(NAME, (_ROWS, 0), "float64", layout="col")
        array = self._group[NAME]
        if array.shape[1] != iterate + 1:
            array.resize((_ROWS, iterate + 1))
        array[:, iterate] = column

    def cut(self, collected: int) -> None:
        """Forget all but those of the first so many iterates; in a transaction."""
        if NAME in self._group and self._group[NAME].shape[1] > collected:
            self._group[NAME].resize((_ROWS, collected))

    def keep(self, kept: range) -> None:
        """Forget all but those of some iterates, which are numbered anew; in a transaction."""
        if NAME not in self._group:
            return
        columns = self._columns(kept)
        if kept.start:  # the first iterate is another one: where they are from there is not known
            columns[1 : _DISTANCE + 1] = 0
            columns[0] -= columns[0] % 2
        array = self._group[NAME]
        array.resize((_ROWS, len(kept)))
        array[:, :] = columns

    def of(self, iterates: range) -> Recorded:
        """What is known of some iterates."""
        columns = self._columns(iterates)
        known = columns[0].astype(np.int64)
        path = Path(columns[1:_DISTANCE].T.copy(), columns[_DISTANCE].copy())
        loss, terms = columns[_LOSS_ROW], columns[_TERMS].T.copy()
        has_loss = bool((known & _LOSS).all() and np.isfinite(loss).all())
        has_terms = bool((known & _GRADIENTS).all() and np.isfinite(terms).all())
        return Recorded(
            path,
            (known & _PROJECTED) > 0,
            loss.copy() if has_loss else None,
            terms if has_terms else None,
        )

    def _columns(self, iterates: range) -> Floats:
        return self._following.read(lambda: self._columns_of(iterates))

    def _columns_of(self, iterates: range) -> Floats:
        columns = np.zeros((_ROWS, len(iterates)))
        if NAME in self._group:
            array = self._group[NAME]
            there = range(iterates.start, min(iterates.stop, array.shape[1]), iterates.step)
            if there:
                columns[:, : len(there)] = array[:, there.start : there.stop : there.step]
        return columns
