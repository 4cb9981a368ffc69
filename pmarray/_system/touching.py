"""Fresh memory is touched on a thread, ahead of who will fill it.

The kernel clears a page when it is first touched, which takes longer than to copy as much. Whoever
appends has that done behind the line before, and finds pages that are there.
"""

from __future__ import annotations

import ctypes
from functools import cache

from pmarray._system.threads import DaemonPool

__all__ = ["BEHIND", "touch"]

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, from Linux 5.14 on; Python has no name for it."""

BEHIND = DaemonPool(1, "pmarray-touching")
"""What is touched behind is touched here."""


def touch(address: int, nbytes: int) -> bool:
    """Have the pages of some memory made, without changing it; False where that cannot be.

    Parameters
    ----------
    address, nbytes
        Whole pages of one mapping, which stays where it is meanwhile. Other threads of Python run.
    """
    madvise = _madvise()
    return madvise is not None and madvise(address, nbytes, _POPULATE_WRITE) == 0


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    try:
        # `mmap.madvise` would keep all other threads of Python from running.
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_int
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
