"""Ending training in a checkpoint when a scheduler asks for the machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Preemption"]


class Preemption:
    """Notes a signal that asks training to end, so that it ends after a step and not within one.

    Slurm, Kubernetes and others send SIGTERM, wait for a time of grace, and then send SIGKILL.
    Inside the block SIGTERM only sets `requested`; the loop looks at it after each step, takes its
    checkpoint, and leaves. A second SIGTERM does what the first would have done without the block.

    Parameters
    ----------
    signals
        To note; none, and nothing is done. Slurm sends others with ``--signal=USR1@120``, so many
        seconds before the end.

    Raises
    ------
    ValueError
        The block is entered on another thread than the main one, which alone gets signals.

    Notes
    -----
    Each process of a distributed training notes its own signal, and perhaps at another step than
    the others: let them agree, for example by ``all_reduce`` of `requested`, before they leave the
    loop. Lightning, and a Trainer with ``enable_jit_checkpoint``, have handlers of their own.

    Examples
    --------
    >>> import os, signal, torch, swag
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with swag.Preemption() as preemption, swag.SWAG(model, "memmap:./preempted") as posterior:
    ...     for step in range(1000):
    ...         optimizer.zero_grad()
    ...         (model(torch.ones(2, 3)) - 100).square().mean().backward()
    ...         optimizer.step()
    ...         posterior.update_parameters(model)
    ...         if step == 9:
    ...             os.kill(os.getpid(), signal.SIGTERM)  # stands for the scheduler's
    ...         if preemption.requested:
    ...             posterior.flush()
    ...             torch.save({"step": step, "model": model.state_dict()}, "checkpoint.pt")
    ...             break
    >>> posterior.n_averaged
    10
    """

    def __init__(self, signals: Iterable[int] = (signal.SIGTERM,)) -> None:
        self._signals = tuple(signals)
        self._before: dict[int, Any] = {}
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come since the block was entered."""
        return self._requested

    def __enter__(self) -> Self:
        if self._signals and threading.current_thread() is not threading.main_thread():
            raise ValueError(
                "Preemption has to be entered on the main thread, which alone gets signals"
            )
        self._requested = False
        for number in self._signals:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in self._signals:
            self._give_back(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self._give_back(number)

    def _give_back(self, number: int) -> None:
        # None: somebody set it from C, and Python cannot name it.
        if signal.getsignal(number) == self._note and self._before[number] is not None:
            signal.signal(number, self._before[number])
