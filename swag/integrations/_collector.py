"""What every loop needs beside collecting: when, and what to do where it resumes.

A framework resumes from a checkpoint of its own, and the store may be ahead of it: iterates were
collected after the checkpoint and before the process died. They are of a future that will not come,
and the store is cut back to the checkpoint. How many iterates there were at each is in the array
``checkpoints`` of the store, int64, shape (checkpoints, 2): the number of the optimizer step and
that of the iterates. It is written, and what was collected is made durable, before the framework
writes its own file, so that the store is never behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import nn
from torch.optim import Optimizer

import pmarray
from swag._joining import Joining
from swag._location import Location, Mode
from swag._schedule import Schedule
from swag.collect import SWAG
from swag.errors import StoreError, StoreExistsError

__all__ = ["Collector"]

_ARRAY = "checkpoints"


class Collector:
    """Collects a posterior in a training loop that counts its optimizer steps and resumes.

    Parameters
    ----------
    store
        URL of a `pmarray` group, or an open group.
    start
        Optimizer steps before the first that is collected: the burn-in.
    every
        Optimizer steps from one iterate to the next.
    mode
        ``"a"`` makes a new posterior, or goes on with the one there where training resumes;
        ``"w"`` replaces it where training begins from its start.
    **options
        Of `swag.SWAG`: ``max_rank=``, ``parameters=``, ``checkpoint_every=`` and others.

    Examples
    --------
    In a loop of your own, or of accelerate; ``step`` counts optimizer steps, not minibatches:

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with Collector("memmap:./posterior", start=4, every=2) as collector:
    ...     collector.begin(model, step=0, optimizers=[optimizer])  # or the step resumed
    ...     for step in range(1, 11):
    ...         optimizer.zero_grad()
    ...         (model(torch.ones(2, 3)) - 9).square().mean().backward()
    ...         optimizer.step()
    ...         collector.stepped(model, step)
    ...         if step % 5 == 0:
    ...             collector.saving(step)  # before torch.save, accelerator.save_state()
    ...     collector.posterior.n_averaged
    3
    """

    def __init__(
        self,
        store: Location,
        *,
        start: int = 0,
        every: int = 1,
        mode: Mode = "a",
        **options: Any,
    ) -> None:
        if mode not in ("a", "w"):
            raise ValueError(f"mode={mode!r}: use 'a' or 'w'")
        self._store = store
        self._schedule = Schedule(start, every)
        self._mode: Mode = mode
        self._options = options
        self._posterior: SWAG | None = None
        self._group: pmarray.Group | None = None
        self._step = 0

    @property
    def posterior(self) -> SWAG:
        """What is being collected.

        Raises
        ------
        RuntimeError
            Training has not begun, or has ended: `swag.load` opens the store.
        """
        if self._posterior is None:
            raise RuntimeError(
                "training has not begun, or has ended: swag.load(store) opens what was collected"
            )
        return self._posterior

    @property
    def collecting(self) -> bool:
        """Whether training has begun, here, and has not ended."""
        return self._posterior is not None

    def begin(
        self, model: nn.Module, step: int = 0, optimizers: Iterable[Optimizer] | Optimizer = ()
    ) -> None:
        """Training begins, from its start or from a checkpoint that was loaded.

        One that was begun before and did not `end` was interrupted: see `fail`.

        Parameters
        ----------
        model
            To be collected, as it is trained.
        step
            Optimizer steps done: 0, or those at the checkpoint. The store is cut back to what it
            held then.
        optimizers
            That step the model: with them, iterates are copied behind training, as
            `swag.SWAG.attach` has it.

        Raises
        ------
        StoreExistsError
            Training begins from its start, and the store has iterates that a checkpoint is of.
        StoreError
            The store does not know the checkpoint, or cannot go back to it.
        """
        self.fail()  # what was not ended was torn, and has no checkpoint where it stands
        if isinstance(optimizers, Optimizer):
            optimizers = [optimizers]
        mode: Mode = "w" if self._mode == "w" and not step else "a"
        posterior = SWAG(model, store=self._store, mode=mode, **self._options)
        group = posterior._store.group
        try:
            if mode == "w" and _ARRAY in group:
                del group[_ARRAY]
            if _ARRAY not in group:
                group.create(_ARRAY, (0, 2), "int64")
            self._cut_back(posterior, group, step)
            for optimizer in optimizers:
                posterior.attach(optimizer)
        except BaseException:
            posterior._close(checkpoint=False)
            raise
        self._posterior, self._group, self._step = posterior, group, step

    def _cut_back(self, posterior: SWAG, group: pmarray.Group, step: int) -> None:
        collected = posterior.n_averaged
        saved: np.ndarray[Any, Any] = np.asarray(group[_ARRAY][:])
        if not step and saved[:, 1].any():
            raise StoreExistsError(
                f"{group.url} holds a posterior of {collected} iterates already, and training "
                'begins anew: resume it from a checkpoint, or give mode="w" to replace what is '
                "there"
            )
        before = saved[saved[:, 0] <= step]
        if step and len(saved) and not len(before):
            first, known = saved[0].tolist()
            if known != self._schedule.count(0, first):  # some were left out since, or pruned
                raise self._unknown(group, collected, step, first)
        last, count = before[-1].tolist() if len(before) else (0, 0)
        if last < step:
            # A checkpoint that was not announced: what is due since has been collected.
            count += self._schedule.count(last, step)
            if posterior.n_nonfinite or posterior.n_repeated:
                count = -1
        if not 0 <= count <= collected:
            raise StoreError(
                f"{group.url} does not know the checkpoint at step {step} that is resumed: it has "
                f"{collected} iterates, and last saw a checkpoint at step {last}. Resume from "
                f"that one, or collect into another store"
            )
        if count != collected:
            posterior.rewind(count)
        if len(before) < len(saved):
            group[_ARRAY].resize((len(before), 2))

    @staticmethod
    def _unknown(group: pmarray.Group, collected: int, step: int, seen: int) -> StoreError:
        return StoreError(
            f"{group.url} does not know the checkpoint at step {step} that is resumed: it has "
            f"{collected} iterates, and saw a checkpoint at step {seen}. Resume from that one, or "
            "collect into another store"
        )

    def stepped(self, model: nn.Module, step: int) -> None:
        """So many optimizer steps are done: collect, if it is time.

        Parameters
        ----------
        model
            As it is trained; wrapped or not.
        step
            Optimizer steps done since training began, whatever was resumed in between. A call with
            the same number again, as at the minibatches of an accumulated gradient, does nothing.
        """
        if self._posterior is None or step <= self._step:
            return
        due = self._schedule.due(self._step, step)
        self._step = step
        if due:
            self._posterior.update_parameters(model)

    def wait(self) -> None:
        """Return when weights may be changed by something else than a step; see `swag.SWAG.wait`.

        As an exponential average does that is put in for an evaluation.
        """
        if self._posterior is not None:
            self._posterior.wait()

    def saving(self, step: int) -> None:
        """A checkpoint is about to be written: note it, and make what was collected durable.

        Call it before the checkpoint's file is written, so that the store has all that a training
        which resumes from it needs.
        """
        if self._posterior is None or self._group is None:
            return
        with self._posterior._going_on():
            row = [step, self._posterior.n_averaged]
            saved = self._group[_ARRAY]
            if not len(saved) or saved[-1].tolist() != row:
                with Joining(self._group):
                    saved.append(np.array([row]))
            self._posterior.flush()

    def end(self) -> None:
        """Training has ended: note it as a checkpoint, and close."""
        if self._posterior is not None:
            try:
                self.saving(self._step)
            finally:
                self._close(checkpoint=True)

    def fail(self) -> None:
        """Training was interrupted: close without a checkpoint; what was collected is kept."""
        self._close(checkpoint=False)

    def _close(self, *, checkpoint: bool) -> None:
        posterior, self._posterior, self._group = self._posterior, None, None
        if posterior is not None:
            posterior._close(checkpoint=checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.fail()
