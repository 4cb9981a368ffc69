"""Collecting iterates while a network trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

import pmarray
from swag._beginning import OnFull, OnNonfinite, Wishes, begin
from swag._buffers import Buffers
from swag._ending import LOGGER, Ending
from swag._held import reshard
from swag._location import Location, Mode
from swag._moments import Moments, OnDemand
from swag._schedule import Schedule
from swag._screening import Screen
from swag._selecting import Parameters
from swag._space import free_bytes, is_full
from swag._stats import Clock, Stats
from swag._target import refuse_drawn
from swag.errors import SwagWarning, WindowError
from swag.posterior import Known, StoredPosterior, window
from swag.sampling import Center, Gaussian

__all__ = ["SWAG", "Stats"]


class SWAG(Ending):
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

    A model whose parameters are spread over processes, by ``torch.distributed.fsdp.fully_shard`` or
    otherwise as DTensors, is collected by all of them: each makes a ``SWAG`` with the same
    arguments and calls the same methods, and writes what it holds into a part of its own, without
    communication in a step. `swag.load` opens the parts as one posterior. A model of which every
    process has a copy (DistributedDataParallel) is collected by one of them.

    Inside a transaction of your own in the group, on the same thread, collecting is a part of it.
    With ``max_rank=0`` iterates are in memory until a checkpoint, and only that takes part.

    Other threads may ask for the posterior while one collects, or collect into it, too: they take
    turns. A model is one thread's: each predicts with one of its own.

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
    start, every
        Calls of `update_parameters` that do nothing before the first that collects, which are the
        burn-in, and calls from one that collects to the next. Where the store is gone on with,
        calls are counted from its last iterate; a loop that resumes elsewhere counts its steps, and
        tells them to `swag.integrations.Collector`.
    checkpoint_every
        Collections from one checkpoint, which stores mean and variance, to the next: 100, or what a
        store has that is gone on with, if None. With `max_rank` it is also half the number of spare
        columns in the store: if None, such as take 4 GiB, or 256 MiB of memory, but 50 at least.
    on_checkpoint
        Called with the group inside the transaction of every checkpoint, on the thread that
        collects: what it writes there, such as the state of training, is there exactly if the
        checkpoint is. If it raises, the iterate is not collected; in a transaction of your own,
        which you have to roll back then.
    on_nonfinite
        ``"skip"``, as above, or ``"raise"``, to raise `NonFiniteError` instead.
    on_full
        ``"raise"`` the error when the disk is full, the quota used up, a file as large as it may
        be (``ulimit -f``), or memory where that is the store; or ``"stop"`` collecting then, with a
        `SwagWarning`, and let training go on: further calls do nothing. What was durable stays.
    expected
        Iterates that the run will collect, if that is known. Where they, or those of `max_rank`, do
        not find room on the disk or in memory, a `SwagWarning` says so at once.
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
        start: int = 0,
        every: int = 1,
        checkpoint_every: int | None = None,
        on_checkpoint: Callable[[pmarray.Group], object] | None = None,
        on_nonfinite: OnNonfinite = "skip",
        on_full: OnFull = "raise",
        expected: int | None = None,
        parameters: Parameters | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        wishes = Wishes(
            max_rank=max_rank,
            mode=mode,
            start=start,
            every=every,
            checkpoint_every=checkpoint_every,
            has_own_checkpoints=on_checkpoint is not None,
            on_nonfinite=on_nonfinite,
            on_full=on_full,
            expected=expected,
            parameters=parameters,
            dtype=dtype,
        )
        begun = begin(model, store, wishes)
        self._whole, self._chosen = begun.whole, begun.chosen
        screen = Screen(
            begun.store.table,
            raise_nonfinite=on_nonfinite == "raise",
            settle=None if begun.part is None else begun.part.agreement.settle,
        )
        schedule = Schedule(start, every)
        super().__init__(begun.store, screen, on_checkpoint, begun.part, schedule)
        self._on_full, self._updating = on_full, Clock()
        LOGGER.info("collecting into %s: %s", begun.store.url, self.stats())

    # -- how far it has come ---------------------------------------------------------------------

    @property
    def n_averaged(self) -> int:
        """Iterates collected."""
        with self._turn:
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
    def rank(self) -> int:
        """Columns of the low-rank part, the iterates that are held; fewer than two make none."""
        return self._store.kept(self.n_averaged)

    @property
    def n_nonfinite(self) -> int:
        """Weights that were not collected since they were not finite."""
        with self._turn:
            self._sync()
            return self._screen.skipped.nonfinite

    @property
    def n_repeated(self) -> int:
        """Weights that were not collected since they were those of the last iterate."""
        with self._turn:
            self._sync()
            return self._screen.skipped.repeated

    @property
    def group(self) -> pmarray.Group:
        """The group that holds the posterior, for arrays and attributes of your own.

        With an optimizer attached, `flush` before you write to it outside `on_checkpoint`: while
        an iterate is copied behind, a transaction is open, and what you write would be taken back
        with it.

        Examples
        --------
        >>> import torch, swag
        >>> posterior = swag.SWAG(torch.nn.Linear(3, 1))
        >>> posterior.group.attrs["seed"] = 1
        """
        return self._store.group

    # -- collecting -----------------------------------------------------------------------------

    def update_parameters(self, model: nn.Module, *, loss: float | Tensor | None = None) -> None:
        """Collect the weights as they are now.

        Takes one pass over memory. Waits only where a checkpoint is due, where another thread has a
        transaction open in the group, where the cache is full because the medium is slower than
        training, or, with ``max_rank=0``, where the moments of the previous iterate are still being
        taken. With `max_rank`, where training has all cores and the weights take less than 64 MB,
        it takes the moments as well: beside training they would hold it up longer.

        Parameters
        ----------
        model
            Has the parameters that the posterior is of.
        loss
            Of the minibatch before, kept with the iterate for `suggest_burn_in`; None if it is not
            known. Not kept with ``max_rank=0``, nor where weights are spread over processes.

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
        refuse_drawn(model)
        with self._turn:
            self._refuse_closed()
            if not self._full and self._schedule.due(self._calls, self._calls + 1):
                with self._going_on(), self._updating.running():
                    self._update(model, loss)
            self._calls += 1
            self._screen.tell()  # a warning that is made an error changes nothing

    def flush(self) -> None:
        """Take a checkpoint, and return when everything collected so far is durable.

        Of a model that is spread over processes, when it is durable in all of them. Where the disk
        is full, with ``on_full="stop"``, what finds room is durable, and collecting ends.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`.
        """
        with self._going_on():
            super().flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Let training go on where there is no room for more, if that is what is to be done."""
        try:
            yield
        except (OSError, MemoryError) as error:
            if self._on_full == "raise" or not is_full(error, self._store.url):
                raise
            self._stop(error)

    def _stop(self, error: OSError | MemoryError) -> None:
        """There is no room: collect no more."""
        if self._full:
            return
        self._full = True
        self._attached.detach()
        warnings.warn(
            f"{self._store.url} is full: collecting has ended, and training goes on; the iterates "
            "that were durable, or are in memory, stay there "
            f"({error.strerror if isinstance(error, OSError) else error})",
            SwagWarning,
            stacklevel=5,
        )

    def _update(self, model: nn.Module, loss: float | Tensor | None) -> None:
        if self._part is not None:
            reshard(model)
        parameters = self._whole.find_all(model, self._chosen)
        self._screen.look_for_frozen(parameters)
        held = parameters if self._part is None else self._part.held(parameters)
        self._take_over()
        progress = self._sync(with_moments=False)
        self._begin(progress, model, parameters, held, loss)
        self._attached.collected()
        LOGGER.debug("collected beside %d iterates", progress.collected)

    def attach(self, optimizer: torch.optim.Optimizer, *, gradients: bool = False) -> None:
        """Let `update_parameters` return at once, and `optimizer.step` wait for it.

        Weights do not change from one step to the next. With the optimizer attached they are
        copied on a thread while the next forward and backward pass run, and the step waits until
        that is done (`torch.optim.Optimizer.register_step_pre_hook`), which changes nothing in
        training. Attach each of several optimizers.

        A CUDA device copies them to page-locked host memory on a stream of its own. The training
        stream waits for that before the step, over there; this thread waits for neither. The host
        memory, as much as the weights take, is kept.

        An iterate is copied behind where each optimizer has stepped since the last one, together
        they have every parameter collected, all in host memory or on one CUDA device, no embedding
        has a maximal norm, and the group was opened by the posterior; from host memory, where the
        weights take 64 MB or more, or PyTorch trains on fewer threads than there are cores
        (`torch.set_num_threads`): a short copy beside a training that has all cores costs more
        than one before it. Otherwise, and
        where a checkpoint is due, or with ``max_rank=0``, `update_parameters` copies before it
        returns. What it raises about an iterate that was copied behind, the next call raises.

        Weights that are changed by anything but the optimizers, before their next step, need
        `wait` first. Where that was forgotten and is noticed, the iterate is taken back, a
        `SwagWarning` says so, and nothing is copied behind any more; a change of a few weights
        through ``.data`` may not be noticed.

        Parameters
        ----------
        optimizer
            Steps the parameters, or some of them; wrapped by accelerate or not. Until `close`.
        gradients
            Whether to keep with every iterate what its gradients say of the end of the burn-in
            (`swag.gradients.Gradients`), for `suggest_burn_in`: four products of vectors as long as
            the weights at every step, on the thread that trains.

        Raises
        ------
        pmarray.errors.ClosedError
            Collection has ended.
        TypeError
            It is no optimizer; or, with `gradients`, not plain SGD.
        ValueError
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

        Does nothing where they are not being copied. On a CUDA device they may be changed by
        what this thread asks of its current stream from now on.

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

    def stats(self) -> Stats:
        """What collecting has cost so far, and what room there is; waits for no work behind.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(3, 1)
        >>> posterior = swag.SWAG(model, store="memmap:./posterior", mode="w")
        >>> posterior.update_parameters(model)
        >>> stats = posterior.stats()
        >>> stats.collected, stats.iterate_bytes, stats.room > 1000
        (1, 16, True)
        >>> posterior.close()
        """
        with self._turn:
            if self._ended is not None:
                collected = self._ended.collected
            elif self._store.trajectory is None:
                # The thread may still be at the last.
                collected = max(self._summing.moments.count, self._spare_of)
            else:
                collected = self._store.progress().collected
        skipped, behind = self._screen.skipped, self._behind
        return Stats(
            collected=collected,
            behind=int(behind is not None and not behind.over),
            skipped=skipped.nonfinite + skipped.repeated,
            iterate_bytes=self._store.column_bytes,
            free_bytes=free_bytes(self._store.url),
            update_seconds=self._updating.seconds,
            step_seconds=self._stepping.seconds,
        )

    def __repr__(self) -> str:
        count, size = self.stats().collected, self._table.size
        iterates = f"{count:,} iterate{'s' * (count != 1)} of {size:,} weights"
        kept = f"max_rank={self._store.configuration.max_rank}"
        return f"<SWAG {self._store.url} {iterates}, {kept}{', closed' * self.closed}>"

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
        self._refuse_part()
        with self._turn:
            if self._keeps_all:
                progress = self._sync()
                at_hand = self._summing.moments.count == progress.collected
                moments = self._summing.moments if at_hand else None
            else:
                progress, last = self._caught_up()
                moments = last.copy()
            known = Known(moments, self._anchor, self._last_buffers())
            return window(self._store, progress.collected, start, every, rank, center, stop, known)

    def _gaussian(self) -> Gaussian:
        self._refuse_part()
        with self._turn:
            progress = self._sync() if self._keeps_all else self._caught_up()[0]
            collected, anchor = progress.collected, self._anchor
            if anchor is None or not collected:
                raise WindowError("nothing has been collected yet")
            moments = self._summing.moments
            kept = range(collected - self._store.kept(collected), collected)
            columns = self._store.columns(kept, anchor) if kept else None
            if not self._keeps_all:  # the thread goes on with them
                return Gaussian(self._table, anchor, OnDemand(moments.copy()), columns, "running")
            missing = range(moments.count, collected)
            since = self._store.columns(missing, anchor) if missing else None
            on_demand = OnDemand(moments, since, partial(self._learn_moments, self._summing.era))
            return Gaussian(self._table, anchor, on_demand, columns, "running")

    def _learn_moments(self, era: int, moments: Moments) -> None:
        with self._turn:
            self._summing.learn(era, moments)

    def _last_buffers(self) -> Buffers:
        with self._turn:
            if self._store.trajectory is not None:
                return self._store.read_buffers()
            self._sync()  # they come with the moments
            return self._buffers
