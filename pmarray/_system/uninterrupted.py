"""Work that an exception in the caller's thread cannot tear.

A KeyboardInterrupt, or any exception that another thread or a signal handler raises in this one,
may arrive after every call that the caller makes. So what has to be done as a whole is done on a
thread of our own, which nobody aims at, while the caller waits on a lock. Only the wait can be
torn: the work goes on, and whoever comes next waits for it (`Session.admit`).

1. A task is run by whoever *claims* it first. One that was torn away before it reached a thread
   can be claimed by the next caller, and then never runs.
2. The caller waits on a raw lock. `threading.Condition`, `Event` and `Thread.start` are Python: an
   exception inside of them leaves their locks held.
3. The task runs in the caller's context (`contextvars`), so that `numpy.errstate` counts there.
4. A task whose caller was torn away is *abandoned*. Long ones look whether they are (`go_on`), and
   give up, as they would after any error. `await_abandoned` waits until all of them are over.

Threads are kept for the next task, and end with the process.
"""

from __future__ import annotations

import _thread
import contextvars
import os
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from pmarray.errors import ReentrantCallError
from pmarray.locks import Lock

__all__ = [
    "AbandonedError",
    "Task",
    "await_abandoned",
    "caller",
    "go_on",
    "start_thread",
    "uninterrupted",
]

T = TypeVar("T")


def start_thread(run: Callable[..., object], *args: object) -> bool:
    """Start a thread, in one step: `threading.Thread.start` waits in a Condition.

    False where there can be none: the system has no room for one, or the interpreter is ending. The
    work is then for the caller to do, whom an exception may tear.
    """
    start = _Start(run, args)
    try:
        _thread.start_new_thread(start, ())
    except RuntimeError:
        return False
    start.__class__ = _Started
    return True


class _Start:
    """What a new thread calls."""

    def __init__(self, run: Callable[..., object], args: tuple[object, ...]) -> None:
        self._run = run
        self._args = args
        self._begun = False

    def __call__(self) -> None:
        self._begun = True
        self._run(*self._args)


class _Started(_Start):
    """The same once a thread has it: another thread begins where that one dies before it has.

    Until it runs, CPython 3.11 counts a new thread under the number of the one that has started it:
    what `PyThreadState_SetAsyncExc` is to raise there comes here. It is a class of its own because
    an exception that arrives in `__del__` is lost, and who was torn away while he started a thread
    would go through it.
    """

    def __del__(self) -> None:
        if not self._begun:
            start_thread(self._run, *self._args)


_running: dict[int, Task[Any]] = {}
"""By thread of ours, the task that it runs."""


def caller() -> int:
    """Return the thread that wants what this one does: itself, unless it runs a task."""
    me = _thread.get_ident()
    task = _running.get(me)
    return me if task is None else task.caller


class Task(Generic[T]):
    """A call that is made once, on a thread of our own.

    Parameters
    ----------
    work
        What is called.
    finish
        Called on the same thread when `work` is over, before anybody is told.
    """

    def __init__(self, work: Callable[[], T], finish: Callable[[], object] = lambda: None) -> None:
        self._work: Callable[[], T] | None = work
        self._finish: Callable[[], object] = finish
        self._context = contextvars.copy_context()
        self._claim = Lock()
        self._done = Lock()
        self._done.acquire()
        self._given_up = False
        self._reached = False
        """Whether it has come to a thread; set before that claims it."""
        self._value: Any = None
        self.abandoned = False
        """Whether nobody waits for the outcome any more."""
        self.error: BaseException | None = None
        """What it raised, once it is over."""
        self.caller = caller()
        """The thread that waits for it."""
        self.thread: int | None = None
        """The one that runs it."""

    def give_up(self) -> bool:
        """Claim a task that has not begun, so that it never does; also where that was torn."""
        self._given_up = True  # before: this may be torn as well
        if not self.claim() and self._reached:
            return False
        # Its caller may still be there, and wait: a frame below the signal handler that does this.
        self.error = ReentrantCallError(
            "a signal handler used the group in the middle of this operation, which was given up: "
            "raise an exception in the handler, and use the group after it"
        )
        self._release()
        return True

    def _release(self) -> None:
        try:
            self._done.release()
        except RuntimeError:
            pass  # somebody else has done it

    def claim(self) -> bool:
        """Take the task for good; False where somebody has it already."""
        return self._claim.acquire(blocking=False)

    def start(self) -> None:
        """Hand the task to a thread."""
        try:
            inbox = _idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            inbox.put(self)
            if not start_thread(_serve, inbox):
                self.run()
        else:
            inbox.put(self)

    @property
    def over(self) -> bool:
        """Whether the outcome is there."""
        return not self._done.locked()

    def wait(self) -> None:
        """Return when a task that somebody runs, or will, is over."""
        with self._done:
            pass

    def result(self) -> T:
        """Return or raise what came of a task that is over."""
        if self.error is not None:
            raise self.error
        return cast(T, self._value)

    def run_for_caller(self) -> T:
        """Hand the task to a thread, wait, and return or raise what came of it."""
        try:
            self.start()
            self.wait()
        except BaseException:
            self.abandoned = True
            self._value = None  # which this exception would keep alive
            raise
        return self.result()

    def run(self) -> None:
        """Do the work, unless somebody else has claimed it."""
        self._reached = True
        if not self.claim():
            if self._given_up:
                self._release()  # who did so may have been torn away in the middle
            return
        assert self._work is not None
        self.thread = _thread.get_ident()
        outer = _running.get(self.thread)  # one more where the caller has to do the work himself
        _running[self.thread] = self
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:
            self.error = error  # whatever it is belongs to the caller
        self._work = None  # what it refers to may be large
        if self.abandoned:
            self._value = None
        if outer is None:
            del _running[self.thread]
        else:
            _running[self.thread] = outer
        self.thread = None
        self._finish()
        # Before the caller goes on, who may count on being the last who has what was worked on.
        del self._finish
        self._done.release()


class AbandonedError(BaseException):
    """Nobody wants what a task does; like KeyboardInterrupt, it is no `Exception`."""


def go_on() -> None:
    """Raise `AbandonedError` in a task whose caller was torn away; for long ones to ask."""
    task = _running.get(_thread.get_ident())
    if task is not None and task.abandoned:
        raise AbandonedError


def await_abandoned() -> bool:
    """Wait until all abandoned tasks are over; return whether there were any."""
    me = _thread.get_ident()
    abandoned = [task for thread, task in list(_running.items()) if thread != me and task.abandoned]
    for task in abandoned:
        task.wait()
    return bool(abandoned)


def uninterrupted(work: Callable[[], T]) -> T:
    """Return what `work` returns; an exception that arrives meanwhile tears only the wait.

    It is raised when the work is over, or has given up (`go_on`). A second one is raised at once.
    """
    if _thread.get_ident() in _running:
        return work()
    task = Task(work)
    try:
        return task.run_for_caller()
    except BaseException:
        if task.abandoned and not task.give_up():
            task.wait()
        raise


_idle: list[SimpleQueue[Task[Any]]] = []
"""The inboxes of threads that have nothing to do."""


def _serve(inbox: SimpleQueue[Task[Any]]) -> None:
    while True:
        inbox.get().run()  # without a name: what it refers to must not live until the next one
        _idle.append(inbox)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # the threads are the parent's
