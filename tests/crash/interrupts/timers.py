"""Real signals at random instants: those of a timer, which also interrupt system calls."""

from __future__ import annotations

import signal
from types import FrameType

from tests.crash.interrupts.injected import Delivery, Handler, Injected

__all__ = ["Timers"]


class Timers:
    """Delivers so many microseconds after the beginning, and again after the first delivery.

    Parameters
    ----------
    first, second
        Microseconds; 0 for no second one.
    exceptions
        What the handler raises, one after the other.
    """

    def __init__(self, first: int, second: int, exceptions: list[type[Injected]]) -> None:
        self._first = first
        self._second = second
        self._handler = Handler(exceptions, self._deliver)

    @property
    def deliveries(self) -> list[Delivery]:
        """Where something was raised."""
        return self._handler.deliveries

    def arm(self) -> None:
        """Begin; called right before what is interrupted."""
        self._handler.install(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, max(self._first, 1) / 1e6)

    def disarm(self) -> None:
        """End; may be called again."""
        self._handler.live = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _deliver(self, frame: FrameType | None) -> None:
        if self._second:
            signal.setitimer(signal.ITIMER_REAL, self._second / 1e6)
            self._second = 0
