"""Collecting iterates while a network trains."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

import pmarray
from pmarray.errors import ClosedError
from swag._attached import Behind
from swag._buffers import Buffers
from swag._collecting import Collecting
from swag._joining import Joining
from swag._parameters import DTYPES, chosen_of
from swag._records import Progress
from swag._screening import Screen
from swag._selecting import Parameters
from swag._statistics import Observed
from swag._store import Location, Mode, Store
from swag._target import refuse_drawn
from swag.posterior import Known, StoredPosterior, window
from swag.sampling import Center

__all__ = ["SWAG"]


class SWAG(Collecting):
    """A Gaussian posterior over a network's weights, collected while it trains.

    Every collected iterate is kept as a column of a `pmarray` array, so that the posterior may
    outgrow memory. `update_parameters` writes the iterate straight into the memory that will be
    written out, and a thread writes behind. Every collection is one transaction, and those of a
    twentieth of a second become durable together: after a crash the posterior is that of some
    iterate, whole, and of the very last one after `flush` and `close`. An interrupt, or anything
    else that is raised meanwhile, is the same: the iterate is collected or it is not, and
    collection may go on.

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
        opened = Store.create(store, model, max_rank, checkpoint_every, dtype, mode, self._chosen)
        screen = Screen(opened.table, raise_nonfinite=on_nonfinite == "raise")
        super().__init__(opened, screen, on_checkpoint)

    # -- how far it has come ---------------------------------------------------------------------

    @property
    def n_averaged(self) -> int:
        """Iterates collected."""
        if (
            self._behind is None
            and self._begun is None
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

    def update_parameters(self, model: nn.Module, *, loss: float | Tensor | None = None) -> None:
        """Collect the weights as they are now.

        Takes one pass over memory. Waits only where the moments of the previous iterate are still
        being taken, where a checkpoint is due, where another thread has a transaction open in the
        group, or where the cache is full because the medium is slower than training.

        Parameters
        ----------
        model
            Has the parameters that the posterior is of.
        loss
            Of the minibatch before, kept with the iterate for `suggest_burn_in`; None if it is not
            known. Not kept with ``max_rank=0``.

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
        known = loss.detach() if isinstance(loss, Tensor) else loss
        observed = Observed(None if known is None else float(known), self._attached.terms())
        if self._may_copy_behind(model, parameters, due):
            behind = self._behind = Behind(parameters)
            self._worker.put(
                lambda: self._collect_behind(behind, progress, parameters, buffers, observed)
            )
        else:
            self._collect(progress, parameters, buffers, due, observed)
        self._attached.collected()
        self._screen.tell()

    def attach(self, optimizer: torch.optim.Optimizer, *, gradients: bool = False) -> None:
        """Let `update_parameters` return at once, and `optimizer.step` wait for it.

        Weights do not change from one step to the next. With the optimizer attached they are
        copied on a thread while the next forward and backward pass run, and the step waits until
        that is done (`torch.optim.Optimizer.register_step_pre_hook`), which changes nothing in
        training. Attach each of several optimizers.

        An iterate is copied behind where each optimizer has stepped since the last one, together
        they have every parameter collected, in host memory, no embedding has a maximal norm, and
        the group was opened by the posterior. Otherwise, and where a checkpoint is due, or with
        ``max_rank=0``, `update_parameters` copies before it returns. What it raises about an
        iterate that was copied behind, the next call raises.

        Weights that are changed by anything but the optimizers, before their next step, need
        `wait` first. Where that was forgotten and is noticed, the iterate is taken back, a
        `SwagWarning` says so, and nothing is copied behind any more; a change of a few weights
        through ``.data`` may not be noticed.

        Parameters
        ----------
        optimizer
            Steps the parameters, or some of them. Until `close`.
        gradients
            Whether to keep with every iterate what its gradients say of the end of the burn-in
            (`swag.gradients.Gradients`), for `suggest_burn_in`: four products of vectors as long as
            the weights at every step, on the thread that trains.

        Raises
        ------
        pmarray.errors.ClosedError
            Collection has ended.
        TypeError, ValueError
            With `gradients`: the optimizer is not plain SGD.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> with swag.SWAG(model, store="memmap:./attached") as posterior:
        ...     posterior.attach(optimizer)
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         (model(torch.ones(2, 3)) - 100).square().mean().backward()
        ...         optimizer.step()
        ...         posterior.update_parameters(model)
        ...     posterior.n_averaged
        10
        """
        self._refuse_closed()
        self._attached.add(optimizer, gradients=gradients)

    def wait(self) -> None:
        """Return when the weights may be changed by hand; see `attach`.

        Does nothing where they are not being copied.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(3, 1)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> posterior.wait()
        >>> _ = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        """
        self._wait()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ClosedError("collection has ended: the posterior is closed")

    # -- the posterior so far -------------------------------------------------------------------

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
        self._screen.tell()
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
            self._attached.detach()
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
