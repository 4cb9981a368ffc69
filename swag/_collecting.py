"""The work of collecting: one iterate after another, each in a transaction of its own.

Nobody keeps a count of his own. What is collected is what the group says (`swag._store`), so that
no interrupt and no rollback can set the two at odds; `Collecting._sync` finds it out each time.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pmarray
from pmarray.errors import ClosedError, LoanError
from pmarray.locks import RLock
from swag._attached import Attached, is_better_beside
from swag._behind import Behind, Brought, Shared, Staging, Taken, WeightsChangedError, memory_of
from swag._buffers import Buffers
from swag._devices import KINDS
from swag._joining import Joining
from swag._moments import Moments
from swag._projections import COUNT, WEIGHTS, Path, Projections
from swag._records import Progress
from swag._screening import NoIterateError, Screen
from swag._sharding.agreement import GivenUpError
from swag._sharding.parts import Part
from swag._statistics import Observed
from swag._stats import Clock
from swag._store import Store
from swag._summing import Summing
from swag._target import COLLECTING
from swag._trajectory import as_tensor
from swag._worker import Worker
from swag.errors import StoreError, SwagWarning
from swag.posterior import Posterior

__all__ = ["Collecting"]

Column = NDArray[np.generic]


class Collecting(Posterior):
    """A posterior that grows.

    Parameters
    ----------
    store
        Where it is kept.
    screen
        Says what is an iterate.
    on_checkpoint
        Called inside the transaction of every checkpoint.
    part
        What the store is of a posterior whose weights are spread over processes.
    """

    _store: Store

    def __init__(
        self,
        store: Store,
        screen: Screen,
        on_checkpoint: Callable[[pmarray.Group], object] | None,
        part: Part | None,
    ) -> None:
        self._turn = RLock()
        """Held by whoever collects, or asks what was collected: what one has begun, another thread
        would take for something that an interrupt has left."""
        _ALL.add(self)
        COLLECTING[id(self)] = self
        self._store = store
        self._part = part
        self._screen = screen
        self._on_checkpoint = on_checkpoint
        # What was begun and has not ended: for whoever comes after an interrupt.
        self._begun: Joining | None = None
        self._loan: AbstractContextManager[Any] | None = None
        self._behind: Behind | None = None
        """The iterate that the thread copies, until somebody has asked what came of it."""
        self._staging: dict[torch.device, Staging] = {}
        """Of devices that iterates were brought from."""
        self._calling = False
        self._ended: Progress | None = None
        self._attached = Attached(self._wait)
        self._stepping = Clock()
        self._trusting = True
        """Until weights have changed while they were copied."""
        self._keeps_all = store.configuration.max_rank is None
        n = store.table.size
        has_stripes = part is None and n > COUNT * WEIGHTS
        self._projections = Projections(n) if has_stripes else None
        """Taken behind; of smaller networks the trajectory is read as quickly."""
        try:
            self._worker = Worker("swag-collecting")
            self._summing = Summing(store)
            self._load()
        except BaseException:
            store.close()
            raise

    def _load(self) -> None:
        """Begin from what the store holds."""
        progress = self._loaded = self._store.progress()
        self._screen.skipped = progress.skipped
        self._summing.load(progress.collected)
        self._left = progress.collected
        """Iterates when this collected last: if there are others, something else has happened."""
        self._buffers = self._store.read_buffers()
        self._anchor: Tensor | None = None
        # Without a trajectory: two columns, so that one can be compared with the one before.
        self._spare: list[Column] = []
        self._spare_of = 0
        """Iterates collected when the last of the two was written."""

    # -- of one mind with the group -------------------------------------------------------------

    def _sync(self, *, with_moments: bool = True) -> Progress:
        """Wait for the threads and look at the group; say how far collection has come.

        Whatever was interrupted or rolled back before is over after this, and may be interrupted
        too: nothing is believed here that the group does not say. Moments of a ring that are
        still being taken need not be waited for, since the next iterate does not touch the
        columns they are of: those are forgotten at a checkpoint, and overwritten after it.
        """
        if self._ended is not None:
            return self._ended
        if self._calling:
            return self._store.progress()  # asked by what is called at a checkpoint
        self._learn()
        self._end_what_was_begun()
        progress = self._store.progress()
        if with_moments or self._store.trajectory is None or progress.collected != self._left:
            self._summing.settle()
            if progress.collected < self._left:
                self._summing.turn_back()
            self._left = progress.collected
        if self._store.trajectory is None:
            # Between checkpoints, memory is all there is.
            if self._summing.moments.count < progress.collected:
                self._load()
            count = self._summing.moments.count
            progress = replace(progress, collected=count, skipped=self._screen.skipped)
        elif not progress.in_moments <= self._summing.moments.count <= progress.collected:
            self._load()
        if not progress.collected:
            self._anchor = None
        elif self._anchor is None:
            self._anchor = self._store.read_anchor()
        return progress

    def _joining(self) -> Joining:
        """A transaction that is noted before it begins: whoever comes next ends what is left."""
        self._begun = Joining(self._store.group)
        return self._begun

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
        self._catch_up(progress.collected)
        return progress, self._summing.moments

    def _catch_up(self, collected: int) -> None:
        """Take the moments of so many iterates."""
        is_ring = self._store.ring is not None and self._store.trajectory is not None
        if collected and is_ring:
            self._summing.catch_up(collected, self._origin)
        moments = self._summing.moments
        if since := range(moments.count, collected):  # there, it says why it has failed
            self._summing.moments = moments.rolled_forward(self._store.columns(since))

    # -- one iterate ----------------------------------------------------------------------------

    def _collect(
        self,
        progress: Progress,
        taken: Taken,
        due: bool,
        behind: Behind | None = None,
    ) -> None:
        """Collect an iterate, on the thread that calls."""
        self._screen.begin()
        try:
            if self._store.trajectory is None:
                self._collect_moments(progress, taken, due, behind)
            else:
                self._collect_column(progress, taken, due, behind)
        except NoIterateError:
            self._store.cut(progress.collected)  # unless that was rolled back
        except BaseException:
            self._end_what_was_begun()  # now, so that the group is free for others at once
            self._screen.failed(progress.collected)
            raise
        self._begun = None

    def _may_copy_behind(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        held: Sequence[Tensor],
        due: bool,
    ) -> bool:
        """Whether the next iterate may be copied while training goes on.

        Only in a group that nobody else has: what others write while the transaction is open would
        be a part of it, and be taken back with it.
        """
        return (
            self._trusting
            and not due
            and self._anchor is not None
            and self._store.trajectory is not None
            and self._store.owned
            and self._attached.may_copy_behind(model, parameters, held)
        )

    def _collect_behind(self, behind: Behind, progress: Progress) -> None:
        """The same on the thread."""
        try:
            self._collect(progress, behind.taken(), False, behind)
        except BaseException as error:
            behind.error = error
        finally:
            behind.end()

    def _waits_for_others(self, due: bool) -> bool:
        """Whether an iterate is copied at once, and the rest, on which all agree, done behind."""
        return self._part is not None and not due and self._anchor is not None

    def _begin(
        self,
        progress: Progress,
        model: nn.Module,
        parameters: list[nn.Parameter],
        held: Sequence[Tensor],
        loss: float | Tensor | None,
    ) -> None:
        """Collect an iterate here, or begin to on the thread."""
        due = (progress.collected + 1) % self._store.configuration.checkpoint_every == 0
        if self._may_copy_behind(model, parameters, held, due):
            self._begin_behind(self._behind_of(model, held, loss), progress)
        elif self._waits_for_others(due):
            self._begin_behind(Shared(self._taken(model, held, loss), ()), progress)
            self._wait()
        else:
            self._collect(progress, self._taken(model, held, loss), due)

    def _begin_behind(self, behind: Behind, progress: Progress) -> None:
        self._behind = behind
        self._worker.put(lambda: self._collect_behind(behind, progress))

    def _behind_of(
        self, model: nn.Module, held: Sequence[Tensor], loss: float | Tensor | None
    ) -> Behind:
        device, held = held[0].device, memory_of(held)
        if (kind := KINDS.get(device.type)) is None:
            return Shared(self._taken(model, held, loss), held)
        staging = self._staging.get(device)
        if staging is None:
            staging = self._staging[device] = Staging(kind(device))
        return Brought(staging, model, held, loss, self._attached.terms())

    def _taken(
        self, model: nn.Module, held: Sequence[Tensor], loss: float | Tensor | None
    ) -> Taken:
        """What there is to collect now, of which only the weights stay for a while."""
        known = loss.detach() if isinstance(loss, Tensor) else loss
        observed = Observed(None if known is None else float(known), self._attached.terms())
        first = self._part is None or self._part.agreement.rank == 0
        return Taken(held, Buffers.of(model) if first else Buffers(), observed)

    def _wait(self) -> None:
        """Return when weights may change."""
        if (behind := self._behind) is not None:
            with self._stepping.running():
                behind.wait(self._worker.alive)

    def _wait_for(self, weights: Sequence[Tensor]) -> None:
        """Return when these weights may change, should they be those of an iterate."""
        if (behind := self._behind) is not None and behind.reads(weights):
            self._wait()

    def _learn(self) -> None:
        """What came of the iterate that the thread had to copy; raises why it was not collected."""
        if (behind := self._behind) is None:
            return
        self._worker.settle()
        self._behind = None
        if isinstance(behind.error, WeightsChangedError):
            self._trusting = False
            warnings.warn(
                "weights changed after update_parameters and before the optimizer's step, so that "
                "an iterate was lost: call wait() before you change them. From now on "
                "update_parameters copies them before it returns",
                SwagWarning,
                stacklevel=4,
            )
        elif behind.error is not None and not isinstance(behind.error, GivenUpError):
            raise behind.error

    def _collect_column(
        self,
        progress: Progress,
        taken: Taken,
        due: bool,
        behind: Behind | None,
    ) -> None:
        store, count = self._store, progress.collected + 1
        if due:
            self._prepare_checkpoint(progress.collected)
        with self._joining():
            loan = self._loan = self._borrow(progress.collected)
            with loan as lent:
                column = lent[:, 0] if lent.ndim == 2 else lent
                sums = self._write(progress, taken.weights, column, behind)
                path = None if behind is None else self._projected(column)
            self._loan = None
            if count == 1:
                assert self._anchor is not None
                store.write_anchor(self._anchor)
            store.record(count, self._screen.skipped)
            store.write_buffers(taken.buffers)
            if self._part is None:
                store.statistics.record(progress.collected, taken.observed, path)
            if due:
                self._checkpoint(count, self._summing.moments)
        self._screen.note(progress.collected, sums)
        self._left = count
        if store.ring is not None and not due:
            self._summing.follow(count, self._origin, waits=self._waits(taken, behind))

    def _prepare_checkpoint(self, collected: int) -> None:
        """Have the moments of all iterates so far, which a checkpoint stores beside one more.

        In all parts of a posterior, these iterates are durable then: none has to go behind them.
        """
        if self._store.ring is not None:
            self._make_durable_in_all_parts()
            self._catch_up(collected)

    def _collect_moments(
        self, progress: Progress, taken: Taken, due: bool, behind: Behind | None
    ) -> None:
        """The same without a trajectory: a checkpoint has a transaction, and nothing else."""
        if due:
            self._make_durable_in_all_parts()
        if not self._spare:
            dtype = self._store.numpy_dtype
            self._spare = [np.empty(self._table.size, dtype) for _ in range(2)]
        column, count = self._spare[progress.collected % 2], progress.collected + 1
        sums = self._write(progress, taken.weights, column, behind)
        self._spare_of = count
        if not due:
            # On the thread, where no interrupt comes between the two.
            take = partial(setattr, self, "_buffers", taken.buffers)
            self._summing.accumulate(column, self._origin, take)
        else:
            moments = self._summing.moments.copy().with_columns([column], self._origin)
            with self._joining():
                self._store_diagonal(progress, moments, taken.buffers)
            self._summing.moments, self._buffers = moments, taken.buffers
        self._screen.note(progress.collected, sums)

    def _waits(self, taken: Taken, behind: Behind | None) -> bool:
        """Whether training waits while moments are taken.

        Beside training on all cores they take more than twice the time of all of these.
        """
        nbytes, here = self._store.column_bytes, all(tensor.is_cpu for tensor in taken.weights)
        return behind is None and here and not is_better_beside(nbytes)

    def _borrow(self, iterate: int) -> AbstractContextManager[Column]:
        """The memory of the next column, shape (n,) or (n, 1)."""
        trajectory = self._store.trajectory
        assert trajectory is not None
        slot = self._store.slot(iterate)
        if slot < trajectory.shape[1]:
            return trajectory.writing((slice(None), slot))
        return trajectory.appending()

    def _write(
        self,
        progress: Progress,
        parameters: Sequence[Tensor],
        memory: Column,
        behind: Behind | None = None,
    ) -> Tensor:
        """Write the next column, and see whether it is one; return its sums."""
        column = as_tensor(memory)
        sums = self._table.collect(parameters, column)
        if behind is not None:
            behind.check()
            behind.let_go()
        self._screen.look_at(
            progress.collected, column, sums, lambda: self._column_before(progress.collected)
        )
        if not progress.collected:
            self._anchor = column.to(self._table.dtype, copy=True)
        return sums

    def _projected(self, column: Column) -> Path | None:
        """A few numbers of an iterate that is in memory, if they are taken; on the thread."""
        return None if self._projections is None else self._projections.of_one(column, self._origin)

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

    def _checkpoint(self, collected: int, moments: Moments) -> None:
        """Store the moments and what the caller adds; in a transaction."""
        self._store.checkpoint(collected, moments, self._screen.skipped)
        if self._on_checkpoint is not None:
            self._calling = True
            try:
                self._on_checkpoint(self._store.group)
            finally:
                self._calling = False

    def _everywhere(self, work: Callable[[], object]) -> None:
        """Do something here, and return when all other processes that collect have done it, too."""
        if self._part is None:
            work()
        else:
            self._part.agreement.together(work)

    def _make_durable_in_all_parts(self) -> None:
        if self._part is not None:
            self._everywhere(self._store.group.flush)

    def _store_diagonal(self, progress: Progress, moments: Moments, buffers: Buffers) -> None:
        """Store all there is of a posterior without a trajectory; in a transaction."""
        if not progress.in_moments and self._anchor is not None:
            self._store.write_anchor(self._anchor)
        self._store.write_buffers(buffers)
        self._checkpoint(moments.count, moments)

    def _own_moments(self) -> tuple[int, Tensor, Tensor]:
        """Iterates, and mean and variance of what is in the store of this process."""
        with self._turn:
            progress, moments = self._caught_up()
            anchor = (
                torch.zeros(self._table.size, dtype=torch.float32, device="cpu")
                if self._anchor is None
                else self._anchor
            )
            mean = anchor + torch.from_numpy(moments.mean)
            return progress.collected, mean, torch.from_numpy(moments.variance)

    def _refuse_part(self) -> None:
        """Raise if there is only a part of the posterior here."""
        if self._part is not None:
            raise StoreError(
                "each process has only a part of this posterior: call flush() in all of them, and "
                "open the whole with swag.load(store)"
            )


_ALL: weakref.WeakSet[Collecting] = weakref.WeakSet()


def _begin_in_child() -> None:
    for collecting in list(_ALL):
        collecting._turn = RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
