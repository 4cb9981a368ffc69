"""The moments of what is collected, taken as it comes, on a thread; training may wait for it.

They follow from the trajectory. If they cannot be taken now, whoever wants them takes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from swag._crew import Crew
from swag._moments import Moments
from swag._store import Store
from swag._worker import Worker

__all__ = ["Summing"]

_MOST_AT_ONCE = 8
_AT_ONCE_BYTES = 96 << 20
_TORN = -1

Column = NDArray[np.generic]


class Summing:
    """Moments of the first iterates, and the thread that takes further ones into them.

    Parameters
    ----------
    store
        Has the iterates.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._worker = Worker("swag-moments")
        self.moments = Moments.none(store.table.size)
        """Of the first iterates; where all are kept, of as many as somebody has asked for. Those of
        a ring are replaced by the thread alone while it is not waited for. A number of columns
        below zero says that they were torn, and are to be begun again."""
        self.era = 0
        """Another whenever iterates may have become others."""
        most = _AT_ONCE_BYTES // (store.column_bytes or 1)
        self._columns_at_once = max(1, min(_MOST_AT_ONCE, most))
        """Columns in one pass over the moments, of which the cache has to hold that many."""

    def load(self, collected: int) -> None:
        """Begin from what the store holds of so many iterates."""
        self.turn_back()
        self.moments = self._store.stored_moments(collected)

    def turn_back(self) -> None:
        """Iterates were cut off: whoever still has moments of them may keep them."""
        self.era += 1

    def learn(self, era: int, moments: Moments) -> None:
        """Note moments that somebody has taken of iterates as they were in that era."""
        if era == self.era and self.moments.count < moments.count:
            self.moments = moments

    def settle(self) -> None:
        """Return when the thread has done what it was given."""
        self._worker.settle()

    def stop(self) -> None:
        """End the thread after that."""
        self._worker.stop()

    def follow(self, count: int, anchor: Column, *, waits: bool) -> None:
        """Take in what is missing of a ring, several columns together.

        Parameters
        ----------
        count
            Iterates that are collected.
        anchor
            What is taken off each.
        waits
            Return when that is done, for which there are as many threads as PyTorch has.
        """
        # Fewer together where a checkpoint is near, so that it has little to wait for.
        every = self._store.configuration.checkpoint_every
        some = min(self._columns_at_once, max(1, (every - count % every) // 2))
        if waits and count - self.moments.count < some:
            return
        self._put(count, anchor, some, alone=not waits)
        if waits:
            self.settle()

    def catch_up(self, count: int, anchor: Column) -> None:
        """Take in what is missing of a ring, and return when that is done, or has failed."""
        self._put(count, anchor, 1, alone=False)
        self.settle()

    def accumulate(self, column: Column, anchor: Column, taken: Callable[[], object]) -> None:
        """Take in a column that is not stored, on the thread, and call `taken` when it is in."""
        self._worker.put(partial(self._accumulate, column, anchor, taken))

    def _accumulate(self, column: Column, anchor: Column, taken: Callable[[], object]) -> None:
        self.moments = self.moments.with_columns([column], anchor)
        taken()

    def _put(self, count: int, anchor: Column, some: int, *, alone: bool) -> None:
        self._worker.put(partial(self._take_in, count, anchor, some, alone))

    def _take_in(self, count: int, anchor: Column, some: int, alone: bool) -> None:
        """Take in the first `count` columns, if `some` are missing; on the thread."""
        with Crew(0 if alone else len(anchor)) as crew:
            while self.moments.count >= 0 and (missing := count - self.moments.count) >= some:
                self._take_in_stored(min(missing, self._columns_at_once), anchor, crew)

    def _take_in_stored(self, number: int, anchor: Column, crew: Crew) -> None:
        moments, trajectory = self.moments, self._store.trajectory
        assert trajectory is not None
        with ExitStack() as loans:
            columns = [
                loans.enter_context(trajectory.reading((slice(None), self._store.slot(iterate))))
                for iterate in range(moments.count, moments.count + number)
            ]
            try:
                self.moments = moments.with_columns(columns, anchor, crew)
            except BaseException:
                self.moments = replace(moments, count=_TORN)
                raise
