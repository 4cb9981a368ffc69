"""Whether bytes of a file are in the system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

__all__ = ["resident_share"]

_mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform == "linux" else None


def resident_share(fd: int, start: int, stop: int) -> float:
    """Return which share of the pages of a file from `start` to before `stop` is in memory.

    The system tells only who may write the file, or owns it; of others it says 1. Where it tells
    nobody, or the file ends before `start`, it is 0.
    """
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if _mincore is None or stop <= start:
        return 0.0
    try:
        # Shared, for reading: nothing is loaded through it.
        mapped = mmap.mmap(fd, stop - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
    except (OSError, ValueError):  # it is shorter, or cannot be mapped
        return 0.0
    pages = np.zeros(-(-(stop - first) // mmap.PAGESIZE), np.uint8)
    memory = np.frombuffer(mapped, np.uint8)
    found = _mincore(
        ctypes.c_void_p(memory.ctypes.data),
        ctypes.c_size_t(memory.nbytes),
        ctypes.c_void_p(pages.ctypes.data),
    )
    return float((pages & 1).mean()) if found == 0 else 0.0
