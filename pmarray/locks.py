"""Locks that an exception of a signal cannot leave held.

A signal handler may raise wherever the interpreter looks for signals: Ctrl-C does. ``with lock:``
has no such place between the taking of the lock and the block whose end gives it back, and that is
what everything here counts on. CPython 3.14 has one, after the call of ``__enter__``
(https://github.com/python/cpython/issues/148874): there the lock may be held for good, and whoever
wants it next waits for ever. So `Lock` and `RLock` are classes of our own on CPython 3.14, whose
``__enter__`` takes the lock in an instruction after which the interpreter does not look. Elsewhere
they are those of `threading`.

Examples
--------
>>> lock = Lock()
>>> with lock:
...     lock.locked()
True
>>> lock.locked()
False
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__all__ = ["Lock", "RLock"]

# Every call ends with a look for signals, also one of something written in C. The step of a loop
# does not, so that an iterator takes the lock. And a function in Python is entered with a look, and
# left without one.


class _Lock:
    """As `threading.Lock`, of which there can be no subclass."""

    __slots__ = ("__exit__", "__weakref__", "acquire", "locked", "release")

    def __init__(self) -> None:
        lock: Any = _thread.allocate_lock()
        self.acquire: Callable[..., bool] = lock.acquire
        self.release = lock.release
        self.locked = lock.locked
        self.__exit__ = lock.__exit__  # in C: one in Python would be entered with a look

    def __enter__(self) -> bool:
        for taken in iter(self.acquire, None):
            return taken  # a call here would be followed by a look
        raise AssertionError


class _RLock(_thread.RLock):  # type: ignore[misc]  # CPython lets it have subclasses
    """As `threading.RLock`."""

    __slots__ = ()

    def __enter__(self) -> bool:  # type: ignore[override]  # as it is called
        for taken in iter(self.acquire, None):
            return taken
        raise AssertionError


if TYPE_CHECKING or sys.version_info[:2] != (3, 14):
    from threading import Lock, RLock
else:
    Lock, RLock = _Lock, _RLock
