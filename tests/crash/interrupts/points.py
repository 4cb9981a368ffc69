"""Signals at a chosen place: counted, repeatable, and delivered by the interpreter itself.

CPython looks for signals at the entry of a function (RESUME), at a jump backward, and after a call
of something written in C; nowhere else. A tracer that raised would reach places that no signal
can, such as the instruction between the taking of a lock by ``with`` and the block. So this one
does not raise. It counts the places where a look may follow, and makes a signal pending at the
chosen one; the interpreter then finds it where it looks. What makes it pending has to run when the
tracer, being Python, has no look of its own before it any more: the end of a weak reference, as
the tracer's frame goes.
"""

from __future__ import annotations

import ctypes
import dis
import signal
import sys
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from tests.crash.interrupts.injected import (
    PROGRAMS,
    RIG,
    Delivery,
    Handler,
    Injected,
    in_library,
    is_inside,
)

__all__ = ["Points"]

_CALLS = frozenset(code for name, code in dis.opmap.items() if name.startswith("CALL"))
_LOOKING = _CALLS | {
    code
    for name, code in dis.opmap.items()
    if "JUMP_BACKWARD" in name and "NO_INTERRUPT" not in name
}

# Declared with one argument, which it does not look at: a weak reference passes itself.
_make_pending: Callable[[Any], None] = ctypes.PYFUNCTYPE(None, ctypes.py_object)(
    ("PyErr_SetInterrupt", ctypes.pythonapi)
)


class _Fuse:
    __slots__ = ("__weakref__",)


class Points:
    """Delivers at the `first`-th point, and again at the `second`-th one after that.

    Parameters
    ----------
    first
        From 1; 0 delivers nothing, and counts.
    second
        From 1; 0 for no second one.
    exceptions
        What the handler raises, one after the other.
    """

    def __init__(self, first: int, second: int, exceptions: list[type[Injected]]) -> None:
        self.count = 0
        """Points passed since the last delivery."""
        self.in_library: list[int] = []
        """The numbers of those that stand in the library, if nothing is to be delivered."""
        self._due = [number for number in (first, second) if number]
        self._only_counts = not self._due
        self._handler = Handler(exceptions, self._deliver)
        self._code: dict[CodeType, bytes] = {}
        self._calling: FrameType | None = None
        self._light: weakref.ref[_Fuse] | None = None

    @property
    def deliveries(self) -> list[Delivery]:
        """Where something was raised."""
        return self._handler.deliveries

    def arm(self) -> None:
        """Begin; called right before what is interrupted."""
        self._handler.install(signal.SIGINT)
        sys.settrace(self._enter)

    def disarm(self) -> None:
        """End; may be called again."""
        sys.settrace(None)
        self._handler.live = False
        self._calling = None

    # In both tracers the fuse is held by the frame alone, and gives the signal as that goes.

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The tracer of calls: says which frames are watched."""
        path = frame.f_code.co_filename
        if path.startswith("<frozen") or (path.startswith(RIG) and not path.endswith(PROGRAMS)):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        calling, self._calling = self._calling, None
        # Where a counted call has led straight here, both have this one look.
        if (calling is None or calling is not frame.f_back) and self._is_due(frame):
            _fuse = self._lit()
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The tracer of instructions."""
        if event == "opcode":
            code = frame.f_code
            text = self._code.get(code)
            if text is None:
                text = self._code[code] = code.co_code
            operation = text[frame.f_lasti]
            self._calling = None
            if operation in _LOOKING:
                if self._is_due(frame):
                    _fuse = self._lit()
                elif operation in _CALLS:
                    self._calling = frame
        elif event == "return":
            # What has called it may be in C, and was called itself: a look follows there.
            self._calling = None
            back = frame.f_back
            if back is not None and back.f_trace is not None:
                text = self._code.get(back.f_code)
                if text is not None and text[back.f_lasti] in _CALLS and self._is_due(back):
                    _fuse = self._lit()
        return self._step

    def _is_due(self, frame: FrameType) -> bool:
        self.count += 1
        if self._only_counts and in_library(frame):
            self.in_library.append(self.count)
        return bool(self._due) and self.count == self._due[0]

    def _lit(self) -> _Fuse:
        """A fuse, and no tracing until it has burnt: the tracer would be where it is found."""
        del self._due[0]
        sys.settrace(None)
        fuse = _Fuse()
        self._light = weakref.ref(fuse, _make_pending)
        return fuse

    def _deliver(self, frame: FrameType | None) -> None:
        """The signal is being handled: count again from here, in all that is being run."""
        self.count = 0
        self._calling = None
        if not self._due:
            return
        while frame is not None and is_inside(frame):
            path = frame.f_code.co_filename
            if not path.startswith("<frozen"):
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
                frame.f_trace = self._step
            frame = frame.f_back
        sys.settrace(self._enter)
