"""Threads that read and write chunks, several at a time.

A `concurrent.futures` executor would do, but for its `submit`, which waits in a Condition on the
caller's thread: an exception there would leave its lock held, and every group would wait for it
(see `_system.uninterrupted`). Here a caller only puts a complete job into a queue, and waits on a
lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from pmarray._system.uninterrupted import Task, start_thread

__all__ = ["THREADS", "on_a_thread", "on_threads", "start"]

THREADS = 8

_jobs: SimpleQueue[Task[None]] = SimpleQueue()
_slots: list[threading.Lock] = [threading.Lock() for _ in range(THREADS)]
"""Each is held by a thread that works."""


def start(task: Task[None]) -> None:
    """Have a thread run a task; one that was started and lost on the way may be started again."""
    _jobs.put(task)
    for slot in _slots:
        if not slot.locked():
            if not start_thread(_work, slot) and not any(one.locked() for one in _slots):
                _work_here()
            break


def on_threads(calls: Iterable[Callable[[], None]]) -> None:
    """Make all calls; return, or raise the first error, when all of them are over.

    Not sooner: a write that is still on its way would land on one that was made after the error.
    """
    tasks = [Task(call) for call in calls]
    for task in tasks:
        start(task)
    for task in tasks:
        task.wait()
    for task in tasks:
        task.result()


def on_a_thread(call: Callable[[], None]) -> None:
    """Make a call on a thread of ours, for its sake: what it uses may not bear an exception."""
    on_threads([call])


def _work(slot: threading.Lock) -> None:
    if not slot.acquire(blocking=False):
        return
    while True:
        _jobs.get().run()


def _work_here() -> None:
    """Do everything on the caller's thread, where there can be no other."""
    while True:
        try:
            task = _jobs.get_nowait()
        except Empty:
            return
        task.run()


def _forget_threads() -> None:
    global _jobs
    _jobs = SimpleQueue()  # the parent's
    _slots[:] = [threading.Lock() for _ in range(THREADS)]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
