"""How long to wait before something is said to hang: on a busy machine everything takes longer."""

from __future__ import annotations

import os

__all__ = ["patience"]

_NICENESS = 1.25
"""By how much a process gets less of a processor for each level of its niceness."""
_AT_MOST = 40.0


def patience(seconds: float) -> float:
    """Return what becomes of so many seconds on a machine of one's own."""
    busy = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return seconds * min(_AT_MOST, max(1.0, busy) * _NICENESS ** max(0, os.nice(0)))
