"""Attempts: what is done under the cache's lock, again from its beginning until it need not wait.

Rules 1 and 6 of `_cache.cache`: nobody waits with the lock held, and the wait for loans that other
threads have not ended has an end.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pmarray._cache.health import Health
from pmarray._cache.memory import Memory
from pmarray._cache.waiting import MustWait, Waiting
from pmarray._cache.writer import Writer
from pmarray.errors import ReentrantCallError
from pmarray.locks import RLock

__all__ = ["Attempts"]

T = TypeVar("T")

_LOOK_SECONDS = 0.5
"""Who waits looks by himself as well: who should have woken him may have been torn away."""
LOAN_WAIT_SECONDS = 30.0
"""How long memory that is wanted waits for loans of other threads, of which none ends."""


class Attempts(ABC):
    """What a cache is, as far as its lock and the waiting for it go."""

    memory: Memory
    _writer: Writer
    lost: deque[Any]
    """What has to be forgotten before the next attempt."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.health = Health()
        self.waiting = Waiting()
        self._torn = False
        """Whether an attempt has begun and not ended."""

    @abstractmethod
    def _count_anew(self) -> None:
        """Put right what an attempt that was torn away may have left uncounted."""

    @abstractmethod
    def _forget_lost(self) -> None:
        """Forget it; it may be torn away, too."""

    def check(self) -> None:
        """The same for a look at one chunk, which is no attempt; called under the lock."""
        self.health.raise_failure()
        if self.lost:
            self._forget_lost()

    def until(self, attempt: Callable[[], T], *, check: bool = True) -> T:
        """Make an attempt under the lock, again and again until it need not wait.

        With `check`, raise what failed behind the caller's back.
        """
        loans_until: float | None = None
        while True:
            with self.lock:
                if check:
                    self.health.raise_failure()
                if self._torn:
                    self._count_anew()
                if self.lost:
                    self._forget_lost()
                self._torn = True
                try:
                    result = attempt()
                except MustWait as wait:
                    for_loans, releases = wait.for_loans, self.waiting.releases
                    waiter = self.waiting.enter()
                else:
                    self._torn = False
                    return result
                self._torn = False
            if not for_loans:
                loans_until = None
            elif loans_until is None:
                loans_until = time.monotonic() + LOAN_WAIT_SECONDS
            elif time.monotonic() >= loans_until:
                raise self.memory.all_on_loan()
            self._wait(waiter, for_loans=for_loans)
            if self.waiting.releases != releases:
                loans_until = None

    def _wait(self, waiter: Any, *, for_loans: bool) -> None:
        """Return when something is over, or may be; then the attempt is made again."""
        self.refuse_reentry()
        try:
            if for_loans:
                self.waiting.note_blocked()
            self._writer.hurry()
            if not self.memory.before_eviction:
                waiter.acquire(timeout=_LOOK_SECONDS)
        finally:
            self.waiting.note_free()
            self.waiting.leave(waiter)

    def refuse_reentry(self) -> None:
        """Raise where this thread is in an attempt already: it would wait for itself."""
        if self.lock._is_owned():  # type: ignore[attr-defined]  # C, and what Condition asks
            raise ReentrantCallError(
                "a signal handler used the group in the middle of an operation on it: raise an "
                "exception in the handler, and use the group after it"
            )
