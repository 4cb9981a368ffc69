"""Posteriors, and their windows: which iterates are in one is chosen afterwards."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from types import TracebackType
from typing import NamedTuple, NoReturn, Self, get_args

from numpy.typing import ArrayLike
from torch import Tensor

from swag._analysis import Analysis
from swag._buffers import Buffers
from swag._counts import count
from swag._installing import Installing
from swag._iterates import Iterates
from swag._location import Location
from swag._moments import Moments, OnDemand
from swag._sharding.parts import open_iterates
from swag.burn_in import BurnIn, suggest
from swag.errors import WindowError
from swag.gradients import Gradients
from swag.sampling import Center, Gaussian

__all__ = ["Posterior", "StoredPosterior", "load"]


class Known(NamedTuple):
    """What is at hand of a posterior and need not be read; None for what is not."""

    moments: Moments | None
    anchor: Tensor | None
    """Not in a store that keeps no trajectory, before its first checkpoint."""
    buffers: Buffers
    """Of the last iterate."""


class Posterior(Analysis, Installing):
    """A Gaussian over weights: a mean, a diagonal, and a low-rank part.

    Its covariance is ``scale * (diag(variance) + D D^T / (k - 1))``, the k columns of D being
    deviations of iterates from their mean. Made by `swag.load`, `window`, and `swag.SWAG`.
    """

    @abstractmethod
    def _collected(self) -> int:
        """Iterates in the store, when all is there that was collected."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a posterior cannot be copied or pickled, since it has threads and an open store: "
            + (
                "this one is in the memory of the process: what it gives, such as sample(), can be"
                if self._store.url.partition("?")[0] == "dram:"
                else f"give the URL {self._store.url}, and open it there with swag.load"
            )
        )

    @abstractmethod
    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
        *,
        stop: int | None = None,
    ) -> StoredPosterior:
        """The posterior of some of the iterates, chosen after the fact.

        Parameters
        ----------
        start
            Number of the first iterate to use, from 0: where the burn-in ends.
        every
            Use every so many iterates from there.
        rank
            Columns of the low-rank part: the last so many of those used, or as many as are held if
            that is fewer; None for all that are held, 0 for the diagonal alone.
        center
            What deviations are taken from: ``"running"``, the mean of the iterates up to each, as
            Maddox et al. 2019 do (Algorithm 1), or ``"mean"``, the mean of all those used, which
            gives their sample covariance.
        stop
            Number of the first iterate not to use; None for all that are there.

        Returns
        -------
        StoredPosterior
            Of the iterates collected so far; it shares the store. Its moments are computed at the
            first use, from one reading of its iterates, unless it has them all.

        Raises
        ------
        WindowError
            It would have no iterate, or the moments need iterates that were not kept.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [9.0, 1.0, 2.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(start=1).mean()
        {'weight': tensor([[2.]])}
        """

    def iterate(self, index: int) -> dict[str, Tensor]:
        """The weights of one iterate, bit for bit as the network had them.

        Parameters
        ----------
        index
            Its number among all collected, from 0; a negative one counts from the last.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape and dtype, in host memory. Where ``dtype=`` was narrower
            than the network's, they are rounded to that.

        Raises
        ------
        WindowError
            It was not collected, or not kept (`max_rank`).

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [9.0, 1.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.iterate(0), posterior.iterate(-1)
        ({'weight': tensor([[9.]])}, {'weight': tensor([[1.]])})
        """
        vector = self._store.iterate(index, self._collected())
        views = self._table.by_name(vector)
        return {e.name: views[e.name].to(e.dtype) for e in self._table.entries}

    def suggest_burn_in(
        self, *, loss: ArrayLike | None = None, gradients: Gradients | None = None
    ) -> BurnIn[StoredPosterior]:
        """Find out from the trajectory where its burn-in ends, and whether it does.

        Looks at all iterates in the store, not only at those of this posterior, and needs nothing
        else: the store may have been finished long ago. What was recorded with the iterates is not
        read from the trajectory again, and loss and gradients are tested too, where they are there.

        Parameters
        ----------
        loss
            Of the minibatch before each iterate held, shape (iterates,); None for what
            `update_parameters` was given, if it was for each of them.
        gradients
            Of the step to each iterate held (`swag.gradients.Gradients`); None for what
            ``attach(optimizer, gradients=True)`` recorded, if it did for each of them.

        Returns
        -------
        BurnIn
            With `start`, the first iterate to use, which is None where the iterates have not
            settled; the `checks` that say so; and `window`, the posterior from there on.

        Raises
        ------
        WindowError
            Fewer than 80 iterates are held.
        ValueError
            `loss` or `gradients` are not one for each of these, or not finite.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(50, 1, bias=False)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = swag.SWAG(model)
        >>> for step in range(200):
        ...     with torch.no_grad():  # stands for a step of training
        ...         _ = model.weight.normal_(generator=generator).add_(100 * 0.5**step)
        ...     posterior.update_parameters(model)
        >>> found = posterior.suggest_burn_in()
        >>> 5 < found.start < 20, found.window().n_averaged == 200 - found.start
        (True, True)
        """
        return suggest(self._store, self._collected(), self.window, loss, gradients)


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
        collected: int,
    ) -> None:
        self._store = store
        self._of = collected
        """All iterates that are seen: `window` chooses among them."""
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
        """The posterior of some of the iterates; of all that were seen, not only those in this one.

        See `Posterior.window`.
        """
        known = Known(None, None, self._buffers)
        self._store.refuse_rewound(self._rewound)
        return window(self._store, self._collected(), start, every, rank, center, stop, known)

    def iterate(self, index: int) -> dict[str, Tensor]:
        """The weights of one iterate; see `Posterior.iterate`."""
        weights = super().iterate(index)
        self._store.refuse_rewound(self._rewound)
        return weights

    def __repr__(self) -> str:
        count, size = self.n_averaged, self._table.size
        iterates = f"{count:,} iterate{'s' * (count != 1)} of {size:,} weights"
        return f"<StoredPosterior {self._store.url} {iterates}, rank {self.rank:,}>"

    def _collected(self) -> int:
        return self._of

    def _gaussian(self) -> Gaussian:
        return self._cached_gaussian

    @cached_property
    def _cached_gaussian(self) -> Gaussian:
        store = self._store
        if not self._iterates:
            raise WindowError("nothing has been collected yet")
        known, from_first = self._known, self._iterates == range(len(self._iterates))
        if from_first or known.moments is not None:
            anchor = store.read_anchor() if known.anchor is None else known.anchor
        else:
            # Weights may have moved far since the first iterate of all, against what they vary by.
            anchor = store.iterate(self._iterates[0], self._of).to(store.table.dtype)
        if known.moments is not None:
            moments = OnDemand(known.moments)
        elif from_first:
            moments = store.moments(len(self._iterates), anchor)
        else:
            moments = store.moments_of(self._iterates, anchor)
        columns = store.columns(self._held, anchor) if self._held else None
        store.refuse_rewound(self._rewound)  # last: what was read before is of these iterates
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

    The store is opened for reading, and may be of a training that still runs: what is seen are the
    iterates that were durable when it was opened, for as long as collection keeps them. A group
    that is given is left at its commit: where training has gone on for so long that this is gone,
    reading raises `pmarray.errors.SnapshotExpiredError`, and the group has to be refreshed.

    What several processes have collected of a sharded model is one posterior, and can be opened by
    any number of processes: every draw, mean and density is the same as if one process had
    collected it.

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
        collected = -1
        while collected != (collected := opened.progress().collected):  # until none came between
            known = Known(None, None, opened.read_buffers())
        held = range(collected - opened.kept(collected), collected)
        return StoredPosterior(opened, range(collected), held, "running", known, collected)
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
    start, every = count("start", start), count("every", every, 1)
    rank = None if rank is None else count("rank", rank)
    stop = None if stop is None else count("stop", stop)
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
    return StoredPosterior(store, iterates, held, center, known, collected)
