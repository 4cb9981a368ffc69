"""A thread that does what it is given, for a caller who may be interrupted at any instant.

Neither `concurrent.futures` nor `threading.Condition` will do: an exception that a signal raises
inside them leaves their locks held. What is used here is one C call each: ``SimpleQueue.put``, and
``acquire`` and ``release`` of a plain lock. So there is nothing to mend after an interrupt: a
request was put or it was not, and a wait that was torn away is simply begun again.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from pmarray.locks import Lock

__all__ = ["Worker"]

_LOOK_SECONDS = 0.1
_LOG = logging.getLogger("swag")

Request = Callable[[], object]

_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """A thread and its queue; the thread ends with `stop`, and when the worker is dropped.

    Parameters
    ----------
    name
        Of the thread.

    Examples
    --------
    >>> done = []
    >>> worker = Worker("example")
    >>> worker.put(lambda: done.append(1))
    >>> worker.settle()
    >>> done
    [1]
    >>> worker.stop()
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        # A daemon, which the interpreter does not wait for: see `_stop_all`.
        self._thread = threading.Thread(target=_run, args=(self._queue,), name=name, daemon=True)
        self._thread.start()
        _WORKERS.add(self)

    def put(self, request: Request) -> None:
        """Have something done. An `Exception` that it raises goes to the log, at level DEBUG."""
        self._queue.put(request)

    def settle(self) -> None:
        """Return when everything that was put before is done; at once after `stop`."""
        reached = Lock()
        reached.acquire()
        self._queue.put(reached.release)
        while not reached.acquire(timeout=_LOOK_SECONDS):
            if not self._thread.is_alive():
                return

    def alive(self) -> bool:
        """Whether the thread may still do something."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after what was put before. Stopping twice does nothing."""
        self._queue.put(None)
        self._thread.join()

    def __del__(self) -> None:
        if hasattr(self, "_queue"):
            self._queue.put(None)


def _attempt(request: Request) -> None:
    """Do something that its owner finds undone if it fails, tries again, and meets the error."""
    try:
        request()
    except Exception:
        _LOG.debug("work behind was left undone", exc_info=True)


def _run(queue: SimpleQueue[Request | None]) -> None:
    while (request := queue.get()) is not None:
        _attempt(request)
        del request  # what it holds must not live until the next one


def _stop_all() -> None:
    for worker in list(_WORKERS):
        worker.stop()


# Before pmarray, which is imported first, closes the groups that the requests read.
atexit.register(_stop_all)
