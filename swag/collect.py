"""Collecting iterates while a network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pmarray
from swag._moments import accumulate
from swag._parameters import Difference
from swag._store import Location, Moments, Store
from swag.errors import WindowError
from swag.posterior import Posterior, StoredPosterior, window
from swag.sampling import Center, Gaussian

__all__ = ["SWAG"]


class SWAG(Posterior):
    """A Gaussian posterior over a network's weights, collected while it trains.

    Every collected iterate is kept as a column of a `pmarray` array, so that the posterior may
    outgrow memory. `update_parameters` writes the iterate straight into the memory that will be
    written out; a thread takes the moments, and another writes behind. Every collection is one
    transaction: after a crash the posterior is that of some iterate, whole, and of the very last
    one after `flush` and `close`.

    If the store holds a posterior of the same parameters already, collection goes on from its last
    iterate, with the same numbers as if it had never stopped; or, after `rewind`, from its last
    checkpoint.

    Parameters
    ----------
    model
        Its trained parameters (those that require a gradient) are what is collected. They are
        paired by name, and may be on any device, in float16, bfloat16, float32 or float64. The
        model itself is not kept.
    store
        URL of a `pmarray` group, ``"memmap:./posterior"``, or an open group, which stays open at
        `close`. ``"dram:"`` keeps it in memory.
    max_rank
        Iterates to keep for the low-rank part: the last so many, or None for all; 0 keeps none,
        which is SWAG-diagonal.
    checkpoint_every
        Collections from one checkpoint, which stores mean and variance, to the next. With
        `max_rank` it is also the number of spare columns in the store.
    on_checkpoint
        Called with the group inside the transaction of every checkpoint, on the thread that
        collects: what it writes there, such as the state of training, is there exactly if the
        checkpoint is.

    Raises
    ------
    StoreError
        The store holds a posterior of other parameters or another configuration; the message says
        what differs.
    ModelError
        The model trains nothing, or something that is not a real number.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with swag.SWAG(model, store="memmap:./posterior") as posterior:
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(2, 3)).square().mean().backward()
    ...         optimizer.step()
    ...         posterior.update_parameters(model)
    ...     posterior.n_averaged, posterior.rank
    (10, 10)
    """

    def __init__(
        self,
        model: nn.Module,
        store: Location = "dram:",
        max_rank: int | None = None,
        *,
        checkpoint_every: int = 100,
        on_checkpoint: Callable[[pmarray.Group], object] | None = None,
    ) -> None:
        if max_rank is not None and max_rank < 0:
            raise ValueError(f"max_rank must be zero or more, or None for all, not {max_rank}")
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, not {checkpoint_every}")
        self._store = Store.create(store, model, max_rank, checkpoint_every)
        try:
            self._table = self._store.table
            self._moments = self._store.moments()
            self._anchor: Tensor | None = None
            self._difference: Difference | None = None
            if self._moments.count:
                self._anchor = self._store.read_anchor()
                self._difference = Difference(self._table, self._anchor)
        except BaseException:
            self._store.close()
            raise
        self._collected = self._moments.count
        self._on_checkpoint = on_checkpoint
        self._spare: NDArray[np.float32] | None = None
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swag-moments")
        self._failure: BaseException | None = None
        self._closed = False

    @property
    def n_averaged(self) -> int:
        """Iterates collected."""
        return self._collected

    @property
    def closed(self) -> bool:
        """Whether collection has ended."""
        return self._closed

    def update_parameters(self, model: nn.Module) -> None:
        """Collect the weights as they are now.

        Takes one pass over memory. Waits only where the moments of the previous iterate are still
        being taken, where a checkpoint is due, or where the cache is full because the medium is
        slower than training.

        Parameters
        ----------
        model
            Has the parameters that the posterior is of.

        Raises
        ------
        ModelError
            It has others; nothing is collected.
        pmarray.errors.PMArrayError, OSError
            An earlier iterate could not be taken in or written. Nothing more can be collected:
            open the store again to go on from the last checkpoint.
        """
        self._refuse_closed()
        self._reap()
        parameters = self._table.find_all(model)
        due = (self._collected + 1) % self._store.configuration.checkpoint_every == 0
        with ExitStack() as transaction:
            transaction.enter_context(self._store.group.transaction(wait=False))
            if self._difference is None:
                self._anchor = self._table.gather(parameters)
                self._store.write_anchor(self._anchor)
                self._difference = Difference(self._table, self._anchor)
            with ExitStack() as loan:
                column = loan.enter_context(self._borrow(self._collected))
                self._difference.write(parameters, torch.from_numpy(column))
                # The transaction and the loan go over to the thread, which ends both; but a
                # checkpoint takes in what only this thread may look at.
                ending = None if due else transaction.pop_all()
                self._pending = self._thread.submit(self._take_in, loan.pop_all(), column, ending)
            self._collected += 1
            if due:
                self._reap()
                self._checkpoint()

    @contextmanager
    def _borrow(self, iterate: int) -> Iterator[NDArray[np.float32]]:
        """The memory of the next column, shape (n,)."""
        trajectory = self._store.trajectory
        if trajectory is None:
            if self._spare is None:
                self._spare = np.empty(self._table.size, np.float32)
            yield self._spare
            return
        slot = self._store.slot(iterate)
        if slot < trajectory.shape[1]:
            with trajectory.writing((slice(None), slot)) as column:
                yield column
        else:
            with trajectory.appending() as lines:
                yield lines[:, 0]

    def _take_in(
        self, loan: ExitStack, column: NDArray[np.float32], transaction: ExitStack | None
    ) -> None:
        """Take the moments of a column, let it go, and end its transaction; on the thread."""
        try:
            with transaction or nullcontext():
                with loan:
                    moments = self._moments
                    count = moments.count + 1
                    accumulate(column, moments.mean, moments.sum_of_squares, count)
                self._moments = Moments(count, moments.mean, moments.sum_of_squares)
                self._store.record(count)
        except BaseException as error:
            self._failure = error
            raise

    def _checkpoint(self) -> None:
        """Store the moments and what the caller adds; in a transaction."""
        self._store.checkpoint(self._moments)
        if self._on_checkpoint is not None:
            self._on_checkpoint(self._store.group)

    def _reap(self) -> None:
        """Wait until all columns are taken in; raise what went wrong."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None
        if self._failure is not None:
            raise self._failure

    def _refuse_closed(self) -> None:
        if self._closed:
            raise pmarray.errors.ClosedError("collection has ended: the posterior is closed")

    # -- the posterior so far -------------------------------------------------------------------

    def _gaussian(self) -> Gaussian:
        self._reap()
        if self._anchor is None or not self._moments.count:
            raise WindowError("nothing has been collected yet")
        kept = range(self._collected - self._store.kept, self._collected)
        columns = self._store.columns(kept) if kept else None
        return Gaussian(self._table, self._anchor, self._moments.copy(), columns, "running")

    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
    ) -> StoredPosterior:
        """The posterior of some of the iterates collected so far; see `Posterior.window`.

        With `max_rank`, it must be used before `checkpoint_every` more are collected.
        """
        self._reap()
        return window(self._store, start, every, rank, center, self._moments.copy())

    # -- durability -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Take a checkpoint, and return when everything collected so far is durable.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`.
        """
        self._refuse_closed()
        self._reap()
        if self._moments.count != self._store.checkpointed:
            with self._store.group.transaction(wait=False):
                self._checkpoint()
        self._store.group.flush()

    def rewind(self) -> int:
        """Go back to the last checkpoint, forgetting what was collected since.

        For going on with a training that was interrupted, from the state that `on_checkpoint`
        stored. Returns the number of iterates that remain.
        """
        self._refuse_closed()
        self._reap()
        self._store.rewind()
        self._moments = self._store.moments()
        self._collected = self._moments.count
        if not self._collected:
            self._anchor = self._difference = None
        return self._collected

    def close(self) -> None:
        """Flush and end collection; the group is closed too, unless it was given open.

        A ``with`` block that is left by an exception ends without a checkpoint, since training may
        have been interrupted in the middle of a step; iterates that were collected are kept.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`; threads and files are released all the same.
        """
        self._close(checkpoint=True)

    def _close(self, *, checkpoint: bool) -> None:
        if self._closed:
            return
        try:
            if checkpoint:
                self.flush()
            else:
                self._reap()
        finally:
            self._closed = True
            self._thread.shutdown()
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(checkpoint=kind is None)
