"""What the processes of a training say to one another about what they collect.

Over a group of their own, of CPUs, so that nothing said here comes between the collectives of the
training; and from the thread that collects, so that training does not wait for it. Every process
says as much, in the same order.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from swag._screening import Vote
from swag.errors import StoreError

__all__ = ["Agreement", "GivenUpError"]

_ALL: weakref.WeakSet[Agreement] = weakref.WeakSet()

T = TypeVar("T")
_LEAST_SECONDS, _MOST_SECONDS = 0.0001, 0.005
"""From one look whether all have answered to the next."""


class GivenUpError(StoreError):
    """Collection was ended here while other processes were waited for."""


class Agreement:
    """A group of all processes of the training.

    Every process makes one at the same time.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self.rank = dist.get_rank(self._group)
        self.size = dist.get_world_size(self._group)
        self._given_up = False
        _ALL.add(self)

    def settle(self, vote: Vote, iterate: int) -> Vote:
        """Vote on an iterate; return what all make of it.

        ``NONFINITE`` if one said so, ``REPEATED`` if all did, else ``FINE``.

        Raises
        ------
        StoreError
            One could not collect it, or they have not come equally far.
        GivenUpError
            `give_up` was called.
        """
        said = torch.tensor(
            [
                vote is Vote.FAILED,
                vote is Vote.NONFINITE,
                vote is not Vote.REPEATED,
                iterate,
                -iterate,
            ],
            dtype=torch.int64,
            device="cpu",
        )
        self._wait(dist.all_reduce(said, dist.ReduceOp.MAX, self._group, async_op=True))
        failed, nonfinite, moved, most, least = said.tolist()
        if failed or most != -least:
            raise StoreError(
                f"iterate {iterate} was not collected: "
                + (
                    "another process could not"
                    if failed
                    else "the processes have come unequally far"
                )
                + '; open the posterior again with mode="a" to go on'
            )
        if nonfinite:
            return Vote.NONFINITE
        return Vote.FINE if moved else Vote.REPEATED

    def least(self, number: int) -> int:
        """The smallest number that one of them has."""
        said = torch.tensor([number], dtype=torch.int64, device="cpu")
        self._wait(dist.all_reduce(said, dist.ReduceOp.MIN, self._group, async_op=True))
        return int(said)

    def gather(self, value: T) -> list[T]:
        """What each has, in the order of their ranks."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """Do something everywhere; if it fails on one process, it fails on all of them.

        Raises
        ------
        StoreError
            It failed on another process.
        BaseException
            Whatever it raised here.
        """
        error: BaseException | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise StoreError(f"process {rank} could not do its part: {failure}")
        return result

    def first(self, work: Callable[[], T]) -> T:
        """Do something on the first process; return what it gave, everywhere.

        Raises
        ------
        StoreError, BaseException
            As `together`.
        """
        result = self.together(lambda: work() if self.rank == 0 else None)
        given = self.gather(result)[0]
        return cast(T, given)

    def give_up(self) -> None:
        """Wait for nobody any more."""
        self._given_up = True

    def close(self) -> None:
        """Let go of the group."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def _wait(self, work: Any) -> None:
        # Polled, so that a process that leaves training need not wait for one that has died.
        pause = _LEAST_SECONDS
        while not work.is_completed():
            if self._given_up:
                raise GivenUpError("collection was ended while other processes were waited for")
            time.sleep(pause)
            pause = min(2 * pause, _MOST_SECONDS)
        work.wait()


def _give_up_all() -> None:
    for agreement in list(_ALL):
        agreement.give_up()


# Before the threads that collect are waited for: another process may have died.
atexit.register(_give_up_all)
