"""What is read of iterates that were collected, wherever they are kept.

In one group (`swag._store`), or in the parts that the processes of a sharded training hold
(`swag._sharding`): a posterior is read through `Iterates`, and knows no more of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from swag._buffers import Buffers
from swag._moments import Moments, OnDemand
from swag._records import Configuration, Progress
from swag._statistics import Statistics
from swag._trajectory import Columns, Trajectory, as_tensor
from swag.errors import WindowError

__all__ = ["Iterates"]


class Iterates(ABC):
    """Iterates, moments and counters that are kept somewhere.

    Parameters
    ----------
    configuration
        What never changes.
    """

    statistics: Statistics | None = None
    """What was recorded beside them; None where nothing is."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.table = configuration.table
        self._latest: tuple[range, OnDemand] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where they are."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far collection has come."""

    @property
    def rewound(self) -> int:
        """See `Progress`."""
        return self.progress().rewound

    def furthest(self) -> int:
        """Iterates that were collected wherever most were."""
        return self.progress().collected

    def last_checkpoint(self) -> int:
        """Iterates at the last checkpoint, wherever that has come furthest."""
        return self.progress().checkpointed

    @property
    @abstractmethod
    def rows(self) -> Trajectory | None:
        """The trajectory, shape (n, columns); None where no iterate is kept."""

    @abstractmethod
    def read_anchor(self) -> Tensor:
        """The first iterate, shape (n,), of the table's dtype."""

    @abstractmethod
    def stored_moments(self, collected: int) -> Moments:
        """The moments that are stored, if they are of at most so many iterates; else of none."""

    @abstractmethod
    def read_buffers(self) -> Buffers:
        """The model's buffers at the last iterate."""

    @abstractmethod
    def close(self) -> None:
        """Close what was opened here."""

    # -- columns --------------------------------------------------------------------------------

    def _kept_rows(self) -> Trajectory:
        if (rows := self.rows) is None:
            raise WindowError("no iterates were kept: the posterior was collected with max_rank=0")
        return rows

    @property
    def ring(self) -> int | None:
        """Columns that are used in turn, where not all iterates are kept."""
        rank = self.configuration.max_rank
        return None if rank is None else rank + 2 * self.configuration.checkpoint_every

    def kept(self, collected: int) -> int:
        """Number of the last iterates that the trajectory holds for good, of so many."""
        rank = self.configuration.max_rank
        return collected if rank is None else min(rank, collected)

    def slot(self, iterate: int) -> int:
        """Index of the column that holds an iterate."""
        return iterate if self.ring is None else iterate % self.ring

    def columns(self, iterates: range, anchor: Tensor | None = None) -> Columns:
        """The columns of some iterates; the anchor is read where it is not given.

        Reading them raises `WindowError` once one of them is overwritten or cut off.
        """
        rows, rewound = self._kept_rows(), self.rewound
        anchor = self.read_anchor() if anchor is None else anchor

        def check() -> None:
            self._refuse_gone(iterates, rewound)

        return Columns(rows, anchor.numpy(), iterates, self.ring, check)

    def iterate(self, index: int, collected: int) -> Tensor:
        """The weights of an iterate, shape (n,), as the trajectory holds them.

        Parameters
        ----------
        index
            Its number, from 0; from the last one backwards if negative.
        collected
            How many there are.

        Raises
        ------
        WindowError
            It was not collected, or was not kept.
        """
        number = index + collected if index < 0 else index
        if not 0 <= number < collected:
            raise WindowError(f"there is no iterate {index}: {collected} are collected")
        if number < collected - self.kept(collected):
            raise WindowError(
                f"iterate {number} was not kept: with max_rank={self.configuration.max_rank}, "
                f"those from {collected - self.kept(collected)} on are"
            )
        rows, slot, rewound = self._kept_rows(), self.slot(number), self.rewound
        weights = as_tensor(np.ascontiguousarray(rows[:, slot : slot + 1][:, 0]))
        self._refuse_gone(range(number, number + 1), rewound)
        return weights

    def refuse_rewound(self, rewound: int) -> None:
        """Raise if iterates were cut off since this was the value of `rewound`."""
        self._refuse_rewound(rewound, self.rewound)

    @staticmethod
    def _refuse_rewound(then: int, now: int) -> None:
        if then != now:
            raise WindowError(
                "collection went back to a checkpoint since, and the iterates may be others by "
                "now: ask for the window again, or load the posterior anew"
            )

    def _refuse_gone(self, iterates: range, rewound: int) -> None:
        """Raise unless the columns of some iterates hold these; called after they were read."""
        progress = self.progress()
        self._refuse_rewound(rewound, progress.rewound)
        collected = progress.collected
        if not iterates:
            return
        if iterates[-1] >= collected:
            raise WindowError(
                f"iterate {iterates[-1]} is not there any more: {collected} are, since a "
                "transaction was rolled back; ask for the window again"
            )
        # The column of iterate t is written again while iterate t + ring is collected; and a reader
        # sees commits late, but a checkpoint before what it has given up is overwritten.
        every = self.configuration.checkpoint_every
        if self.ring is not None and (
            iterates[0] <= self.furthest() - self.ring
            or iterates[0] < self.last_checkpoint() - self.ring + every
        ):
            raise WindowError(
                f"iterate {iterates[0]} was overwritten since: with max_rank="
                f"{self.configuration.max_rank}, a window is good until "
                f"{every} more iterates are collected; ask for it again"
            )

    # -- moments --------------------------------------------------------------------------------

    def moments_of(self, iterates: range, anchor: Tensor | None = None) -> OnDemand:
        """Moments of some iterates, which must be held; the latest ones asked for are at hand.

        See `columns`.
        """
        if self._latest is None or self._latest[0] != iterates:
            none = Moments.none(self.table.size)
            self._latest = iterates, OnDemand(none, self.columns(iterates, anchor))
        return self._latest[1]

    def moments(self, collected: int, anchor: Tensor | None = None) -> OnDemand:
        """Moments of the first so many iterates: those that are stored, rolled forward.

        See `columns`.

        Raises
        ------
        WindowError
            Those stored are of more, and the columns of these are not held.
        """
        moments = self.stored_moments(collected)
        since = range(moments.count, collected)
        return OnDemand(moments, self.columns(since, anchor) if since else None)
