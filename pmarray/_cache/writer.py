"""The one thread of a group that writes to the medium, in the order things were handed over.

Adjacent pieces leave as one write, and transactions that wait in the queue are committed together.
The thread starts with the first piece.

Where there is a *window*, a commit that nobody waits for waits for company itself: until the window
is over, enough bytes are queued, or somebody waits for the thread, whatever for. A window only
decides how many commits are merged; it holds up nothing that anybody waits for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pmarray._cache.copies import without_superseded
from pmarray._cache.health import Health
from pmarray._cache.source import Commit, Sink, Write
from pmarray._system.uninterrupted import start_thread
from pmarray.errors import PMArrayError, PoisonedError
from pmarray.locks import Lock

__all__ = ["MAX_WRITE_BYTES", "Writer"]

MAX_WRITE_BYTES = 32 << 20
"""Adjacent pieces are merged up to this size."""
_MAX_PIECES = 512  # IOV_MAX is 1024 on Linux


class Writer:
    """A queue of writes and commits, and the thread that carries them out in order.

    Callers wait for it on raw locks of their own (`ChunkCache.until`), and it waits for work on
    `_wake`: an exception in a caller can leave neither in a state that stops the other. What
    was queued and not told to the thread is told by whoever waits next.

    Parameters
    ----------
    lock
        The cache's; the queue is changed under it.
    health
        Is told what fails.
    taken
        Called under the lock for each write that leaves the queue; returns what is written.
    landed
        Called under the lock for each write that is over, with whether it succeeded.
    signal
        Called, without the lock, whenever something is over.
    sink
        Carries them out; called on the thread, without the lock.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        health: Health,
        taken: Callable[[Write], Write],
        landed: Callable[[Write, bool], None],
        signal: Callable[[], None],
        sink: Sink,
    ) -> None:
        self._lock = lock
        self._health = health
        self._taken = taken
        self._landed = landed
        self._signal = signal
        self.sink = sink
        self.queue: deque[Write | Commit] = deque()
        """What is handed over; one `append` of a complete item does it."""
        self._in_hand = 0
        self._commits_queued = 0
        self.window_seconds = 0.0
        """How long a commit that nobody waits for may wait for others."""
        self.window_bytes = 0
        """Not while so many bytes are queued."""
        self._opened = 0.0
        """When the first of the commits in the queue was put there."""
        self._hurried = False
        """Whether somebody waits."""
        self._wake = Lock()
        self._running = Lock()
        """Held by the thread as long as it lives."""
        self._closing = False

    @property
    def busy(self) -> bool:
        """Whether anything is queued or being written; read under the lock."""
        return bool(self.queue) or self._in_hand > 0

    def put_commit(self, commit: Commit) -> None:
        """Queue a commit behind what is there; called under the lock."""
        if not self._commits_queued:
            self._opened = time.monotonic()
        if commit.waited_for:
            self._hurried = True
        self._commits_queued += 1
        self.queue.append(commit)
        self.kick()

    def hurry(self) -> None:
        """Tell the thread that somebody waits: no commit in the queue waits for company."""
        self._hurried = True
        self.kick()

    def kick(self) -> None:
        """Tell the thread that there is something to do; starts it where there is none."""
        if not self._running.locked() and not start_thread(self._run):
            self._carry_out_here()
            return
        try:
            self._wake.release()
        except RuntimeError:
            pass  # it has been told

    def close(self) -> None:
        """Let the thread finish its queue and end."""
        self._closing = True
        while self._running.locked() or self.queue:
            self.kick()
            with self._running:
                pass

    def _run(self) -> None:
        if not self._running.acquire(blocking=False):
            return  # two callers have started one
        try:
            while self._carry_out():
                pass
        finally:
            self._running.release()

    def _carry_out_here(self) -> None:
        """Do everything on the caller's thread, where there can be no other."""
        if not self._running.acquire(blocking=False):
            return  # it is at it already
        try:
            self._hurried = True
            while self.queue:
                self._carry_out()
        finally:
            self._running.release()

    def _carry_out(self) -> bool:
        """Do what comes next, or wait; return whether there may be more."""
        with self._lock:
            window = self._window_left()
            writes, commits = ([], []) if window > 0 else self._next_batch()
            self._in_hand = len(writes) + len(commits)
            writes = [self._taken(write) for write in writes]
            failure: BaseException | None = self._health.poison
            if commits and failure is None:
                failure = self._health.unreported  # a piece of it that left early did not arrive
            idle = not self._in_hand
            if idle and self._closing:
                return False
        if idle:
            self._wake.acquire(timeout=window if window > 0 else -1)
            return True
        if failure is None:
            try:
                if commits:
                    self.sink.commit(_runs(without_superseded(writes)), commits)
                else:
                    self.sink.store(writes)
            except BaseException as error:
                # Whatever it is belongs to the caller, not to this thread's stderr.
                failure = error
        with self._lock:
            if failure is not None:
                self._note(failure, commits)
            self._in_hand = 0
            for write in writes:
                self._landed(write, failure is None)
            for commit in commits:
                commit.finish(failure)
        self._signal()
        return True

    def _note(self, failure: BaseException, commits: list[Commit]) -> None:
        if failure is self._health.poison:
            return
        if isinstance(failure, PoisonedError):
            self._health.poison = failure
        elif not isinstance(failure, OSError | PMArrayError):
            # Nobody knows how far it has come.
            self._health.poison_by(failure, f"the writer thread failed ({failure!r})")
        elif any(not commit.waited_for for commit in commits):
            # The caller has gone on from a state that never came to be.
            self._health.poison_by(
                failure, f"a pipelined commit failed ({failure}): it and its successors are lost"
            )
        if not commits or not all(commit.waited_for for commit in commits):
            self._health.unreported = failure  # who waits for a commit is told by the commit

    def _window_left(self) -> float:
        """Seconds for which the commits in the queue still wait for others."""
        if not self._commits_queued:
            self._hurried = False  # what was waited for is written
            return 0.0
        if self._hurried or self._closing or not self.window_seconds:
            return 0.0
        nbytes = sum(item.stop - item.start for item in self.queue if isinstance(item, Write))
        if nbytes >= self.window_bytes:
            return 0.0
        return self._opened + self.window_seconds - time.monotonic()

    def _next_batch(self) -> tuple[list[Write], list[Commit]]:
        """Take all up to the last commit in the queue; else what is adjacent at its front.

        What a commit forgets may be overwritten without an image once it is durable, and so no
        other is merged with it.
        """
        writes: list[Write] = []
        commits: list[Commit] = []
        nbytes = 0
        while self.queue:
            item = self.queue[0]
            if isinstance(item, Commit):
                commits.append(item)
                self._commits_queued -= 1
            else:
                if not self._commits_queued and (
                    commits
                    or len(writes) == _MAX_PIECES
                    or (writes and not _adjacent(writes[-1], item))
                    or (writes and nbytes + item.stop - item.start > MAX_WRITE_BYTES)
                ):
                    break
                writes.append(item)
                nbytes += item.stop - item.start
            self.queue.popleft()
            if commits and commits[-1].forgets:
                break
        return writes, commits


def _adjacent(first: Write, second: Write) -> bool:
    return (
        first.source is second.source
        and first.number == second.number
        and first.address + first.stop - first.start == second.address
    )


def _runs(writes: list[Write]) -> list[list[Write]]:
    """Group writes that can leave as one."""
    runs: list[list[Write]] = []
    nbytes = 0
    for write in writes:
        size = write.stop - write.start
        if (
            runs
            and len(runs[-1]) < _MAX_PIECES
            and nbytes + size <= MAX_WRITE_BYTES
            and runs[-1][-1].source is write.source
            and runs[-1][-1].address + runs[-1][-1].stop - runs[-1][-1].start == write.address
        ):
            runs[-1].append(write)
            nbytes += size
        else:
            runs.append([write])
            nbytes = size
    return runs
