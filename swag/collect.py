"""Collecting iterates while a network trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pmarray
from pmarray.errors import ClosedError, LoanError
from swag._buffers import Buffers
from swag._joining import Joining
from swag._moments import Moments
from swag._parameters import DTYPES, chosen_of
from swag._records import Progress
from swag._screening import NoIterateError, Screen
from swag._selecting import Parameters
from swag._store import Location, Mode, Store
from swag._target import refuse_drawn
from swag._trajectory import as_tensor
from swag._worker import Worker
from swag.errors import WindowError
from swag.posterior import Known, Posterior, StoredPosterior, window
from swag.sampling import Center, Gaussian

__all__ = ["SWAG"]

_MOST_AT_ONCE = 8
_AT_ONCE_BYTES = 96 << 20

Column = NDArray[np.generic]


class SWAG(Posterior):
    """A Gaussian posterior over a network's weights, collected while it trains.

    Every collected iterate is kept as a column of a `pmarray` array, so that the posterior may
    outgrow memory. `update_parameters` writes the iterate straight into the memory that will be
    written out; a thread takes the moments, and another writes behind. Every collection is one
    transaction: after a crash the posterior is that of some iterate, whole, and of the very last
    one after `flush` and `close`. An interrupt, or anything else that is raised meanwhile, is the
    same: the iterate is collected or it is not, and collection may go on.

    Weights with a NaN or an infinity in them are not collected, and neither are weights that are
    those of the last iterate, bit for bit, as a step leaves them that a gradient scaler skipped.
    Both are counted, and a `SwagWarning` says so the first time.

    Inside a transaction of your own in the group, on the same thread, collecting is a part of it.
    With ``max_rank=0`` iterates are in memory until a checkpoint, and only that takes part.

    Parameters
    ----------
    model
        Its trained parameters (those that require a gradient) are what is collected. They are
        paired by name, and may be on any device, in float16, bfloat16, float32 or float64. Its
        buffers, such as the statistics of batch normalisation, are stored as they are at the last
        iterate. The model itself is not kept.
    store
        URL of a `pmarray` group, ``"memmap:./posterior"``, or an open group, which stays open at
        `close`. ``"dram:"`` keeps it in memory.
    max_rank
        Iterates to keep for the low-rank part: the last so many, or None for all; 0 keeps none,
        which is SWAG-diagonal.
    mode
        ``"w-"`` makes a new posterior and refuses one that has iterates. ``"a"`` goes on with it,
        from its last iterate, with the same numbers as if it had never stopped; or, after
        `rewind`, from its last checkpoint. ``"w"`` replaces it, and leaves other arrays in the
        group alone.
    checkpoint_every
        Collections from one checkpoint, which stores mean and variance, to the next. With
        `max_rank` it is also the number of spare columns in the store.
    on_checkpoint
        Called with the group inside the transaction of every checkpoint, on the thread that
        collects: what it writes there, such as the state of training, is there exactly if the
        checkpoint is. If it raises, the iterate is not collected.
    on_nonfinite
        ``"skip"``, as above, or ``"raise"``, to raise `NonFiniteError` instead.
    parameters
        Which of the trained parameters are collected, None for all: their names, with ``*`` and
        ``?`` for what differs (``"classifier.*"``, ``["*lora_A*", "*lora_B*"]``); a function of
        name and parameter that says whether; or a part of the model, such as ``model.head``. The
        posterior is of these alone, and leaves the others as they are in the model that predicts.
    dtype
        Of the iterates kept: that of the parameters, or the narrowest that holds all of them
        exactly, if None. ``torch.bfloat16`` and ``torch.float16`` halve what a float32 network
        takes, and round every iterate; the moments are those of the rounded ones. A training that
        goes on from an iterate is then not the one that was interrupted, to the bit.

    Raises
    ------
    StoreExistsError
        The store has iterates, with ``mode="w-"``.
    StoreError
        The store holds a posterior of other parameters or another configuration; the message says
        what differs.
    ModelError
        The model trains nothing, or something that is not a real number, or holds only a part of
        its parameters.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with swag.SWAG(model, store="memmap:./posterior") as posterior:
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         (model(torch.ones(2, 3)) - 100).square().mean().backward()
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
        mode: Mode = "w-",
        checkpoint_every: int = 100,
        on_checkpoint: Callable[[pmarray.Group], object] | None = None,
        on_nonfinite: Literal["skip", "raise"] = "skip",
        parameters: Parameters | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if max_rank is not None and max_rank < 0:
            raise ValueError(f"max_rank must be zero or more, or None for all, not {max_rank}")
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, not {checkpoint_every}")
        if on_nonfinite not in ("skip", "raise"):
            raise ValueError(f"on_nonfinite={on_nonfinite!r}: use 'skip' or 'raise'")
        if dtype is not None and dtype not in DTYPES.values():
            raise ValueError(f"dtype={dtype}: iterates may be {', '.join(DTYPES)}")
        if dtype is not None and max_rank == 0:
            raise ValueError(f"dtype={dtype} is of the iterates kept, and max_rank=0 keeps none")
        refuse_drawn(model)
        self._chosen = chosen_of(parameters, model)
        self._store = Store.create(
            store, model, max_rank, checkpoint_every, dtype, mode, self._chosen
        )
        self._on_checkpoint = on_checkpoint
        self._screen = Screen(self._store.table, raise_nonfinite=on_nonfinite == "raise")
        # What was begun and has not ended: for whoever comes after an interrupt.
        self._begun: Joining | None = None
        self._loan: AbstractContextManager[Any] | None = None
        self._calling = False
        self._ended: Progress | None = None
        self._keeps_all = max_rank is None
        column_bytes = self._store.configuration.dtype.itemsize * self._table.size
        self._columns_at_once = max(1, min(_MOST_AT_ONCE, _AT_ONCE_BYTES // column_bytes))
        """Columns in one pass over the moments, of which the cache has to hold that many."""
        try:
            self._worker = Worker("swag-moments")
            self._load()
        except BaseException:
            self._store.close()
            raise

    def _load(self) -> None:
        """Begin from what the store holds."""
        progress = self._store.progress()
        self._screen.skipped = progress.skipped
        self._moments = self._store.stored_moments(progress.collected)
        """Of the first iterates; where all are kept, of as many as somebody has asked for."""
        self._buffers = self._store.read_buffers()
        self._anchor: Tensor | None = None
        # Without a trajectory: two columns, so that one can be compared with the one before.
        self._spare: list[Column] = []
        self._spare_of = 0
        """Iterates collected when the last of the two was written."""

    # -- of one mind with the group -------------------------------------------------------------

    def _sync(self) -> Progress:
        """Wait for the thread and look at the group; say how far collection has come.

        Whatever was interrupted or rolled back before is over after this, and may be interrupted
        too: nothing is believed here that the group does not say.
        """
        if self._ended is not None:
            return self._ended
        if self._calling:
            return self._store.progress()  # asked by what is called at a checkpoint
        self._end_what_was_begun()
        self._worker.settle()
        progress = self._store.progress()
        if self._store.trajectory is None:
            # Between checkpoints, memory is all there is.
            if self._moments.count < progress.collected:
                self._load()
            count = self._moments.count
            progress = replace(progress, collected=count, skipped=self._screen.skipped)
        elif not progress.in_moments <= self._moments.count <= progress.collected:
            self._load()
        if not progress.collected:
            self._anchor = None
        elif self._anchor is None:
            self._anchor = self._store.read_anchor()
        return progress

    def _end_what_was_begun(self) -> None:
        """An interrupt may have torn a block before its end, and a second one its end."""
        if self._loan is not None:
            with suppress(LoanError, ClosedError):
                self._loan.__exit__(KeyboardInterrupt, None, None)
            self._loan = None
        if self._begun is not None:
            self._begun.end()
            self._begun = None

    def _caught_up(self) -> tuple[Progress, Moments]:
        """The same, and the moments of everything collected."""
        progress = self._sync()
        since = range(self._moments.count, progress.collected)
        if since:
            self._moments = self._moments.rolled_forward(self._store.columns(since))
        return progress, self._moments

    @property
    def n_averaged(self) -> int:
        """Iterates collected."""
        if (
            self._begun is None
            and self._loan is None
            and self._store.trajectory is not None
            and not self.closed
        ):
            return self._store.progress().collected  # no need to wait for the thread
        return self._sync().collected

    @property
    def n_nonfinite(self) -> int:
        """Weights that were not collected since they were not finite."""
        return self._screen.skipped.nonfinite

    @property
    def n_repeated(self) -> int:
        """Weights that were not collected since they were those of the last iterate."""
        return self._screen.skipped.repeated

    @property
    def closed(self) -> bool:
        """Whether collection has ended."""
        return self._ended is not None

    # -- collecting -----------------------------------------------------------------------------

    def update_parameters(self, model: nn.Module) -> None:
        """Collect the weights as they are now.

        Takes one pass over memory. Waits only where the moments of the previous iterate are still
        being taken, where a checkpoint is due, where another thread has a transaction open in the
        group, or where the cache is full because the medium is slower than training.

        Parameters
        ----------
        model
            Has the parameters that the posterior is of.

        Raises
        ------
        ModelError
            It has others, or they are drawn ones (`sampled`); nothing is collected.
        NonFiniteError
            They are not finite, with ``on_nonfinite="raise"``.
        pmarray.errors.PMArrayError, OSError
            An earlier iterate could not be written. Nothing more can be collected: open the store
            again to go on from the last checkpoint.
        """
        self._refuse_closed()
        refuse_drawn(model)
        parameters = self._table.find_all(model, self._chosen)
        self._screen.look_for_frozen(parameters)
        buffers = Buffers.of(model)
        progress = self._sync()
        due = (progress.collected + 1) % self._store.configuration.checkpoint_every == 0
        try:
            if self._store.trajectory is None:
                self._collect_moments(progress, parameters, buffers, due)
            else:
                self._collect_column(progress, parameters, buffers, due)
        except NoIterateError:
            self._store.cut(progress.collected)  # unless that was rolled back
        except BaseException:
            self._end_what_was_begun()  # now, so that the group is free for others at once
            raise
        self._begun = None

    def _collect_column(
        self, progress: Progress, parameters: list[nn.Parameter], buffers: Buffers, due: bool
    ) -> None:
        store, count, moments = self._store, progress.collected + 1, self._moments
        begun = self._begun = Joining(store.group)
        with begun:
            loan = self._loan = self._borrow(progress.collected)
            with loan as lent:
                column = lent[:, 0] if lent.ndim == 2 else lent
                sums = self._write(progress, parameters, column)
            self._loan = None
            if count == 1:
                assert self._anchor is not None
                store.write_anchor(self._anchor)
            store.record(count, self._screen.skipped)
            store.write_buffers(buffers)
            if due:
                if store.ring is not None:
                    since = range(moments.count, count)
                    moments = moments.rolled_forward(store.columns(since))
                self._checkpoint(count, moments)
        self._screen.note(progress.collected, sums)
        self._moments = moments
        if store.ring is not None and not due:
            self._worker.put(self._take_in)

    def _collect_moments(
        self, progress: Progress, parameters: list[nn.Parameter], buffers: Buffers, due: bool
    ) -> None:
        """The same without a trajectory: a checkpoint has a transaction, and nothing else."""
        if not self._spare:
            dtype = self._store.numpy_dtype
            self._spare = [np.empty(self._table.size, dtype) for _ in range(2)]
        column, count = self._spare[progress.collected % 2], progress.collected + 1
        sums = self._write(progress, parameters, column)
        self._spare_of = count
        if not due:
            self._buffers = buffers
            self._worker.put(lambda: self._accumulate(column))
        else:
            moments = self._moments.copy().with_columns([column], self._origin)
            begun = self._begun = Joining(self._store.group)
            with begun:
                self._store_diagonal(progress, moments, buffers)
            self._moments, self._buffers = moments, buffers
        self._screen.note(progress.collected, sums)

    def _borrow(self, iterate: int) -> AbstractContextManager[Column]:
        """The memory of the next column, shape (n,) or (n, 1)."""
        trajectory = self._store.trajectory
        assert trajectory is not None
        slot = self._store.slot(iterate)
        if slot < trajectory.shape[1]:
            return trajectory.writing((slice(None), slot))
        return trajectory.appending()

    def _write(self, progress: Progress, parameters: list[nn.Parameter], memory: Column) -> Tensor:
        """Write the next column, and see whether it is one; return its sums."""
        column = as_tensor(memory)
        sums = self._table.collect(parameters, column)
        self._screen.look_at(
            progress.collected, column, sums, lambda: self._column_before(progress.collected)
        )
        if not progress.collected:
            self._anchor = column.to(self._table.dtype, copy=True)
        return sums

    def _column_before(self, count: int) -> Tensor | None:
        """The column of the last of so many iterates, if there is still one."""
        trajectory = self._store.trajectory
        if trajectory is not None:
            return as_tensor(np.asarray(trajectory[:, self._store.slot(count - 1)]))
        held = self._spare_of == count
        return as_tensor(self._spare[(count - 1) % 2]) if held else None

    @property
    def _origin(self) -> Column:
        assert self._anchor is not None
        return self._anchor.numpy()

    def _take_in(self) -> None:
        """Take the moments of the columns since, several in one pass; on the thread.

        They follow from the trajectory: if this fails, or does not come to it, `_caught_up` does.
        """
        trajectory, moments, some = self._store.trajectory, self._moments, self._columns_at_once
        assert trajectory is not None
        while self._store.progress().collected - moments.count >= some:
            with ExitStack() as loans:
                columns = [
                    loans.enter_context(
                        trajectory.reading((slice(None), self._store.slot(iterate)))
                    )
                    for iterate in range(moments.count, moments.count + some)
                ]
                moments = moments.with_columns(columns, self._origin)
            self._moments = moments

    def _accumulate(self, column: Column) -> None:
        """Take the moments of a column that is not stored; on the thread."""
        self._moments = self._moments.with_columns([column], self._origin)

    def _checkpoint(self, collected: int, moments: Moments) -> None:
        """Store the moments and what the caller adds; in a transaction."""
        self._store.checkpoint(collected, moments, self._screen.skipped)
        if self._on_checkpoint is not None:
            self._calling = True
            try:
                self._on_checkpoint(self._store.group)
            finally:
                self._calling = False

    def _store_diagonal(self, progress: Progress, moments: Moments, buffers: Buffers) -> None:
        """Store all there is of a posterior without a trajectory; in a transaction."""
        if not progress.in_moments and self._anchor is not None:
            self._store.write_anchor(self._anchor)
        self._store.write_buffers(buffers)
        self._checkpoint(moments.count, moments)

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ClosedError("collection has ended: the posterior is closed")

    # -- the posterior so far -------------------------------------------------------------------

    def _gaussian(self) -> Gaussian:
        progress, moments = self._caught_up()
        if self._anchor is None or not progress.collected:
            raise WindowError("nothing has been collected yet")
        kept = range(progress.collected - self._store.kept(progress.collected), progress.collected)
        columns = self._store.columns(kept) if kept else None
        return Gaussian(self._table, self._anchor, moments.copy(), columns, "running")

    def _last_buffers(self) -> Buffers:
        return self._buffers if self._store.trajectory is None else self._store.read_buffers()

    def _collected(self) -> int:
        return self.n_averaged

    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
        *,
        stop: int | None = None,
    ) -> StoredPosterior:
        """The posterior of some of the iterates collected so far; see `Posterior.window`.

        With `max_rank`, it must be used before `checkpoint_every` more are collected; later it
        raises `WindowError`.
        """
        if self._keeps_all:
            progress = self._sync()
            at_hand = self._moments.count == progress.collected
            moments = self._moments.copy() if at_hand else None
        else:
            progress, last = self._caught_up()
            moments = last.copy()
        known = Known(moments, self._anchor, self._last_buffers())
        return window(self._store, progress.collected, start, every, rank, center, stop, known)

    # -- durability -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Take a checkpoint, and return when everything collected so far is durable.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`.
        """
        self._refuse_closed()
        progress, moments = (self._sync(), self._moments) if self._keeps_all else self._caught_up()
        if (
            progress.collected != progress.checkpointed
            or moments.count != progress.in_moments
            or self._screen.skipped != progress.skipped_before
        ):
            begun = self._begun = Joining(self._store.group)
            with begun:
                if self._store.trajectory is None:
                    self._store_diagonal(progress, moments, self._buffers)
                else:
                    self._checkpoint(progress.collected, moments)
            self._begun = None
        self._store.group.flush()

    def rewind(self, to: int | None = None) -> int:
        """Go back to the last checkpoint, or to so many iterates, forgetting what came after.

        For going on with a training that was interrupted, from the state that `on_checkpoint`
        stored, or from a file of your own that says how many iterates there were.

        Parameters
        ----------
        to
            Iterates that remain; those of the last checkpoint if None. The counts of weights that
            were not collected go back to the last checkpoint's.

        Returns
        -------
        int
            Iterates that remain.

        Raises
        ------
        WindowError
            There are not so many; or, with `max_rank`, the last checkpoint has more.
        """
        self._refuse_closed()
        self._sync()
        self._store.rewind(to)
        self._load()
        return self._sync().collected

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
        try:
            if not self.closed:
                if checkpoint:
                    self.flush()
                self._ended = self._sync() if self._keeps_all else self._caught_up()[0]
        finally:
            # Again at a second call, should an interrupt come in between.
            if self._ended is None:
                count = self._moments.count
                skipped = self._screen.skipped
                self._ended = Progress(count, count, count, skipped, skipped)
            self._worker.stop()
            self._end_what_was_begun()
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
