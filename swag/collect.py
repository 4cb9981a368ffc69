"""Collecting iterates while a network trains."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

# Columns of which the moments are not taken yet. Two find room in any cache that takes a column.
_FEW, _MANY = 2, 4
_SMALL_COLUMN_BYTES = 16 << 20


class SWAG(Posterior):
    """A Gaussian posterior over a network's weights, collected while it trains.

    Every collected iterate is kept as a column of a `pmarray` array, so that the posterior may
    outgrow memory. `update_parameters` writes the iterate straight into the memory that will be
    written out; a thread takes the moments, and another writes behind. What is collected is
    durable after `flush` and `close`, and every `checkpoint_every` collections.

    If the store holds a posterior of the same parameters already, collection goes on where it was
    durable last, with the same numbers as if it had never stopped.

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
        Collections after which mean and variance are stored and everything is made durable. With
        `max_rank` it is also the number of spare columns in the store.

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
    ) -> None:
        if max_rank is not None and max_rank < 0:
            raise ValueError(f"max_rank must be zero or more, or None for all, not {max_rank}")
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, not {checkpoint_every}")
        self._store = Store.create(store, model, max_rank, checkpoint_every)
        try:
            self._table = self._store.table
            self._store.drop_unfinished()
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
        self._most_open = _MANY if 4 * self._table.size <= _SMALL_COLUMN_BYTES else _FEW
        self._spare: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()
        self._pending: deque[Future[None]] = deque()
        # An array in memory may move when it grows, which no loan may end in the middle of.
        self._growing = threading.Lock()
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

        Takes one pass over memory. Waits only where several columns are still to be worked on, or
        the cache is full because the medium is slower than training.

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
        self._reap(self._most_open - 1)
        parameters = self._table.find_all(model)
        if self._difference is None:
            self._anchor = self._table.gather(parameters)
            self._store.write_anchor(self._anchor)
            self._difference = Difference(self._table, self._anchor)
        with ExitStack() as stack:
            column = stack.enter_context(self._borrow(self._collected))
            self._difference.write(parameters, torch.from_numpy(column))
            # The loan goes over to the thread, which ends it.
            self._pending.append(self._thread.submit(self._take_in, stack.pop_all(), column))
        self._collected += 1

    @contextmanager
    def _borrow(self, iterate: int) -> Iterator[NDArray[np.float32]]:
        """The memory of the next column, shape (n,)."""
        trajectory = self._store.trajectory
        if trajectory is None:
            try:
                column = self._spare.get_nowait()
            except queue.Empty:
                column = np.empty(self._table.size, np.float32)
            yield column
            self._spare.put(column)
            return
        slot = self._store.slot(iterate)
        if slot < trajectory.shape[1]:
            with trajectory.writing((slice(None), slot)) as column:
                yield column
        else:
            loan = trajectory.appending()
            with self._growing:
                lines = loan.__enter__()
            try:
                yield lines[:, 0]
            except BaseException as error:
                with self._growing:
                    loan.__exit__(type(error), error, error.__traceback__)
                raise
            with self._growing:
                loan.__exit__(None, None, None)

    def _take_in(self, loan: ExitStack, column: NDArray[np.float32]) -> None:
        """Take the moments of a column and let it go; runs on the thread, in order."""
        try:
            with loan:
                if self._failure is not None:
                    raise self._failure
                moments = self._moments
                count = moments.count + 1
                accumulate(column, moments.mean, moments.sum_of_squares, count)
            self._moments = Moments(count, moments.mean, moments.sum_of_squares)
            self._store.record(count)
            if count % self._store.configuration.checkpoint_every == 0:
                self._store.checkpoint(self._moments)
        except BaseException as error:
            self._failure = error
            raise

    def _reap(self, most: int) -> None:
        """Wait until at most so many columns are still to be taken in; raise what went wrong."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().exception()
        if self._failure is not None:
            raise self._failure

    def _refuse_closed(self) -> None:
        if self._closed:
            raise pmarray.errors.ClosedError("collection has ended: the posterior is closed")

    # -- the posterior so far -------------------------------------------------------------------

    def _gaussian(self) -> Gaussian:
        self._reap(0)
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
        self._reap(0)
        return window(self._store, start, every, rank, center, self._moments.copy())

    # -- durability -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Return when everything collected so far is durable, mean and variance included.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`.
        """
        self._refuse_closed()
        self._reap(0)
        self._store.checkpoint(self._moments)

    def close(self) -> None:
        """Flush and end collection; the group is closed too, unless it was given open.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`; threads and files are released all the same.
        """
        if self._closed:
            return
        try:
            self.flush()
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
        self.close()
