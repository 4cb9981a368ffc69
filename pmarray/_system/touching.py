"""Fresh memory is touched on a thread, ahead of who will fill it.

The kernel clears a page when it is first touched, which takes longer than to copy as much. Whoever
appends has that done behind the line before, and finds pages that are there.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pmarray._system.crew import Crew
from pmarray._system.populating import populate_write
from pmarray._system.threads import DaemonPool
from pmarray._system.uninterrupted import Task

__all__ = ["BEHIND", "touch", "touch_behind"]

BEHIND = DaemonPool(1, "pmarray-touching")
"""What is touched behind is touched here."""


def touch(address: int, nbytes: int) -> bool:
    """Have the pages of some memory made, without changing it; False where that cannot be.

    Parameters
    ----------
    address, nbytes
        Whole pages of one mapping, which stays where it is meanwhile. Other threads of Python run.
    """
    return populate_write(address, nbytes)


_crew = Crew(lambda: 1)
_PIECE_BYTES = 8 << 20
"""So much is touched by one call, which nothing can end."""


def touch_behind(memory: memoryview) -> None:
    """Have the pages of some memory made, whole ones of one mapping; returns at once.

    Whoever touches them meanwhile waits for no more than what he touches himself.
    """
    _crew.start(Task(partial(_touch_all, memory)))


def _touch_all(memory: memoryview) -> None:
    address = np.frombuffer(memory, np.uint8).ctypes.data
    for start in range(0, memory.nbytes, _PIECE_BYTES):
        if not touch(address + start, min(_PIECE_BYTES, memory.nbytes - start)):
            return
