"""Threads that read and write chunks, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pmarray._system.crew import Crew
from pmarray._system.uninterrupted import Task

__all__ = ["THREADS", "on_a_thread", "on_threads", "start"]

THREADS = 8

_crew = Crew(lambda: THREADS)
start = _crew.start


def on_threads(calls: Iterable[Callable[[], object]]) -> None:
    """Make all calls; return, or raise the first error, when all of them are over.

    Not sooner: a write that is still on its way would land on one that was made after the error. If
    the wait is torn, what has not begun never does.
    """
    tasks = [Task(call) for call in calls]
    try:
        for task in tasks:
            start(task)
        for task in tasks:
            task.wait()
    except BaseException:
        for task in tasks:
            task.give_up()  # thousands might follow, before anybody else's
        raise
    for task in tasks:
        task.result()


def on_a_thread(call: Callable[[], object]) -> None:
    """Make a call on a thread of ours, for its sake: what it uses may not bear an exception."""
    on_threads([call])
