"""A posterior as a view of a stored trajectory: which iterates are in it is chosen afterwards."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import NamedTuple, Self, get_args

from torch import Tensor

from swag._base import Posterior
from swag._buffers import Buffers
from swag._iterates import Iterates
from swag._moments import Moments
from swag._sharding.parts import open_iterates
from swag._store import Location
from swag.errors import WindowError
from swag.sampling import Center, Gaussian

__all__ = ["Posterior", "StoredPosterior", "load"]


class Known(NamedTuple):
    """What is at hand of a posterior and need not be read; None for what is not."""

    moments: Moments | None
    anchor: Tensor | None
    """Not in a store that keeps no trajectory, before its first checkpoint."""
    buffers: Buffers
    """Of the last iterate."""


class StoredPosterior(Posterior):
    """A posterior of some of the iterates of a store; see `Posterior`.

    Made by `swag.load` and `Posterior.window`; only the former opens a group, and closes it with
    `close`, or at the end of a ``with`` block.
    """

    def __init__(
        self,
        store: Iterates,
        iterates: range,
        held: range,
        center: Center,
        known: Known,
    ) -> None:
        self._store = store
        self._iterates = iterates
        self._held = held
        self._center = center
        self._known, self._buffers = known, known.buffers
        self._rewound = store.rewound

    @property
    def n_averaged(self) -> int:
        """Iterates in the mean and the variance."""
        return len(self._iterates)

    @property
    def iterates(self) -> range:
        """Their numbers, in the order of collection, from 0."""
        return self._iterates

    @property
    def center(self) -> Center:
        """What deviations are taken from."""
        return self._center

    @property
    def rank(self) -> int:
        """Columns of the low-rank part; fewer than two make none."""
        return len(self._held)

    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
        *,
        stop: int | None = None,
    ) -> StoredPosterior:
        """The posterior of some of the iterates; of all in the store, not only those in this one.

        See `Posterior.window`.
        """
        known = Known(None, None, self._store.read_buffers())
        return window(self._store, self._collected(), start, every, rank, center, stop, known)

    def _collected(self) -> int:
        return self._store.progress().collected

    def _gaussian(self) -> Gaussian:
        return self._cached_gaussian

    @cached_property
    def _cached_gaussian(self) -> Gaussian:
        store = self._store
        store.refuse_rewound(self._rewound)
        if not self._iterates:
            raise WindowError("nothing has been collected yet")
        moments = self._known.moments
        if moments is None and self._iterates == range(len(self._iterates)):
            moments = store.moments(len(self._iterates))
        if moments is None:
            moments = store.moments_of(self._iterates)
        columns = store.columns(self._held) if self._held else None
        anchor = store.read_anchor() if self._known.anchor is None else self._known.anchor
        return Gaussian(store.table, anchor, moments, columns, self._center)

    def _last_buffers(self) -> Buffers:
        return self._buffers

    def close(self) -> None:
        """Close the group, if it was opened here."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load(store: Location) -> StoredPosterior:
    """Open the posterior in a store, to draw from it and to choose windows of it.

    The store is opened for reading, and may be of a training that still runs: what is seen is what
    was durable when it was opened. What several processes have collected of a sharded model is one
    posterior, and can be opened by any number of processes: every draw, mean and density is the
    same as if one process had collected it.

    Parameters
    ----------
    store
        URL of a group, or a group that is open.

    Returns
    -------
    StoredPosterior
        Of all iterates.

    Raises
    ------
    StoreError
        The group holds no posterior, or a damaged one.
    pmarray.errors.GroupNotFoundError
        There is no group.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(4, 2)
    >>> with swag.SWAG(model, store="memmap:./posterior") as posterior:
    ...     for _ in range(5):
    ...         _ = torch.nn.init.normal_(model.weight)
    ...         posterior.update_parameters(model)
    >>> with swag.load("memmap:./posterior") as posterior:
    ...     posterior.n_averaged, posterior.window(start=2, rank=2).rank
    (5, 2)
    """
    opened = open_iterates(store)
    try:
        collected = opened.progress().collected
        held = range(collected - opened.kept(collected), collected)
        known = Known(None, None, opened.read_buffers())
        return StoredPosterior(opened, range(collected), held, "running", known)
    except BaseException:
        opened.close()
        raise


def window(
    store: Iterates,
    collected: int,
    start: int,
    every: int,
    rank: int | None,
    center: Center,
    stop: int | None,
    known: Known,
) -> StoredPosterior:
    """`Posterior.window` of a store that has collected so many iterates.

    Of `known`, the moments are those of all of them.
    """
    if start < 0 or every < 1 or (rank is not None and rank < 0):
        raise ValueError(f"start={start}, every={every}, rank={rank}: they count iterates")
    if center not in get_args(Center):
        raise ValueError(f"center={center!r}: use one of {', '.join(map(repr, get_args(Center)))}")
    end = collected if stop is None else min(stop, collected)
    iterates = range(start, end, every)
    if not iterates:
        until = "on" if stop is None else f"to {stop}"
        raise WindowError(f"{collected} iterates are collected: none from {start} {until}")
    oldest = collected - store.kept(collected)
    before = len(range(start, min(oldest, end), every))
    whole = len(iterates) == collected  # whatever the step, if there is just one
    if before and not whole:
        raise WindowError(
            f"only iterates from {oldest} on were kept (max_rank="
            f"{store.configuration.max_rank}): the mean from {start} on, every {every}, cannot be "
            "computed"
        )
    held = iterates[before:]
    if rank is not None:
        held = held[max(0, len(held) - rank) :]
    known = known if whole else known._replace(moments=None)
    return StoredPosterior(store, iterates, held, center, known)
