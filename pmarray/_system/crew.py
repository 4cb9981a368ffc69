"""Threads that do whatever they are handed, a limited number at a time, until the process ends.

A `concurrent.futures` executor would do, but for its `submit`, which waits in a Condition on the
caller's thread: an exception there would leave its lock held, and every group would wait for it
(see `_system.uninterrupted`). Here a caller only puts a complete task into a queue, and waits on a
lock.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from pmarray._config import MOST_REQUESTS, config
from pmarray._system.uninterrupted import Task, start_thread
from pmarray.locks import Lock

__all__ = ["Crew", "readers"]

_CREWS: weakref.WeakSet[Crew] = weakref.WeakSet()


class Crew:
    """Threads that are started as there is work for them.

    Parameters
    ----------
    limit
        Says how many may work at a time, `MOST_REQUESTS` at most; asked anew for each task.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._begin()
        _CREWS.add(self)

    def _begin(self) -> None:
        self._tasks: SimpleQueue[Task[Any]] = SimpleQueue()
        self._places = [Lock() for _ in range(MOST_REQUESTS)]
        """Each is held by a thread that works."""

    def start(self, task: Task[Any]) -> None:
        """Have a thread run a task; one that was started and lost on the way may be started again.

        Tasks do not wait for one another: all threads may be busy with those that wait.
        """
        self._tasks.put(task)
        for number, place in enumerate(self._places[: self._limit()]):
            if not place.locked():
                started = start_thread(self._work, number, place)
                if not started and not any(one.locked() for one in self._places):
                    self._work_here()
                break

    def _work(self, number: int, place: Lock) -> None:
        if not place.acquire(blocking=False):
            return
        tasks = self._tasks
        while True:
            tasks.get().run()
            if number >= self._limit():
                place.release()
                return

    def _work_here(self) -> None:
        """Do everything on the caller's thread, where there can be no other."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            task.run()


readers = Crew(lambda: config.read_requests)
"""Those that read local files, a request each at a time."""


def _begin_in_child() -> None:
    for crew in list(_CREWS):
        crew._begin()  # the threads and the tasks were the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
