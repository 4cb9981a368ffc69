"""Asynchronous exceptions: raised by one thread in another, which is not the main one."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable

from tests.crash.interrupts.injected import Delivery, Injected, is_inside, raised_at, where

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
        self.raised: BaseException | None = None
        """What the operation has raised."""
        # Until the end of the trial nobody else gets its identity, by which locks know their owner.
        self._dismissed = threading.Event()

    def run(self, operate: Callable[[], None]) -> bool:
        """Run it in a thread of its own; say whether it has returned."""
        began, ended = threading.Event(), threading.Event()
        returned = []

        def target() -> None:
            try:
                began.set()
                operate()
                returned.append(True)
            except BaseException as error:
                self.raised = error
            finally:
                ended.set()
            self._dismissed.wait()

        thread = threading.Thread(target=target, name="interrupted", daemon=True)
        thread.start()
        began.wait()
        assert thread.ident is not None
        for delay, exception in zip(self._delays, self._exceptions, strict=True):
            time.sleep(delay / 1e6)
            frame = sys._current_frames().get(thread.ident)
            try:
                if ended.is_set() or not is_inside(frame):
                    break
                self.deliveries.append(where(frame))
            except AttributeError:
                break  # the thread runs on, and what was a frame of it is something else by now
            finally:
                del frame
            _raise_in(thread.ident, exception)
        while thread.is_alive() and not ended.wait(0.1):
            pass
        # It was seen where it stood when the exception was on its way; now it is known where it
        # came.
        came = self.raised
        for i in reversed(range(len(self.deliveries))):
            if isinstance(came, Injected):
                self.deliveries[i] = raised_at(came)
                came = came.__context__
        return bool(returned)

    def dismiss(self) -> None:
        """Let the thread go."""
        self._dismissed.set()
