"""Those that wait for the writer of a cache, or for loans of its memory to end."""

from __future__ import annotations

from collections import deque
from typing import Any

from pmarray._system.uninterrupted import caller
from pmarray.locks import Lock

__all__ = ["MustWait", "Waiting"]


class MustWait(Exception):  # noqa: N818  # it is no error, and never leaves the package
    """An attempt cannot go on before something is over."""

    def __init__(self, *, for_loans: bool = False) -> None:
        super().__init__()
        self.for_loans = for_loans


class Waiting:
    """Who waits on a raw lock of his own, to be woken whenever something is over."""

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()
        self.blocked: set[int] = set()
        """Threads that wait, and end no loan until they are done."""
        self.releases = 0
        """How many pins and loans have ended."""

    def enter(self) -> Any:
        """Return a lock to wait on, which `signal` releases from now on."""
        waiter = Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: Any) -> None:
        """Wait no more."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def signal(self) -> None:
        """Wake all that wait; needs no lock."""
        for waiter in tuple(self._waiters):
            try:
                waiter.release()
            except RuntimeError:
                pass  # somebody else has woken it

    def released(self, _: object = None) -> None:
        """A pin or a loan has ended, or has died."""
        self.releases += 1
        self.signal()

    def note_blocked(self) -> None:
        """Note that the caller is about to wait, and ends no loan until it is let in."""
        self.blocked.add(caller())
        self.signal()

    def note_free(self) -> None:
        """Note that it has been let in."""
        self.blocked.discard(caller())
