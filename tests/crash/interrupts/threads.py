"""Asynchronous exceptions: raised by one thread in another, which is not the main one."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.crash.interrupts.injected import Delivery, Injected, is_inside, where

__all__ = ["Threads"]

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]


class Threads:
    """Delivers so many microseconds after the beginning, and again after the first.

    Parameters
    ----------
    first, second
        Microseconds; 0 for no second one.
    exceptions
        What is raised, one after the other.
    """

    def __init__(self, first: int, second: int, exceptions: list[type[Injected]]) -> None:
        self.deliveries: list[Delivery] = []
        self._delays = [first, second] if second else [first]
        self._exceptions = exceptions
        self._running = threading.Lock()
        self._ended = False

    def run(self, operate: Callable[[], None], outcome: Any) -> None:
        """Run it in a thread of its own, until it has ended."""
        began = threading.Event()

        def target() -> None:
            try:
                began.set()
                operate()
                outcome.returned = True
            except Injected as error:
                outcome.error = type(error).__name__
            except BaseException as error:
                outcome.error = f"{type(error).__name__}: {error}"
                outcome.other = error
            finally:
                self._ended = True

        thread = threading.Thread(target=target, name="interrupted", daemon=True)
        thread.start()
        began.wait()
        assert thread.ident is not None
        for delay, exception in zip(self._delays, self._exceptions, strict=True):
            time.sleep(delay / 1e6)
            frame = sys._current_frames().get(thread.ident)
            if self._ended or not is_inside(frame):
                break
            self.deliveries.append(where(frame))
            del frame
            _raise_in(thread.ident, exception)
        thread.join()
