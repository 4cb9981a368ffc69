"""Groups that nobody has any more and nobody has closed, or that a caller was closing.

A destructor runs on any thread, in the middle of anything: on the writer of a group or an event
loop, which closing waits for, or under a lock that closing wants. So another thread closes, and
only the main thread waits for it, if it runs no event loop, and not for ever. Who opens a group
or becomes its writer waits as well, for one that was dropped may still have the lock.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from queue import SimpleQueue
from typing import Protocol

from pmarray._system.uninterrupted import start_thread
from pmarray.locks import Lock

__all__ = ["await_closing", "await_garbage", "close_behind", "close_later"]

_PATIENCE_S = 60.0


class _Group(Protocol):
    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _Dropped:
    """A group on its way to be closed, once, however often it comes there."""

    def __init__(self, group: _Group, *, waited_for: bool) -> None:
        self.group = group
        self.waited_for = waited_for
        self.is_queued = False
        """Whether a thread is sure to come to it: an exception may have come before."""
        self._claim = Lock()
        # A plain lock: an interrupt in the wait for an Event could leave that held.
        self._open = Lock()
        self._open.acquire()
        self.error: BaseException | None = None

    def wait(self) -> bool:
        """Wait, not for ever, until it is closed; return whether it is."""
        closed = self._open.acquire(timeout=_PATIENCE_S)
        if closed:
            self._open.release()
        return closed

    def close(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # it was queued twice
        try:
            self.group.close()
        except BaseException as error:
            self.error = error
            if not self.waited_for:
                thread = threading.current_thread()
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
                )
        finally:
            _dropped.remove(self)
            self._open.release()


_dropped: list[_Dropped] = []
"""What is in the queue, and what is being closed."""
# A destructor may interrupt its `put`, which no other queue allows.
_queue: SimpleQueue[_Dropped] = SimpleQueue()
_closer: list[int] = []
"""The thread that closes, once there is one."""


def close_later(group: _Group) -> None:
    """Close a group; called by its destructor. Raises only where it has waited."""
    on_main = threading.current_thread() is threading.main_thread()
    dropped = _Dropped(group, waited_for=on_main and not _runs_a_loop())
    _hand_over(dropped)
    if dropped.waited_for and dropped.wait() and dropped.error is not None:
        raise dropped.error


def close_behind(group: _Group) -> None:
    """Close a group whose caller was torn away before the closing began, and wait for nothing."""
    _hand_over(_Dropped(group, waited_for=False))


def _hand_over(dropped: _Dropped) -> None:
    _dropped.append(dropped)
    _enqueue(dropped)


def _enqueue(dropped: _Dropped) -> None:
    _queue.put(dropped)
    if not _closer and not start_thread(_work):  # so late that no thread can be started
        _queue.get().close()
    dropped.is_queued = True


def await_closing() -> bool:
    """Return when groups that were dropped before have been closed; say whether there were any."""
    if not _dropped or threading.get_ident() in _closer:
        return False
    for dropped in _dropped.copy():  # the other thread takes them out
        if not dropped.is_queued:
            _enqueue(dropped)
        dropped.wait()
    return True


def await_garbage() -> bool:
    """The same for groups that nobody can reach, and of which the interpreter does not know yet."""
    gc.collect()
    return await_closing()


def _runs_a_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # who runs a loop has imported it
    return asyncio is not None and asyncio._get_running_loop() is not None


def _work() -> None:
    _closer.append(threading.get_ident())  # a second one does no harm
    while True:
        try:
            _queue.get().close()  # without a name, which would keep the group until the next one
        except BaseException:  # of somebody's `threading.excepthook`: the next group is waited for
            sys.excepthook(*sys.exc_info())


def _begin_in_child() -> None:
    global _queue
    for dropped in _dropped:
        dropped.group.abandon()
    _dropped.clear()
    _queue = SimpleQueue()
    _closer.clear()  # the thread is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
