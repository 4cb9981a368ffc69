"""The one thread of a group that writes chunks to the medium, in the order they were handed over.

Adjacent pieces leave as one write. The thread starts with the first piece.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmarray.errors import PMArrayError, PoisonedError, WriteBehindError

if TYPE_CHECKING:
    from pmarray._cache import CachedChunk, ChunkSource

__all__ = ["MAX_WRITE_BYTES", "Write", "Writer"]

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

    @property
    def address(self) -> int:
        """Where on the medium the bytes belong."""
        return self.source.address(self.chunk.index) + self.start

    @property
    def data(self) -> memoryview:
        """The bytes."""
        return self.chunk.buffer[self.start : self.stop]


class Writer:
    """A queue of writes and the thread that carries them out.

    Parameters
    ----------
    changed
        Condition on the group's lock; notified whenever a write is over.
    landed
        Called under the lock for each write that is over, with whether it succeeded.
    """

    def __init__(self, changed: threading.Condition, landed: Callable[[Write, bool], None]) -> None:
        self._changed = changed
        self._landed = landed
        self._queue: deque[Write] = deque()
        self._inflight = 0
        self._failure: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is queued or being written; read under the lock."""
        return self._inflight > 0

    def put(self, write: Write) -> None:
        """Queue a write; called under the lock."""
        self._queue.append(write)
        self._inflight += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pmarray-writer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raise, once, what went wrong since the last call; called under the lock."""
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, PMArrayError):
            raise failure
        if isinstance(failure, OSError):
            raise WriteBehindError(
                failure.errno,
                f"writing behind failed: {failure.strerror}; the data are still in memory: "
                "free space or repair the medium, then flush again",
                failure.filename,
            ) from failure
        raise PoisonedError(None, f"the writer thread failed: {failure!r}") from failure

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
                batch = self._next_batch()
            failure: BaseException | None = None
            try:
                batch[0].source.store(batch)
            except BaseException as error:  # noqa: BLE001
                # Whatever it is belongs to the caller, not to this thread's stderr.
                failure = error
            with self._changed:
                if failure is not None:
                    self._failure = failure
                self._inflight -= len(batch)
                for write in batch:
                    self._landed(write, failure is None)
                self._changed.notify_all()

    def _next_batch(self) -> list[Write]:
        """Take the front of the queue and what follows it directly on the medium."""
        batch = [self._queue.popleft()]
        nbytes = batch[0].stop - batch[0].start
        while self._queue and len(batch) < _MAX_PIECES:
            last, following = batch[-1], self._queue[0]
            size = following.stop - following.start
            adjacent = (
                following.source is last.source
                and following.address == last.address + last.stop - last.start
            )
            if not adjacent or nbytes + size > MAX_WRITE_BYTES:
                break
            batch.append(self._queue.popleft())
            nbytes += size
        return batch
