"""Threads that work until the process has ended.

Those of `concurrent.futures` stop taking work as soon as the main thread is through, while other
threads may still write, and before `atexit` calls what closes groups. What a pool of this module
is given then is done, too: its threads are daemons, which the interpreter does not wait for, so
whoever counts on the outcome waits for the future.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from pmarray.locks import Lock

__all__ = ["DaemonPool"]

P = ParamSpec("P")
T = TypeVar("T")
Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_POOLS: weakref.WeakSet[DaemonPool] = weakref.WeakSet()


class DaemonPool(ThreadPoolExecutor):
    """An executor whose threads are daemons; a `ThreadPoolExecutor` since `asyncio` asks for one.

    Parameters
    ----------
    max_workers
        How many threads it starts at most, each when there is work for it.
    name
        Of the threads.
    """

    def __init__(self, max_workers: int, name: str) -> None:
        super().__init__(max_workers, thread_name_prefix=name)
        self._most = max_workers
        self._name = name
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._books = Lock()
        self._unfinished = 0
        self._workers = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((future, fn, args, kwargs))
        with self._books:
            self._unfinished += 1
            if self._unfinished <= self._workers or self._workers == self._most:
                return future
            self._workers += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # so late that no thread can be started
            with self._books:
                self._workers -= 1
                alone = not self._workers
            while alone and self._do_one(block=False):
                pass
        return future

    def _work(self) -> None:
        while True:
            self._do_one(block=True)

    def _do_one(self, *, block: bool) -> bool:
        try:
            future, function, args, options = self._tasks.get(block)
        except Empty:
            return False
        if future.set_running_or_notify_cancel():
            try:
                result = function(*args, **options)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        with self._books:
            self._unfinished -= 1
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the threads go with the process."""


def _begin_in_child() -> None:
    for pool in list(_POOLS):
        pool._begin()  # the threads and the work were the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
