"""The state of a group's handle, whose turn it is, and what must not be torn.

States, and the method that takes each arrow::

                     open                begin_writing                 begun
    (nothing) ------------------> READER --------------> WRITER ----------------> IN_TRANSACTION
                                  |    ^                 |    ^                         |
                          abandon |    | reopen  abandon |    +-------------------------+
                                  v    |                 v              ended
                          READER_OF_PARENT       WRITER_OF_PARENT

A writer becomes POISONED by an error after which memory and medium may differ; whoever finds out
notes it in the cache's `Health`. All of them become CLOSED by `close`.

An operation says, in a frame of its own::

    with session.turn():            # the lock: C, so that an exception cannot leave it held
        session.admit()             # or admit_writer(): raises where there may be none
        ... session.do(work) ...    # what must not be torn

On a thread that does such work for a caller, who has the lock, it says the same.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from enum import Enum
from typing import Any, Protocol, TypeVar

from pmarray._cache.cache import ChunkCache
from pmarray._cache.lull import Lull
from pmarray._commits.committer import Committer
from pmarray._commits.snapshot import Snapshot, group_gone
from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._group.kinds import Kind, kind_of
from pmarray._group.transaction import OpenTransaction
from pmarray._system import lifetime
from pmarray._system.dropped import await_closing, await_garbage, close_behind
from pmarray._system.uninterrupted import Task, await_abandoned
from pmarray._url import URL
from pmarray.backends._protocols import ChunkBackend, RegionBackend
from pmarray.backends._registry import open_backend
from pmarray.errors import (
    ClosedError,
    GroupLockedError,
    PMArrayError,
    ReadOnlyError,
    SnapshotExpiredError,
)
from pmarray.locks import RLock

__all__ = ["Keeper", "Session", "State"]

T = TypeVar("T")


class State(Enum):
    """What a handle may do; the drawing at the head of this module has the arrows."""

    READER = "reader"
    """Knows one commit, and has no lock."""
    WRITER = "writer"
    """The group's one writer."""
    IN_TRANSACTION = "in a transaction"
    """A writer whose changes belong together."""
    POISONED = "poisoned"
    """Can only be closed."""
    CLOSED = "closed"
    READER_OF_PARENT = "reader, before the process was forked"
    """Opened again by its first use."""
    WRITER_OF_PARENT = "writer, before the process was forked"
    """The parent's for good."""


_READER = State.READER
_WRITER = State.WRITER
_CLOSED = State.CLOSED
_NO_LOCK = nullcontext()


class Keeper(Protocol):
    """What the session has its group do where its state changes."""

    def adopt(self, metadata: GroupMetadata, /) -> None:
        """Move on to these metadata, and to what the backend has of their arrays now."""

    def begin_anew(self) -> None:
        """Forget what belongs to the process that this one was forked from."""

    def roll_back(self) -> None:
        """Take back the transaction that is open."""

    def flush(self) -> None:
        """Make everything durable."""

    def flush_for_good(self) -> None:
        """Make everything durable; there is no later chance."""

    def releases(self) -> Iterable[Callable[[], object]]:
        """Yield what gives up the handles of each array."""


class Session:
    """One handle of a group: its state, its turns, and what is open for it.

    Parameters
    ----------
    url
        Where the group is, without the name of an array.
    backend
        The code behind it; nothing is open yet.
    mode
        "r" changes nothing.
    cache_bytes
        The budget of the cache.
    """

    backend: RegionBackend | ChunkBackend
    kind: Kind
    committer: Committer
    cache: ChunkCache

    def __init__(
        self, url: URL, backend: RegionBackend | ChunkBackend, mode: str, cache_bytes: int
    ) -> None:
        self._parsed_url = url._replace(name=None)
        self.url = str(self._parsed_url)
        self.mode = mode
        self._cache_bytes = cache_bytes
        self._commit_window = 0.0
        self._state = _CLOSED  # until there is something to close
        # Held for a whole operation. The cache has a lock of its own for its books, which its
        # writer and ending loans need while an operation waits for memory.
        self.lock = RLock()
        self.pending: Task[Any] | None = None
        """What has been begun for a caller; nobody else is admitted before it is over."""
        self.unattended: deque[Callable[[], None]] = deque()
        """What somebody has to do under the lock, since whose work it was is no more."""
        self.transaction: OpenTransaction | None = None
        """The one that is open."""
        self.lull = Lull(lasts=False)
        """In which an operation that changes nothing may begin without a turn."""
        self.changed = False
        """Whether anything was written outside a transaction since the last flush."""
        self.changes = 0
        """How often something was changed, or was about to be."""
        self.snapshot: Snapshot | None = None
        """Through which a reader reads."""
        self._stamp_then = _stamp(backend)
        self._found = backend.load()
        fresh = Checkpoint(GroupMetadata(uuid=str(uuid.uuid4())))
        self._use(backend, self._found or fresh)

    def _use(self, backend: RegionBackend | ChunkBackend, checkpoint: Checkpoint) -> None:
        self.backend, self.kind = backend, kind_of(self.url, backend)
        self.committer = Committer(self.kind.can, checkpoint)
        self.cache = ChunkCache(self._cache_bytes, self.committer)
        self.cache.set_window(self._commit_window)

    def set_commit_window(self, seconds: float) -> None:
        """Let commits that nobody waits for wait so long for others; in a forked child, too."""
        self._commit_window = seconds
        self.cache.set_window(seconds)

    # -- states ---------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the handle may do now."""
        if self._state is not _WRITER:
            return self._state
        if self.cache.health.poison is not None:
            return State.POISONED
        return _WRITER if self.transaction is None else State.IN_TRANSACTION

    @property
    def is_writer(self) -> bool:
        """Whether the handle has the lock of the group."""
        return self._state is _WRITER

    @property
    def closed(self) -> bool:
        """Whether nothing can be done with the handle any more."""
        return self._state is _CLOSED or self._state is State.WRITER_OF_PARENT

    @property
    def holds_resources(self) -> bool:
        """Whether this process has to close it."""
        return self._state is _READER or self._state is _WRITER

    def open(self, keeper: Keeper) -> bool:
        """Begin as a reader of what is there; return whether there is a group."""
        self._keeper = keeper
        loaded, self._found = self._found, None
        if loaded is not None:
            self.follow(loaded, self._stamp_then)
        self._state = _READER
        lifetime.begin(self)
        return loaded is not None

    def begin_writing(self) -> None:
        """Take the group's one lock, recover, and move on to what the last writer has left."""
        if self.mode == "r":
            raise ReadOnlyError(
                f"{self.url} is open with mode='r', as all is that comes out of a pickle, such as "
                "in another process; open it with 'r+' or 'a' to write, in one process at a time"
            )
        if self._state is _WRITER:
            return
        await_closing()
        try:
            self.backend.lock()
        except GroupLockedError:
            # A handle that an interrupt has left behind is closing, or is garbage in a cycle.
            if not (await_abandoned() or await_garbage()):
                raise
            self.backend.lock()
        try:
            self._recover()
        except BaseException:
            self._state = _READER
            self.committer.close()
            self.backend.close()
            raise

    def _recover(self) -> None:
        loaded = self.backend.load()
        if loaded is not None:
            self.committer = Committer(self.kind.can, loaded)
            self.committer.recover()
            loaded = self.committer.saved
            self.kind.remove_orphans(loaded.metadata)
        self.cache.set_sink(self.committer)
        self._state = _WRITER
        if loaded is not None:
            self.follow(loaded)

    def begun(self, transaction: OpenTransaction) -> None:
        """A transaction is open."""
        self.transaction = transaction

    def ended(self) -> None:
        """It is not any more."""
        self.transaction = None

    def close(self) -> None:
        """Flush and give everything up, also where that raises; see `Group.close`."""
        try:
            with self.turn():
                self.await_pending()
                if self.holds_resources:
                    self.do(self._close)
                elif self._state is State.READER_OF_PARENT:
                    self._state = _CLOSED  # and no use opens it again
        except PMArrayError:
            raise  # by the closing, or it was refused
        except BaseException:
            if self.holds_resources:  # it may have come before anything was begun
                close_behind(self)
            raise

    def _close(self) -> None:
        try:
            if self.transaction is not None:
                self._keeper.roll_back()
            self._attend_to_all()
            if self.cache.health.poison is not None:
                if self.cache.health.unreported is not None:
                    raise self.cache.health.poison
            elif self._state is _WRITER:
                self._keeper.flush_for_good()
        finally:
            self._state = _CLOSED
            lifetime.end(self)
            with ExitStack() as releases:  # every one of them, also when one of them raises
                releases.callback(self.backend.close)
                if self.snapshot is not None:
                    releases.callback(self.snapshot.close)
                releases.callback(self.committer.close)
                for release in self._keeper.releases():
                    releases.callback(release)
                releases.callback(self.cache.close)

    def give_up(self) -> None:
        """Close a group that could not be opened in its mode, changing nothing."""
        self._end_lull()
        self._state = _CLOSED
        lifetime.end(self)
        self.committer.close()
        if self.snapshot is not None:
            self.snapshot.close()
        self.backend.close()

    def abandon(self) -> None:
        """In a forked child: the handle is the parent's, and stays so."""
        self._end_lull()
        if self._state is _WRITER:
            self._state = State.WRITER_OF_PARENT
        elif self._state is _READER:
            self._state = State.READER_OF_PARENT
        self.lock = RLock()  # another thread of the parent may have held it
        self.pending = None
        self.backend.abandon()

    def _reopen(self) -> None:
        """Open, at its first use, what the parent only read; what it wrote to stays its own."""
        if self._state is State.WRITER_OF_PARENT:
            raise ClosedError(
                f"{self.url} was opened before this process was forked, and is written to by the "
                f"process that it was forked from: {self.kind.for_a_child}"
            )
        if not self.kind.survives_fork:
            raise ClosedError(
                f"{self.url} was opened before this process was forked, and what reads it works "
                "in threads that a forked process does not have: use the start method 'spawn' or "
                "'forkserver' (multiprocessing_context= of a DataLoader)"
            )
        backend = open_backend(self._parsed_url, writable=self.mode != "r")
        try:
            loaded = backend.load()
            if loaded is None:
                raise group_gone(self.url)
            # Threads of the parent may have held the locks of what is there, so all of it is new.
            self._use(backend, loaded)
            self.snapshot = None
            self.changed = False
            self.pending, self.unattended = None, deque()
            self._keeper.begin_anew()
            self.follow(loaded)
        except BaseException:
            backend.close()
            raise
        self._state = _READER
        lifetime.begin(self)

    # -- turns ----------------------------------------------------------------------------------

    def turn(self) -> AbstractContextManager[Any]:
        """Return the lock, to be entered at once."""
        pending = self.pending
        if pending is not None and pending.thread == threading.get_ident():
            return _NO_LOCK  # the caller has it
        if self.cache.on_loan:
            self.cache.waiting.note_blocked()  # the one that has it may want memory of our loans
        return self.lock

    def admit(self) -> None:
        """Refuse an operation where there can be none; called with the lock."""
        if self._state is not _READER and self._state is not _WRITER and self._state is not _CLOSED:
            self._reopen()
        if self.cache.on_loan:
            self.cache.waiting.note_free()
        if self.pending is not None:
            self.await_pending()
        if self._state is _CLOSED:
            raise ClosedError(f"{self.url} is closed; open it again")
        if self.cache.health.poison is not None:
            self.cache.raise_failure()
        if self.unattended or (self.transaction is not None and self.transaction.torn):
            self._attend_to_torn()

    def admit_writer(self) -> None:
        """The same for an operation that changes something; becomes the group's one writer."""
        self.admit()
        if self._state is not _WRITER:
            self.do(self.begin_writing)
        self.note_change()

    def note_change(self) -> None:
        """Something was changed, or is about to be."""
        self.changes += 1
        if self.transaction is None:
            self.changed = True

    def do(self, work: Callable[[], T]) -> T:
        """Do what must not be torn, on a thread of ours; called with the lock, admitted."""
        pending = self.pending
        if pending is not None and pending.thread == threading.get_ident():
            return work()
        self.cache.refuse_reentry()
        self._end_lull()
        task = Task(work, self.over)
        self.pending = task
        if self.cache.on_loan:
            self.cache.waiting.note_blocked()
        result = task.run_for_caller()
        if self.cache.on_loan:
            self.cache.waiting.note_free()
        return result

    def begin_lull(self) -> Lull | None:
        """Return a time in which an operation need not be admitted; called with the lock, admitted.

        None where something is going on. `do`, and whatever changes the state, ends it; what a
        write ends is that of the cache (`ChunkCache.begin_lull`), which ends with this one.
        """
        if self.pending is not None or self.transaction is not None or self.unattended:
            return None
        if not self.lull.lasts:
            self.lull = Lull()
        return self.lull

    def _end_lull(self) -> None:
        self.lull.lasts = self.cache.lull.lasts = False

    def over(self) -> None:
        """What was begun for a caller is over."""
        self.pending = None

    def await_pending(self) -> None:
        """Wait for what was begun for a caller that was torn away."""
        while (pending := self.pending) is not None:
            if pending.thread == threading.get_ident():
                return  # it is what runs here
            # Over and still here: it was given up, and whoever did so was torn away in the middle.
            if pending.over or pending.give_up():
                self.pending = None
            else:
                self.cache.refuse_reentry()
                pending.wait()

    def _attend_to_torn(self) -> None:
        pending = self.pending
        if pending is None:
            self.do(self._attend_to_all)

    def _attend_to_all(self) -> None:
        self.roll_back_torn()
        while self.unattended:
            self.unattended[0]()
            self.unattended.popleft()

    def transaction_died(self, _: object) -> None:
        """The handle of an open transaction is no more: an exception has torn it away."""
        self.unattended.append(self.roll_back_torn)

    def roll_back_torn(self) -> None:
        """Take back a transaction that nobody will end."""
        if self.transaction is not None and self.transaction.torn:
            self._keeper.roll_back()

    def flush(self) -> None:
        """Make everything durable, as the commits of the group do."""
        self._keeper.flush()

    # -- what the backend has -------------------------------------------------------------------

    def recover(self) -> int:
        """Become the writer, which recovers; return the number of the last commit."""
        with self.turn():
            self.admit()
            self.do(self.begin_writing)
            return self.committer.saved.transaction

    def refresh(self) -> None:
        """Move a reader on to the last commit; see `Group.refresh`."""
        with self.turn():
            self.admit()
            if self._state is not _WRITER:
                self.do(self._refresh)

    def _refresh(self) -> None:
        while True:
            stamp = _stamp(self.backend)
            loaded = self.backend.load()
            try:
                if loaded is not None:
                    self.follow(loaded, stamp)
                elif self.snapshot is not None:
                    raise group_gone(self.url)
                return
            except SnapshotExpiredError:
                continue  # a writer has deleted one of the open arrays, which are not many

    def follow(self, loaded: Checkpoint, stamp: object = None) -> None:
        """Move on to what is there now, which another writer may have left."""
        self.changes += 1
        follows = self.snapshot is not None
        if self.snapshot is not None:
            self.snapshot.close()
            self.snapshot = None
        metadata = loaded.metadata
        if self._state is not _WRITER and self.backend.has_journal:
            self.snapshot = Snapshot(self.kind.can, loaded, stamp=stamp, thorough=not follows)
            metadata = self.snapshot.metadata
        self.cache.forget()
        self._keeper.adopt(metadata)


def _stamp(backend: RegionBackend | ChunkBackend) -> object:
    """Return what tells these metadata from later ones, to be noted before they are loaded."""
    try:
        return backend.stamp() if backend.has_journal else None
    except PMArrayError:
        return None  # there are none, or loading says what is the matter
