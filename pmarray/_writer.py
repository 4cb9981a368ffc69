"""The one thread of a group that writes to the medium, in the order things were handed over.

Adjacent pieces leave as one write, and transactions that wait in the queue are committed together.
The thread starts with the first piece.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pmarray._commits import Commit
from pmarray.errors import PoisonedError, WriteBehindError

if TYPE_CHECKING:
    from pmarray._cache import CachedChunk, ChunkSource

__all__ = ["MAX_WRITE_BYTES", "Sink", "Write", "Writer"]

MAX_WRITE_BYTES = 32 << 20
"""Adjacent pieces are merged up to this size."""
_MAX_PIECES = 512  # IOV_MAX is 1024 on Linux


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes ``[start, stop)`` of a chunk that have to reach the medium."""

    source: ChunkSource
    chunk: CachedChunk
    start: int
    stop: int
    number: int | None
    """The transaction they belong to, if any."""

    @property
    def address(self) -> int:
        """Where on the medium the bytes belong."""
        return self.source.address(self.chunk.index) + self.start

    @property
    def data(self) -> memoryview:
        """The bytes."""
        return self.chunk.buffer[self.start : self.stop]


class Sink(Protocol):
    """What the writer thread does with what it is given."""

    def store(self, writes: list[Write], /) -> None:
        """Write adjacent pieces in one go."""

    def commit(self, writes: list[list[Write]], commits: list[Commit], /) -> None:
        """Commit sealed transactions with what is left of their writes, grouped by adjacency."""


class Writer:
    """A queue of writes and commits, and the thread that carries them out in order.

    Parameters
    ----------
    changed
        Condition on the cache's lock; notified whenever something is over.
    landed
        Called under the lock for each write that is over, with whether it succeeded.
    sink
        Carries them out; called on the thread, without the lock.
    """

    def __init__(
        self,
        changed: threading.Condition,
        landed: Callable[[Write, bool], None],
        sink: Sink,
    ) -> None:
        self._changed = changed
        self._landed = landed
        self.sink = sink
        self._queue: deque[Write | Commit] = deque()
        self._commits_queued = 0
        self._unfinished = 0
        self._failure: BaseException | None = None
        self.poison: PoisonedError | None = None
        """Why nothing can be done any more, if so."""
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs on the thread."""
        return self._thread is threading.current_thread()

    @property
    def busy(self) -> bool:
        """Whether anything is queued or being written; read under the lock."""
        return self._unfinished > 0

    def put(self, item: Write | Commit) -> None:
        """Queue a write or a commit; called under the lock."""
        self._queue.append(item)
        self._unfinished += 1
        self._commits_queued += isinstance(item, Commit)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pmarray-writer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call; called under the lock.

        A poisoned writer raises at every call.
        """
        if self.poison is not None:
            self._failure = None
            raise self.poison
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, OSError):
            raise WriteBehindError(
                failure.errno,
                f"writing behind failed: {failure.strerror}; the data are still in memory: "
                "free space or repair the medium, then flush again",
                failure.filename,
            ) from failure
        raise failure

    @property
    def unreported(self) -> BaseException | None:
        """A failure that nobody has seen yet."""
        return self._failure

    def close(self) -> None:
        """Let the thread finish its queue and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                writes, commits = self._next_batch()
                failure: BaseException | None = self.poison
                if commits and failure is None:
                    failure = self._failure  # a piece of it that left early did not arrive
            if failure is None:
                try:
                    if commits:
                        self.sink.commit(_runs(writes), commits)
                    else:
                        self.sink.store(writes)
                except BaseException as error:
                    # Whatever it is belongs to the caller, not to this thread's stderr.
                    failure = error
            with self._changed:
                if failure is not None:
                    self._note(failure, commits)
                self._unfinished -= len(writes) + len(commits)
                for write in writes:
                    self._landed(write, failure is None)
                for commit in commits:
                    commit.error, commit.finished = failure, True
                self._changed.notify_all()

    def _note(self, failure: BaseException, commits: list[Commit]) -> None:
        if failure is self.poison:
            return
        if isinstance(failure, PoisonedError):
            self.poison = failure
        elif any(not commit.waited_for for commit in commits):
            # The caller has gone on from a state that never came to be.
            code = failure.errno if isinstance(failure, OSError) else None
            self.poison = PoisonedError(
                code,
                f"a pipelined commit failed ({failure}): it and its successors are lost; close "
                "the group and open it again, as of the last commit",
            )
            self.poison.__cause__ = failure
        if not commits or not all(commit.waited_for for commit in commits):
            self._failure = failure  # who waits for a commit is told by the commit

    def _next_batch(self) -> tuple[list[Write], list[Commit]]:
        """Take all up to the last commit in the queue; else what is adjacent at its front."""
        writes: list[Write] = []
        commits: list[Commit] = []
        nbytes = 0
        while self._queue:
            item = self._queue[0]
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
            self._queue.popleft()
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
