"""Programs of which it is known what a signal does to them: the rig finds that, and no more."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from pmarray.locks import Lock

__all__ = ["PROGRAMS_BY_NAME", "Program"]


class _Guard:
    """A lock that is taken in Python."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class Program:
    """Takes a lock, works, and gives it back."""

    def __init__(self, work: Callable[[Lock], None]) -> None:
        self.lock = Lock()
        self._work = work

    def operate(self) -> None:
        """Do so."""
        self._work(self.lock)


def _with_lock(lock: Lock) -> None:
    with lock:
        for text in ("1", "2"):
            int(text)


def _with_guard(lock: Lock) -> None:
    with _Guard(lock):
        int("1")


def _acquired(lock: Lock) -> None:
    lock.acquire()
    try:
        int("1")
    finally:
        lock.release()


def _twice(lock: Lock) -> None:
    # One exception leaves it free, and a second one in the handler of the first does not.
    with lock:
        pass
    try:
        int("1")
    except BaseException:
        int("2")
        lock.acquire()
        int("3")
        lock.release()
        raise


PROGRAMS_BY_NAME = {
    "with": _with_lock,
    "guard": _with_guard,
    "acquire": _acquired,
    "twice": _twice,
}
